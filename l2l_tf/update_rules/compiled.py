"""Compiled: what a rule does as one XLA program, whatever surrounds it.

XLA fuses a rule's element-wise work (gates, features), where TensorFlow's own kernels read and
write memory for each operation. The optimizee is left to whoever calls: convolutions, for one, are
slower under XLA on a CPU.
"""

import functools
import json

import keras
import tensorflow as tf

from l2l_tf.update_rules import native_lstm, xla

# Of a rule's config, what says nothing of its programs.
_OF_WEIGHTS_ALONE = ("name", "weights", "learning_rate", "seed", "zero_head")


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

    return xla.program(stateless)


def shared(make):
    """Decorates a function of a rule to its programs: rules alike in all but weights share them.

    XLA keeps what it has compiled as long as the process lives, and Keras keeps the graph of many
    a model that is gone, with all programs in it. So one process that trains many models needs one
    set of programs, not one for each.

    The programs are of a copy of the first such rule, which nobody else changes or keeps alive.
    For the rules of this package alone: of another, ``get_config`` may not tell all.
    """
    made = {}

    @functools.wraps(make)
    def programs_of(rule):
        if not type(rule).__module__.startswith(__package__ + "."):
            return make(rule)
        with tf.init_scope():
            config = {k: v for k, v in rule.get_config().items() if k not in _OF_WEIGHTS_ALONE}
            key = type(rule), json.dumps(config, sort_keys=True)
            if key not in made:
                # Neither Keras' names nor the user's random numbers are to know of it.
                config |= {"name": "shared"} | ({"seed": 0} if hasattr(rule, "seed") else {})
                made[key] = make(type(rule).from_config(config))
        return made[key]

    return programs_of


@shared
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
