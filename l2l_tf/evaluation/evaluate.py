"""evaluate: learned rules against tuned baselines, on equal terms."""

import collections
import numbers
import os

import keras
import tqdm

from l2l_tf import arguments, saving
from l2l_tf.evaluation import baselines as baselines_lib
from l2l_tf.evaluation.learning_curves import Arena
from l2l_tf.evaluation.pictures import picture_rows
from l2l_tf.evaluation.report import Result
from l2l_tf.problems.base import SIDES, check_problem
from l2l_tf.update_rules import UpdateRule, base

_OBJECTS = (UpdateRule, keras.optimizers.Optimizer)


def evaluate(
    problem,
    optimizers,
    baselines=baselines_lib.DEFAULT,
    num_steps=100,
    num_seeds=10,
    *,
    num_tuning_seeds=None,
    seed=0,
    side="heldout",
    verbose=False,
):
    """Learning curves of learned rules, tuned baselines and Keras optimizers on fresh optimizees.

    Fair by construction: every optimizer gets the same initial parameters and batches, held out
    from meta-training; a loss is measured before the step's update; each baseline's learning rate
    is tuned on other seeds for the mean loss over `num_steps`, on a grid of factor 1.5 around a
    best that is not at its edge. A loss that is not finite is reported as such.

    Args:
        problem: a ``Problem``.
        optimizers: dict of name → ``UpdateRule``, or what ``l2l_tf.load`` takes, or a Keras
            optimizer; or a list of these. A Keras optimizer is taken as it is given, not
            tuned, and each optimizee is trained by a fresh copy of it.
        baselines: names: some of "adam", "rmsprop", "sgd", "momentum", "nag".
        num_steps: the horizon, in optimizee steps.
        num_seeds: optimizees reported on.
        num_tuning_seeds: optimizees that baselines are tuned on; None takes `num_seeds`, but 1,024
            at least of random functions: they are cheap, and a rate that is tuned on too few of
            them diverges on the next steep one.
        seed: int, of all of them.
        side: "heldout" or "train" data. On either, an optimizee is trained on the very batches
            whose losses are reported.
        verbose: whether to show a progress bar on stderr.

    Returns:
        A ``Result``: ``print(result.table())``, ``result.save(directory)``; with pictures of the
        optimizees if they are images.

    >>> import l2l_tf
    >>> rule = l2l_tf.update_rules.SGD(learning_rate=0.01)
    >>> problem = l2l_tf.problems.get("quadratic")
    >>> result = evaluate(problem, {"mine": rule}, ["sgd"], num_steps=10, num_seeds=2)
    >>> sorted(result.optimizers)
    ['mine', 'sgd']
    """
    check_problem(problem)
    arguments.integer("num_steps", num_steps, 2)
    arguments.integer("num_seeds", num_seeds, 1)
    arguments.integer("seed", seed)
    arguments.choice("side", side, SIDES)
    arguments.boolean("verbose", verbose)
    if num_tuning_seeds is None:
        num_tuning_seeds = max(num_seeds, 1024) if problem.vectorized else num_seeds
    arguments.integer("num_tuning_seeds", num_tuning_seeds, 1)
    baselines_lib.check_names(baselines)
    contestants = named_optimizers(optimizers, baselines)
    for optimizer in contestants.values():
        if isinstance(optimizer, UpdateRule):
            base.parts_of(optimizer, problem.layout)  # refuses a layout that it cannot take

    arena = Arena(problem, num_steps, side, seed)
    # Before the tuning, so that an optimizer that cannot be copied says so at once.
    runners = {name: arena.runner(optimizer) for name, optimizer in contestants.items()}
    with _Progress(verbose) as progress:
        tuned = {}
        for name in baselines:
            progress.say(f"tuning {name}")
            tuned[name] = baselines_lib.tune(name, arena, num_tuning_seeds, progress.step)
        contestants |= {name: baseline.rule for name, baseline in tuned.items()}
        runners |= {name: arena.runner(baseline.rule) for name, baseline in tuned.items()}
        runs = {}
        for name, runner in runners.items():
            progress.say(f"training by {name}")
            runs[name] = arena.losses_and_parameters(runner, "report", num_seeds)
            progress.step()
        progress.say("timing")
        seconds = arena.seconds_per_step(runners)
    result = Result(
        problem=problem.name,
        num_steps=num_steps,
        num_seeds=num_seeds,
        side=side,
        has_heldout=problem.has_heldout,
        optimizers={
            name: {
                **_origin(optimizer, tuned.get(name)),
                "loss": runs[name][0],
                "seconds_per_step": seconds[name],
            }
            for name, optimizer in contestants.items()
        },
    )
    if problem.picture is not None:
        batches = arena.first_batches("report", num_seeds)
        parameters = {name: parameters for name, (_, parameters) in runs.items()}
        result.pictures = picture_rows(problem, batches, parameters, result)
    return result


def named_optimizers(optimizers, baselines=()):
    """Dict of name → update rule or Keras optimizer.

    Args:
        optimizers: as of ``evaluate``.
        baselines: names that theirs must differ from.
    """
    if not isinstance(optimizers, dict):
        arguments.instance(
            "optimizers", optimizers, (list, tuple), "a dict of name → optimizer, or a list"
        )
        pairs = [(o.name if isinstance(o, _OBJECTS) else str(o).rstrip("/"), o) for o in optimizers]
        optimizers = dict(pairs)
        _check_different([name for name, _ in pairs])
    _check_different([*optimizers, *baselines])
    if not optimizers and not baselines:
        raise ValueError("Nothing to compare. Expected at least one of `optimizers`, `baselines`.")
    return {
        arguments.text("a name in optimizers or rules", n): _optimizer(n, o)
        for n, o in optimizers.items()
    }


def _optimizer(name, optimizer):
    if isinstance(optimizer, (str, os.PathLike)):
        return saving.load(optimizer)
    return arguments.instance(
        f"optimizers[{name!r}]",
        optimizer,
        _OBJECTS,
        "an update rule, a Keras optimizer, a shipped rule's name or a directory",
    )


def _check_different(names):
    repeated = [name for name, count in collections.Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(
            f"Optimizers and baselines must have different names. Received twice: {repeated}. Name "
            "them by a dict, {name: optimizer}."
        )


def _origin(optimizer, tuned):
    """Where a contestant's settings come from, for a ``Result``."""
    if tuned is not None:
        return {"source": "tuned", "learning_rate": tuned.learning_rate, "grid": tuned.grid}
    if isinstance(optimizer, UpdateRule):
        return {"source": "learned", "learning_rate": None, "grid": None}
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    rate = optimizer.get_config().get("learning_rate")  # a dict if of a schedule
    rate = float(rate) if isinstance(rate, numbers.Real) else None
    return {"source": "given", "learning_rate": rate, "grid": None}


class _Progress:
    """What an evaluation is at, on stderr; or nothing."""

    def __init__(self, verbose):
        self._bar = tqdm.tqdm(
            disable=not verbose, bar_format="{desc}: {n} runs in {elapsed}", leave=False
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._bar.close()

    def say(self, what):
        self._bar.set_description_str(what)

    def step(self):
        self._bar.update()
