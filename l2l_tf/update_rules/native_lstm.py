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
    compiled_features = {}  # by N: one function for all would look to TensorFlow like retracing

    def features_of(gradients, moments):
        features, new = rule.preprocess(
            gradients, tf.nest.map_structure(lambda m: tf.cast(m, rule.dtype), moments)
        )
        return features, tf.nest.map_structure(lambda m, old: tf.cast(m, old.dtype), new, moments)

    def run(weights, gradients, state):
        layers, moments = state
        size, preprocess = gradients.shape[0], features_of
        if size >= XLA_PAYS:
            if size not in compiled_features:
                compiled_features[size] = xla.program(features_of)
            preprocess = compiled_features[size]
        features, moments = preprocess(gradients, moments)
        outputs, layers = _run_layers(rule, weights, features, layers)
        return rule.postprocess(outputs[0]), (layers, moments)

    return run


def _run_layers(rule, weights, features, layers):
    """``rule.run_layers`` by the kernel."""
    states = tf.nest.flatten(layers)
    outputs, new_states = library.load().l2l_lstm_step(features, weights, states)
    outputs.set_shape([rule.num_outputs, features.shape[1]])
    for new, old in zip(new_states, states):
        new.set_shape(old.shape)
    return outputs, tf.nest.pack_sequence_as(layers, new_states)


# Once, by the op's name: TensorFlow keeps each ``tf.custom_gradient`` that a graph has met, with
# all that it refers to.
@tf.RegisterGradient("L2lLstmStep")
def _gradient(op, *cotangents):
    """Of the kernel: TensorFlow computes the step once more."""
    inputs = list(op.inputs)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        again = _by_tensorflow(inputs)
    return tape.gradient(again, inputs, output_gradients=list(cotangents))


def _by_tensorflow(inputs):
    """What the kernel computes: from the flat list of its inputs to that of its outputs."""
    num_layers = (len(inputs) - 3) // 4
    features, weights, states = inputs[0], inputs[1 : -2 * num_layers], inputs[-2 * num_layers :]
    *kernels_and_biases, head, head_bias = weights
    new_states = []
    for index in range(num_layers):
        layer = lstm_cells.halved(*kernels_and_biases[2 * index : 2 * index + 2])
        of_layer = [tf.cast(state, features.dtype) for state in states[2 * index : 2 * index + 2]]
        (features, cell), _ = lstm_cells.step(*layer, features, of_layer)
        new_states += [tf.cast(new, states[0].dtype) for new in (features, cell)]
    return [tf.matmul(head, features) + head_bias, *new_states]
