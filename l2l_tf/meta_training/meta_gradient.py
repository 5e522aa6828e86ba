"""Meta-gradient: ∂L/∂φ from the gradients that an unroll has recorded.

θ_t = θ_0 + Σ_{s<t} u_s, and the rule's inputs are stopped, so φ reaches the loss f(θ_t) through the
updates u_s alone:

    ∂L/∂u_s = Σ_{t>s} w_t ∇f(θ_t),        w_t = ∂L/∂f(θ_t)

This reversed cumulative sum, the *cotangents*, needs no tape through the optimizee. What is left is
to backpropagate the rule as a sequence model, from recorded gradients to the updates: ∂L/∂φ is the
derivative of Σ_s ⟨u_s(φ), cotangent_s⟩. For a coordinatewise rule that runs on one chunk of
coordinates at a time, and the segments of the unroll, between which the rule's state is cut, are
independent too: they are run side by side, as more columns of the chunk.
"""

import tensorflow as tf

from l2l_tf.meta_training import unroll as unroll_lib

# Coordinates times steps that are backpropagated at once. The memory of the backward pass is
# proportional to it, whatever the optimizee's size and the unroll length.
CHUNK_SIZE = 80_000


def meta_gradient(
    rule,
    layout,
    trajectory,
    weights,
    *,
    backward_fraction=1.0,
    seed=(0, 0),
    chunk_size=CHUNK_SIZE,
):
    """∂L/∂φ, to first order.

    Args:
        rule: the ``UpdateRule`` of the unroll.
        layout: of the problem.
        trajectory: what ``unroll(..., record=True)`` returned.
        weights: ∂L/∂f(θ_t), ``[T + 1, M]``.
        backward_fraction: below 1, only this share of the coordinates is backpropagated, drawn
            at random, and what they give is scaled up: an unbiased estimate.
        seed: ``[2]``, of that draw.
        chunk_size: coordinates times steps in a chunk; the memory for the backward pass is that
            of a chunk.

    Returns:
        List of gradients, one for each of ``rule.trainable_variables``.
    """
    gradients, states = trajectory.gradients, trajectory.segment_states  # [T + 1, M, N]
    leaves = tf.nest.flatten(states)
    num_segments = leaves[0].shape[0] if leaves else 1  # Without a state, nothing is cut.
    if rule.coupling == "coordinate":
        total = gradients.shape[1] * gradients.shape[2]
        coordinates = tf.range(total)
        if backward_fraction < 1.0:
            drawn = max(1, round(backward_fraction * total))
            coordinates = tf.random.experimental.stateless_shuffle(coordinates, seed)[:drawn]
            weights *= total / drawn
        return _by_chunk(rule, gradients, weights, states, coordinates, num_segments, chunk_size)
    return _by_segment(rule, layout, gradients, weights, states, num_segments)


def cotangents(gradients, weights):
    """Σ_{t>s} w_t ∇f(θ_t) for s = 0 … T - 1: from ``[T + 1, ...]`` to ``[T, ...]``."""
    return tf.cumsum(weights[1:] * gradients[1:], axis=0, reverse=True)


def _by_chunk(rule, gradients, weights, states, coordinates, num_segments, chunk_size):
    """Chunk by chunk through `coordinates`, a vector of indices into the M · N of the unroll."""
    num_steps, num_optimizees, n = gradients.shape[0] - 1, *gradients.shape[1:]
    total = coordinates.shape[0]
    chunk = min(total, max(1, chunk_size // num_steps))
    num_chunks = -(-total // chunk)
    gradients = tf.reshape(gradients, [num_steps + 1, num_optimizees * n])

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
        is_new = tf.cast(first + tf.range(chunk) >= index * chunk, gradients.dtype)
        here = tf.slice(coordinates, [first], [chunk])
        recorded = tf.gather(gradients, here, axis=1)  # [T + 1, chunk]
        of_coordinate = tf.gather(weights, here // n, axis=1) * is_new  # [T + 1, chunk]
        products = _backpropagate(
            rule.trainable_variables,
            rule.update,
            tf.nest.map_structure(lambda leaf: fold_state(tf.gather(leaf, here, axis=-1)), states),
            fold(recorded[:-1]),
            fold(cotangents(recorded, of_coordinate)),
        )
        return index + 1, [a + b for a, b in zip(sums, products)]

    zeros = [tf.zeros(v.shape, v.dtype) for v in rule.trainable_variables]
    _, sums = tf.while_loop(
        lambda index, _: index < num_chunks, one_chunk, (0, zeros), maximum_iterations=num_chunks
    )
    return sums


def _by_segment(rule, layout, gradients, weights, states, num_segments):
    """For rules whose coordinates are coupled: all at once, one segment after another."""
    length = (gradients.shape[0] - 1) // num_segments
    of_update = cotangents(gradients, weights[..., None])  # [T, M, N]

    def update(gradients, state):
        return unroll_lib.apply_rule(rule, layout, gradients, state)

    sums = [tf.zeros(v.shape, v.dtype) for v in rule.trainable_variables]
    for index in range(num_segments):
        steps = slice(index * length, (index + 1) * length)
        state = tf.nest.map_structure(lambda leaf, index=index: leaf[index], states)
        products = _backpropagate(
            rule.trainable_variables, update, state, gradients[steps], of_update[steps]
        )
        sums = [a + b for a, b in zip(sums, products)]
    return sums


def _backpropagate(variables, update, state, gradients, cotangents_):
    """The derivative of Σ_s ⟨u_s(φ), cotangent_s⟩ by φ, over one segment from `state`."""
    num_steps = gradients.shape[0]

    def step(s, state, inner_product):
        updates, state = update(gradients[s], state)
        return s + 1, state, inner_product + tf.reduce_sum(updates * cotangents_[s])

    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch([v.value for v in variables])
        *_, inner_product = tf.while_loop(
            lambda s, *_: s < num_steps,
            step,
            (0, state, tf.zeros([], gradients.dtype)),
            maximum_iterations=num_steps,
        )
    return tape.gradient(inner_product, [v.value for v in variables], unconnected_gradients="zero")
