"""Meta-training: problem → unroll → meta-gradient."""
