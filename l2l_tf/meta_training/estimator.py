"""Estimator: from a rule, a problem and the data of a window to an estimate of the meta-gradient.

The seam between what meta-training minimizes and who averages and applies what comes out
(``trainer.py``). An estimator is a pure function of its arguments and of the rule's weights::

    gradients, carry, losses, … = estimator(rule, problem, carry, data)

Four stand behind it: the identity and the exact derivative, here; evolution strategies, in
``evolution.py``; the identity with a teacher, in ``imitation.py``.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from l2l_tf.engine import unroll as unroll_lib
from l2l_tf.meta_training import meta_gradient as meta_gradient_lib
from l2l_tf.meta_training import objectives


class Carry(NamedTuple):
    """What goes from one window of an episode to the next, of M optimizees side by side."""

    parameters: tf.Tensor  # [M, N]
    state: Any  # the rule's
    runs: unroll_lib.Runs


class Estimate(NamedTuple):
    """What an estimator returns for a window of T steps of M optimizees."""

    gradients: list  # ∂L/∂φ, one for each trainable weight; L is the mean over the M optimizees
    carry: Any  # for the next window
    losses: tf.Tensor  # [T + 1, M]; of one that was stopped, that of its last step from there on
    values: tf.Tensor  # [M], the objective of each optimizee
    # bool [M], whose losses or objective are not finite: they add nothing to the meta-gradient.
    left_out: tf.Tensor


class Estimator:
    """An estimate of the meta-gradient. A subclass implements ``__call__``.

    Args:
        objective: function of an optimizee's losses f(θ_1) … f(θ_T) ``[T]`` to a scalar; with a
            parameter `first_loss`, of f(θ_0) too.
        segment_length: K, steps between which the rule's state is cut; None: nowhere.
        max_loss_ratio: see ``unroll``.

    Attributes:
        is_recorded: whether of each step gradients and cotangents are kept.
    """

    is_recorded = True

    def __init__(self, objective, segment_length=None, max_loss_ratio=None):
        self.objective = objective
        self.segment_length = segment_length
        self.max_loss_ratio = max_loss_ratio

    def start(self, rule, problem, parameters):
        """The carry before the first window of an episode.

        Args:
            parameters: θ_0, ``[M, N]``.
        """
        num_optimizees = parameters.shape[0]
        state = unroll_lib.initial_state(rule, problem.layout, num_optimizees)
        return Carry(parameters, state, unroll_lib.all_run(num_optimizees, parameters.dtype))

    def __call__(self, rule, problem, carry, data):
        """One window.

        Args:
            rule: an ``UpdateRule``.
            problem: a ``Problem``.
            carry: of ``start``, or of the window before.
            data: an element of ``episodes``: leaves ``[M, ...]``.

        Returns:
            An ``Estimate``.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement __call__.")

    def unroll(self, rule, problem, carry, data, **options):
        """The window's ``Trajectory`` from a ``Carry``, and the ``Carry`` after it."""
        batches = data["batches"]
        trajectory = unroll_lib.unroll(
            rule,
            problem,
            carry.parameters,
            carry.state,
            batches,
            num_steps=tf.nest.flatten(batches)[0].shape[1] - 1,
            segment_length=self.segment_length,
            runs=carry.runs,
            max_loss_ratio=self.max_loss_ratio,
            **options,
        )
        return trajectory, Carry(trajectory.parameters, trajectory.state, trajectory.runs)


class Identity(Estimator):
    """The meta-gradient to first order, by the identity of ``meta_gradient.py``.

    Of an optimizee that was stopped at step t, all losses from t on are f(θ_t), a function of θ_t.

    Args:
        backward_fraction, chunk_size: see ``meta_gradient``.
        others: see ``Estimator``.
    """

    def __init__(
        self,
        objective,
        segment_length=None,
        max_loss_ratio=None,
        *,
        backward_fraction=1.0,
        chunk_size=None,
    ):
        super().__init__(objective, segment_length, max_loss_ratio)
        self.backward_fraction = backward_fraction
        self.chunk_size = chunk_size

    def __call__(self, rule, problem, carry, data):
        return self._estimate(rule, problem, carry, data, *self.unroll(rule, problem, carry, data))

    def _estimate(self, rule, problem, carry, data, trajectory, after, of_updates=None):
        """That of a window's trajectory; with `of_updates`, see ``meta_gradient``."""
        values, weights, left_out = objectives.values_and_weights(
            self.objective, trajectory.losses, trajectory.runs.first_losses
        )
        gradients = meta_gradient_lib.meta_gradient(
            rule,
            problem.layout,
            trajectory,
            _put_at_the_stop(weights, carry.runs, trajectory.runs),
            backward_fraction=self.backward_fraction,
            seed=tf.stack([data["episode"][0], data["window"][0]]),
            chunk_size=self.chunk_size,
            of_updates=of_updates,
        )
        return Estimate(gradients, after, trajectory.losses, values, left_out)


class Exact(Estimator):
    """The meta-gradient with second derivatives, by a tape around the whole unroll."""

    def __call__(self, rule, problem, carry, data):
        with tf.GradientTape() as tape:
            trajectory, after = self.unroll(
                rule, problem, carry, data, record=False, second_derivatives=True
            )
            values, left_out = objectives.values(
                self.objective, trajectory.losses, trajectory.runs.first_losses
            )
            value = tf.reduce_mean(tf.where(left_out, tf.zeros_like(values), values))
        sources = [v.value for v in rule.trainable_variables]
        gradients = tape.gradient(value, sources, unconnected_gradients="zero")
        after = tf.nest.map_structure(tf.stop_gradient, after)
        return Estimate(gradients, after, trajectory.losses, values, left_out)


def _put_at_the_stop(weights, before, after):
    """The weights ``[T + 1, M]`` of all losses that are f(θ_t) of a stop at step t, put there."""
    first_step = before.num_steps
    is_stopped = after.stopped_at >= 0
    stops = tf.maximum(after.stopped_at - first_step, 0)  # [M]; 0 of windows before
    steps = tf.range(weights.shape[0])[:, None]
    at_stop = tf.cumsum(weights, axis=0, reverse=True)
    stopped = tf.where(steps < stops, weights, tf.where(steps == stops, at_stop, 0))
    return tf.where(is_stopped, stopped, weights)
