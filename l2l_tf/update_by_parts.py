"""Update by parts: one step of a rule for a model's variables, each part of the rule by itself.

A variable of a coordinatewise part is run in chunks (``chunked_update``), one of a tensor-coupled
part as a whole, by a compiled program for its shape.
"""

import math

import numpy as np
import tensorflow as tf

from l2l_tf import chunked_update
from l2l_tf.update_rules import base, compiled


def initial_states(rule, layout):
    """For each tensor of a layout, for each chunk, for each leaf: ``(shape, initializer)``."""
    return [
        _initial_state(of_tensor, *tensor)
        for of_tensor, tensor in zip(_rules_of(rule, layout), layout)
    ]


def _initial_state(rule, name, shape):
    if rule.coupling == "coordinate":
        sizes = chunked_update.chunk_sizes(tf.TensorShape(shape).num_elements())
        return [chunked_update.initial_state(rule, size) for size in sizes]
    return [chunked_update.initial_state(rule, [(name, shape)])]


def rules_at_rest(rule, layout):
    """The learned rules of a rule that make no step, for some of a layout's tensors.

    Each is tried for a few steps, with gradients that are not 0, on the smallest of its tensors.
    """
    at_rest = []
    for part in base.parts_of(rule, layout):
        tensors = [layout[i] for i in part.indices if math.prod(layout[i][1])]
        if not tensors or not part.rule.trainable_variables:
            continue
        name, shape = min(tensors, key=lambda tensor: math.prod(tensor[1]))
        of_part, gradients = [(name, shape)], [tf.ones(shape, rule.dtype)]
        if part.rule.coupling == "coordinate":
            of_part, gradients = 1, tf.ones([1], rule.dtype)
        state, steps = part.rule.initial_state(of_part), []
        for _ in range(3):
            updates, state = part.rule.update(gradients, state)
            steps += tf.nest.flatten(updates)
        if not any(np.any(step) for step in steps):
            at_rest.append(part.rule)
    return at_rest


def _rules_of(rule, layout):
    """The rule that runs each of a layout's tensors: a list."""
    rules = [None] * len(layout)
    for part in base.parts_of(rule, layout):
        for index in part.indices:
            rules[index] = part.rule
    return rules


def program(rule, layout):
    """One step of a rule for some of a layout's tensors, compiled part by part.

    Returns:
        Function of indices into the layout, and for each of them the gradient (of the rule's dtype
        and the tensor's shape) and the chunks' lists of ``tf.Variable`` of its state, which it
        assigns to by its last argument, a function of a variable and a value; to the list of
        updates, vectors or tensors.
    """
    rules = _rules_of(rule, layout)
    runners = {id(of_part): _runner(of_part) for of_part in rules}

    def update(indices, gradients, states, assign):
        updates = [None] * len(indices)
        for key, run in runners.items():
            places = [place for place, index in enumerate(indices) if id(rules[index]) == key]
            if places:
                steps = run(
                    [gradients[place] for place in places],
                    [states[place] for place in places],
                    assign,
                )
                for place, step in zip(places, steps):
                    updates[place] = step
        return updates

    return update


def _runner(rule):
    """Function of gradients, states and `assign`, to updates."""
    if rule.coupling == "coordinate":
        run_chunks = chunked_update.program(rule)

        def run_coordinates(gradients, states, assign):
            vectors = [tf.reshape(g, [g.shape.num_elements()]) for g in gradients]
            return run_chunks(compiled.weights(rule), vectors, states, assign)

        return run_coordinates

    run_tensor = _tensor_program(rule)

    def run_tensors(gradients, states, assign):
        weights, updates = compiled.weights(rule), []
        for gradient, (leaves,) in zip(gradients, states):
            values = [tf.convert_to_tensor(leaf) for leaf in leaves]
            update, values = run_tensor(weights, tf.stop_gradient(gradient), values)
            for leaf, value in zip(leaves, values):
                assign(leaf, value)
            updates.append(update)
        return updates

    return run_tensors


@compiled.shared
def _tensor_program(rule):
    """Function of the rule's weights, a gradient and the leaves of its state, in any dtype."""
    programs = {}  # by shape: one function for all would look to TensorFlow like retracing

    def run(weights, gradient, leaves):
        shape = tuple(gradient.shape)
        if shape not in programs:
            with tf.init_scope():
                structure = rule.initial_state([("tensor", shape)])

            def step(gradient, leaves):
                cast = [tf.cast(leaf, rule.dtype) for leaf in leaves]
                state = tf.nest.pack_sequence_as(structure, cast)
                (update,), state = rule.update([gradient], state)
                state = tf.nest.flatten(state)
                return update, [tf.cast(new, old.dtype) for new, old in zip(state, leaves)]

            programs[shape] = compiled.program(rule, step)
        return programs[shape](weights, gradient, leaves)

    return run
