"""XLA: a function as one XLA program, wherever there can be one."""

import tensorflow as tf
from tensorflow.python.eager import context  # no public name tells who watches operations

try:
    from tensorflow.python.ops import control_flow_util  # or what XLA compiles
except ImportError:
    control_flow_util = None


def program(function):
    """A function of tensors, compiled by XLA.

    While TensorFlow watches operations it is a plain ``tf.function``: what
    ``tf.debugging.enable_check_numerics`` and its like add to each operation, XLA cannot compile.
    """
    by_xla = tf.function(function, jit_compile=True, autograph=False)
    watched = tf.function(function, autograph=False)
    return lambda *args: (watched if watches_operations() else by_xla)(*args)


def watches_operations():
    """Whether a debugging aid of TensorFlow adds to the operations that this thread makes."""
    # Without the private attribute, such an aid fails as it does in any program of XLA's.
    return bool(getattr(context.context(), "op_callbacks", None))


def is_compiling():
    """Whether what is traced here becomes a part of a program that XLA compiles."""
    if control_flow_util is None:
        return True  # who knows: so nothing is run that XLA could not take
    return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())
