"""Chunked update: one step of a rule for many variables, in the memory of a few chunks.

What a rule needs beside its state (features, gates, the new state) is larger than the state itself.
So a large variable is cut into chunks of coordinates, each with state variables of its own: a chunk
is run by a compiled program, whose results replace the chunk's state without a copy. Small
variables share a call of it, as each call costs more than their coordinates do.
"""

import itertools
import os

import tensorflow as tf

from l2l_tf.update_rules import compiled, native_lstm, xla

# Variables below this size share a call, and larger ones are cut into chunks of no less.
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
    """One step of a coordinatewise rule for several variables, compiled.

    Returns:
        Function of the rule's weights (of ``compiled.weights``), the gradients (vectors ``[N]`` of
        the rule's dtype), for each of them, for each of its chunks, the list of ``tf.Variable`` of
        its state, and a function of a variable and a value, by which it assigns to these; to the
        list of updates, like the gradients.
    """
    programs = {}  # by sizes: one function for all would look to TensorFlow like retracing

    def run(is_native, weights, vectors, pieces):
        # What is made while operations are watched is not for later.
        key = is_native, xla.watches_operations(), *(vector.shape[0] for vector in vectors)
        if key not in programs:
            programs[key] = (_native_program if is_native else _xla_program)(rule)
        return programs[key](weights, vectors, pieces)

    def update(weights, gradients, states, assign):
        is_native = native_lstm.can_run(rule, states)
        bounds, pieces, owners = [], [], []
        for owner, (gradient, of_chunks) in enumerate(zip(gradients, states)):
            sizes = chunk_sizes(gradient.shape[0])
            bounds += itertools.pairwise(itertools.accumulate(sizes, initial=0))
            pieces += of_chunks
            owners += [owner] * len(of_chunks)

        updates, finished = [None] * len(bounds), []
        at_once = os.cpu_count() or 1
        groups = _groups([end - start for start, end in bounds], at_once, is_native)
        for index, group in enumerate(groups):
            of_group = [pieces[i] for i in group]
            # As many at once as cores: the memory that one needs goes to the next, and the small
            # variables, which come last, even out when the cores are done.
            waits_for = [finished[index - at_once]] if index >= at_once else []
            with tf.control_dependencies(waits_for):
                whole = [tf.identity(gradients[owners[i]]) for i in group]
            steps, new_pieces = run(
                is_native,
                weights,
                [tf.stop_gradient(vector[slice(*bounds[i])]) for i, vector in zip(group, whole)],
                [[tf.convert_to_tensor(leaf) for leaf in leaves] for leaves in of_group],
            )
            finished.append(tf.identity(steps[0]))  # a function, inlined, would not be waited for
            for i, step in zip(group, steps):
                updates[i] = step
            for leaf, value in zip(tf.nest.flatten(of_group), tf.nest.flatten(new_pieces)):
                assign(leaf, value)
        return [
            tf.concat([u for u, of in zip(updates, owners) if of == owner], axis=0)
            for owner in range(len(gradients))
        ]

    return update


def _native_program(rule):
    """A step of the chunks of a group: from vectors and their states to updates and new states."""
    of_pieces = native_lstm.program_of_pieces(rule)

    def step(weights, vectors, pieces):
        updates, new_pieces = of_pieces(weights, tf.concat(vectors, axis=0), pieces)
        return tf.split(updates, [vector.shape[0] for vector in vectors]), new_pieces

    return tf.function(step, autograph=False)  # chunks of a size share its graph


def _xla_program(rule):
    """As of ``_native_program``."""
    structure = rule.initial_state(1)

    def step(vectors, pieces):
        sizes = [vector.shape[0] for vector in vectors]
        old = [tf.concat(leaves, axis=-1) for leaves in zip(*pieces)]
        updates, state = rule.update(
            tf.concat(vectors, axis=0),
            tf.nest.pack_sequence_as(structure, [tf.cast(leaf, rule.dtype) for leaf in old]),
        )
        new = [tf.cast(leaf, like.dtype) for leaf, like in zip(tf.nest.flatten(state), old)]
        of_pieces = zip(*[tf.split(leaf, sizes, axis=-1) for leaf in new])
        return tf.split(updates, sizes), [list(leaves) for leaves in of_pieces]

    return compiled.program(rule, step)


def _groups(sizes, at_once, is_native):
    """Indices of the chunks that are run by one call: several, of about `CHUNK_SIZE`, or one.

    Natively, any may share a call, as states are neither joined nor split. Otherwise, only small
    ones do. Calls are few, and keep all cores busy alike.
    """
    alone = [] if is_native else [[i] for i, size in enumerate(sizes) if size >= SMALL]
    joined = [i for i, size in enumerate(sizes) if is_native or size < SMALL]
    total = sum(sizes[i] for i in joined)
    in_turn = max(1, -(-total // (at_once * CHUNK_SIZE)))
    count = max(1, min(at_once * in_turn, total // SMALL))
    groups, totals = [[] for _ in range(count)], [0] * count
    for i in sorted(joined, key=lambda i: -sizes[i]):
        least = totals.index(min(totals))
        groups[least].append(i)
        totals[least] += sizes[i]
    return alone + [group for group in groups if group]
