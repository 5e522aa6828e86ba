"""The engine: one step of a rule on a model's coordinates, and many of them in an unroll."""
