"""Unroll: train optimizees with a rule, and record what the meta-gradient needs.

Several optimizees run side by side, their coordinates in one call of the rule. Axes: M optimizees,
N coordinates of each, T steps, in segments of K steps.
"""

import functools
import os
from typing import Any, NamedTuple

import tensorflow as tf

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
    update, num_strands = rule.update, 1
    if not second_derivatives:
        update = functools.partial(compiled.program(rule, rule.update), compiled.weights(rule))
        num_strands = _num_strands(rule, num_optimizees * base.num_coordinates(problem.layout))

    def write(arrays, step, *values):
        return [array.write(step, value) for array, value in zip(arrays, values)]

    def evaluate(t, parameters):
        batch = tf.nest.map_structure(lambda leaf: leaf[:, t], batches)
        return losses_and_gradients(problem, parameters, batch)  # [M], [M, N]

    def step(t, parameters, strands, records):
        losses, gradients = evaluate(t, parameters)
        records = write(records, t, losses, gradients)
        inputs = gradients if second_derivatives else tf.stop_gradient(gradients)
        updates, strands = apply_rule(rule, problem.layout, inputs, strands, update)
        return t + 1, parameters + updates, strands, records

    def segment(index, parameters, state, records, starts):
        starts = write(starts, index, *tf.nest.flatten(state))
        first = index * segment_length
        state = tf.nest.map_structure(tf.stop_gradient, state)
        _, parameters, strands, records = tf.while_loop(
            lambda t, *_: t < first + segment_length,
            step,
            (first, parameters, _split_state(rule, state, num_strands), records),
            maximum_iterations=segment_length,
        )
        return index + 1, parameters, _join_state(rule, strands), records, starts

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

    For a coordinatewise rule, the state of M·N coordinates; otherwise a list of M states.
    """
    if rule.coupling == "coordinate":
        return rule.initial_state(num_optimizees * base.num_coordinates(layout))
    return [rule.initial_state(layout) for _ in range(num_optimizees)]


def apply_rule(rule, layout, gradients, strands, update):
    """One step of the rule for M optimizees.

    Args:
        gradients: ``[M, N]``.
        strands: list of states: of equal parts of the M·N coordinates; or, if they are coupled, of
            the optimizees.

    Returns:
        ``(updates [M, N], strands)``.
    """
    if rule.coupling == "coordinate":
        vectors = tf.split(
            tf.reshape(gradients, [-1]), _strand_sizes(gradients.shape.num_elements(), len(strands))
        )
        steps = [update(vector, state) for vector, state in zip(vectors, strands)]
        updates = tf.concat([step for step, _ in steps], axis=0)
        return tf.reshape(updates, gradients.shape), [state for _, state in steps]
    steps = [
        update(base.split(gradient, layout), optimizee_state)
        for gradient, optimizee_state in zip(tf.unstack(gradients), strands)
    ]
    return tf.stack([base.flatten(updates) for updates, _ in steps]), [s for _, s in steps]


def _num_strands(rule, num_coordinates):
    """Parts of the coordinates that are run side by side, one on each core of a CPU.

    XLA shares an operation among the cores too, but small and many as they are here, whole
    programs side by side are faster, by a sixth.
    """
    if rule.coupling != "coordinate" or tf.config.list_logical_devices("GPU"):
        return 1
    return max(1, min(os.cpu_count(), num_coordinates // MIN_STRAND))


def _strand_sizes(num_coordinates, num_strands):
    bounds = [num_coordinates * index // num_strands for index in range(num_strands + 1)]
    return [end - start for start, end in zip(bounds, bounds[1:])]


def _split_state(rule, state, num_strands):
    if rule.coupling != "coordinate":
        return state  # a list already
    leaves = [
        tf.split(leaf, _strand_sizes(leaf.shape[-1], num_strands), axis=-1)
        for leaf in tf.nest.flatten(state)
    ]
    return [
        tf.nest.pack_sequence_as(state, [parts[index] for parts in leaves])
        for index in range(num_strands)
    ]


def _join_state(rule, strands):
    if rule.coupling != "coordinate":
        return strands
    return tf.nest.map_structure(lambda *parts: tf.concat(parts, axis=-1), *strands)


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
