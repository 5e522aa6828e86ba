"""Backpropagation through a rule, from what an unroll has recorded, by a tape.

What serves every rule; one that knows a faster way overrides ``UpdateRule.backpropagate``.
"""

import tensorflow as tf

from l2l_tf.update_rules import levels


def of_updates(rule, inputs, state, cotangents, controls=None, owners=None):
    """The derivative of Σ_t ⟨u_t, cotangent_t⟩, over T steps from `state`.

    Args:
        rule: ``UpdateRule``.
        inputs: what the rule sees, each with a leading axis T.
        state: of the coordinates, before the first step.
        cotangents: of the updates; like the gradients.
        controls: of a rule with a control, ``[T, C, K]``.
        owners: the tensor of each block of coordinates, int32: see ``levels.sum_by_tensor``.

    Returns:
        ``(by φ, by the controls)``: a list, one for each of ``trainable_variables``; and
        ``[T, C, K]``, or None without a control.
    """
    num_steps = tf.nest.flatten(cotangents)[0].shape[0]
    if not rule.state_depends_on_weights:
        return _step_by_step(rule, num_steps, inputs, state, cotangents, controls, owners)

    def inner_product(t, state, *of_step):
        """⟨u_t, cotangent_t⟩ and the state after the step."""
        inputs_at_t, cotangents_at_t = _at(t, (inputs, cotangents))
        first = tf.nest.flatten(cotangents_at_t)[0]
        spread = [levels.spread(control, owners, first) for control in of_step]
        return _inner_product(rule, inputs_at_t, state, cotangents_at_t, *spread)

    weights = [v.value for v in rule.trainable_variables]
    return _through_time(rule, num_steps, inner_product, state, weights, controls)


def of_step(rule, inputs, state, cotangents, *controls):
    """The derivative of ⟨u, cotangents⟩ of one step by φ and the coordinates' controls, by a tape.

    Returns:
        ``(by φ, by the controls, the state after the step)``; the second a list like `controls`.
    """
    weights = [v.value for v in rule.trainable_variables]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch([*weights, *controls])
        product, state = _inner_product(rule, inputs, state, cotangents, *controls)
    products = tape.gradient(product, [*weights, *controls], unconnected_gradients="zero")
    return products[: len(weights)], products[len(weights) :], state


def _inner_product(rule, inputs, state, cotangents, *controls):
    updates, state = rule.update(inputs, state, *controls)
    products = tf.nest.map_structure(lambda u, c: tf.reduce_sum(u * c), updates, cotangents)
    return tf.add_n(tf.nest.flatten(products)), state


def of_control(rule, summaries, state, cotangents, tensors):
    """The derivative of Σ_t ⟨controls_t, cotangent_t⟩ by φ, over T steps from `state`.

    Args:
        rule: an ``UpdateRule`` with a control.
        summaries: ``[T, S, K]``.
        state: of the control, before the first step.
        cotangents: of the controls, ``[T, C, K]``.
        tensors: ``Tensors``.
    """

    def inner_product(t, state):
        summaries_at_t, cotangents_at_t = _at(t, (summaries, cotangents))
        controls, state = rule.control(summaries_at_t, state, tensors)
        return tf.reduce_sum(controls * cotangents_at_t), state

    weights = [v.value for v in rule.trainable_variables]
    num_steps = cotangents.shape[0]
    return _through_time(rule, num_steps, inner_product, state, weights, None)[0]


def _through_time(rule, num_steps, inner_product, state, weights, controls):
    """Backpropagation through time, on a tape of all steps."""
    sources = weights if controls is None else [*weights, controls]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(sources)
        # The derivative of an index into a tensor is as large as the tensor, each step; that of a
        # read from an array is one write.
        arrays = [] if controls is None else [_array(controls).unstack(controls)]

        def step(t, state, total):
            of_step, state = inner_product(t, state, *[array.read(t) for array in arrays])
            return t + 1, state, total + of_step

        *_, total = tf.while_loop(
            lambda t, *_: t < num_steps,
            step,
            (0, state, tf.zeros([], rule.dtype)),
            maximum_iterations=num_steps,
        )
    products = tape.gradient(total, sources, unconnected_gradients="zero")
    return products[: len(weights)], None if controls is None else products[-1]


def _step_by_step(rule, num_steps, inputs, state, cotangents, controls, owners):
    """Where the state does not depend on φ, steps are independent, and nothing is kept of them."""

    def step(t, state, sums, by_controls):
        inputs_at_t, cotangents_at_t = _at(t, (inputs, cotangents))
        first = tf.nest.flatten(cotangents_at_t)[0]
        spread = [] if controls is None else [levels.spread(controls[t], owners, first)]
        products, of_controls, state = rule.backpropagate_step(
            inputs_at_t, state, cotangents_at_t, *spread
        )
        sums = [a + b for a, b in zip(sums, products)]
        by_controls = [
            array.write(t, levels.sum_by_tensor(of_each, owners, controls.shape[-1]))
            for array, of_each in zip(by_controls, of_controls)
        ]
        return t + 1, state, sums, by_controls

    arrays = [] if controls is None else [_array(controls)]
    _, _, sums, by_controls = tf.while_loop(
        lambda t, *_: t < num_steps,
        step,
        (0, state, [tf.zeros(v.shape, v.dtype) for v in rule.trainable_variables], arrays),
        maximum_iterations=num_steps,
    )
    return sums, by_controls[0].stack() if by_controls else None


def _array(controls):
    return tf.TensorArray(controls.dtype, controls.shape[0], element_shape=controls.shape[1:])


def _at(t, structures):
    return tf.nest.map_structure(lambda leaf: leaf[t], structures)
