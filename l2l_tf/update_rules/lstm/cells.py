"""LSTM cells on N coordinates at once: a step forward, and backpropagation through time.

Feature-major, ``[features, N]``: with the coordinates last, each gate is a contiguous block of
rows, and one matrix product serves all gates. Sigmoids are written as
σ(x) = (1 + tanh(x / 2)) / 2, with the half in the weights: XLA's tanh is the faster one.
"""

import tensorflow as tf


def halved(kernel, bias):
    """A layer's weights as ``step`` takes them: rows of gates with a sigmoid are halved.

    Args:
        kernel: ``[4 * units, features + units]``; gates in the order of Keras' LSTMCell: input,
            forget, candidate, output.
        bias: ``[4 * units, 1]``.
    """
    return _halve_sigmoid_rows(kernel), _halve_sigmoid_rows(bias)


def step(kernel, bias, inputs, state):
    """One step of one layer.

    Args:
        kernel, bias: of ``halved``.
        inputs: ``[features, N]``.
        state: ``(hidden, cell)``, each ``[units, N]``.

    Returns:
        ``((hidden, cell), saved)``, the new state and what the backward pass needs.
    """
    hidden, cell = state
    inputs = tf.concat([inputs, hidden], axis=0)
    gates = tf.split(tf.matmul(kernel, inputs) + bias, 4, axis=0)
    write, forget, candidate, read = gates = [tf.tanh(gate) for gate in gates]
    new_cell = 0.5 * ((1.0 + forget) * cell + (1.0 + write) * candidate)
    squashed = tf.tanh(new_cell)
    hidden = 0.5 * (1.0 + read) * squashed
    return (hidden, new_cell), (inputs, gates, cell, squashed)


def backpropagate(layers, head, features, state, output_cotangent):
    """The derivative of Σ_t ⟨u_t, cotangent_t⟩ by the weights of stacked layers and a linear head.

    Only the states are kept from the forward pass. A step's gates are computed again when the
    backward pass gets there: to write and read them takes longer than the arithmetic.

    Args:
        layers: ``(kernel, bias)`` of each layer, as of ``halved``, but not yet halved.
        head: ``(kernel [1, units], bias [1, 1])``.
        features: ``[T, features, N]``.
        state: ``(hidden, cell)`` of each layer.
        output_cotangent: function of a step t and the head's outputs ``[1, N]`` at it, to the
            derivative by these outputs, ``[1, N]``.

    Returns:
        Gradients, in the order kernel, bias, kernel, bias, …, head kernel, head bias.
    """
    num_steps = features.shape[0]
    layers = [halved(*layer) for layer in layers]
    head_kernel, head_bias = head

    def forward(t, state):
        inputs, new_state, saved = features[t], [], []
        for layer, layer_state in zip(layers, state):
            layer_state, saved_by_layer = step(*layer, inputs, layer_state)
            inputs = layer_state[0]
            new_state.append(layer_state)
            saved.append(saved_by_layer)
        return tuple(new_state), saved

    def record(t, state, records):
        records = [array.write(t, leaf) for array, leaf in zip(records, tf.nest.flatten(state))]
        return t + 1, forward(t, state)[0], records

    def backward(steps_done, state_cotangents, sums):
        t = num_steps - 1 - steps_done
        before = tf.nest.pack_sequence_as(state, [array.read(t) for array in records])
        after, saved = forward(t, before)
        top = after[-1][0]
        outputs_cotangent = output_cotangent(t, tf.matmul(head_kernel, top) + head_bias)  # [1, N]
        above = tf.transpose(head_kernel) * outputs_cotangent
        state_cotangents, (*sums, head_sums) = list(state_cotangents), sums
        head_sums = _add_products(head_sums, outputs_cotangent, top)
        for index in reversed(range(len(layers))):
            hidden, cell = state_cotangents[index]
            gates_cotangent, cell = _step_backward(saved[index], hidden + above, cell)
            sums[index] = _add_products(sums[index], gates_cotangent, saved[index][0])
            inputs_cotangent = tf.matmul(layers[index][0], gates_cotangent, transpose_a=True)
            units = hidden.shape[0]
            above = inputs_cotangent[:-units]
            state_cotangents[index] = (inputs_cotangent[-units:], cell)
        return steps_done + 1, tuple(state_cotangents), (*sums, head_sums)

    records = [
        tf.TensorArray(leaf.dtype, num_steps, element_shape=leaf.shape)
        for leaf in tf.nest.flatten(state)
    ]
    *_, records = tf.while_loop(
        lambda t, *_: t < num_steps, record, (0, state, records), maximum_iterations=num_steps
    )
    zeros = tf.nest.map_structure(tf.zeros_like, (state, (*layers, tuple(head))))
    *_, sums = tf.while_loop(
        lambda t, *_: t < num_steps, backward, (0, *zeros), maximum_iterations=num_steps
    )
    *layer_sums, head_sums = sums
    return [weight for layer in layer_sums for weight in halved(*layer)] + list(head_sums)


def _step_backward(saved, hidden_cotangent, cell_cotangent):
    """From the cotangents of a layer's new state to those of its gates (before the tanh) and its
    old cell."""
    _, gates, cell, squashed = saved
    write, forget, candidate, read = gates
    cell_cotangent += 0.5 * hidden_cotangent * (1.0 + read) * (1.0 - squashed * squashed)
    half = 0.5 * cell_cotangent
    gates_cotangent = [
        half * candidate * (1.0 - write * write),
        half * cell * (1.0 - forget * forget),
        half * (1.0 + write) * (1.0 - candidate * candidate),
        0.5 * hidden_cotangent * squashed * (1.0 - read * read),
    ]
    return tf.concat(gates_cotangent, axis=0), half * (1.0 + forget)


def _add_products(sums, cotangents, inputs):
    """Adds a kernel's and a bias' gradients, given the cotangents of ``kernel · inputs + bias``."""
    # One product for both: a reduction by itself would compute the cotangents once more.
    ones = tf.ones([1, inputs.shape[1]], inputs.dtype)
    products = tf.matmul(cotangents, tf.concat([inputs, ones], axis=0), transpose_b=True)
    return sums[0] + products[:, :-1], sums[1] + products[:, -1:]


def _halve_sigmoid_rows(weights):
    write, forget, candidate, read = tf.split(weights, 4, axis=0)
    return tf.concat([0.5 * write, 0.5 * forget, candidate, 0.5 * read], axis=0)
