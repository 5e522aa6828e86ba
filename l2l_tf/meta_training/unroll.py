"""Unroll: train optimizees with a rule, and record what the meta-gradient needs.

Several optimizees run side by side, their coordinates in one call of the rule. Axes: M optimizees,
N coordinates of each, T steps, in segments of K steps.
"""

import functools
import os
from typing import Any, NamedTuple

import tensorflow as tf

from l2l_tf.meta_training import parts as parts_lib
from l2l_tf.update_rules import base, compiled

# Coordinates that are worth a strand of their own.
MIN_STRAND = 4096


class Trajectory(NamedTuple):
    """What an unroll of T steps leaves behind."""

    parameters: tf.Tensor  # [M, N], θ_T
    state: Any  # the rule's state h_T
    losses: tf.Tensor  # [T + 1, M], f(θ_0) … f(θ_T), each before that step's update
    gradients: tf.Tensor | None  # [T + 1, M, N], ∇f(θ_0) … ∇f(θ_T)
    segment_states: Any | None  # the rule's states at the T / K segment starts: [T / K, ...] leaves


def unroll(
    rule,
    problem,
    parameters,
    state,
    batches,
    *,
    num_steps,
    segment_length=None,
    record=True,
    second_derivatives=False,
):
    """Runs `num_steps` steps of `rule` on M optimizees of `problem`.

    For t = 0 … T - 1::

        u_t, h_{t+1} = m_φ(∇f(θ_t), h_t)          θ_{t+1} = θ_t + u_t

    The rule's inputs are stopped: by the paper's first-order approximation, the gradients of the
    optimizee do not depend on φ.

    Args:
        rule: an ``UpdateRule``.
        problem: a ``Problem``.
        parameters: θ_0 ``[M, N]``.
        state: h_0, of ``initial_state(rule, problem.layout, M)`` or the unroll before.
        batches: leaves ``[M, T + 1, ...]``, the last for f(θ_T).
        num_steps: T.
        segment_length: K, a divisor of T; None takes T. Under a tape, the rule's state is stopped
            at the segments' borders.
        record: whether to keep the gradients and the segments' states.
        second_derivatives: leave the rule's inputs unstopped, so that a tape around this call
            gives the exact meta-gradient.

    Returns:
        A ``Trajectory``.
    """
    segment_length = segment_length or num_steps
    num_segments = num_steps // segment_length
    num_optimizees = parameters.shape[0]
    parts = parts_lib.parts_of(rule, problem.layout)
    runners = [_Runner(part, num_optimizees, second_derivatives) for part in parts]

    def write(arrays, step, *values):
        return [array.write(step, value) for array, value in zip(arrays, values)]

    def evaluate(t, parameters):
        batch = tf.nest.map_structure(lambda leaf: leaf[:, t], batches)
        return losses_and_gradients(problem, parameters, batch)  # [M], [M, N]

    def step(t, parameters, strands, records):
        losses, gradients = evaluate(t, parameters)
        records = write(records, t, losses, gradients)
        inputs = gradients if second_derivatives else tf.stop_gradient(gradients)
        steps = [
            runner.step(parts_lib.take(inputs, runner.part), of_part)
            for runner, of_part in zip(runners, strands)
        ]
        updates = parts_lib.put_together([of_part for of_part, _ in steps], parts)
        return t + 1, parameters + updates, [of_part for _, of_part in steps], records

    def segment(index, parameters, state, records, starts):
        starts = write(starts, index, *tf.nest.flatten(state))
        first = index * segment_length
        state = tf.nest.map_structure(tf.stop_gradient, state)
        states = parts_lib.state_by_part(rule, parts, state)
        strands = [runner.split(of_part) for runner, of_part in zip(runners, states)]
        _, parameters, strands, records = tf.while_loop(
            lambda t, *_: t < first + segment_length,
            step,
            (first, parameters, strands, records),
            maximum_iterations=segment_length,
        )
        states = [runner.join(of_part) for runner, of_part in zip(runners, strands)]
        state = parts_lib.state_of_rule(rule, parts, states)
        return index + 1, parameters, state, records, starts

    # Without `record`, only the losses are kept.
    records = [_array(num_steps + 1, [num_optimizees], parameters.dtype)]
    starts = []
    if record:
        records.append(_array(num_steps + 1, parameters.shape, parameters.dtype))
        starts = [_array(num_segments, s.shape, s.dtype) for s in tf.nest.flatten(state)]

    _, parameters, state, records, starts = tf.while_loop(
        lambda index, *_: index < num_segments,
        segment,
        (0, parameters, state, records, starts),
        maximum_iterations=num_segments,
    )
    records = write(records, num_steps, *evaluate(num_steps, parameters))
    return Trajectory(
        parameters,
        state,
        losses=records[0].stack(),
        gradients=records[1].stack() if record else None,
        segment_states=(
            tf.nest.pack_sequence_as(state, [array.stack() for array in starts]) if record else None
        ),
    )


def initial_state(rule, layout, num_optimizees):
    """The rule's state before the first step of M optimizees.

    For a coordinatewise rule, the state of M·N coordinates; for a coupled one, a list of M states;
    for a rule of several parts, the list of theirs.
    """

    def of_part(part):
        if part.rule.coupling == "coordinate":
            return part.rule.initial_state(num_optimizees * base.num_coordinates(part.layout))
        return [part.rule.initial_state(part.layout) for _ in range(num_optimizees)]

    parts = parts_lib.parts_of(rule, layout)
    return parts_lib.state_of_rule(rule, parts, [of_part(part) for part in parts])


class _Runner:
    """A part of a rule, step by step, on M optimizees.

    Its state is cut into strands: of equal shares of the M·N coordinates; or, if these are
    coupled, of the optimizees.
    """

    def __init__(self, part, num_optimizees, second_derivatives):
        self.part = part
        self._is_coordinatewise = part.rule.coupling == "coordinate"
        self._num_coordinates = num_optimizees * base.num_coordinates(part.layout)
        self._update, self._num_strands = part.rule.update, 1
        if not second_derivatives:
            program = compiled.update_program(part.rule)
            self._update = functools.partial(program, compiled.weights(part.rule))
            self._num_strands = _num_strands(self._num_coordinates)

    def step(self, gradients, strands):
        """One step of the rule: ``(updates, strands)``, for gradients ``[M, N]``."""
        if self._is_coordinatewise:
            vectors = tf.split(tf.reshape(gradients, [-1]), self._strand_sizes())
            steps = [self._update(vector, state) for vector, state in zip(vectors, strands)]
            updates = tf.concat([step for step, _ in steps], axis=0)
            return tf.reshape(updates, gradients.shape), [state for _, state in steps]
        steps = [
            self._update(base.split(gradient, self.part.layout), optimizee_state)
            for gradient, optimizee_state in zip(tf.unstack(gradients), strands)
        ]
        return tf.stack([base.flatten(updates) for updates, _ in steps]), [s for _, s in steps]

    def split(self, state):
        if not self._is_coordinatewise:
            return state  # a list already
        leaves = [tf.split(leaf, self._strand_sizes(), axis=-1) for leaf in tf.nest.flatten(state)]
        return [
            tf.nest.pack_sequence_as(state, [shares[index] for shares in leaves])
            for index in range(self._num_strands)
        ]

    def join(self, strands):
        if not self._is_coordinatewise:
            return strands
        return tf.nest.map_structure(lambda *shares: tf.concat(shares, axis=-1), *strands)

    def _strand_sizes(self):
        bounds = [
            self._num_coordinates * index // self._num_strands
            for index in range(self._num_strands + 1)
        ]
        return [end - start for start, end in zip(bounds, bounds[1:])]


def _num_strands(num_coordinates):
    """Shares of the coordinates that are run side by side, one on each core of a CPU.

    XLA shares an operation among the cores too, but small and many as they are here, whole
    programs side by side are faster, by a sixth.
    """
    if tf.config.list_logical_devices("GPU"):
        return 1
    return max(1, min(os.cpu_count(), num_coordinates // MIN_STRAND))


def losses_and_gradients(problem, parameters, batch):
    """Losses ``[M]`` and gradients ``[M, N]`` of M optimizees, at parameters ``[M, N]``."""

    def one(parameters, batch):
        loss, gradients = problem.loss_and_gradients(base.split(parameters, problem.layout), batch)
        return loss, base.flatten(gradients)

    if problem.vectorized:
        return tf.vectorized_map(lambda pair: one(*pair), (parameters, batch))
    losses, gradients = zip(
        *[
            one(parameters[m], tf.nest.map_structure(lambda leaf, m=m: leaf[m], batch))
            for m in range(parameters.shape[0])
        ]
    )
    return tf.stack(losses), tf.stack(gradients)


def _array(size, shape, dtype):
    return tf.TensorArray(dtype, size, element_shape=shape)
