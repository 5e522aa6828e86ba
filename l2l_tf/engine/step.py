"""One step of a rule: of a coordinatewise one in pieces, of a coupled one tensor by tensor.

The coordinates of all tensors that a rule takes are one vector, cut into pieces whatever tensors
they are of; each piece has a state of its own, which its step replaces as a whole, without a copy.
What a rule needs beside (features, gates, the new state) is larger than the state itself: few
pieces are held at once.

An optimizer's are in ``model_step.py``, an unroll's in ``optimizee_step.py``.
"""

import bisect
import itertools
import math

import tensorflow as tf

from l2l_tf.engine import pieces
from l2l_tf.engine.blocks import Blocks
from l2l_tf.engine.program import Program
from l2l_tf.update_rules import levels


class CoordinatesStep:
    """One step of a coordinatewise rule, compiled.

    Its state is a pair: those of the pieces, a list; and that of the control, () without one.

    Args:
        rule: an ``UpdateRule`` with the coupling "coordinate".
        layout: list of ``(name, shape)`` of its tensors.
        num_models: models with these tensors side by side, whose coordinates follow each other.
        most: coordinates in a piece, at most; None for as many pieces as run side by side.
        may_fuse: where the rule has a fused step, pieces are of whole tensors, as it takes them.
    """

    def __init__(self, rule, layout, num_models=1, most=None, may_fuse=False):
        shapes = [tuple(shape) for _, shape in layout]
        self.rule = rule
        self.program = Program(rule)
        self.sizes = [math.prod(shape) for shape in shapes] * num_models
        # Without a control, a coordinate's tensor does not matter.
        self.blocks = Blocks(self.sizes, pieces.BLOCK if rule.has_control else 1)
        self._fused = self.program.fused if may_fuse and self.program.fused else None
        if self._fused is not None and self._fused.build():
            self.piece_sizes = pieces.cut_between(self.blocks.padded)
        else:
            self._fused, self.piece_sizes = None, pieces.cut(self.blocks.total, most)
        self.tensors = levels.Tensors.of_shapes(shapes, rule.dtype, num_models)
        self._blocks = self.blocks.split(self.piece_sizes)
        self._layout, self._most = layout, most
        self._runs_of_tensors = [[] for _ in self.sizes]
        self._runs_of_pieces = [[] for _ in self.piece_sizes]
        for run in pieces.runs(self.blocks.padded, self.piece_sizes):
            there = max(0, min(run.size, self.sizes[run.tensor] - run.start))
            if there:
                self._runs_of_tensors[run.tensor].append(run._replace(size=there))
            self._runs_of_pieces[run.piece].append((run, there))

    def initial_state(self, make):
        """See ``ModelStep`` in ``model_step.py``."""
        of_pieces = [
            _made(
                lambda size=size: self.rule.initial_state(size),
                make,
                f"piece_{piece}_state",
                adds_up=lambda index: index in self.rule.leaves_that_add_up,
            )
            for piece, size in enumerate(self.piece_sizes)
        ]
        if not self.rule.has_control:
            return of_pieces, ()
        control = _made(
            lambda: levels.initial_control(self.rule, self.tensors),
            make,
            "control",
            adds_up=lambda index: True,
        )
        return of_pieces, control

    def run(self, inputs, state):
        """``(updates, state)``, for inputs and to updates that are lists, one for each tensor."""
        vectors = tf.nest.map_structure(lambda tensor: tf.reshape(tensor, [-1]), inputs)

        def take(piece):
            return levels.map_inputs(lambda of_all: self._of_piece(of_all, piece), vectors)

        updates, state, _ = self.advance(self.program.weights(), take, state)
        return [self._of_tensor(updates, tensor) for tensor in range(len(self.sizes))], state

    def advance(self, weights, take, state):
        """One step of all pieces.

        Args:
            weights: of ``program.weights()``.
            take: function of a piece's number to its inputs, vectors.
            state: see the class.

        Returns:
            ``(updates, state, (summaries [S, K], controls [C, K]))``, the updates a list, one for
            each piece; and () for the last without a control.
        """
        of_pieces, control = state
        recorded, of_all = (), [()] * len(of_pieces)
        if self.rule.has_control:
            owners = [tf.constant(of_piece) for of_piece, _ in self._blocks]
            summaries = self._summaries(weights, take, of_pieces, owners)
            controls, control = self.program.control(weights, summaries, control, self.tensors)
            recorded, of_all = (summaries, controls), [(controls, of) for of in owners]
        updates, new = self._update_pieces(weights, take, of_pieces, of_all)
        return updates, (new, control), recorded

    def _summaries(self, weights, take, of_pieces, owners):
        sums = []
        for piece, state in enumerate(of_pieces):
            _, counts = self._blocks[piece]
            arguments = weights, take(piece), state, owners[piece], self.tensors
            filled_up = [] if counts is None else [tf.constant(counts)]
            sums.append(self.program.summarize(*arguments, *filled_up))
        return tf.stop_gradient(tf.add_n(sums))

    def _update_pieces(self, weights, take, of_pieces, controls_and_owners):
        at_once, finished = pieces.policy().side_by_side, []
        updates, states = [], []
        for piece, state in enumerate(of_pieces):
            # As many at once as cores: the memory that one needs goes to the next.
            waits_for = [finished[piece - at_once]] if piece >= at_once else []
            with tf.control_dependencies(waits_for):
                inputs = tf.nest.map_structure(tf.stop_gradient, take(piece))
            update, state = self.program.update(weights, inputs, state, *controls_and_owners[piece])
            finished.append(tf.identity(update))  # a function, inlined, would not be waited for
            updates.append(update)
            states.append(state)
        return updates, states

    def fuses(self, parameters, state):
        """Whether ``summarize`` and ``move`` take these here: a step without copies."""
        return self._fused is not None and self._fused.can_run(parameters, state[0])

    def summarize(self, gradients, parameters, state):
        """``(summaries [S, K], whether all gradients are finite)``, of lists with all tensors."""
        pairs = []
        for of_tensors, piece in zip(self._tensors_of_pieces(), state[0]):
            pairs.append(
                self._fused.summarize(
                    gradients[of_tensors], parameters[of_tensors], piece, self.blocks.size
                )
            )
        summaries, are_finite = zip(*pairs)
        if len(pairs) == 1:
            return pairs[0]
        return tf.concat(summaries, axis=1), tf.reduce_all(are_finite)

    def move(self, summaries, gradients, parameters, state, rate, decays):
        """``(parameters, state)`` after a step whose summaries are known.

        Args:
            rate: factor on the updates, a scalar.
            decays: for each tensor the share of itself that it loses, ``[K]``.
        """
        weights, (of_pieces, control) = self.program.weights(), state
        if self._fused.has_control:
            controls, control = self._fused.control(summaries, control, self.tensors)
        else:
            controls, control = self.program.control(weights, summaries, control, self.tensors)
        moved, new = [], []
        for of_tensors, piece in zip(self._tensors_of_pieces(), of_pieces):
            # One after another: what is new of one takes the memory of what was old of another.
            with tf.control_dependencies(moved[-1:]):
                of_piece = self._fused.update(
                    weights,
                    gradients[of_tensors],
                    parameters[of_tensors],
                    piece,
                    self.blocks.size,
                    controls[:, of_tensors],
                    rate,
                    decays[of_tensors],
                )
            moved += of_piece[0]
            new.append(of_piece[1])
        return moved, (new, control)

    def _tensors_of_pieces(self):
        """For each piece the tensors that it consists of, where these are whole: a slice."""
        ends = list(itertools.accumulate(self.piece_sizes))
        tensors = list(itertools.accumulate(self.blocks.padded))
        last = [bisect.bisect_right(tensors, end) for end in ends]
        return [slice(*pair) for pair in itertools.pairwise([0, *last])]

    def by_tensor(self, state):
        """For each tensor the state of its coordinates; with a control, a pair with its column."""
        of_pieces, control = state
        by_leaf = list(zip(*map(tf.nest.flatten, of_pieces)))
        of_tensors = [
            tf.nest.pack_sequence_as(of_pieces[0], [self._of_tensor(leaf, k) for leaf in by_leaf])
            for k in range(len(self.sizes))
        ]
        if not self.rule.has_control:
            return of_tensors
        return list(zip(of_tensors, levels.split_state(control, [1] * len(self.sizes))))

    def of_tensors(self, states):
        """The inverse of ``by_tensor``."""
        control = ()
        if self.rule.has_control:
            states, columns = zip(*states)
            control = levels.join_states(columns)
        by_leaf = list(zip(*map(tf.nest.flatten, states)))
        of_pieces = [
            tf.nest.pack_sequence_as(states[0], [self._of_piece(leaf, p) for leaf in by_leaf])
            for p in range(len(self.piece_sizes))
        ]
        return of_pieces, control

    def slices(self, state, tensor):
        """See ``ModelStep`` in ``model_step.py``."""
        of_pieces, control = state
        runs = [(run.piece, run.place, run.size) for run in self._runs_of_tensors[tensor]]
        by_leaf = zip(*map(tf.nest.flatten, of_pieces))
        found = [
            [(leaf[piece], *place) for piece, *place in runs or [(0, 0, 0)]] for leaf in by_leaf
        ]
        return found + [[(leaf, tensor, 1)] for leaf in tf.nest.flatten(control)]

    def structure(self, tensor):
        """A state like those of ``by_tensor``, of any size."""
        with tf.init_scope():
            return levels.initial_state(self.rule, 1, self.tensors)

    def only(self, tensors):
        """The step of some of the tensors alone."""
        return CoordinatesStep(self.rule, [self._layout[k] for k in tensors], most=self._most)

    def _of_tensor(self, of_pieces, tensor):
        runs = self._runs_of_tensors[tensor]
        return _joined([(of_pieces[run.piece], run.place, run.size) for run in runs], of_pieces)

    def _of_piece(self, of_tensors, piece):
        parts = []
        for run, there in self._runs_of_pieces[piece]:
            of_tensor = of_tensors[run.tensor]
            if there:
                parts.append((of_tensor, run.start, there))
            if there < run.size:
                shape = [*of_tensor.shape[:-1], run.size - there]
                parts.append((tf.zeros(shape, of_tensor.dtype), 0, run.size - there))
        return _joined(parts, of_tensors)


class TensorsStep:
    """One step of a rule with the coupling "tensor", tensor by tensor. The state is a list."""

    def __init__(self, rule, layout):
        self.rule = rule
        self.program = Program(rule)
        self._layout = layout

    def initial_state(self, make):
        """See ``ModelStep`` in ``model_step.py``."""
        return [
            _made(lambda tensor=tensor: self.rule.initial_state([tensor])[0], make, f"tensor_{k}")
            for k, tensor in enumerate(self._layout)
        ]

    def run(self, inputs, state):
        """``(updates, state)``, of lists, one for each tensor."""
        weights, updates, states = self.program.weights(), [], []
        for k, of_tensor in enumerate(state):
            alone = levels.map_inputs(lambda tensors, k=k: [tf.stop_gradient(tensors[k])], inputs)
            (update,), (of_tensor,) = self.program.update(weights, alone, [of_tensor])
            updates.append(update)
            states.append(of_tensor)
        return updates, states

    def by_tensor(self, state):
        return list(state)

    def of_tensors(self, states):
        return states

    def slices(self, state, tensor):
        return [[(leaf, None, None)] for leaf in tf.nest.flatten(state[tensor])]

    def structure(self, tensor):
        with tf.init_scope():
            return self.rule.initial_state([self._layout[tensor]])[0]

    def fuses(self, parameters, state):
        return False

    def only(self, tensors):
        return TensorsStep(self.rule, [self._layout[k] for k in tensors])


def _made(initial_state, make, name, adds_up=lambda index: False):
    """A state whose leaves are made by ``make(shape, initializer, name=…, adds_up=…)``."""
    with tf.init_scope():
        structure = initial_state()

    def leaf_of(index, leaf):
        def initializer(shape, dtype):
            return tf.cast(tf.nest.flatten(initial_state())[index], dtype)

        shape = leaf.shape.as_list()
        return make(shape, initializer, name=f"{name}_{index}", adds_up=adds_up(index))

    leaves = [leaf_of(index, leaf) for index, leaf in enumerate(tf.nest.flatten(structure))]
    return tf.nest.pack_sequence_as(structure, leaves)


def _joined(slices, like):
    """``(vector, start, size)`` of several, along the last axis, as one vector."""
    parts = [
        vector if size == vector.shape[-1] else vector[..., start : start + size]
        for vector, start, size in slices
    ]
    if not parts:
        return like[0][..., :0]
    return parts[0] if len(parts) == 1 else tf.concat(parts, axis=-1)
