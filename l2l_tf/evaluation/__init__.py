"""Honest comparison: tuned baselines, learning curves, tables and plots."""
