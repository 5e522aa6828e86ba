"""Chunked update: one step of a rule for many variables, in the memory of a few chunks.

What a rule needs beside its state (features, gates, the new state) is larger than the state itself.
So a large variable is cut into chunks of coordinates, each with state variables of its own: a chunk
is one call of one compiled program, whose results replace the chunk's state without a copy. Small
variables share a chunk.
"""

import functools
import itertools
import os

import tensorflow as tf

from l2l_tf.update_rules import compiled, native_lstm, xla

# Variables below this size share a chunk, and larger ones are cut into chunks of no less.
SMALL = 4096
# Chunks for cores to run side by side, a power of two, as the number of cores mostly is.
SIDE_BY_SIDE = 4
# Coordinates in a chunk, at most, and chunks in a variable, for the size of the program: beyond 4
# million coordinates, chunks grow. All of these determine the layout of saved optimizer states.
CHUNK_SIZE = 32_768
MAX_CHUNKS = 128
# Chunks but the last are a multiple of it, so that rows of the state begin with a cache line each.
BLOCK = 64


def chunk_sizes(num_coordinates):
    """Coordinates of each chunk of a variable; one chunk at least."""
    shares = min(SIDE_BY_SIDE, max(1, num_coordinates // SMALL))
    shares = 2 ** (shares.bit_length() - 1)
    in_turn = min(MAX_CHUNKS // SIDE_BY_SIDE, max(1, -(-num_coordinates // (shares * CHUNK_SIZE))))
    count = shares * in_turn
    size = -(-num_coordinates // (count * BLOCK)) * BLOCK
    return [size] * (count - 1) + [num_coordinates - (count - 1) * size]


def initial_state(rule, num_coordinates):
    """For each leaf of the rule's state: ``(shape, initializer)``, the shape ending in N."""

    def initializer_of(index):
        def initializer(shape, dtype):
            return tf.cast(tf.nest.flatten(rule.initial_state(num_coordinates))[index], dtype)

        return initializer

    with tf.init_scope():
        leaves = tf.nest.flatten(rule.initial_state(num_coordinates))
    return [(leaf.shape.as_list(), initializer_of(index)) for index, leaf in enumerate(leaves)]


@compiled.shared
def program(rule):
    """One step of a coordinatewise rule for a chunk, compiled.

    Returns:
        Function of the rule's weights, a list of vectors (gradients) and for each of them the
        leaves of its state, in any dtype; to the list of updates and the new leaves.
    """
    structure = rule.initial_state(1)

    def step(update, vectors, states):
        sizes = [vector.shape[0] for vector in vectors]
        leaves = [tf.concat(of_vectors, axis=-1) for of_vectors in zip(*states)]
        updates, state = update(
            tf.concat(vectors, axis=0), tf.nest.pack_sequence_as(structure, leaves)
        )
        new_leaves = [tf.split(leaf, sizes, axis=-1) for leaf in tf.nest.flatten(state)]
        return tf.split(updates, sizes), [list(of_vector) for of_vector in zip(*new_leaves)]

    def update_by_xla(gradients, state):
        updates, new = rule.update(
            gradients, tf.nest.map_structure(lambda leaf: tf.cast(leaf, rule.dtype), state)
        )
        return updates, tf.nest.map_structure(
            lambda leaf, old: tf.cast(leaf, old.dtype), new, state
        )

    natively = native_lstm.program(rule)
    programs = {}  # by sizes: one function for all would look to TensorFlow like retracing

    def new_program(is_native):
        if not is_native:
            return compiled.program(rule, functools.partial(step, update_by_xla))
        # A function too: all chunks of a size share its graph.
        return tf.function(
            lambda weights, *args: step(functools.partial(natively, weights), *args),
            autograph=False,
        )

    def run(weights, vectors, states):
        is_native = native_lstm.can_run(rule, states)
        # What is made while operations are watched is not for later.
        key = is_native, xla.watches_operations(), *(vector.shape[0] for vector in vectors)
        if key not in programs:
            programs[key] = new_program(is_native)
        return programs[key](weights, vectors, states)

    return run


def update(program, weights, gradients, states, assign):
    """One step for several variables.

    Args:
        program: of ``program(rule)``.
        weights: of ``compiled.weights(rule)``.
        gradients: list of vectors ``[N]`` of the rule's dtype.
        states: for each, for each of its chunks, the list of ``tf.Variable`` of its state.
            Assigned to.
        assign: function of a variable and a value.

    Returns:
        List of updates, like the gradients.
    """
    bounds, chunk_states, owners = [], [], []
    for owner, (gradient, of_chunks) in enumerate(zip(gradients, states)):
        sizes = chunk_sizes(gradient.shape[0])
        bounds += itertools.pairwise(itertools.accumulate(sizes, initial=0))
        chunk_states += of_chunks
        owners += [owner] * len(of_chunks)

    updates, finished = [None] * len(bounds), []
    at_once = os.cpu_count() or 1
    groups = _groups([end - start for start, end in bounds], at_once)
    for index, group in enumerate(groups):
        of_group = [chunk_states[i] for i in group]
        # As many chunks at once as cores: the memory that one needs goes to the next, and the small
        # variables, which come last, even out when the cores are done.
        waits_for = [finished[index - at_once]] if index >= at_once else []
        with tf.control_dependencies(waits_for):
            whole = [tf.identity(gradients[owners[i]]) for i in group]
        steps, new_states = program(
            weights,
            [tf.stop_gradient(vector[slice(*bounds[i])]) for i, vector in zip(group, whole)],
            [[tf.convert_to_tensor(leaf) for leaf in leaves] for leaves in of_group],
        )
        finished.append(tf.identity(steps[0]))  # a function, inlined, would not be waited for
        for i, step in zip(group, steps):
            updates[i] = step
        for leaf, value in zip(tf.nest.flatten(of_group), tf.nest.flatten(new_states)):
            assign(leaf, value)
    return [
        tf.concat([u for u, of in zip(updates, owners) if of == owner], axis=0)
        for owner in range(len(gradients))
    ]


def _groups(sizes, at_once):
    """Indices of the vectors that make a chunk: a large one alone, small ones together.

    The small ones make as many chunks as run at once, if these are not small themselves.
    """
    small = [i for i, size in enumerate(sizes) if size < SMALL]
    share = sum(sizes[i] for i in small) / at_once
    limit = min(CHUNK_SIZE, max(SMALL, share))
    groups, together, total = [[i] for i, size in enumerate(sizes) if size >= SMALL], [], 0
    for i in small:
        together.append(i)
        total += sizes[i]
        if total >= limit:
            groups.append(together)
            together, total = [], 0
    return groups + [together] if together else groups
