"""Program: what a rule does, compiled, whatever surrounds it.

XLA fuses a rule's element-wise work (gates, features), where TensorFlow's own kernels read and
write memory for each operation. The optimizee is left to whoever calls: convolutions, for one, are
slower under XLA on a CPU.
"""

import json

import keras
import tensorflow as tf

from l2l_tf import hooks
from l2l_tf.engine import pieces
from l2l_tf.update_rules import backpropagation, levels, xla

# Of a rule's config, what says nothing of its programs.
_OF_WEIGHTS_ALONE = ("name", "weights", "learning_rate", "seed", "zero_head")


class Program:
    """A rule, its weights, and its methods as compiled functions of these.

    The weights enter as tensors, of ``weights()``: TensorFlow would not run two calls of a program
    that reads variables side by side.

    XLA keeps what it has compiled as long as the process lives, and Keras keeps the graph of many
    a model that is gone, with all programs in it. So rules of this package that are alike in all
    but weights share their compiled functions. (Of another, ``get_config`` may not tell all.)

    Args:
        rule: ``UpdateRule``.
    """

    def __init__(self, rule):
        self.rule = rule
        self._compiled = _compiled(rule)
        if self._compiled.kernel is not None:
            self._compiled.kernel.build()

    @property
    def fused(self):
        """The rule's ``fused_step``, or None."""
        return self._compiled.fused

    def weights(self, values=None):
        """The rule's weights as they are now, a list of tensors.

        Args:
            values: dict of a variable's ``id`` to what to take in its place.
        """
        values = values or {}
        return [
            tf.convert_to_tensor(values[id(v)] if id(v) in values else v.value)
            for v in self.rule.variables
        ]

    def update(self, weights, inputs, state, *controls_and_owners):
        """``rule.update``, by a kernel of the rule's where that can run it.

        Args:
            weights: of ``weights()``.
            inputs, state: as of ``UpdateRule.update``; the state's leaves may be of another dtype.
            controls_and_owners: of a rule with a control: ``[C, K]``, and the tensor of each
                block of coordinates, int32: see ``levels.sum_by_tensor``.

        Returns:
            ``(updates, state)``.
        """
        compiled = self._compiled
        if compiled.kernel is not None and compiled.kernel.can_run(state):
            return compiled.kernel(weights, inputs, state)
        return compiled.call(_update, weights, inputs, state, *controls_and_owners)

    def summarize(self, weights, inputs, state, owners, tensors, *counts):
        """The summaries ``[S, K]`` of these coordinates, of a rule with a control.

        Args:
            inputs, state: of the coordinates.
            owners: the tensor of each block of them.
            tensors: ``Tensors``.
            counts: as of ``levels.summarize``, if some are filled up.
        """
        arguments = inputs, state, owners, tensors.facts(), *counts
        return self._compiled.call(_summarize, weights, *arguments)

    def control(self, weights, summaries, state, tensors):
        """``rule.control``: ``(controls [C, K], state)``."""
        num_models = tensors.num_models
        return self._compiled.call(
            _control, weights, summaries, state, tensors.facts(), num_models=num_models
        )

    def kept(self, state):
        """How many coordinates times steps ``backpropagate`` is to be given at once."""
        kernel = self._compiled.kernel
        if kernel is not None and kernel.can_backpropagate(state):
            return kernel.KEPT
        return pieces.policy().kept

    def backpropagate(self, weights, inputs, state, cotangents):
        """``rule.backpropagate``, the derivative by the trainable weights."""
        kernel = self._compiled.kernel
        if kernel is not None and kernel.can_backpropagate(state):
            return kernel.backpropagate(weights, inputs, state, cotangents)
        return self._compiled.call(_backpropagate, weights, inputs, state, cotangents)

    def backpropagate_coordinates(self, weights, inputs, state, cotangents, controls, owners):
        """``backpropagation.of_updates``, of a rule with a control; `owners` as of ``update``."""
        arguments = inputs, state, cotangents, controls, owners
        return self._compiled.call(backpropagation.of_updates, weights, *arguments)

    def backpropagate_control(self, weights, summaries, state, cotangents, tensors):
        """``backpropagation.of_control``."""
        arguments = summaries, state, cotangents, tensors.facts()
        return self._compiled.call(
            _backpropagate_control, weights, *arguments, num_models=tensors.num_models
        )


def _update(rule, inputs, state, *controls_and_owners):
    first = tf.nest.flatten(inputs)[0]
    spread = [levels.spread(*controls_and_owners, first)] if controls_and_owners else []
    updates, new = rule.update(inputs, _of_dtype(rule, state), *spread)
    new = [tf.cast(a, b.dtype) for a, b in zip(tf.nest.flatten(new), tf.nest.flatten(state))]
    return updates, tf.nest.pack_sequence_as(state, new)


def _summarize(rule, inputs, state, owners, facts, *counts):
    tensors = levels.Tensors(*facts)
    return levels.summarize(rule, inputs, _of_dtype(rule, state), owners, tensors, *counts)


def _control(rule, summaries, state, facts, num_models):
    tensors = levels.Tensors(*facts, num_models)
    controls, new = levels.control_step(rule, summaries, _of_dtype(rule, state), tensors)
    return controls, tf.nest.map_structure(lambda a, b: tf.cast(a, b.dtype), new, state)


def _backpropagate(rule, inputs, state, cotangents):
    return rule.backpropagate(inputs, state, cotangents)


def _backpropagate_control(rule, summaries, state, cotangents, facts, num_models):
    tensors = levels.Tensors(*facts, num_models)
    return backpropagation.of_control(rule, summaries, state, cotangents, tensors)


def _of_dtype(rule, state):
    return tf.nest.map_structure(lambda leaf: tf.cast(leaf, rule.dtype), state)


class _Compiled:
    """The compiled functions of a rule, and of those alike."""

    def __init__(self, rule):
        self.kernel, self.fused = rule.kernel(), rule.fused_step()
        self._rule = rule
        self._functions = {}

    def call(self, function, weights, *args, **static):
        """``function(rule, *args, **static)``, with `weights` for the rule's."""
        # One function for all shapes would look to TensorFlow like retracing. And what is made
        # while operations are watched is not for later.
        shapes = [(tuple(leaf.shape), leaf.dtype) for leaf in tf.nest.flatten(args)]
        key = function, hooks.watches_operations(), *static.items(), *shapes
        if key not in self._functions:
            self._functions[key] = self._program(function, static)
        return self._functions[key](weights, *args)

    def _program(self, function, static):
        def stateless(weights, *args):
            with keras.StatelessScope(state_mapping=list(zip(self._rule.variables, weights))):
                return function(self._rule, *args, **static)

        return xla.program(stateless)


_shared = {}  # by class and config


def _compiled(rule):
    if not type(rule).__module__.startswith("l2l_tf."):
        return _Compiled(rule)
    with tf.init_scope():
        config = {k: v for k, v in rule.get_config().items() if k not in _OF_WEIGHTS_ALONE}
        key = type(rule), json.dumps(config, sort_keys=True)
        if key not in _shared:
            # Of a copy, which nobody else changes or keeps alive. Neither Keras' names nor the
            # user's random numbers are to know of it.
            config |= {"name": "shared"} | ({"seed": 0} if hasattr(rule, "seed") else {})
            _shared[key] = _Compiled(type(rule).from_config(config))
    return _shared[key]
