"""One step of a part of a rule on the optimizees of an unroll, side by side."""

import tensorflow as tf

from l2l_tf.engine.program import Program
from l2l_tf.engine.step import CoordinatesStep
from l2l_tf.update_rules import base, levels


def initial_state(rule, layout, num_optimizees):
    """The state of a part of a rule before the first step of M optimizees: see ``unroll.py``."""
    if rule.coupling != "coordinate":
        return [rule.initial_state(layout) for _ in range(num_optimizees)]
    shapes = [shape for _, shape in layout]
    tensors = levels.Tensors.of_shapes(shapes, rule.dtype, num_optimizees)
    return levels.initial_state(rule, num_optimizees * base.num_coordinates(layout), tensors)


def step(rule, layout, num_optimizees, is_compiled, weights=None):
    """One step of a part of a rule on M optimizees.

    Args:
        rule, layout: of the part.
        is_compiled: or open to a tape around it.
        weights: of a compiled one, the `values` of ``Program.weights``.

    Returns:
        A callable object, from inputs ``[M, N]`` and a state to updates, the new state, and what
        there is to record, of `recorded_shapes`. ``split`` makes the state that it takes of a whole
        one, ``join`` undoes that.
    """
    if rule.coupling != "coordinate":
        return _CoupledStep(rule, layout, is_compiled, weights)
    if not is_compiled:
        return _WholeStep(rule, layout, num_optimizees)
    return _PieceStep(rule, layout, num_optimizees, weights)


class _WholeStep:
    """Of all coordinates at once, not compiled."""

    recorded_shapes = ()

    def __init__(self, rule, layout, num_optimizees):
        shapes = [shape for _, shape in layout]
        self.rule = rule
        self._tensors = levels.Tensors.of_shapes(shapes, rule.dtype, num_optimizees)
        sizes = [base.num_coordinates([tensor]) for tensor in layout]
        self._owners = levels.owners_of(sizes * num_optimizees)

    def __call__(self, inputs, state):
        vectors = tf.nest.map_structure(lambda leaf: tf.reshape(leaf, [-1]), inputs)
        updates, state = levels.step(self.rule, vectors, state, self._tensors, self._owners)
        return tf.reshape(updates, tf.nest.flatten(inputs)[0].shape), state, ()

    def split(self, state):
        return state

    join = split


class _PieceStep:
    """Compiled, the coordinates cut into pieces that run side by side."""

    def __init__(self, rule, layout, num_optimizees, weights):
        self.rule = rule
        self._step = CoordinatesStep(rule, layout, num_optimizees)
        self._weights = self._step.program.weights(weights)
        self.recorded_shapes = ()
        if rule.has_control:
            tensors = self._step.tensors
            sizes = levels.sizes_of_control(rule, tensors)
            self.recorded_shapes = [(size, *tensors.sizes.shape) for size in sizes]

    def __call__(self, inputs, state):
        pieces = tf.nest.map_structure(self._split_leaf, inputs)  # a list for each vector

        def take(piece):
            return levels.map_inputs(lambda of_vector: of_vector[piece], pieces)

        updates, state, recorded = self._step.advance(self._weights, take, state)
        updates = self._step.blocks.unpad(tf.concat(updates, axis=0))
        return tf.reshape(updates, tf.nest.flatten(inputs)[0].shape), state, recorded

    def _split_leaf(self, vectors):
        padded = self._step.blocks.pad(tf.reshape(vectors, [-1]))
        return tf.split(padded, self._step.piece_sizes)

    def split(self, state):
        coordinates, control = state if self.rule.has_control else (state, ())
        coordinates = tf.nest.map_structure(self._step.blocks.pad, coordinates)
        return levels.split_state(coordinates, self._step.piece_sizes), control

    def join(self, state):
        of_pieces, control = state
        whole = tf.nest.map_structure(self._step.blocks.unpad, levels.join_states(of_pieces))
        return (whole, control) if self.rule.has_control else whole


class _CoupledStep:
    """Of a rule whose coordinates are coupled, one optimizee after another."""

    recorded_shapes = ()

    def __init__(self, rule, layout, is_compiled, weights):
        self.rule = rule
        self._layout = layout
        self._update = rule.update
        if is_compiled:
            program = Program(rule)
            weights = program.weights(weights)
            self._update = lambda inputs, state: program.update(weights, inputs, state)

    def __call__(self, inputs, states):
        updates, new = [], []
        for optimizee, state in enumerate(states):
            tensors = levels.map_inputs(
                lambda vectors, m=optimizee: base.split(vectors[m], self._layout), inputs
            )
            of_optimizee, state = self._update(tensors, state)
            updates.append(base.flatten(of_optimizee))
            new.append(state)
        return tf.stack(updates), new, ()

    def split(self, state):
        return state

    join = split
