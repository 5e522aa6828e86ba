"""General: the distribution of problems for a rule that is to be good on any model."""

from l2l_tf.problems.general_problems.mixture import general

__all__ = ["general"]
