"""Levels: a rule's coordinates, their tensors, the model; and one step of all of them together.

A rule is a function of each coordinate. It may have a *control* beside: for each tensor, and with
sums over the model, a few numbers that its coordinates get. A step of such a rule::

    summaries[:, k] = Σ_{n in tensor k} summarize(inputs, state)[:, n]           [S, K]
    controls, control_state = control(summaries, control_state, tensors)         [C, K]
    updates, state = update(inputs, state, controls[:, tensor of n])             [N]

Summaries are sums, so that those of pieces of a tensor add up.
"""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf


class Inputs(NamedTuple):
    """What a rule that ``sees_parameters`` gets for its one argument; both alike."""

    gradients: Any  # ∇f(θ_t), ``[N]``
    parameters: Any  # θ_t


def inputs(rule, gradients, parameters):
    """What a rule sees of these."""
    return Inputs(gradients, parameters) if rule.sees_parameters else gradients


def map_inputs(function, of_rule):
    """A function of the gradients, and of the parameters if the rule sees them."""
    return Inputs(*map(function, of_rule)) if isinstance(of_rule, Inputs) else function(of_rule)


class Tensors:
    """The K tensors that a rule's control sees: a column of facts for each, and sums over them.

    Several models with the same tensors may stand side by side, in the columns one after another;
    a control that adds up by ``model_sum`` alone does not know.

    Attributes:
        sizes: number of coordinates of each tensor, ``[K]``, in the rule's dtype, as all of these.
        fan_in: the product of all axes but the last, ``[K]``; 1 for vectors and scalars.
        ranks: number of axes, ``[K]``.
    """

    def __init__(self, sizes, fan_in, ranks, num_models=1):
        self.sizes, self.fan_in, self.ranks = sizes, fan_in, ranks
        self.num_models = num_models

    @classmethod
    def of_shapes(cls, shapes, dtype, num_models=1):
        """Of a list of shapes, repeated for each of the models side by side."""
        facts = [(np.prod(shape), np.prod(shape[:-1]), len(shape)) for shape in shapes]
        columns = np.tile(np.reshape(facts, [-1, 3]).T, num_models)
        with tf.init_scope():  # no constants of a graph
            return cls(*tf.unstack(tf.constant(columns, dtype)), num_models)

    @classmethod
    def of_ragged(cls, shapes, dtype):
        """Of shapes that are known at run time alone: int32, ragged ``[K, rank]``."""
        facts = (
            tf.reduce_prod(shapes, axis=1),
            tf.reduce_prod(shapes[:, :-1], axis=1),
            shapes.row_lengths(),
        )
        return cls(*[tf.cast(fact, dtype) for fact in facts])

    def facts(self):
        """The three facts, from which the constructor makes the same once more."""
        return self.sizes, self.fan_in, self.ranks

    def model_sum(self, values):
        """The sum over all tensors of a model, in each of its columns: both ``[..., K]``."""
        shape = tf.shape(values)
        by_model = tf.reshape(values, tf.concat([shape[:-1], [self.num_models, -1]], axis=0))
        sums = tf.reduce_sum(by_model, axis=-1, keepdims=True)
        sums = tf.reshape(tf.broadcast_to(sums, tf.shape(by_model)), shape)
        sums.set_shape(values.shape)
        return sums


def owners_of(sizes):
    """The tensor of each coordinate, int32 ``[N]``, for tensors with these numbers of them."""
    return np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)


def sum_by_tensor(contributions, owners, num_tensors):
    """Of each coordinate, ``[S, N]``, to each tensor's sums, ``[S, K]``.

    Args:
        owners: the tensor of each coordinate, int32 ``[N]``; or of each block of B, ``[N / B]``.
        num_tensors: K.
    """
    block = _block(contributions, owners)
    if block > 1:
        rows = [tf.reshape(row, [-1, block]) for row in tf.unstack(contributions)]
        contributions = tf.stack([tf.reduce_sum(row, axis=1) for row in rows])
    # A coordinate's contributions side by side: XLA adds them to a row at once.
    rows = tf.math.unsorted_segment_sum(tf.transpose(contributions), owners, num_tensors)
    return tf.transpose(rows)


def spread(controls, owners, like):
    """Of each tensor, ``[C, K]``, to its coordinates, ``[C, N]``: the transpose of the sums.

    Args:
        owners: as of ``sum_by_tensor``.
        like: a vector of the coordinates, ``[N]``.
    """
    of_blocks = tf.transpose(tf.gather(tf.transpose(controls), owners))
    block = _block(like, owners)
    if block == 1:
        return of_blocks
    rows, blocks = of_blocks.shape
    of_each = tf.broadcast_to(of_blocks[:, :, None], [rows, blocks, block])
    return tf.reshape(of_each, [rows, blocks * block])


def _block(vectors, owners):
    """Coordinates in a block: 1 where a shape is known at run time alone."""
    sizes = vectors.shape[-1], owners.shape[0]
    return sizes[0] // sizes[1] if all(sizes) else 1


def split_state(state, sizes):
    """A state, leaves ``[..., N]``, as the list of those of consecutive pieces of these sizes."""
    leaves = [tf.split(leaf, sizes, axis=-1) for leaf in tf.nest.flatten(state)]
    return [
        tf.nest.pack_sequence_as(state, [of_leaf[piece] for of_leaf in leaves])
        for piece in range(len(sizes))
    ]


def join_states(states):
    """The inverse of ``split_state``."""
    return tf.nest.map_structure(lambda *leaves: tf.concat(leaves, axis=-1), *states)


def initial_state(rule, num_coordinates, tensors):
    """The state of a coordinatewise rule's coordinates; of one with a control, a pair with its."""
    coordinates = rule.initial_state(num_coordinates)
    return (coordinates, initial_control(rule, tensors)) if rule.has_control else coordinates


def initial_control(rule, tensors):
    """``rule.initial_control``, checked."""
    state = rule.initial_control(tensors)
    for leaf in tf.nest.flatten(state):
        expected = tf.TensorShape([*leaf.shape[:-1], tensors.sizes.shape[0]])
        _check(rule, "initial_control", "leaves [..., K]", expected, leaf)
    return state


def step(rule, inputs, state, tensors, owners):
    """One step of a coordinatewise rule, all levels together: ``(updates [N], state)``.

    Args:
        inputs: what the rule sees, vectors ``[N]``.
        state: as of ``initial_state``.
        tensors: ``Tensors``. Of a rule without a control, unused, as is
        owners: the tensor of each coordinate, int32 ``[N]``.
    """
    if not rule.has_control:
        return rule.update(inputs, state)
    coordinates, control = state
    summaries = summarize(rule, inputs, coordinates, owners, tensors)
    controls, control = control_step(rule, summaries, control, tensors)
    first = tf.nest.flatten(inputs)[0]
    updates, coordinates = rule.update(inputs, coordinates, spread(controls, owners, first))
    return updates, (coordinates, control)


def summarize(rule, inputs, state, owners, tensors, counts=None):
    """The summaries ``[S, K]`` of the coordinates at hand: all, or a piece.

    Args:
        counts: of each block, int32, how many of its coordinates there are: the rest is filled up,
            and does not count. None for all.
    """
    contributions = tf.convert_to_tensor(rule.summarize(inputs, state))
    expected = tf.TensorShape([None, tf.nest.flatten(inputs)[0].shape[0]])
    _check(rule, "summarize", "[S, N]", expected, contributions)
    if counts is not None:
        is_there = tf.range(_block(contributions, owners)) < counts[:, None]
        contributions = tf.where(tf.reshape(is_there, [-1]), contributions, 0.0)
    return sum_by_tensor(contributions, owners, tf.shape(tensors.sizes)[0])


def control_step(rule, summaries, state, tensors):
    """``(controls [C, K], state)``."""
    controls, state = rule.control(summaries, state, tensors)
    controls = tf.convert_to_tensor(controls)
    _check(rule, "control", "controls [C, K]", [None, tensors.sizes.shape[0]], controls)
    return controls, state


def has_final_shift(rule):
    """Whether a rule, not one made of others, has a ``final_shift``."""
    if rule.coupling != "coordinate":
        return False
    with tf.init_scope():
        return rule.final_shift(rule.initial_state(1)) is not None


def final_shift(rule, state):
    """``rule.final_shift`` of a state of all levels, or None."""
    if rule.coupling != "coordinate":
        return None
    return rule.final_shift(state[0] if rule.has_control else state)


def trial(rule, tensor, value, num_steps=1):
    """The updates of a few steps of a rule on one tensor, a list.

    Args:
        tensor: ``(name, shape)``. Of a coordinatewise rule, one of its coordinates is tried.
        value: of all gradients and parameters.
    """
    is_coupled = rule.coupling != "coordinate"
    of_tensor = tf.fill(tensor[1] if is_coupled else [1], tf.constant(value, rule.dtype))
    seen = inputs(rule, *[[of_tensor] if is_coupled else of_tensor] * 2)
    tensors = Tensors.of_shapes([tensor[1]], rule.dtype)
    state = rule.initial_state([tensor]) if is_coupled else initial_state(rule, 1, tensors)
    updates = []
    for _ in range(num_steps):
        if is_coupled:
            of_step, state = rule.update(seen, state)
        else:
            of_step, state = step(rule, seen, state, tensors, tf.zeros([1], tf.int32))
        updates += tf.nest.flatten(of_step)
    return updates


def sizes_of_control(rule, tensors):
    """``(S, C)`` of a rule with a control: it is tried on one coordinate."""
    with tf.init_scope():
        one = tf.ones([1], rule.dtype)
        summaries = summarize(
            rule, inputs(rule, one, one), rule.initial_state(1), tf.constant([0]), tensors
        )
        controls, _ = control_step(rule, summaries, initial_control(rule, tensors), tensors)
    return summaries.shape[0], controls.shape[0]


def _check(rule, method, what, expected, received):
    if not received.shape.is_compatible_with(expected):
        raise ValueError(
            f"{type(rule).__name__}.{method} must return {what}, of shape "
            f"{tf.TensorShape(expected)}. Received: shape {received.shape}"
        )
