"""XLA: a function as one XLA program, wherever there can be one."""

import tensorflow as tf

from l2l_tf import hooks


def program(function):
    """A function of tensors, compiled by XLA.

    While TensorFlow watches operations it is a plain ``tf.function``: what
    ``tf.debugging.enable_check_numerics`` and its like add to each operation, XLA cannot compile.
    """
    by_xla = tf.function(function, jit_compile=True, autograph=False)
    watched = tf.function(function, autograph=False)
    return lambda *args: (watched if hooks.watches_operations() else by_xla)(*args)
