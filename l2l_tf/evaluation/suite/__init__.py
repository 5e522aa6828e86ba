"""The general suite: rules on problems unlike their meta-training's, against tuned baselines."""
