"""SuiteProblem: a Keras model with its data, horizon, and held-out metric."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from l2l_tf.problems.keras_problem import KerasProblem


@dataclasses.dataclass
class SuiteProblem:
    """A problem of a suite.

    Attributes:
        name: of ``names.NAMES``.
        build_model, loss: as of ``KerasProblem``.
        train, heldout: ``(x, y)``, of arrays with the examples first.
        batch_size, num_steps: ints.
        metric: a function of the outputs for held-out examples, in inference mode, and their y,
            both arrays, to a number.
        metric_name: of it.
        higher_is_better: whether that holds of the metric.
    """

    name: str
    build_model: Callable
    loss: Any
    train: tuple
    heldout: tuple
    batch_size: int
    num_steps: int
    metric: Callable
    metric_name: str
    higher_is_better: bool = False

    def keras_problem(self):
        """The ``KerasProblem``."""
        return KerasProblem(
            self.build_model,
            tf.data.Dataset.from_tensor_slices(self.train).batch(self.batch_size),
            self.loss,
            tf.data.Dataset.from_tensor_slices(self.heldout).batch(self.batch_size),
            name=self.name,
        )


def accuracy(outputs, y):
    """Of logits, one a class; or of one logit, for labels 0 and 1."""
    if outputs.shape[-1] == 1:
        return np.mean((outputs[..., 0] > 0) == (np.reshape(y, outputs.shape[:-1]) > 0.5))
    return np.mean(outputs.argmax(axis=-1) == y)


def mean_square(outputs, y):
    return np.mean((outputs - np.reshape(y, outputs.shape)) ** 2)


def mean_absolute(outputs, y):
    return np.mean(np.abs(outputs - np.reshape(y, outputs.shape)))


def cross_entropy(outputs, y):
    """Of logits, in nats."""
    outputs = outputs.astype("float64")
    shifted = outputs - outputs.max(axis=-1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return -np.mean(np.take_along_axis(logs, np.asarray(y, "int64")[..., None], axis=-1))


ACCURACY = {"metric": accuracy, "metric_name": "accuracy", "higher_is_better": True}
SQUARE = {"metric": mean_square, "metric_name": "mean square error"}
ABSOLUTE = {"metric": mean_absolute, "metric_name": "mean absolute error"}
ENTROPY = {"metric": cross_entropy, "metric_name": "cross-entropy"}


def split(x, y, share=0.25, seed=0):
    """``(train, heldout)``, a share of the examples drawn by seed for the latter."""
    order = np.random.RandomState(seed).permutation(len(y))
    first = round(share * len(y))
    pick = lambda arrays, rows: tf.nest.map_structure(lambda a: a[rows], arrays)  # noqa: E731
    return tuple((pick(x, rows), y[rows]) for rows in (order[first:], order[:first]))
