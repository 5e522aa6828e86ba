"""Unroll: train optimizees with a rule, and record what the meta-gradient needs.

Several optimizees run side by side, their coordinates in one call of the rule. Axes: M optimizees,
N coordinates of each, T steps, in segments of K steps.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from l2l_tf.engine import optimizee_step
from l2l_tf.engine.parts import Parts
from l2l_tf.update_rules import base, levels


class Trajectory(NamedTuple):
    """What an unroll of T steps leaves behind."""

    parameters: tf.Tensor  # [M, N], θ_T
    state: Any  # the rule's state h_T
    losses: tf.Tensor  # [T + 1, M], f(θ_0) … f(θ_T), each before that step's update
    gradients: tf.Tensor | None  # [T + 1, M, N], ∇f(θ_0) … ∇f(θ_T)
    segment_states: Any | None  # the rule's states at the T / K segment starts: [T / K, ...] leaves
    # What else the rule's parts have seen or computed, if it was recorded:
    visited: tf.Tensor | tuple = ()  # [T, M, N], θ_0 … θ_{T-1}, of a rule that sees parameters
    # For each part with a control, its summaries [T, S, M · K] and controls [T, C, M · K]; else ().
    controls: tuple = ()
    updates: tf.Tensor | tuple = ()  # [T, M, N], u_0 … u_{T-1}, with `record_updates`
    runs: Any = None  # ``Runs`` after T steps: which optimizees have not diverged


class Runs(NamedTuple):
    """How M optimizees do in an episode: one that diverges is stopped."""

    running: tf.Tensor  # bool [M]
    first_losses: tf.Tensor  # [M], f(θ_0)
    losses: tf.Tensor  # [M], of those stopped the one that stopped them; of others the last one
    stopped_at: tf.Tensor  # int32 [M], the step in which that was; -1 of those that run
    num_steps: tf.Tensor  # int32, of the episode so far


def all_run(num_optimizees, dtype):
    """``Runs`` at the start of an episode."""
    losses = tf.zeros([num_optimizees], dtype)
    is_running = tf.fill([num_optimizees], True)
    return Runs(is_running, losses, losses, tf.fill([num_optimizees], -1), tf.constant(0))


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
    runs=None,
    max_loss_ratio=None,
    weights=None,
    record_updates=False,
):
    """Runs `num_steps` steps of `rule` on M optimizees of `problem`.

    For t = 0 … T - 1::

        u_t, h_{t+1} = m_φ(∇f(θ_t), h_t)          θ_{t+1} = θ_t + u_t

    The rule's inputs are stopped: by the paper's first-order approximation, what it sees of the
    optimizee (gradients, parameters, and summaries of these) does not depend on φ.

    Args:
        rule: an ``UpdateRule``.
        problem: a ``Problem``.
        parameters: θ_0 ``[M, N]``.
        state: h_0, of ``initial_state(rule, problem.layout, M)`` or the unroll before.
        batches: leaves ``[M, T + 1, ...]``, the last for f(θ_T).
        num_steps: T.
        segment_length: K, a divisor of T; None takes T. Under a tape, the rule's state is stopped
            at the segments' borders.
        record: whether to keep what the meta-gradient needs.
        second_derivatives: leave the rule's inputs unstopped, so that a tape around this call
            gives the exact meta-gradient.
        runs: of the unroll before, where this one goes on with its optimizees; or None.
        max_loss_ratio: an optimizee whose loss is above this many times its f(θ_0) is stopped. So
            is, in any case, one whose loss or gradient is not finite.
        weights: values of ``rule.variables``, to run the rule with in place of its own.
        record_updates: with `record`, whether to keep the updates too.

    Returns:
        A ``Trajectory``. Of an optimizee that was stopped at step t, θ_t is kept, and f(θ_t) stands
        for all losses from t on; recorded gradients after step t are 0, and so is that of step t
        if it is not finite.
    """
    if record and second_derivatives:
        raise ValueError("What is recorded is stopped. With `second_derivatives`, record=False.")
    if weights is not None and second_derivatives:
        raise ValueError("With `second_derivatives`, the weights are the rule's: weights=None.")
    segment_length = segment_length or num_steps
    num_segments = num_steps // segment_length
    num_optimizees = parameters.shape[0]
    parts = Parts(rule, problem.layout)
    weights = None if weights is None else dict(zip(map(id, rule.variables), weights))
    steps = [
        optimizee_step.step(
            *part, num_optimizees, is_compiled=not second_derivatives, weights=weights
        )
        for part in parts
    ]
    sees_parameters = any(step.rule.sees_parameters for step in steps)

    def evaluate(t, parameters):
        batch = tf.nest.map_structure(lambda leaf: leaf[:, t], batches)
        return losses_and_gradients(problem, parameters, batch)  # [M], [M, N]

    def step(t, parameters, runs, states, records):
        losses, gradients, runs = observe(t, parameters, runs)
        runs = runs._replace(num_steps=runs.num_steps + 1)
        seen = [parameters] if sees_parameters else []
        updates, new_states, of_controls = [], [], []
        of_gradients = parts.take(gradients)
        of_parameters = parts.take(parameters) if sees_parameters else of_gradients
        of_parts = zip(of_gradients, of_parameters)
        for part_step, of_part, state in zip(steps, of_parts, states):
            inputs = levels.inputs(part_step.rule, *of_part)
            update, state, of_control = part_step(inputs, state)
            updates.append(update)
            new_states.append(state)
            of_controls += of_control
        updates = tf.where(runs.running[:, None], parts.put_together(updates), 0)
        made = [updates] if record_updates else []
        records = _write(records, t, [losses, gradients, *seen, *made, *of_controls])
        return t + 1, parameters + updates, runs, new_states, records

    def observe(t, parameters, runs):
        losses, gradients = evaluate(t, parameters)
        return _observed(losses, gradients, runs, max_loss_ratio)

    def segment(index, parameters, runs, state, records, starts):
        starts = _write(starts, index, tf.nest.flatten(state))
        first = index * segment_length
        state = tf.nest.map_structure(tf.stop_gradient, state)
        states = [step.split(of_part) for step, of_part in zip(steps, parts.states(state))]
        _, parameters, runs, states, records = tf.while_loop(
            lambda t, *_: t < first + segment_length,
            step,
            (first, parameters, runs, states, records),
            maximum_iterations=segment_length,
        )
        state = parts.state_of_rule([step.join(of) for step, of in zip(steps, states)])
        return index + 1, parameters, runs, state, records, starts

    # Without `record`, only the losses are kept.
    records = [_array(num_steps + 1, [num_optimizees], parameters.dtype)]
    starts = []
    if record:
        records.append(_array(num_steps + 1, parameters.shape, parameters.dtype))
        if sees_parameters:
            records.append(_array(num_steps, parameters.shape, parameters.dtype))
        if record_updates:
            records.append(_array(num_steps, parameters.shape, parameters.dtype))
        for part_step in steps:
            records += [
                _array(num_steps, shape, parameters.dtype) for shape in part_step.recorded_shapes
            ]
        starts = [_array(num_segments, s.shape, s.dtype) for s in tf.nest.flatten(state)]

    runs = runs or all_run(num_optimizees, parameters.dtype)
    _, parameters, runs, state, records, starts = tf.while_loop(
        lambda index, *_: index < num_segments,
        segment,
        (0, parameters, runs, state, records, starts),
        maximum_iterations=num_segments,
    )
    losses, gradients, runs = observe(num_steps, parameters, runs)
    records[:2] = _write(records[:2], num_steps, [losses, gradients])
    losses, *recorded = [array.stack() for array in records]
    if not record:
        return Trajectory(parameters, state, losses, None, None, runs=runs)
    return Trajectory(
        parameters,
        state,
        losses,
        gradients=recorded.pop(0),
        segment_states=tf.nest.pack_sequence_as(state, [array.stack() for array in starts]),
        visited=recorded.pop(0) if sees_parameters else (),
        updates=recorded.pop(0) if record_updates else (),
        controls=tuple(
            tuple(recorded.pop(0) for _ in part_step.recorded_shapes) for part_step in steps
        ),
        runs=runs,
    )


def initial_state(rule, layout, num_optimizees):
    """The rule's state before the first step of M optimizees.

    For a coordinatewise rule, the state of M · N coordinates, and of one with a control the pair
    with the control's, of M · K tensors; for a coupled one, a list of M states; for a rule of
    several parts, the list of theirs.
    """
    parts = Parts(rule, layout)
    return parts.state_of_rule(
        [optimizee_step.initial_state(*part, num_optimizees) for part in parts]
    )


def final_parameters(rule, layout, trajectory):
    """What the rule hands out after θ_T, ``[M, N]``: see ``UpdateRule.final_shift``."""
    parts, of_parts = Parts(rule, layout), []
    vectors = parts.take(trajectory.parameters)
    for (of_part, _), state, theta in zip(parts, parts.states(trajectory.state), vectors):
        shift = levels.final_shift(of_part, state)
        of_parts.append(theta if shift is None else theta + tf.reshape(shift, theta.shape))
    return parts.put_together(of_parts)


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


def _observed(losses, gradients, runs, max_loss_ratio):
    """Losses, gradients and ``Runs`` of a step, those stopped that diverge at it."""
    # A sum is not finite if one of its terms is not.
    of_gradients = tf.stop_gradient(tf.reduce_sum(gradients, axis=-1))
    is_sound = runs.running & tf.math.is_finite(losses) & tf.math.is_finite(of_gradients)
    gradients = tf.where(is_sound[:, None], gradients, 0)
    losses = tf.where(runs.running, losses, runs.losses)
    seen = tf.stop_gradient(losses)
    first_losses = tf.where(runs.num_steps == 0, seen, runs.first_losses)
    running = is_sound
    if max_loss_ratio is not None:
        running &= seen <= max_loss_ratio * first_losses
    stopped_at = tf.where(runs.running & ~running, runs.num_steps, runs.stopped_at)
    return losses, gradients, Runs(running, first_losses, seen, stopped_at, runs.num_steps)


def _write(arrays, step, values):
    """To each array its value; of more values, none."""
    return [array.write(step, value) for array, value in zip(arrays, values)]


def _array(size, shape, dtype):
    return tf.TensorArray(dtype, size, element_shape=shape)
