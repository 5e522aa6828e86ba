"""Chunked update: a rule applied to many variables, a bounded number of coordinates at a time.

What a rule needs beside its state (features, gates, activations) is several times as large as the
state. So large variables are cut into chunks of coordinates, and small ones share a chunk. The
state of a variable is kept chunk by chunk, ``[num_chunks, ..., chunk]``: a chunk is contiguous,
read by one gather and written in place by one scatter, also under XLA.
"""

import tensorflow as tf

# Coordinates in one call of the rule.
CHUNK_SIZE = 8192


def num_chunks(num_coordinates):
    """Chunks of a variable."""
    return max(1, -(-num_coordinates // CHUNK_SIZE))


def chunk_length(num_coordinates):
    """Coordinates of each chunk; the last one is padded."""
    return max(1, -(-num_coordinates // num_chunks(num_coordinates)))


def initial_state(rule, num_coordinates):
    """For each leaf of the rule's state: ``(shape [num_chunks, ..., chunk], initializer)``."""
    length, count = chunk_length(num_coordinates), num_chunks(num_coordinates)

    def initializer_of(index):
        def initializer(shape, dtype):
            leaf = tf.nest.flatten(rule.initial_state(length))[index]
            return tf.cast(tf.broadcast_to(leaf, shape), dtype)

        return initializer

    with tf.init_scope():
        leaves = tf.nest.flatten(rule.initial_state(length))
    return [
        ((count, *leaf.shape.as_list()), initializer_of(index)) for index, leaf in enumerate(leaves)
    ]


def update(rule, gradients, states, assign):
    """One step of a coordinatewise rule for several variables.

    Args:
        rule: an ``UpdateRule`` with coupling "coordinate".
        gradients: list of tensors, of any shapes.
        states: for each variable, the list of ``tf.Variable`` of ``initial_state``. Assigned to.
        assign: function of a variable and a value.

    Returns:
        List of updates, of the gradients' shapes and the rule's dtype.
    """
    structure = tf.nest.map_structure(lambda _: None, rule.initial_state(1))
    updates = [None] * len(gradients)
    for group in _groups([g.shape.num_elements() for g in gradients]):
        vectors = [
            tf.stop_gradient(tf.cast(tf.reshape(gradients[i], [-1]), rule.dtype)) for i in group
        ]
        of_group = [states[i] for i in group]
        if num_chunks(vectors[0].shape[0]) > 1:
            (vector,), (state,) = vectors, of_group
            steps = [_by_chunk(rule, structure, vector, state)]
        else:
            steps = _together(rule, structure, vectors, of_group, assign)
        for i, step in zip(group, steps):
            updates[i] = tf.reshape(step, gradients[i].shape)
    return updates


def _groups(sizes):
    """Indices of variables, in order, together up to CHUNK_SIZE coordinates."""
    groups, total = [], 0
    for index, size in enumerate(sizes):
        if not groups or total + size > CHUNK_SIZE:
            groups.append([])
            total = 0
        groups[-1].append(index)
        total += size
    return groups


def _together(rule, structure, vectors, states, assign):
    """Variables of one chunk each, side by side in one call."""
    sizes = [vector.shape[0] for vector in vectors]
    leaves = [
        tf.concat([tf.cast(leaf[0], rule.dtype) for leaf in of_variables], axis=-1)
        for of_variables in zip(*states)
    ]
    updates, state = rule.update(
        tf.concat(vectors, axis=0), tf.nest.pack_sequence_as(structure, leaves)
    )
    for of_variables, leaf in zip(zip(*states), tf.nest.flatten(state)):
        for variable, value in zip(of_variables, tf.split(leaf, sizes, axis=-1)):
            assign(variable, value[None])
    return tf.split(updates, sizes)


def _by_chunk(rule, structure, vector, state):
    """A large variable, chunk after chunk."""
    size = vector.shape[0]
    count, length = num_chunks(size), chunk_length(size)
    chunks = tf.reshape(tf.pad(vector, [[0, count * length - size]]), [count, length])

    def one_chunk(index, steps):
        leaves = [tf.cast(tf.gather(leaf, index), rule.dtype) for leaf in state]
        step, leaves = rule.update(chunks[index], tf.nest.pack_sequence_as(structure, leaves))
        for variable, value in zip(state, tf.nest.flatten(leaves)):
            variable.scatter_update(
                tf.IndexedSlices(tf.cast(value[None], variable.dtype), index[None])
            )
        return index + 1, steps.write(index, step)

    _, steps = tf.while_loop(
        lambda index, _: index < count,
        one_chunk,
        (tf.constant(0), tf.TensorArray(rule.dtype, count, element_shape=[length])),
        parallel_iterations=1,
        maximum_iterations=count,
    )
    return tf.reshape(steps.stack(), [-1])[:size]
