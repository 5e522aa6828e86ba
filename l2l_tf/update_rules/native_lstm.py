"""Native LSTM: the step of a coordinatewise LSTM rule by the native kernel, where it can be had.

XLA writes the gates of a step to memory and reads them again; the kernel keeps them in registers.
What is not an LSTM (features, the scale of the updates) is left to XLA and TensorFlow.
"""

import tensorflow as tf

from l2l_tf.native import library
from l2l_tf.update_rules import lstm_cells, xla
from l2l_tf.update_rules.lstm import LSTMRule

# Coordinates from which on the features take less time as an XLA program: below, TensorFlow's
# kernels are as fast, and need no program for each size.
XLA_PAYS = 16_384


def can_run(rule, state=()):
    """Whether the kernel computes ``rule.update`` here: on this machine, in this graph."""
    return (
        isinstance(rule, LSTMRule)
        and type(rule).update is LSTMRule.update
        and type(rule).run_layers is LSTMRule.run_layers
        and len(rule.variables) == 2 * len(rule.layers) + 2  # kernels, biases, head and its bias
        and rule.dtype == "float32"
        and {leaf.dtype for leaf in tf.nest.flatten(state)} <= {tf.float32, tf.bfloat16}
        and all(device.device_type == "CPU" for device in tf.config.list_logical_devices())
        and not xla.is_compiling()
        and library.load() is not None
    )


def program(rule):
    """One step of a rule that ``can_run``.

    Returns:
        Function of the rule's weights, gradients ``[N]`` and state, whose leaves are all float32 or
        all bfloat16; to ``(updates, state)``, in the same dtype.
    """
    of_pieces = program_of_pieces(rule)

    def run(weights, gradients, state):
        updates, (leaves,) = of_pieces(weights, gradients, [tf.nest.flatten(state)])
        return updates, tf.nest.pack_sequence_as(state, leaves)

    return run


def program_of_pieces(rule):
    """One step for the coordinates of several pieces, whose states are neither joined nor split.

    Returns:
        Function of the rule's weights, gradients ``[N]``, and for each piece the leaves of its
        state; to the updates ``[N]`` and for each piece the new leaves.
    """
    compiled_features = {}  # by N: one function for all would look to TensorFlow like retracing

    def features_of(gradients, moments):
        cast = [tf.cast(leaf, rule.dtype) for leaf in moments]
        structure = rule.initial_moments(1)
        features, new = rule.preprocess(gradients, tf.nest.pack_sequence_as(structure, cast))
        return features, [tf.cast(m, old.dtype) for m, old in zip(tf.nest.flatten(new), moments)]

    def run(weights, gradients, pieces):
        size, preprocess = gradients.shape[0], features_of
        if size >= XLA_PAYS:
            if size not in compiled_features:
                compiled_features[size] = xla.program(features_of)
            preprocess = compiled_features[size]
        num_of_layers = 2 * len(rule.layers)  # leaves; what follows are moments
        of_moments = zip(*[leaves[num_of_layers:] for leaves in pieces])
        moments = [tf.concat(leaves, axis=-1) for leaves in of_moments]
        features, moments = preprocess(gradients, moments)
        states = [leaf for leaves in pieces for leaf in leaves[:num_of_layers]]
        outputs, states = _run_layers(rule, weights, features, states)
        sizes = [leaves[0].shape[-1] for leaves in pieces]
        moments = [tf.split(leaf, sizes, axis=-1) for leaf in moments]
        new_pieces = [
            states[index * num_of_layers : (index + 1) * num_of_layers]
            + [leaf[index] for leaf in moments]
            for index in range(len(pieces))
        ]
        return rule.postprocess(outputs[0]), new_pieces

    return run


def _run_layers(rule, weights, features, states):
    """``rule.run_layers`` by the kernel, for the hidden and cell of all layers of all pieces."""
    outputs, new_states = library.load().l2l_lstm_step(features, weights, states)
    outputs.set_shape([rule.num_outputs, features.shape[1]])
    for new, old in zip(new_states, states):
        new.set_shape(old.shape)
    return outputs, new_states


# Once, by the op's name: TensorFlow keeps each ``tf.custom_gradient`` that a graph has met, with
# all that it refers to.
@tf.RegisterGradient("L2lLstmStep")
def _gradient(op, *cotangents):
    """Of the kernel: TensorFlow computes the step once more."""
    inputs = list(op.inputs)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        again = _by_tensorflow(inputs, op.get_attr("W"))
    return tape.gradient(again, inputs, output_gradients=list(cotangents))


def _by_tensorflow(inputs, num_weights):
    """What the kernel computes: from the flat list of its inputs to that of its outputs."""
    features, weights, states = inputs[0], inputs[1 : 1 + num_weights], inputs[1 + num_weights :]
    *kernels_and_biases, head, head_bias = weights
    num_of_layers = num_weights - 2  # as many states of a piece as weights of its layers
    pieces = [states[i : i + num_of_layers] for i in range(0, len(states), num_of_layers)]
    outputs, new_states = [], []
    of_pieces = tf.split(features, [piece[0].shape[1] for piece in pieces], axis=1)
    for inputs, piece in zip(of_pieces, pieces):
        for index in range(0, num_of_layers, 2):
            layer = lstm_cells.halved(*kernels_and_biases[index : index + 2])
            of_layer = [tf.cast(state, features.dtype) for state in piece[index : index + 2]]
            (inputs, cell), _ = lstm_cells.step(*layer, inputs, of_layer)
            new_states += [tf.cast(new, piece[0].dtype) for new in (inputs, cell)]
        outputs.append(tf.matmul(head, inputs) + head_bias)
    return [tf.concat(outputs, axis=1), *new_states]
