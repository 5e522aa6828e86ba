"""Runners: how an optimizer trains the optimizees of an episode.

An update rule does it in an unroll, as in meta-training. A Keras optimizer changes variables in
place, as in ``fit``; and so does an update rule, as a ``LearnedOptimizer``, where an unroll is not
all that ``fit`` would do: where a model has constraints or remembers, or is of another dtype.
"""

import keras
import numpy as np
import tensorflow as tf

from l2l_tf import hooks
from l2l_tf.engine import unroll as unroll_lib
from l2l_tf.optimizer import LearnedOptimizer
from l2l_tf.update_rules import UpdateRule


def runner(optimizer, problem):
    """A runner of an ``UpdateRule``, or of fresh copies of a Keras optimizer.

    Returns:
        An object with two methods, both of an element of ``episodes``: ``prepare(episode)``, to be
        called first, and ``run(episode)``, which returns the losses ``[M, T]``, each before its
        step's update, and the parameters of the last ones ``[M, N]``, or what an update rule hands
        out for these. Where a loss or a gradient is not finite, nor is what comes after. An update
        rule's weights may change between calls.
    """
    if not isinstance(optimizer, UpdateRule):
        return _InPlace(lambda: fresh_copy(optimizer), problem)
    if problem.acts_between_steps or problem.dtype != optimizer.dtype:
        return _InPlace(lambda: LearnedOptimizer(optimizer), problem)
    return _Unroll(optimizer, problem)


class _Unroll:
    """By an unroll, several optimizees side by side."""

    def __init__(self, rule, problem):
        self._rule = rule
        self._problem = problem
        self._compiled = {}  # by the number of optimizees

    def prepare(self, episode):
        num_optimizees = episode["parameters"].shape[0]
        if num_optimizees not in self._compiled:
            function = tf.function(self._unrolled, autograph=False)
            self._compiled[num_optimizees] = function.get_concrete_function(
                episode["parameters"], episode["batches"]
            )

    def run(self, episode):
        compiled = self._compiled[episode["parameters"].shape[0]]
        return [t.numpy() for t in compiled(episode["parameters"], episode["batches"])]

    def _unrolled(self, parameters, batches):
        num_losses = tf.nest.flatten(batches)[0].shape[1]
        trajectory = unroll_lib.unroll(
            self._rule,
            self._problem,
            parameters,
            unroll_lib.initial_state(self._rule, self._problem.layout, parameters.shape[0]),
            batches,
            num_steps=num_losses - 1,  # the last loss needs no update after it
            record=False,
        )
        # Where a loss or a gradient is not finite, an unroll stops and repeats the last loss. Here
        # that is a divergence.
        runs, nan = trajectory.runs, tf.constant(np.nan, parameters.dtype)
        steps = tf.range(num_losses)[:, None]
        is_after = ~runs.running & (steps > runs.stopped_at)  # [T, M]
        losses = tf.where(is_after, nan, trajectory.losses)
        is_there = runs.running | (runs.stopped_at == num_losses - 1)
        final = unroll_lib.final_parameters(self._rule, self._problem.layout, trajectory)
        return tf.transpose(losses), tf.where(is_there[:, None], final, nan)


class _InPlace:
    """By a Keras optimizer on Keras variables, one optimizee after another."""

    def __init__(self, make_optimizer, problem):
        self._make_optimizer = make_optimizer
        self._problem = problem
        self._variables = problem.variables()
        self._optimizer = self._new_optimizer()
        self._train = tf.function(self._trained, autograph=False)
        self._is_traced = False

    def prepare(self, episode):
        if not self._is_traced:
            self._train.get_concrete_function(_of_optimizee(episode["batches"], 0))
            self._is_traced = True
        self._start(episode, 0)

    def run(self, episode):
        runs = []
        for m in range(episode["parameters"].shape[0]):
            if m:
                self._start(episode, m)
            losses = self._train(_of_optimizee(episode["batches"], m)).numpy()
            self._optimizer.finalize_variable_values(self._variables)  # as `fit` does
            parameters = [v.numpy().ravel() for v in self._variables]
            runs.append((losses, np.concatenate(parameters)))
        losses, parameters = map(np.stack, zip(*runs))
        return losses, parameters

    def _start(self, episode, m):
        """Weights, the model's state, and the optimizer's as at the start of the episode."""
        theta = tf.split(
            episode["parameters"][m], [v.shape.num_elements() for v in self._variables]
        )
        for variable, value in zip(self._variables, theta):
            variable.assign(tf.reshape(value, variable.shape))
        if "state" in episode:
            self._problem.set_state(_of_optimizee(episode["state"], m))
        # As a new optimizer is when it is built at these weights; the old one is compiled already.
        for variable, new in zip(self._optimizer.variables, self._new_optimizer().variables):
            variable.assign(new)

    def _new_optimizer(self):
        optimizer = self._make_optimizer()
        if self._problem.scales_loss and not isinstance(
            optimizer, keras.optimizers.LossScaleOptimizer
        ):
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)  # as Keras' compile does
        optimizer.build(self._variables)
        return optimizer

    def _trained(self, batches):
        """The losses ``[T]`` of the optimizee that the variables hold."""
        num_losses = tf.nest.flatten(batches)[0].shape[0]

        def loss_and_gradients(t):
            loss, gradients = self._problem.loss_and_gradients_in_place(
                self._variables, _of_optimizee(batches, t), self._optimizer.scale_loss
            )
            return tf.cast(loss, tf.float64), gradients

        def step(t, losses):
            loss, gradients = loss_and_gradients(t)
            self._optimizer.apply(gradients, self._variables)
            return t + 1, losses.write(t, loss)

        losses = tf.TensorArray(tf.float64, num_losses, element_shape=[])
        _, losses = tf.while_loop(
            lambda t, _: t < num_losses - 1,
            step,
            (0, losses),
            maximum_iterations=num_losses - 1,
            parallel_iterations=1,
        )
        # The last loss needs no update after it.
        return losses.write(num_losses - 1, loss_and_gradients(num_losses - 1)[0]).stack()


def fresh_copy(optimizer):
    """A new Keras optimizer with the settings of another, and none of its state.

    Raises:
        ValueError: its config does not make one.
    """
    try:
        copy = type(optimizer).from_config(optimizer.get_config())
    except Exception as error:  # A user's own class raises anything.
        raise ValueError(
            f"Optimizer {optimizer.name!r} ({type(optimizer).__name__}) cannot be copied by its "
            f"config, and each optimizee needs a fresh one: {error}. Expected: "
            "`from_config(get_config())` makes one. A learning rate that is a function does not go "
            "through a config: use a keras.optimizers.schedules.LearningRateSchedule."
        ) from error
    for old, new in zip(_with_inner(optimizer), _with_inner(copy)):
        hooks.copy_weight_decay(old, new)
    return copy


def _with_inner(optimizer):
    """A Keras optimizer, and those that it delegates to."""
    yield optimizer
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        yield from _with_inner(optimizer.inner_optimizer)
    for of_some in getattr(optimizer, "optimizers", []):  # of a MultiOptimizer
        yield from _with_inner(of_some)


def _of_optimizee(structure, m):
    return tf.nest.map_structure(lambda leaf: leaf[m], structure)
