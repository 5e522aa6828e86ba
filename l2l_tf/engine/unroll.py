"""Unroll: train optimizees with a rule, and record what the meta-gradient needs.

Several optimizees run side by side, their coordinates in one call of the rule. Axes: M optimizees,
N coordinates of each, T steps, in segments of K steps.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from l2l_tf.engine.parts import Parts
from l2l_tf.engine.program import Program
from l2l_tf.engine.step import CoordinatesStep
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

    Returns:
        A ``Trajectory``.
    """
    if record and second_derivatives:
        raise ValueError("What is recorded is stopped. With `second_derivatives`, record=False.")
    segment_length = segment_length or num_steps
    num_segments = num_steps // segment_length
    num_optimizees = parameters.shape[0]
    parts = Parts(rule, problem.layout)
    steps = [
        _part_step(*part, num_optimizees, is_compiled=not second_derivatives) for part in parts
    ]
    sees_parameters = any(step.rule.sees_parameters for step in steps)

    def evaluate(t, parameters):
        batch = tf.nest.map_structure(lambda leaf: leaf[:, t], batches)
        return losses_and_gradients(problem, parameters, batch)  # [M], [M, N]

    def step(t, parameters, states, records):
        losses, gradients = evaluate(t, parameters)
        seen = [parameters] if sees_parameters else []
        updates, new_states, of_controls = [], [], []
        of_parts = zip(parts.take(gradients), parts.take(parameters))
        for part_step, of_part, state in zip(steps, of_parts, states):
            inputs = levels.inputs(part_step.rule, *of_part)
            update, state, of_control = part_step(inputs, state)
            updates.append(update)
            new_states.append(state)
            of_controls += of_control
        records = _write(records, t, [losses, gradients, *seen, *of_controls])
        return t + 1, parameters + parts.put_together(updates), new_states, records

    def segment(index, parameters, state, records, starts):
        starts = _write(starts, index, tf.nest.flatten(state))
        first = index * segment_length
        state = tf.nest.map_structure(tf.stop_gradient, state)
        states = [step.split(of_part) for step, of_part in zip(steps, parts.states(state))]
        _, parameters, states, records = tf.while_loop(
            lambda t, *_: t < first + segment_length,
            step,
            (first, parameters, states, records),
            maximum_iterations=segment_length,
        )
        state = parts.state_of_rule([step.join(of) for step, of in zip(steps, states)])
        return index + 1, parameters, state, records, starts

    # Without `record`, only the losses are kept.
    records = [_array(num_steps + 1, [num_optimizees], parameters.dtype)]
    starts = []
    if record:
        records.append(_array(num_steps + 1, parameters.shape, parameters.dtype))
        if sees_parameters:
            records.append(_array(num_steps, parameters.shape, parameters.dtype))
        for part_step in steps:
            records += [
                _array(num_steps, shape, parameters.dtype) for shape in part_step.recorded_shapes()
            ]
        starts = [_array(num_segments, s.shape, s.dtype) for s in tf.nest.flatten(state)]

    _, parameters, state, records, starts = tf.while_loop(
        lambda index, *_: index < num_segments,
        segment,
        (0, parameters, state, records, starts),
        maximum_iterations=num_segments,
    )
    losses, gradients = evaluate(num_steps, parameters)
    records[:2] = _write(records[:2], num_steps, [losses, gradients])
    losses, *recorded = [array.stack() for array in records]
    if not record:
        return Trajectory(parameters, state, losses, None, None)
    return Trajectory(
        parameters,
        state,
        losses,
        gradients=recorded.pop(0),
        segment_states=tf.nest.pack_sequence_as(state, [array.stack() for array in starts]),
        visited=recorded.pop(0) if sees_parameters else (),
        controls=tuple(
            tuple(recorded.pop(0) for _ in part_step.recorded_shapes()) for part_step in steps
        ),
    )


def initial_state(rule, layout, num_optimizees):
    """The rule's state before the first step of M optimizees.

    For a coordinatewise rule, the state of M · N coordinates, and of one with a control the pair
    with the control's, of M · K tensors; for a coupled one, a list of M states; for a rule of
    several parts, the list of theirs.
    """
    parts = Parts(rule, layout)
    return parts.state_of_rule([_initial_state(*part, num_optimizees) for part in parts])


def _initial_state(rule, layout, num_optimizees):
    if rule.coupling != "coordinate":
        return [rule.initial_state(layout) for _ in range(num_optimizees)]
    shapes = [shape for _, shape in layout]
    tensors = levels.Tensors.of_shapes(shapes, rule.dtype, num_optimizees)
    return levels.initial_state(rule, num_optimizees * base.num_coordinates(layout), tensors)


def _part_step(rule, layout, num_optimizees, is_compiled):
    """One step of a part of a rule on M optimizees; see ``_WholeStep``."""
    if rule.coupling != "coordinate":
        return _CoupledStep(rule, layout, is_compiled)
    return (_PieceStep if is_compiled else _WholeStep)(rule, layout, num_optimizees)


class _WholeStep:
    """Of all coordinates at once, not compiled, for a tape around it.

    Called with inputs ``[M, N]`` and a state; to updates, the new state, and what there is to
    record. ``split`` makes such a state of one that is whole, ``join`` undoes that.
    """

    def __init__(self, rule, layout, num_optimizees):
        shapes = [shape for _, shape in layout]
        self.rule = rule
        self._tensors = levels.Tensors.of_shapes(shapes, rule.dtype, num_optimizees)
        sizes = [base.num_coordinates([tensor]) for tensor in layout]
        self._owners = levels.owners_of(sizes * num_optimizees)

    def __call__(self, inputs, state):
        vectors = tf.nest.map_structure(lambda leaf: tf.reshape(leaf, [-1]), inputs)
        updates, state = levels.step(self.rule, vectors, state, self._tensors, self._owners)
        return tf.reshape(updates, tf.nest.flatten(inputs)[0].shape), state, ()

    def split(self, state):
        return state

    join = split

    def recorded_shapes(self):
        return ()


class _PieceStep:
    """Compiled, the coordinates cut into pieces that run side by side."""

    def __init__(self, rule, layout, num_optimizees):
        self.rule = rule
        self._step = CoordinatesStep(rule, layout, num_optimizees)
        self._weights = self._step.program.weights()

    def __call__(self, inputs, state):
        pieces = tf.nest.map_structure(self._split_leaf, inputs)  # a list for each vector

        def take(piece):
            return levels.map_inputs(lambda of_vector: of_vector[piece], pieces)

        updates, state, recorded = self._step.advance(self._weights, take, state)
        updates = tf.reshape(tf.concat(updates, axis=0), tf.nest.flatten(inputs)[0].shape)
        return updates, state, recorded

    def recorded_shapes(self):
        """Of what a step returns to be recorded."""
        if not self.rule.has_control:
            return ()
        tensors = self._step.tensors
        return [
            (size, *tensors.sizes.shape) for size in levels.sizes_of_control(self.rule, tensors)
        ]

    def _split_leaf(self, vectors):
        return tf.split(tf.reshape(vectors, [-1]), self._step.piece_sizes)

    def split(self, state):
        coordinates, control = state if self.rule.has_control else (state, ())
        leaves = [
            tf.split(leaf, self._step.piece_sizes, axis=-1) for leaf in tf.nest.flatten(coordinates)
        ]
        of_pieces = [
            tf.nest.pack_sequence_as(coordinates, [of_leaf[piece] for of_leaf in leaves])
            for piece in range(len(self._step.piece_sizes))
        ]
        return of_pieces, control

    def join(self, state):
        of_pieces, control = state
        whole = tf.nest.map_structure(lambda *shares: tf.concat(shares, axis=-1), *of_pieces)
        return (whole, control) if self.rule.has_control else whole


class _CoupledStep:
    """Of a rule whose coordinates are coupled, one optimizee after another."""

    def __init__(self, rule, layout, is_compiled):
        self.rule = rule
        self._layout = layout
        self._update = rule.update
        if is_compiled:
            program = Program(rule)
            weights = program.weights()
            self._update = lambda inputs, state: program.update(weights, inputs, state)

    def __call__(self, inputs, states):
        updates, new = [], []
        for optimizee, state in enumerate(states):
            tensors = levels.map_inputs(
                lambda vectors, m=optimizee: base.split(vectors[m], self._layout), inputs
            )
            of_optimizee, state = self._update(tensors, state)
            updates.append(base.flatten(of_optimizee))
            new.append(state)
        return tf.stack(updates), new, ()

    def split(self, state):
        return state

    join = split

    def recorded_shapes(self):
        return ()


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


def _write(arrays, step, values):
    """To each array its value; of more values, none."""
    return [array.write(step, value) for array, value in zip(arrays, values)]


def _array(size, shape, dtype):
    return tf.TensorArray(dtype, size, element_shape=shape)
