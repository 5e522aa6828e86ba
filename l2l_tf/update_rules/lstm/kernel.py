"""Native LSTM: the step of a coordinatewise LSTM rule, and the backward pass, by native kernels.

Where these can be had. XLA writes the gates of a step to memory and reads them again; the kernel of
a step keeps them in registers, that of the backward pass in a core's cache.
What is not an LSTM (features, the scale of the updates) is left to XLA and TensorFlow.
"""

import tensorflow as tf

from l2l_tf import hooks
from l2l_tf.update_rules import xla
from l2l_tf.update_rules.lstm import cells
from l2l_tf.update_rules.native import library

# Coordinates from which on the features take less time as an XLA program: below, TensorFlow's
# kernels are as fast, and need no program for each size.
XLA_PAYS = 16_384


class Kernel:
    """``update`` of an LSTM rule, for a state whose leaves are all float32 or all bfloat16.

    And its ``backpropagate``, for a state in float32.

    Args:
        rule: an ``LSTMRule``.
        has_backward: whether its ``backpropagate`` and ``postprocess`` are those of ``LSTMRule``.
    """

    # Coordinates times steps of a call of the backward pass. What it keeps of a step is of a few
    # coordinates whatever the call's size.
    KEPT = 40_960

    def __init__(self, rule, has_backward=True):
        self._rule, self._has_backward = rule, has_backward
        # By shape: one function for all would look like retracing.
        self._steps, self._features, self._features_of_steps = {}, {}, {}

    def build(self):
        """Compiles the kernel, once a machine."""
        library.build()

    def can_run(self, state=()):
        """Whether the kernel computes ``rule.update`` here: on this machine, in this graph."""
        rule = self._rule
        return (
            len(rule.variables) == 2 * len(rule.layers) + 2  # kernels, biases, head and its bias
            and rule.dtype == "float32"
            and {leaf.dtype for leaf in tf.nest.flatten(state)} <= {tf.float32, tf.bfloat16}
            and all(device.device_type == "CPU" for device in tf.config.list_logical_devices())
            and not hooks.xla_compiles_this()
            and library.load(may_build=False) is not None
        )

    def __call__(self, weights, gradients, state):
        """``(updates, state)``, given the rule's weights."""
        key = gradients.shape[0], hooks.watches_operations()
        if key not in self._steps:  # pieces of a size share its graph
            self._steps[key] = tf.function(self._step, autograph=False)
        return self._steps[key](weights, gradients, state)

    def can_backpropagate(self, state):
        """Whether the kernel computes ``rule.backpropagate`` here."""
        is_float32 = all(leaf.dtype == tf.float32 for leaf in tf.nest.flatten(state))
        return self._has_backward and is_float32 and self.can_run(state)

    def backpropagate(self, weights, gradients, state, cotangents):
        """``rule.backpropagate``, given the rule's weights."""
        layers, moments = state
        shape = tuple(gradients.shape)
        if shape not in self._features_of_steps:
            self._features_of_steps[shape] = xla.program(self._rule.features)
        by_weights = library.load().l2l_lstm_backpropagate(
            self._features_of_steps[shape](gradients, moments),
            weights,
            tf.nest.flatten(layers),
            cotangents,
            output_scale=self._rule.output_scale,
            bounded=self._rule.bounded,
        )
        for of_weight, weight in zip(by_weights, weights):
            of_weight.set_shape(weight.shape)
        return by_weights

    def _step(self, weights, gradients, state):
        layers, moments = state
        preprocess, size = self._preprocess, gradients.shape[0]
        if size >= XLA_PAYS:
            if size not in self._features:
                self._features[size] = xla.program(self._preprocess)
            preprocess = self._features[size]
        features, moments = preprocess(gradients, moments)
        outputs, leaves = _run_layers(self._rule, weights, features, tf.nest.flatten(layers))
        layers = tf.nest.pack_sequence_as(layers, leaves)
        return self._rule.postprocess(outputs[0]), (layers, moments)

    def _preprocess(self, gradients, moments):
        cast = tf.nest.map_structure(lambda leaf: tf.cast(leaf, self._rule.dtype), moments)
        features, new = self._rule.preprocess(gradients, cast)
        return features, tf.nest.map_structure(lambda m, old: tf.cast(m, old.dtype), new, moments)


def _run_layers(rule, weights, features, states):
    """``rule.run_layers`` by the kernel, for the hidden and cell of all layers."""
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
        again = _by_tensorflow(inputs)
    return tape.gradient(again, inputs, output_gradients=list(cotangents))


def _by_tensorflow(inputs):
    """What the kernel computes: from the flat list of its inputs to that of its outputs."""
    num_layers = (len(inputs) - 3) // 4
    features, weights, states = inputs[0], inputs[1 : -2 * num_layers], inputs[-2 * num_layers :]
    *kernels_and_biases, head, head_bias = weights
    new_states = []
    for index in range(num_layers):
        layer = cells.halved(*kernels_and_biases[2 * index : 2 * index + 2])
        of_layer = [tf.cast(state, features.dtype) for state in states[2 * index : 2 * index + 2]]
        (features, cell), _ = cells.step(*layer, features, of_layer)
        new_states += [tf.cast(new, states[0].dtype) for new in (features, cell)]
    return [tf.matmul(head, features) + head_bias, *new_states]
