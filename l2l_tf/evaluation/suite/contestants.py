"""Contestants: the hand-designed optimizers of the suite, and how the rates of some are tuned."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from l2l_tf.evaluation.rate_search import coarse_to_fine
from l2l_tf.update_rules import Adam, AdamW, Momentum, Prodigy, RMSprop, ScheduleFreeAdamW

# Learning rates are 0.001 times powers of 2: first every second one, then the neighbours of the
# best.
UNIT, STRIDE, LIMIT = 0.001, 2, 30
NUM_TUNING_SEEDS, NUM_SEEDS = 2, 3


class Contestant(NamedTuple):
    """A hand-designed optimizer of the suite.

    `make` is a function of the horizon to an update rule; `start` the exponents of the rates to
    tune first, or None for a rule that is taken as it comes.
    """

    make: Callable
    start: tuple | None
    what: str


def _always(make, **kwargs):
    return lambda num_steps: make(**kwargs)


_ADAM, _RMSPROP, _MOMENTUM = (0, 2, 4, 6), (-1, 1, 3, 5), (2, 4, 6, 8)
CONTESTANTS = {
    "adam": Contestant(_always(Adam), _ADAM, "Adam, tuned"),
    "adam_cosine": Contestant(
        lambda num_steps: AdamW(weight_decay=0.0, num_steps=num_steps),
        _ADAM,
        "Adam with cosine decay to 0 over the horizon, tuned",
    ),
    "adam_default": Contestant(_always(Adam), None, "Adam at Keras' default, 0.001"),
    "adamw": Contestant(_always(AdamW, weight_decay=0.01), _ADAM, "AdamW, decay 0.01, tuned"),
    "nag": Contestant(_always(Momentum, nesterov=True), _MOMENTUM, "Nesterov momentum, tuned"),
    "rmsprop": Contestant(_always(RMSprop), _RMSPROP, "RMSprop, tuned"),
    "prodigy": Contestant(_always(Prodigy), None, "Prodigy as published"),
    "prodigy_cosine": Contestant(
        lambda num_steps: Prodigy(num_steps=num_steps), None, "Prodigy with cosine decay"
    ),
    "schedule_free": Contestant(
        _always(ScheduleFreeAdamW), None, "Schedule-Free AdamW at its default, 0.0025"
    ),
    "schedule_free_tuned": Contestant(
        lambda num_steps: ScheduleFreeAdamW(warmup_steps=num_steps // 20),
        _ADAM,
        "Schedule-Free AdamW with warm-up over a twentieth of the horizon, tuned",
    ),
}


def tune(rule, contest, start):
    """Sets the learning rate of a rule to that of the lowest final loss on tuning seeds.

    Args:
        rule: whose ``learning_rate`` is a variable.
        contest: ``Contest``.
        start: exponents of 2 to begin with.

    Returns:
        The grid, ``[[learning rate, mean final loss], …]``, None as loss where one is not finite.
        Both neighbours of the best rate, by a factor of 2, are in it.

    Raises:
        RuntimeError: the best is still at the edge at 0.001 · 2^±30, or all from there on diverge.
    """
    runner, start = contest.runner(rule), list(start)

    @functools.cache
    def score(exponent):
        rule.learning_rate.assign(UNIT * 2.0**exponent)
        return contest.tuning_loss(runner, NUM_TUNING_SEEDS)

    while min(start) > -LIMIT and not np.isfinite([score(e) for e in start]).any():
        start.append(min(start) - STRIDE)
    best, scores = coarse_to_fine(score, start, STRIDE, LIMIT)
    if best is None:
        raise RuntimeError(
            f"No best learning rate found for {rule.name!r} on "
            f"'{contest.suite_problem.name}': tried {UNIT * 2.0 ** min(scores):.3g} to "
            f"{UNIT * 2.0 ** max(scores):.3g}. Expected: a finite final loss that rises again "
            "towards both ends."
        )
    rule.learning_rate.assign(UNIT * 2.0**best)
    return [
        [UNIT * 2.0**exponent, loss if np.isfinite(loss) else None]
        for exponent, loss in scores.items()
    ]
