"""Meta-gradient: ∂L/∂φ from the gradients that an unroll has recorded.

θ_t = θ_0 + Σ_{s<t} u_s, and the rule's inputs are stopped, so φ reaches the loss f(θ_t) through the
updates u_s alone:

    ∂L/∂u_s = Σ_{t>s} w_t ∇f(θ_t),        w_t = ∂L/∂f(θ_t)

This reversed cumulative sum, the *cotangents*, needs no tape through the optimizee. What is left is
to backpropagate the rule as a sequence model, from recorded inputs to the updates: ∂L/∂φ is the
derivative of Σ_s ⟨u_s(φ), cotangent_s⟩ (``UpdateRule.backpropagate``), for each part of the rule.
For a coordinatewise one that runs on one chunk of coordinates at a time, and the segments of the
unroll, between which the rule's state is cut, are independent too: they are run side by side, as
more columns of the chunk.

Of a rule with a control, φ reaches an update u_s on two ways: through the coordinates, given the
controls; and through the controls c_s, which come of recorded summaries. The coordinates' backward
pass gives the cotangents of the controls, ∂/∂c_s Σ ⟨u_s, cotangent_s⟩, and with these the control,
a sequence model of its own, is backpropagated in the same way.
"""

from typing import NamedTuple

import tensorflow as tf

from l2l_tf import arguments
from l2l_tf.engine import pieces
from l2l_tf.engine.blocks import Blocks
from l2l_tf.engine.parts import Parts
from l2l_tf.engine.program import Program
from l2l_tf.engine.unroll import Trajectory
from l2l_tf.update_rules import base, levels, xla


def meta_gradient(
    rule,
    layout,
    trajectory,
    weights,
    *,
    backward_fraction=1.0,
    seed=(0, 0),
    chunk_size=None,
    of_updates=None,
):
    """∂L/∂φ, to first order.

    Args:
        rule: the ``UpdateRule`` of the unroll.
        layout: of the problem.
        trajectory: what ``unroll(..., record=True)`` returned.
        weights: ∂L/∂f(θ_t), ``[T + 1, M]``.
        backward_fraction: below 1, only this share of the coordinates is backpropagated, drawn
            at random, and what they give is scaled up: an unbiased estimate. Of parts whose
            coordinates are coupled, all are.
        seed: ``[2]``, of that draw.
        chunk_size: coordinates times steps in a chunk: what the backward pass takes beside the
            recorded gradients and the cotangents, whatever the optimizee's size and the unroll
            length. None takes what the device wants: see ``engine/pieces.py``.
        of_updates: ``[T, M, N]``, the derivatives by the updates of what is added to L: cotangents
            beside those that come of the losses. Or None.

    Returns:
        List of gradients, one for each of ``rule.trainable_variables``.

    Raises:
        TypeError, ValueError: an argument of another kind or range, or a trajectory of another
            layout, or without its gradients.
    """
    _check_arguments(rule, layout, trajectory, weights, backward_fraction, seed, chunk_size)
    parts = Parts(rule, layout)
    of_parts = _recorded(parts, trajectory, of_updates)
    states = parts.states(trajectory.segment_states)
    by_variable = {}
    for index, (of_part, of_part_layout) in enumerate(parts):
        recorded = of_parts[index]
        if of_part.coupling != "coordinate":
            products = _by_segment(
                of_part,
                of_part_layout,
                recorded.inputs(of_part),
                states[index],
                recorded.cotangents(weights[..., None]),
            )
        elif base.num_coordinates(of_part_layout) == 0:
            continue
        else:
            backward = _CoordinatesBackward(of_part, of_part_layout, states[index], chunk_size)
            products = backward(
                recorded,
                weights,
                trajectory.controls[index] if trajectory.controls else (),
                backward_fraction,
                (seed, index),
            )
        by_variable.update(zip([id(v) for v in of_part.trainable_variables], products))
    # Of a rule whose group is empty, nothing depends.
    return [by_variable.get(id(v), tf.zeros(v.shape, v.dtype)) for v in rule.trainable_variables]


def _check_arguments(rule, layout, trajectory, weights, backward_fraction, seed, chunk_size):
    arguments.instance("rule", rule, base.UpdateRule, "an UpdateRule")
    arguments.instance("trajectory", trajectory, Trajectory, "what unroll(...) returned")
    arguments.real("backward_fraction", backward_fraction, above=0, maximum=1)
    if chunk_size is not None:
        arguments.integer("chunk_size", chunk_size, 1)
    if tf.convert_to_tensor(seed).shape != [2]:
        raise ValueError(f"`seed` must be two integers, of shape [2]. Received: seed={seed!r}")
    if trajectory.gradients is None:
        raise ValueError("`trajectory` must have its gradients: unroll(..., record=True).")
    num_coordinates = base.num_coordinates(layout)
    if trajectory.gradients.shape[-1] != num_coordinates:
        raise ValueError(
            "`layout` must be that of the trajectory's problem. Expected: "
            f"{trajectory.gradients.shape[-1]} coordinates. Received: {num_coordinates}"
        )
    if weights.shape != trajectory.losses.shape:
        raise ValueError(
            "`weights` must be the derivatives by the trajectory's losses, of shape "
            f"{tuple(trajectory.losses.shape)}. Received: shape {tuple(weights.shape)}"
        )


_sums_by_shape = {}


def cotangents(gradients, weights):
    """Σ_{t>s} w_t ∇f(θ_t) for s = 0 … T - 1: from ``[T + 1, ...]`` to ``[T, ...]``."""
    shapes = tuple(gradients.shape), tuple(weights.shape)
    if shapes not in _sums_by_shape:  # one function for all would look like retracing
        _sums_by_shape[shapes] = xla.program(_sums)
    return _sums_by_shape[shapes](gradients, weights)


def _sums(gradients, weights):
    of_losses = weights[1:] * gradients[1:]
    if pieces.policy() == pieces.GPU:
        return tf.cumsum(of_losses, axis=0, reverse=True)
    # On a CPU the same sums, a step after another, take a fifth of the time.
    return tf.scan(tf.add, of_losses, reverse=True)


class _Recorded(NamedTuple):
    """What an unroll has recorded of a part's coordinates: of M optimizees, or of some columns."""

    gradients: tf.Tensor  # [T + 1, M, N] or [T + 1, columns]
    visited: tf.Tensor | tuple  # [T, …], of rules that see parameters
    of_updates: tf.Tensor | tuple  # [T, …], cotangents beside those of the losses

    def inputs(self, rule):
        return levels.inputs(rule, self.gradients[:-1], self.visited)

    def cotangents(self, weights):
        """``[T, …]``, given ∂L/∂f(θ_t) that spread over the gradients."""
        of_losses = cotangents(self.gradients, weights)
        return of_losses if isinstance(self.of_updates, tuple) else of_losses + self.of_updates


def _recorded(parts, trajectory, of_updates):
    """``_Recorded`` of each part."""
    absent = [()] * len(parts.parts)
    sees_parameters = any(of_part.sees_parameters for of_part, _ in parts)
    return [
        _Recorded(*of_part)
        for of_part in zip(
            parts.take(trajectory.gradients),
            parts.take(trajectory.visited) if sees_parameters else absent,
            absent if of_updates is None else parts.take(of_updates),
        )
    ]


def draw_coordinates(sizes, fraction, seed):
    """Indices of coordinates, increasing: of each of some ranges one in each of equal strata.

    A range has as many strata as the share of it that is drawn, at least one, so that each index
    is drawn as often on average as any other of its range. (An index on a border of strata may be
    drawn twice, and is then counted twice.) Strata spread the draw evenly over the layers. Under
    XLA the same seed draws others.

    Args:
        sizes: of the ranges, which follow each other.
    """
    drawn = [_num_drawn(size, fraction) for size in sizes]
    uniform = tf.random.stateless_uniform([sum(drawn)], seed, dtype=tf.float64, alg="philox")
    indices, start = [], 0
    for size, number, places in zip(sizes, drawn, tf.split(uniform, drawn)):
        places += tf.cast(tf.range(number), tf.float64)
        in_range = tf.cast(places * (size / max(1, number)), tf.int32)
        indices.append(start + tf.minimum(in_range, size - 1))
        start += size
    return tf.concat(indices, axis=0)


class _CoordinatesBackward:
    """The backward pass of a coordinatewise rule: some of the coordinates, or all, by chunks.

    Axes: T steps in segments of K, of M optimizees with N coordinates each; in a chunk, the
    segments are side by side.
    """

    def __init__(self, rule, layout, states, chunk_size):
        self.rule = rule
        self.layout = layout
        self.coordinates, self.control = states if rule.has_control else (states, ())
        self.num_segments = _num_segments(states)
        self.program = Program(rule)
        self.chunk_size = chunk_size or self.program.kept(self.coordinates)
        self.weights = self.program.weights()  # read once: chunks are then run side by side

    def __call__(self, recorded, weights, controls, backward_fraction, seed_and_index):
        """∂L/∂φ, given ``_Recorded`` of M optimizees, and ∂L/∂f(θ_t) ``[T + 1, M]``."""
        num_optimizees, num_coordinates = recorded.gradients.shape[1:]
        sizes = [num_optimizees * num_coordinates]
        if self.rule.has_control:
            sizes = [base.num_coordinates([tensor]) for tensor in self.layout] * num_optimizees
        states, of_columns, scale = self.coordinates, weights[..., None], 1.0
        if backward_fraction < 1.0:
            # Drawn before all else, so that nothing is summed up of the others.
            drawn = draw_coordinates(sizes, backward_fraction, _seed_of_draw(*seed_and_index))
            recorded = tf.nest.map_structure(_of_coordinates, recorded)
            recorded, states = tf.nest.map_structure(
                lambda leaf: tf.gather(leaf, drawn, axis=-1), (recorded, states)
            )
            of_columns = tf.gather(weights, drawn // num_coordinates, axis=1)
            scale = _scale_of_drawn(sizes, backward_fraction, weights.dtype)
            sizes = [_num_drawn(size, backward_fraction) for size in sizes]
        start = tf.nest.map_structure(lambda leaf: leaf[0], (states, self.control))
        of_updates = self.rule.cotangents_of_moves(
            recorded.cotangents(of_columns), start if self.rule.has_control else start[0]
        )
        columns = recorded.inputs(self.rule), of_updates
        inputs, of_updates = tf.nest.map_structure(_of_coordinates, columns)
        columns = inputs, states, of_updates * scale
        if not self.rule.has_control:
            return self._by_chunk(*columns)
        blocks = Blocks(sizes, pieces.BLOCK)
        columns = tf.nest.map_structure(blocks.pad, columns)
        summaries, controls = (self._fold_control(recorded) for recorded in controls)
        *products, of_controls = self._by_chunk(*columns, blocks, controls)
        shapes = [shape for _, shape in self.layout]
        by_control = self.program.backpropagate_control(
            self.weights,
            summaries,
            tf.nest.map_structure(_fold_state, self.control),
            of_controls,
            levels.Tensors.of_shapes(shapes, self.rule.dtype, self.num_segments * num_optimizees),
        )
        return [a + b for a, b in zip(products, by_control)]

    def _by_chunk(self, inputs, states, of_updates, *blocks_and_controls):
        """Chunk by chunk through the coordinates, those of all segments side by side.

        Args:
            blocks_and_controls: of a rule with a control: ``Blocks`` of the coordinates, and the
                controls ``[K, C, …]``.

        Returns:
            The derivatives by φ; and with controls ``[K, C, …]``, by them, one more.
        """
        num_steps, total = of_updates.shape
        # Where nothing is kept of a step, a chunk is as many coordinates as if it were one.
        is_kept = self.rule.state_depends_on_weights
        most = self.chunk_size // (num_steps if is_kept else self.num_segments)
        least = -(-pieces.policy().least // num_steps)
        block = blocks_and_controls[0].size if blocks_and_controls else 1
        chunk, num_chunks = pieces.chunks(total, most, least, block)

        def one_chunk(index, sums):
            # The last chunk is moved back to end with the coordinates; what it then shares with the
            # one before counts there only.
            first = tf.minimum(index * chunk, total - chunk)
            is_new = tf.cast(first + tf.range(chunk) >= index * chunk, of_updates.dtype)
            of_chunk, starts, of_updates_chunk = tf.nest.map_structure(
                lambda leaf: _slice_last(leaf, first, chunk), (inputs, states, of_updates)
            )
            arguments = [
                self.weights,
                tf.nest.map_structure(self._fold, of_chunk),
                tf.nest.map_structure(_fold_state, starts),
                self._fold(of_updates_chunk * is_new),
            ]
            if blocks_and_controls:
                blocks, controls = blocks_and_controls
                owners = _slice_last(tf.constant(blocks.owners), first // block, chunk // block)
                owners = self._fold_owners(owners, controls)
                products, by_controls = self.program.backpropagate_coordinates(
                    *arguments, controls, owners
                )
                products = [*products, by_controls]
            else:
                products = self.program.backpropagate(*arguments)
            return index + 1, [a + b for a, b in zip(sums, products)]

        zeros = [tf.zeros(v.shape, v.dtype) for v in self.rule.trainable_variables]
        zeros += [tf.zeros_like(controls) for controls in blocks_and_controls[1:]]
        _, sums = tf.while_loop(
            lambda index, _: index < num_chunks,
            one_chunk,
            (0, zeros),
            maximum_iterations=num_chunks,
            parallel_iterations=pieces.policy().side_by_side,
        )
        return sums

    def _fold(self, recorded):  # [T, chunk] → [K, T / K * chunk]
        recorded = tf.reshape(recorded, [self.num_segments, -1, recorded.shape[-1]])
        recorded = tf.transpose(recorded, [1, 0, 2])
        return tf.reshape(recorded, [recorded.shape[0], -1])

    def _fold_control(self, recorded):  # [T, C, tensors] → [K, C, T / K * tensors]
        recorded = tf.reshape(recorded, [self.num_segments, -1, *recorded.shape[1:]])
        recorded = tf.transpose(recorded, [1, 2, 0, 3])
        return tf.reshape(recorded, [*recorded.shape[:2], -1])

    def _fold_owners(self, owners, controls):  # [blocks] → [T / K * blocks]
        num_tensors = controls.shape[-1] // self.num_segments
        firsts = num_tensors * tf.range(self.num_segments)[:, None]
        return tf.reshape(firsts + owners, [-1])


def _seed_of_draw(seed, index):
    """Of each part its own."""
    return tf.cast(seed, tf.int64) + tf.constant([0, index << 32], tf.int64)


def _scale_of_drawn(sizes, fraction, dtype):
    """For each of the drawn coordinates, how many it stands for."""
    scale = []
    for size in sizes:
        number = _num_drawn(size, fraction)
        scale.append(tf.fill([number], tf.constant(size / max(1, number), dtype)))
    return tf.concat(scale, axis=0)


def _num_drawn(size, fraction):
    return min(size, max(1, round(fraction * size)))


def _by_segment(rule, layout, inputs, states, of_updates):
    """For rules whose coordinates are coupled: one optimizee and segment after another."""
    num_segments = _num_segments(states)
    length = of_updates.shape[0] // num_segments
    program = Program(rule)
    weights = program.weights()
    sums = [tf.zeros(v.shape, v.dtype) for v in rule.trainable_variables]
    for index in range(num_segments):
        steps = slice(index * length, (index + 1) * length)
        for optimizee, state in enumerate(states):
            of_segment = levels.map_inputs(
                lambda recorded, s=steps, m=optimizee: base.split(recorded[s, m], layout), inputs
            )
            products = program.backpropagate(
                weights,
                of_segment,
                tf.nest.map_structure(lambda leaf, index=index: leaf[index], state),
                base.split(of_updates[steps, optimizee], layout),
            )
            sums = [a + b for a, b in zip(sums, products)]
    return sums


def _num_segments(states):
    leaves = tf.nest.flatten(states)
    return leaves[0].shape[0] if leaves else 1  # Without a state, nothing is cut.


def _of_coordinates(recorded):  # [T, M, N] → [T, M · N]; columns stay
    return tf.reshape(recorded, [recorded.shape[0], -1])


def _fold_state(leaf):  # [T / K, ..., chunk] → [..., T / K * chunk]
    rank = leaf.shape.rank
    leaf = tf.transpose(leaf, [*range(1, rank - 1), 0, rank - 1])
    return tf.reshape(leaf, [*leaf.shape[:-2], -1])


def _slice_last(tensor, first, size):
    rank = tensor.shape.rank
    return tf.slice(tensor, [0] * (rank - 1) + [first], [*tensor.shape[:-1], size])
