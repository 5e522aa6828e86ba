"""One step of a rule for the variables of a model, whose state is kept in variables too."""

import itertools
import math

import numpy as np
import tensorflow as tf

from l2l_tf.engine import pieces
from l2l_tf.engine.parts import Parts
from l2l_tf.engine.step import CoordinatesStep, TensorsStep
from l2l_tf.update_rules import levels


class ModelStep:
    """One step of a rule for the variables of a model, each of its parts by itself.

    A *state* here is a list, for each part what its step has for one.

    Args:
        rule: an ``UpdateRule``.
        layout: list of ``(name, shape)`` of the variables.
    """

    def __init__(self, rule, layout):
        parts = Parts(rule, layout)
        self._layout = layout
        self._indices = [part.indices for part in parts.parts]
        self._steps = [
            CoordinatesStep(rule, of_part, most=pieces.most(_numbers(rule)), may_fuse=True)
            if rule.coupling == "coordinate"
            else TensorsStep(rule, of_part)
            for rule, of_part in parts
        ]
        # For each tensor, the number of its part, and its place there.
        where = {i: (p, k) for p, of in enumerate(self._indices) for k, i in enumerate(of)}
        self._where = [where[index] for index in range(len(layout))]

    def initial_state(self, make):
        """The state before the first step.

        Args:
            make: function of a shape, an initializer, a name, and whether it adds up what
                bfloat16 would round away, to a leaf.
        """

        def make_of(part):
            return lambda *args, name, **kwargs: make(*args, name=f"part_{part}_{name}", **kwargs)

        return [step.initial_state(make_of(part)) for part, step in enumerate(self._steps)]

    def look(self, present, gradients, parameters, state):
        """What a step needs to know of all coordinates before it changes any.

        Args: as of a call.

        Returns:
            ``(seen, are_finite, unchecked)``: what the call takes; whether the gradients of some
            tensors are finite, a list of scalars; and the gradients of the others, a list.
        """
        seen, are_finite, unchecked = [], [], []
        for part, (places, of_part) in enumerate(self._by_part(present, gradients, parameters)):
            seen.append(None)
            values = tf.nest.map_structure(tf.convert_to_tensor, state[part])
            is_whole = len(places) == len(self._indices[part])
            if places and is_whole and self._steps[part].fuses(of_part[1], values):
                seen[-1], is_finite = self._steps[part].summarize(*of_part, values)
                are_finite.append(is_finite)
            else:
                unchecked += of_part[0]
        return seen, are_finite, unchecked

    def __call__(self, present, gradients, parameters, state, assign, seen, rate, decays):
        """Takes a step of some of the variables.

        Args:
            present: their indices in the layout, increasing.
            gradients: for each, of its shape and the rule's dtype.
            parameters: alike, its value; read by rules that see parameters.
            state: with ``tf.Variable`` as leaves.
            assign: function of a variable and a value.
            seen: of ``look``.
            rate: factor on the updates, a scalar.
            decays: for each, the share of itself that a variable loses.

        Returns:
            List of pairs, of the update, like the gradient or flat, and None; or of None and the
            new value, with rate and decay.
        """
        steps = dict.fromkeys(present)
        by_part = self._by_part(present, gradients, parameters, decays)
        for part, (places, of_part) in enumerate(by_part):
            if not places:
                continue
            indices, step, variables = self._indices[part], self._steps[part], state[part]
            values = tf.nest.map_structure(tf.convert_to_tensor, variables)
            gradients, parameters, decays = of_part
            if seen[part] is not None:
                decays = tf.stack(decays)
                moved, values = step.move(seen[part], gradients, parameters, values, rate, decays)
                changes = [(None, value) for value in moved]
            else:
                inputs = levels.inputs(step.rule, gradients, parameters)
                if len(places) == len(indices):
                    updates, values = step.run(inputs, values)
                else:  # the others' state stays
                    updates, values = _run_some(step, places, inputs, values)
                changes = [(update, None) for update in updates]
            for variable, value in zip(tf.nest.flatten(variables), tf.nest.flatten(values)):
                assign(variable, value)
            steps |= {indices[place]: change for place, change in zip(places, changes)}
        return list(steps.values())

    def _by_part(self, present, *lists):
        """For each part, the places of the tensors that are present; and of each list, theirs."""
        for indices in self._indices:
            places = [place for place, i in enumerate(indices) if i in present]
            chosen = [present.index(indices[place]) for place in places]
            yield places, [[of_all[k] for k in chosen] for of_all in lists]

    def rules_at_rest(self):
        """The learned rules of the rule that make no step, tried for a few, each on a tensor."""
        at_rest = []
        for indices, step in zip(self._indices, self._steps):
            tensors = [self._layout[i] for i in indices if math.prod(self._layout[i][1])]
            if tensors and step.rule.trainable_variables:
                smallest = min(tensors, key=lambda tensor: math.prod(tensor[1]))
                if not any(map(np.any, levels.trial(step.rule, smallest, 1.0, num_steps=3))):
                    at_rest.append(step.rule)
        return at_rest

    def has_final_shift(self):
        """Whether a rule of a part has a ``final_shift``."""
        return any(levels.has_final_shift(step.rule) for step in self._steps)

    def final_shifts(self, state):
        """For each tensor of the layout its rule's ``final_shift``, of its shape, or None."""
        shifts = [None] * len(self._layout)
        for indices, step, of_part in zip(self._indices, self._steps, state):
            if not levels.has_final_shift(step.rule):
                continue
            values = tf.nest.map_structure(tf.convert_to_tensor, of_part)
            for index, of_tensor in zip(indices, step.by_tensor(values)):
                shift = levels.final_shift(step.rule, of_tensor)
                shifts[index] = tf.reshape(shift, self._layout[index][1])
        return shifts

    def slices(self, state):
        """Where the state of each of the layout's tensors is.

        Returns:
            For each tensor, for each leaf, a list of ``(leaf of the state, start, size)`` along the
            last axis; a start of None is all of a leaf of any shape.
        """
        return [self._steps[part].slices(state[part], place) for part, place in self._where]

    def of_tensors(self, leaves):
        """The state, given for one tensor of the layout after another its leaves, whole."""
        leaves, states = iter(leaves), []
        for part, place in self._where:
            structure = self._steps[part].structure(place)
            values = list(itertools.islice(leaves, len(tf.nest.flatten(structure))))
            states.append(tf.nest.pack_sequence_as(structure, values))
        return [
            step.of_tensors([states[index] for index in indices])
            for indices, step in zip(self._indices, self._steps)
        ]


def _numbers(rule):
    """Of the state of a coordinate, how many there are."""
    with tf.init_scope():
        leaves = tf.nest.flatten(rule.initial_state(1))
    return sum(leaf.shape.num_elements() for leaf in leaves)


def _run_some(step, places, inputs, state):
    """A step of some of the tensors alone, and the state of all after it."""
    states, some = step.by_tensor(state), step.only(places)
    updates, new = some.run(inputs, some.of_tensors([states[place] for place in places]))
    for place, of_tensor in zip(places, some.by_tensor(new)):
        states[place] = of_tensor
    return updates, step.of_tensors(states)
