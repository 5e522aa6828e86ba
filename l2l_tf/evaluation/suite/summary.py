"""Summary: the arithmetic of a suite's result, in which no loss can hide."""

from typing import NamedTuple

import numpy as np

from l2l_tf.evaluation.suite.contest import NUM_POINTS

FLOOR = 0.001  # of the initial loss: below, losses count as this
TIE = 1.02
METRIC_TIE = 0.005  # of a metric where higher is better: a share


class Comparison(NamedTuple):
    """A rule against one baseline on one problem."""

    final: float  # ratio of final losses
    mean: float  # of means over the curve
    outcome: str  # "win", "tie" or "loss"


class Summary(NamedTuple):
    """A rule against one baseline on all problems."""

    wins: int
    ties: int
    losses: int
    geometric_mean: float
    median: float
    worst: tuple  # (name of the problem, ratio)
    share_at_or_below: float  # of problems with a ratio of 1 at most


def diverged(run):
    """Which optimizees diverged, ``[S]``: a loss is not finite, or the last is above the first."""
    finite = np.isfinite(run.final) & np.isfinite(run.mean)  # the mean tells of the whole curve
    with np.errstate(invalid="ignore"):
        return ~finite | (run.final > run.initial)


def compare(run, baseline):
    """A ``Comparison`` of the ``Run`` of a rule with that of a baseline, by the same seeds.

    A ratio is the geometric mean over seeds. Each loss is at least 0.001 of the initial loss; of
    what diverged it is the initial loss, as if nothing had been learned. Whatever the ratio says,
    a rule that diverges on a seed has lost.
    """
    final = _geometric_mean(_finals(run) / _finals(baseline))
    outcome = "tie"
    if diverged(run).any() or final > TIE:
        outcome = "loss"
    elif final < 1 / TIE:
        outcome = "win"
    return Comparison(final, _geometric_mean(_means(run) / _means(baseline)), outcome)


def summarize(comparisons):
    """The ``Summary`` of a dict of problem → ``Comparison``."""
    ratios = {name: comparison.final for name, comparison in comparisons.items()}
    outcomes = [comparison.outcome for comparison in comparisons.values()]
    worst = max(ratios, key=ratios.get)
    values = np.array(list(ratios.values()))
    return Summary(
        wins=outcomes.count("win"),
        ties=outcomes.count("tie"),
        losses=outcomes.count("loss"),
        geometric_mean=_geometric_mean(values),
        median=float(np.median(values)),
        worst=(worst, ratios[worst]),
        share_at_or_below=float(np.mean(values <= 1)),
    )


def compare_heldout(run, baseline, higher_is_better):
    """Whether a rule's held-out metric is "better", "worse" or "alike", of the means over seeds.

    Alike are metrics within 2 %, or of those where higher is better, shares, within 0.005. A metric
    that is not finite is worse.
    """
    ours, theirs = run.heldout.mean(), baseline.heldout.mean()
    if not np.isfinite(ours):
        return "worse"
    if not np.isfinite(theirs):
        return "better"
    if higher_is_better:
        better, worse = ours > theirs + METRIC_TIE, ours < theirs - METRIC_TIE
    else:
        better, worse = ours * TIE < theirs, ours > theirs * TIE
    return "better" if better else "worse" if worse else "alike"


def steps_to(run, target):
    """The step by which a rule has reached a loss, or None.

    Args:
        run: ``Run`` with the curve of each step.
        target: a loss that a curve's last fiftieth has, as its mean.

    Returns:
        The first step whose running mean over a fiftieth of the horizon is at most `target`, of
        the curve's mean over seeds.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        curve = run.curve.mean(axis=0)
        width = max(1, len(curve) // NUM_POINTS)
        means = np.convolve(curve, np.full(width, 1 / width), mode="valid")
        reached = np.flatnonzero(means <= target)
    return int(reached[0]) + width if reached.size else None


def _finals(run):
    return np.where(diverged(run), run.initial, np.maximum(run.final, FLOOR * run.initial))


def _means(run):
    """Means over the curve; of what is not finite, the initial loss."""
    mean = np.where(np.isfinite(run.mean), run.mean, run.initial)
    return np.maximum(mean, FLOOR * run.initial)


def _geometric_mean(values):
    return float(np.exp(np.mean(np.log(values))))
