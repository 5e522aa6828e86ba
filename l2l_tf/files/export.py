"""SavedModel: a rule as a ``tf.Module`` that TensorFlow alone can use; see ``saving.save``."""

import textwrap

import tensorflow as tf

from l2l_tf.update_rules import levels


def module(rule):
    """A ``tf.Module`` with the functions of a SavedModel."""
    exported = tf.Module()
    if rule.rules:
        exported.rules = [module(of_group) for of_group in rule.rules]
        if all(isinstance(pattern, str) for pattern in rule.patterns):
            exported.patterns = tf.Variable(list(rule.patterns), trainable=False)
        return exported
    exported.meta_parameters = [v.value for v in rule.weights]
    export = _export_coordinatewise if rule.coupling == "coordinate" else _export_for_a_tensor
    exported.initial_state, exported.update, state = export(rule)
    if levels.has_final_shift(rule):
        exported.final_shift = tf.function(
            lambda state: levels.final_shift(rule, state), input_signature=[state]
        )
    return exported


def _export_coordinatewise(rule):
    """``(initial_state, update, specs of a state)`` for any number of coordinates.

    Of a rule with a control, for tensors of any shapes.
    """
    inputs = [tf.TensorSpec([None], rule.dtype)] * (2 if rule.sees_parameters else 1)
    one = levels.Tensors.of_shapes([(1,)], rule.dtype)
    of_one = levels.initial_state(rule, 1, one)
    state = tf.nest.map_structure(
        lambda leaf: tf.TensorSpec([*leaf.shape[:-1], None], leaf.dtype), of_one
    )
    if not rule.has_control:
        size = tf.TensorSpec([], tf.int32)
        return (
            tf.function(rule.initial_state, input_signature=[size]),
            tf.function(_by_name(rule, rule.update), input_signature=[*inputs, state]),
            state,
        )

    def initial_state(shapes):
        size = tf.reduce_sum(tf.reduce_prod(shapes, axis=1))
        return levels.initial_state(rule, size, levels.Tensors.of_ragged(shapes, rule.dtype))

    def update(inputs, state, shapes):
        sizes = tf.reduce_prod(shapes, axis=1)
        owners = tf.repeat(tf.range(tf.size(sizes)), sizes)
        tensors = levels.Tensors.of_ragged(shapes, rule.dtype)
        return levels.step(rule, inputs, state, tensors, owners)

    shapes = tf.RaggedTensorSpec([None, None], tf.int32)
    return (
        tf.function(initial_state, input_signature=[shapes]),
        tf.function(_by_name(rule, update), input_signature=[*inputs, state, shapes]),
        state,
    )


def _by_name(rule, update):
    """A function of what the rule sees, as one argument, by the names of what that is."""
    if not rule.sees_parameters:
        return lambda gradients, state, *shapes: update(gradients, state, *shapes)
    return lambda gradients, parameters, state, *shapes: update(
        levels.Inputs(gradients, parameters), state, *shapes
    )


def _export_for_a_tensor(rule):
    """The same for a tensor of any shape that the rule takes."""

    def initial_state(shape):
        return rule.initial_state([("tensor", shape)])[0]

    def update(inputs, state):
        (update,), (state,) = rule.update(levels.map_inputs(lambda of: [of], inputs), [state])
        return update, state

    rank = None if rule.tensor_shape is None else len(rule.tensor_shape)
    try:
        initial_state = tf.function(
            initial_state, input_signature=[tf.TensorSpec([rank], tf.int32)]
        )
        state_signature = tf.nest.map_structure(
            lambda leaf: tf.TensorSpec(leaf.shape, leaf.dtype),
            initial_state.get_concrete_function().structured_outputs,
        )
        inputs = [tf.TensorSpec(rule.tensor_shape, rule.dtype)] * (1 + rule.sees_parameters)
        signature = [*inputs, state_signature]
        update = tf.function(_by_name(rule, update), input_signature=signature)
        update.get_concrete_function()
    except Exception as error:  # A rule's own code raises anything.
        raise ValueError(
            f"{type(rule).__name__} cannot be saved: it does not run for a tensor whose shape is "
            f"known at run time alone ({textwrap.shorten(str(error), 300)}). Expected of a rule "
            "with coupling 'tensor': `initial_state` takes a shape that is an int32 vector, and "
            "`update` uses tf.shape. If it needs a rank, see UpdateRule.tensor_shape."
        ) from error
    return initial_state, update, state_signature
