"""Native LSTM: the step of a coordinatewise LSTM rule by the native kernel, where it can be had.

XLA writes the gates of a step to memory and reads them again; the kernel keeps them in registers.
What is not an LSTM (features, the scale of the updates) is left to XLA and TensorFlow.
"""

import keras
import tensorflow as tf
from tensorflow.python.ops import control_flow_util  # no public name tells what XLA compiles

from l2l_tf.native import library
from l2l_tf.update_rules.lstm import LSTMRule


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
        and not control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())
        and library.load() is not None
    )


def program(rule):
    """One step of a rule that ``can_run``.

    Returns:
        Function of the rule's weights, gradients ``[N]`` and state, whose leaves are all float32 or
        all bfloat16; to ``(updates, state)``, in the same dtype.
    """
    preprocess = {}  # by N: one function for all would look to TensorFlow like retracing

    def features_of(gradients, moments):
        features, new = rule.preprocess(
            gradients, tf.nest.map_structure(lambda m: tf.cast(m, rule.dtype), moments)
        )
        return features, tf.nest.map_structure(lambda m, old: tf.cast(m, old.dtype), new, moments)

    def run(weights, gradients, state):
        layers, moments = state
        size = gradients.shape[0]
        if size not in preprocess:
            preprocess[size] = tf.function(features_of, jit_compile=True, autograph=False)
        features, moments = preprocess[size](gradients, moments)
        outputs, layers = _run_layers(rule, weights, features, layers)
        return rule.postprocess(outputs[0]), (layers, moments)

    return run


def _run_layers(rule, weights, features, layers):
    """``rule.run_layers``, and its gradient, for which TensorFlow computes it once more."""
    structure = (weights, features, layers)

    def by_tensorflow(weights, features, layers):
        with keras.StatelessScope(state_mapping=list(zip(rule.variables, weights))):
            outputs, new = rule.run_layers(
                features, tf.nest.map_structure(lambda s: tf.cast(s, rule.dtype), layers)
            )
        return outputs, tf.nest.map_structure(lambda s, old: tf.cast(s, old.dtype), new, layers)

    @tf.custom_gradient
    def run(*inputs):
        weights, features, layers = tf.nest.pack_sequence_as(structure, inputs)
        states = tf.nest.flatten(layers)
        outputs, new_states = library.load().l2l_lstm_step(features, weights, states)
        outputs.set_shape([rule.num_outputs, features.shape[1]])
        for new, old in zip(new_states, states):
            new.set_shape(old.shape)

        def gradient(*cotangents):
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                again = tf.nest.flatten(by_tensorflow(*tf.nest.pack_sequence_as(structure, inputs)))
            return tape.gradient(again, inputs, output_gradients=cotangents)

        return (outputs, *new_states), gradient

    outputs, *new_states = run(*tf.nest.flatten(structure))
    return outputs, tf.nest.pack_sequence_as(layers, new_states)
