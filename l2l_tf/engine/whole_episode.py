"""Whole episode: whether unroll and meta-gradient of an episode are to be one XLA program.

Small optimizees are fastest so on a CPU: a step of theirs is too short for TensorFlow to start some
hundred operations for it, and what XLA fuses stays in a core's cache. Several such programs run
side by side, from several threads. Where convolutions or large optimizees dominate, the step runs
in TensorFlow, and the rule alone is XLA's (``program.py``).

Decided beforehand, from measurements (docs/performance.md), and never by a clock: results are to be
a function of the seed. (The two ways round differently, and draw other coordinates.)
"""

import itertools
import math
import warnings

import tensorflow as tf

from l2l_tf.engine.parts import Parts
from l2l_tf.update_rules import base

MOST_COORDINATES = 100_000  # of all optimizees side by side
# Measured, of a program with its backward pass; and of TensorFlow itself, with room to spare.
MAPS, MAPS_OF_A_PROCESS = 1200, 8000
# On a CPU, XLA's are several times slower than TensorFlow's.
_SLOW = ("Conv", "DepthwiseConv", "MaxPool", "AvgPool")


def is_one_program(rule, problem, num_optimizees):
    """Whether meta-training on episodes of a problem is faster as one XLA program.

    On a GPU or TPU it is, as Keras' ``jit_compile="auto"`` has it. On a CPU, if

    - all parts of the rule are coordinatewise, and no state of a coordinate is backpropagated
      through time (there, chunks of TensorFlow's run side by side on all cores, and the loop of a
      program does one after another),
    - the optimizees have together at most ``MOST_COORDINATES``,
    - the loss has no convolution or pooling,
    - and XLA can compile the loss.

    It does not depend on the number of steps: the program has loops.

    Args:
        rule: ``UpdateRule``.
        problem: ``Problem``. Its loss is traced, and given to XLA to translate.
        num_optimizees: M, side by side.

    Example:

    >>> import l2l_tf
    >>> rule = l2l_tf.update_rules.Hierarchical()
    >>> is_one_program(rule, l2l_tf.problems.get("quadratic"), num_optimizees=4)
    True
    """
    if any(device.device_type in ("GPU", "TPU") for device in tf.config.list_logical_devices()):
        return True
    for part, _ in Parts(rule, problem.layout):
        if part.coupling != "coordinate" or part.state_depends_on_weights:
            return False
    if num_optimizees * base.num_coordinates(problem.layout) > MOST_COORDINATES:
        return False
    return _is_for_xla(problem)


def few_enough(are_one_program):
    """Of several problems, those that are one program and for which there are memory maps.

    XLA's compiler for CPUs leaves about a thousand maps a program, and Linux ends a process that
    needs more than `vm.max_map_count`. What else a problem has compiled counts as much again.

    Args:
        are_one_program: list of bool, of the problems.

    Returns:
        A list of bool. Of those that are too many the last ones are left out, with a warning.
    """
    limit = _most_maps()
    most = math.inf if limit is None else max(0, limit - MAPS_OF_A_PROCESS) // (2 * MAPS)
    wanted = sum(are_one_program)
    if wanted <= most:
        return list(are_one_program)
    warnings.warn(
        f"{wanted} problems are faster as one program each, and this system's limit of "
        f"{limit:,} memory maps a process is enough for {most}. The others run step by step, "
        "several times slower. To raise the limit: sudo sysctl -w "
        f"vm.max_map_count={MAPS_OF_A_PROCESS + 2 * MAPS * wanted}",
        stacklevel=2,
    )
    numbers = itertools.accumulate(map(int, are_one_program))
    return [is_one and number <= most for is_one, number in zip(are_one_program, numbers)]


def _most_maps():
    """Linux' limit, or None where there is none that is known."""
    try:
        with open("/proc/sys/vm/max_map_count") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def _is_for_xla(problem):
    """Whether XLA can compile a problem's loss with its gradients, and has nothing slow in it."""
    batch = problem.batches("train", tf.zeros([2], tf.int64), 1).element_spec
    specs = [tf.TensorSpec(shape, problem.dtype) for _, shape in problem.layout]
    specs += tf.nest.flatten(batch)

    def loss_and_gradients(*leaves):
        parameters, leaves = leaves[: len(problem.layout)], leaves[len(problem.layout) :]
        return problem.loss_and_gradients(
            list(parameters), tf.nest.pack_sequence_as(batch, list(leaves))
        )

    function = tf.function(loss_and_gradients, jit_compile=True, autograph=False)
    graph = function.get_concrete_function(*specs).graph.as_graph_def()
    nodes = [*graph.node, *(n for of in graph.library.function for n in of.node_def)]
    if any(node.op.startswith(_SLOW) for node in nodes):
        return False
    try:
        function.experimental_get_compiler_ir(*specs)(stage="hlo_serialized")
    except (tf.errors.OpError, ValueError, TypeError):
        return False
    return True
