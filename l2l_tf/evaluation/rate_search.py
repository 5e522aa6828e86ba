"""Rate search: the best of a grid of learning rates, which is never at the grid's edge."""

import numpy as np


def coarse_to_fine(score, start, stride, limit):
    """The exponent of the lowest score: first in strides, then each neighbour of the best.

    Args:
        score: function of an exponent, an int, to a float; not finite where training diverges. It
            is called once for each.
        start: exponents to begin with, `stride` apart.
        stride: power of 2.
        limit: exponents beyond ±limit are none.

    Returns:
        ``(best, scores)``: both neighbours of the best are among the scores, a dict of exponent →
        score in order. The best is None if there is none within the limit, or all diverge.
    """
    scores = {}

    def of(exponent):
        if exponent not in scores:
            scores[exponent] = score(exponent)
        return scores[exponent] if np.isfinite(scores[exponent]) else np.inf

    for exponent in start:
        of(exponent)
    while stride >= 1:
        best = min(scores, key=of)
        if abs(best) > limit or of(best) == np.inf:
            return None, dict(sorted(scores.items()))
        neighbours = [best - stride, best + stride]
        if all(n in scores for n in neighbours):
            stride //= 2
        for n in neighbours:
            of(n)
    return min(scores, key=of), dict(sorted(scores.items()))
