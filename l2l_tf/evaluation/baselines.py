"""Baselines: hand-designed optimizers with learning rates tuned for the task at hand."""

import difflib
import functools
from typing import NamedTuple

import numpy as np

from l2l_tf import arguments
from l2l_tf.evaluation.rate_search import coarse_to_fine
from l2l_tf.update_rules import hand_designed

BASELINES = {
    "sgd": hand_designed.SGD,
    "momentum": hand_designed.Momentum,
    "nag": functools.partial(hand_designed.Momentum, nesterov=True),
    "rmsprop": hand_designed.RMSprop,
    "adam": hand_designed.Adam,
}
DEFAULT = ("adam", "rmsprop", "sgd", "nag")

# Learning rates are powers of RATIO: first in strides of COARSE_STRIDE around 0.1, then each.
RATIO = 1.5
COARSE_STRIDE = 4
COARSE_EXPONENTS = range(-12, 9, COARSE_STRIDE)
EXPONENT_LIMIT = 48  # 1.5^48 is about 3e8: an optimum beyond is none


class Tuned(NamedTuple):
    """A baseline at its best learning rate."""

    rule: hand_designed.HandDesignedRule
    learning_rate: float
    grid: list  # [[learning rate, score], ...], in order; None as score where it diverged


def check_names(names):
    """Raises an error that names the nearest baseline if one is unknown."""
    arguments.instance("baselines", names, (list, tuple), f"a list of some of {tuple(BASELINES)}")
    for name in names:
        if arguments.text("baselines", name) not in BASELINES:
            near = difflib.get_close_matches(name, BASELINES, n=1)
            raise ValueError(
                f"Unknown baseline {name!r}."
                + (f" Did you mean {near[0]!r}?" if near else "")
                + f" Expected some of {', '.join(BASELINES)}."
            )


def tune(name, arena, num_seeds, progress=lambda: None):
    """The baseline with the learning rate of the lowest mean loss over the arena's horizon.

    Coarse to fine, and as far as it takes: the returned grid has the factor 1.5 on both sides of
    the best rate, which is never at its edge. Seeds are those of tuning, not those of reports.

    Args:
        name: a key of ``BASELINES``.
        arena: ``Arena``.
        num_seeds: optimizees to average over.
        progress: called after each learning rate.

    Returns:
        ``Tuned``.

    Raises:
        RuntimeError: no learning rate in 1.5^±48 has a best one inside, or all diverge.
    """
    dtype = "float64" if arena.problem.dtype == "float64" else "float32"
    rule = BASELINES[name](learning_rate=0.1, dtype=dtype)
    runner = arena.runner(rule)

    def score(exponent):
        rule.learning_rate.assign(_rate(exponent))
        mean = float(np.mean(arena.losses(runner, "tune", num_seeds)))
        progress()
        return mean

    best, scores = coarse_to_fine(score, COARSE_EXPONENTS, COARSE_STRIDE, EXPONENT_LIMIT)
    if best is None:
        raise RuntimeError(
            f"No best learning rate found for {name!r} on '{arena.problem.name}': tried "
            f"{_rate(min(scores)):.3g} to {_rate(max(scores)):.3g}. Expected: a finite loss "
            "that rises again towards both ends."
        )
    rule.learning_rate.assign(_rate(best))
    grid = [[_rate(e), s if np.isfinite(s) else None] for e, s in scores.items()]
    return Tuned(rule, _rate(best), grid)


def _rate(exponent):
    return float(f"{0.1 * RATIO**exponent:.4g}")
