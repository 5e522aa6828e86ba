"""Baselines of the suite: tuned once, and kept in a file a problem, so that a rule costs minutes.

A file has what each contestant did on the very optimizees of the reports. What is missing in it is
computed, contestant by contestant, and written at once: interrupted work goes on where it was.
"""

import json
import os

import keras
import numpy as np
import tensorflow as tf

from l2l_tf import paths
from l2l_tf.evaluation.suite.contest import Run, thinned
from l2l_tf.evaluation.suite.contestants import CONTESTANTS, NUM_SEEDS, NUM_TUNING_SEEDS, tune
from l2l_tf.files import atomic, json_file
from l2l_tf.version import __version__

FORMAT_VERSION = 1
PACKAGED = os.path.join(os.path.dirname(__file__), "baselines")
SEED = 0
# How far initial losses may be apart: rounding, and no other data or weights.
TOLERANCE = 1e-3


class Baselines:
    """The baselines in a directory.

    Args:
        directory: of the files, one a problem; None takes those that come with the package.
    """

    def __init__(self, directory=None):
        self.directory = PACKAGED if directory is None else paths.from_user("directory", directory)

    def read(self, name):
        """The records of a problem: dict of contestant → record; empty without a file.

        Raises:
            ValueError: the file is damaged, or of a newer version.
        """
        return self.content(name)["contestants"]

    def missing(self, name):
        """The contestants that have no record on a problem."""
        records = self.read(name)
        return [contestant for contestant in CONTESTANTS if contestant not in records]

    def complete(self, contest, progress=lambda what: None):
        """Computes and writes what is missing of a problem.

        Args:
            contest: ``Contest``, of seed ``SEED``.
            progress: called before each contestant, with its name.
        """
        name, num_steps = contest.suite_problem.name, contest.num_steps
        for contestant in self.missing(name):
            progress(contestant)
            record = _record(contestant, contest)
            content = self.content(name)  # anew: another process may have written meanwhile
            content |= {
                "num_steps": num_steps,
                "batch_size": contest.suite_problem.batch_size,
                "num_weights": sum(int(np.prod(shape)) for _, shape in contest.problem.layout),
                "metric": contest.suite_problem.metric_name,
                "seed": SEED,
            }
            content["contestants"][contestant] = record
            os.makedirs(self.directory, exist_ok=True)
            atomic.write(_text(content).encode(), self._path(name))

    def content(self, name):
        """All that the file of a problem has; of none, a content without records."""
        path = self._path(name)
        try:
            with open(path) as file:
                return json_file.parse(file.read(), path, FORMAT_VERSION)
        except FileNotFoundError:
            return {"format_version": FORMAT_VERSION, "problem": name, "contestants": {}}

    def _path(self, name):
        return os.path.join(self.directory, f"{name}.json")


def _record(name, contest):
    contestant = CONTESTANTS[name]
    rule = contestant.make(contest.num_steps)
    grid = None if contestant.start is None else tune(rule, contest, contestant.start)
    run = contest.run(contest.runner(rule), NUM_SEEDS)
    return {
        "learning_rate": float(f"{rule.learning_rate.numpy():.6g}"),
        "grid": grid and [[rate, _rounded(loss)] for rate, loss in grid],
        "num_tuning_seeds": NUM_TUNING_SEEDS if grid else None,
        "versions": {
            "l2l_tf": __version__,
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
        },
        **to_json(run),
    }


def _text(content):
    """JSON with a line for each contestant."""
    head = {key: value for key, value in content.items() if key != "contestants"}
    lines = [f"{json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    records = content["contestants"].items()
    records = [f"{json.dumps(key)}: {json.dumps(record)}" for key, record in records]
    return "\n".join(["{", *lines, '"contestants": {', ",\n".join(records), "}", "}", ""])


def to_json(run):
    """A ``Run`` for a file, null where it is not finite; of its curves, 50 points of their mean."""
    with np.errstate(over="ignore", invalid="ignore"):
        curve = thinned(run.curve.mean(axis=0))
    return {
        "initial": list(map(_rounded, run.initial)),
        "final": list(map(_rounded, run.final)),
        "mean": list(map(_rounded, run.mean)),
        "heldout": list(map(_rounded, run.heldout)),
        "curve": list(map(_rounded, curve)),
    }


def from_json(record, num_seeds=None):
    """The ``Run`` of a record, of its first optimizees; its curve is of all: ``[1, 50]``."""
    fields = [np.array(record[f], "float64") for f in Run._fields]  # null becomes nan
    return Run(*[values[:num_seeds] for values in fields[:-1]], curve=fields[-1][None])


def check_same_start(name, record, initial):
    """Whether optimizees with these initial losses ``[S]`` are those of the baselines.

    Raises:
        ValueError: they start from other losses, so data, weights or the sample are others.
    """
    expected = from_json(record, len(initial)).initial
    if not np.allclose(initial, expected, rtol=TOLERANCE, atol=0):
        raise ValueError(
            f"The baselines of suite problem {name!r} must be of the same optimizees. Expected: "
            f"initial losses {expected.tolist()}. Received: {initial.tolist()}. Its data or "
            "initial weights are others here, as with other versions of Python, scikit-learn or "
            "Keras. Compute baselines of your own: bin/evaluate --suite=general "
            "--tune_suite_baselines --suite_baselines=DIRECTORY"
        )


def _rounded(value):
    return float(f"{value:.5g}") if value is not None and np.isfinite(value) else None
