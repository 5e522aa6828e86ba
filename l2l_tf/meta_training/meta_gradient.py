"""Meta-gradient: ∂L/∂φ from the gradients that an unroll has recorded.

θ_t = θ_0 + Σ_{s<t} u_s, and the rule's inputs are stopped, so φ reaches the loss f(θ_t) through the
updates u_s alone:

    ∂L/∂u_s = Σ_{t>s} w_t ∇f(θ_t),        w_t = ∂L/∂f(θ_t)

This reversed cumulative sum, the *cotangents*, needs no tape through the optimizee. What is left is
to backpropagate the rule as a sequence model, from recorded gradients to the updates: ∂L/∂φ is the
derivative of Σ_s ⟨u_s(φ), cotangent_s⟩ (``UpdateRule.backpropagate``), for each part of the rule.
For a coordinatewise one that runs on one chunk of coordinates at a time, and the segments of the
unroll, between which the rule's state is cut, are independent too: they are run side by side, as
more columns of the chunk.
"""

import os

import tensorflow as tf

from l2l_tf import arguments
from l2l_tf.meta_training import parts as parts_lib
from l2l_tf.meta_training.unroll import Trajectory
from l2l_tf.update_rules import base, compiled

# Coordinates times steps that are backpropagated at once. Beside the recorded gradients and the
# cotangents, the memory of the backward pass is proportional to it, whatever the optimizee's size
# and the unroll length. On a CPU a chunk stays in a core's cache, and as many chunks as there are
# cores run side by side. A GPU wants long vectors, one chunk after another.
CHUNK_SIZE_CPU = 10_240
CHUNK_SIZE_GPU = 4_000_000


def _chunk_size_and_parallelism():
    on_gpu = bool(tf.config.list_logical_devices("GPU"))
    return (CHUNK_SIZE_GPU, 1) if on_gpu else (CHUNK_SIZE_CPU, os.cpu_count())


def meta_gradient(
    rule,
    layout,
    trajectory,
    weights,
    *,
    backward_fraction=1.0,
    seed=(0, 0),
    chunk_size=None,
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
            recorded gradients and the cotangents. None takes 10,240 on a CPU, where each core
            runs a chunk, and 4 million with a GPU.

    Returns:
        List of gradients, one for each of ``rule.trainable_variables``.

    Raises:
        TypeError, ValueError: an argument of another kind or range, or a trajectory of another
            layout, or without its gradients.
    """
    _check_arguments(rule, layout, trajectory, weights, backward_fraction, seed, chunk_size)
    gradients = trajectory.gradients[:-1]  # [T, M, N]
    of_updates = cotangents(trajectory.gradients, weights[..., None])  # [T, M, N]
    parts = parts_lib.parts_of(rule, layout)
    states = parts_lib.state_by_part(rule, parts, trajectory.segment_states)
    by_variable = {}
    for index, (part, states_of_part) in enumerate(zip(parts, states)):
        recorded = [parts_lib.take(vectors, part) for vectors in (gradients, of_updates)]
        if part.rule.coupling != "coordinate":
            products = _by_segment(part.rule, part.layout, recorded[0], states_of_part, recorded[1])
        elif base.num_coordinates(part.layout) == 0:
            continue
        else:
            products = _coordinatewise(
                part.rule, *recorded, states_of_part, backward_fraction, (seed, index), chunk_size
            )
        by_variable.update(zip([id(v) for v in part.rule.trainable_variables], products))
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


def cotangents(gradients, weights):
    """Σ_{t>s} w_t ∇f(θ_t) for s = 0 … T - 1: from ``[T + 1, ...]`` to ``[T, ...]``."""
    return tf.cumsum(weights[1:] * gradients[1:], axis=0, reverse=True)


def draw_coordinates(total, drawn, seed):
    """Indices ``[drawn]`` below `total`, increasing: one at random in each of `drawn` equal strata.

    Each index is drawn ``drawn / total`` times on average. (An index on a border of strata may be
    drawn twice, and is then counted twice.) Strata spread the draw evenly over the layers. Under
    XLA the same seed draws others.
    """
    places = tf.cast(tf.range(drawn), tf.float64)
    places += tf.random.stateless_uniform([drawn], seed, dtype=tf.float64, alg="philox")
    return tf.minimum(tf.cast(places * (total / drawn), tf.int32), total - 1)


def _coordinatewise(
    rule, gradients, of_updates, states, backward_fraction, seed_and_index, chunk_size
):
    """For rules whose coordinates are independent: some of them, or all, by chunks."""
    gradients, of_updates = _of_coordinates(gradients), _of_coordinates(of_updates)  # [T, M · N]
    if backward_fraction < 1.0:
        seed, index = seed_and_index
        total = gradients.shape[-1]
        drawn = max(1, round(backward_fraction * total))
        # Each part draws by a seed of its own.
        seed = tf.cast(seed, tf.int64) + tf.constant([0, index << 32], tf.int64)
        coordinates = draw_coordinates(total, drawn, seed)
        gradients, states, of_updates = tf.nest.map_structure(
            lambda leaf: tf.gather(leaf, coordinates, axis=-1), (gradients, states, of_updates)
        )
        of_updates *= total / drawn
    return _by_chunk(rule, gradients, states, of_updates, chunk_size)


def _by_chunk(rule, gradients, states, of_updates, chunk_size):
    """Chunk by chunk through the coordinates, those of all segments side by side."""
    num_steps, total = gradients.shape
    num_segments = _num_segments(states)
    default_chunk_size, parallelism = _chunk_size_and_parallelism()
    chunk_size = chunk_size or default_chunk_size
    chunk = min(total, max(1, chunk_size // num_steps))
    num_chunks = -(-total // chunk)
    backpropagate = compiled.program(rule, rule.backpropagate)
    rule_weights = compiled.weights(rule)  # read once: the chunks are then run side by side

    def fold(recorded):  # [T, chunk] → [K, T / K * chunk]
        recorded = tf.reshape(recorded, [num_segments, -1, chunk])
        return tf.reshape(tf.transpose(recorded, [1, 0, 2]), [-1, num_segments * chunk])

    def fold_state(leaf):  # [T / K, ..., chunk] → [..., T / K * chunk]
        rank = leaf.shape.rank
        leaf = tf.transpose(leaf, [*range(1, rank - 1), 0, rank - 1])
        return tf.reshape(leaf, [*leaf.shape[:-2], num_segments * chunk])

    def one_chunk(index, sums):
        # The last chunk is moved back to end with the coordinates; what it then shares with the
        # one before counts there only.
        first = tf.minimum(index * chunk, total - chunk)
        is_new = tf.cast(first + tf.range(chunk) >= index * chunk, of_updates.dtype)
        recorded, starts, of_updates_chunk = tf.nest.map_structure(
            lambda leaf: _slice_last(leaf, first, chunk), (gradients, states, of_updates)
        )
        products = backpropagate(
            rule_weights,
            fold(recorded),
            tf.nest.map_structure(fold_state, starts),
            fold(of_updates_chunk * is_new),
        )
        return index + 1, [a + b for a, b in zip(sums, products)]

    zeros = [tf.zeros(v.shape, v.dtype) for v in rule.trainable_variables]
    _, sums = tf.while_loop(
        lambda index, _: index < num_chunks,
        one_chunk,
        (0, zeros),
        maximum_iterations=num_chunks,
        parallel_iterations=parallelism,
    )
    return sums


def _by_segment(rule, layout, gradients, states, of_updates):
    """For rules whose coordinates are coupled: one optimizee and segment after another."""
    num_segments = _num_segments(states)
    length = gradients.shape[0] // num_segments
    backpropagate = compiled.program(rule, rule.backpropagate)
    rule_weights = compiled.weights(rule)
    sums = [tf.zeros(v.shape, v.dtype) for v in rule.trainable_variables]
    for index in range(num_segments):
        steps = slice(index * length, (index + 1) * length)
        for optimizee, state in enumerate(states):
            products = backpropagate(
                rule_weights,
                base.split(gradients[steps, optimizee], layout),
                tf.nest.map_structure(lambda leaf, index=index: leaf[index], state),
                base.split(of_updates[steps, optimizee], layout),
            )
            sums = [a + b for a, b in zip(sums, products)]
    return sums


def _num_segments(states):
    leaves = tf.nest.flatten(states)
    return leaves[0].shape[0] if leaves else 1  # Without a state, nothing is cut.


def _of_coordinates(recorded):  # [T, M, N] → [T, M · N]
    return tf.reshape(recorded, [recorded.shape[0], -1])


def _slice_last(tensor, first, size):
    rank = tensor.shape.rank
    return tf.slice(tensor, [0] * (rank - 1) + [first], [*tensor.shape[:-1], size])
