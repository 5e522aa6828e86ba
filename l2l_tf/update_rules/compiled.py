"""Compiled: what a rule does as one XLA program, whatever surrounds it.

XLA fuses a rule's element-wise work (gates, features), where TensorFlow's own kernels read and
write memory for each operation. The optimizee is left to whoever calls: convolutions, for one, are
slower under XLA on a CPU.
"""

import keras
import tensorflow as tf

from l2l_tf.update_rules import native_lstm


def program(rule, function):
    """A function that calls a rule, as an XLA program of the rule's weights and the arguments.

    The weights enter as tensors, of ``weights(rule)``: TensorFlow would not run two calls of a
    program that reads variables side by side.

    Args:
        rule: ``UpdateRule``.
        function: such as ``rule.update``.

    Returns:
        Function of ``(weights, *args)``.
    """

    def stateless(weights, *args):
        with keras.StatelessScope(state_mapping=list(zip(rule.variables, weights))):
            return function(*args)

    return tf.function(stateless, jit_compile=True, autograph=False)


def update_program(rule):
    """``rule.update`` as a program, by the native kernel where that can run it."""
    by_xla, natively = program(rule, rule.update), native_lstm.program(rule)

    def run(weights, gradients, state):
        chosen = natively if native_lstm.can_run(rule, state) else by_xla
        return chosen(weights, gradients, state)

    return run


def weights(rule):
    """The rule's weights as they are now, a list of tensors."""
    return [tf.convert_to_tensor(v.value) for v in rule.variables]
