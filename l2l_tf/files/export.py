"""SavedModel: a rule as a ``tf.Module`` that TensorFlow alone can use; see ``saving.save``."""

import textwrap

import tensorflow as tf


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
    exported.initial_state, exported.update = export(rule)
    return exported


def _export_coordinatewise(rule):
    """For any number of coordinates."""
    initial_state = tf.function(rule.initial_state, input_signature=[tf.TensorSpec([], tf.int32)])
    state_signature = tf.nest.map_structure(
        lambda leaf: tf.TensorSpec([*leaf.shape[:-1], None], leaf.dtype), rule.initial_state(1)
    )
    signature = [tf.TensorSpec([None], rule.dtype), state_signature]
    return initial_state, tf.function(rule.update, input_signature=signature)


def _export_for_a_tensor(rule):
    """For a tensor of any shape that the rule takes."""

    def initial_state(shape):
        return rule.initial_state([("tensor", shape)])[0]

    def update(gradient, state):
        (update,), (state,) = rule.update([gradient], [state])
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
        signature = [tf.TensorSpec(rule.tensor_shape, rule.dtype), state_signature]
        update = tf.function(update, input_signature=signature)
        update.get_concrete_function()
    except Exception as error:  # A rule's own code raises anything.
        raise ValueError(
            f"{type(rule).__name__} cannot be saved: it does not run for a tensor whose shape is "
            f"known at run time alone ({textwrap.shorten(str(error), 300)}). Expected of a rule "
            "with coupling 'tensor': `initial_state` takes a shape that is an int32 vector, and "
            "`update` uses tf.shape. If it needs a rank, see UpdateRule.tensor_shape."
        ) from error
    return initial_state, update
