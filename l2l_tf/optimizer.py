"""LearnedOptimizer: a Keras optimizer around an update rule."""

import os

import keras
import tensorflow as tf

from l2l_tf import saving
from l2l_tf.update_rules import base


@keras.saving.register_keras_serializable("l2l_tf")
class LearnedOptimizer(keras.optimizers.Optimizer):
    """Trains a Keras model with an update rule, learned or hand-designed.

    The rule sees each variable's gradient, in float32, and a state of its own per coordinate. What
    it returns is multiplied by `learning_rate` and added to the variable.

    Args:
        rule: an ``UpdateRule``; or what ``l2l_tf.load`` takes: a shipped rule's name or a
            directory that ``l2l_tf.save`` or ``bin/meta_train`` wrote.
        learning_rate: factor on the rule's updates: a float, a schedule, or a callable. At 1.0 the
            rule does what it was meta-trained to do.
        **kwargs: of ``keras.optimizers.Optimizer``: `name`, `weight_decay`, `clipnorm`, ….

    Reference: Andrychowicz et al. 2016, "Learning to learn by gradient descent by gradient
    descent".

    Example:

    >>> import numpy as np, l2l_tf
    >>> model = keras.Sequential([keras.Input([4]), keras.layers.Dense(1)])
    >>> rule = l2l_tf.update_rules.Momentum(learning_rate=0.1, nesterov=True)
    >>> model.compile(optimizer=l2l_tf.LearnedOptimizer(rule), loss="mse")
    >>> history = model.fit(np.ones([8, 4]), np.ones([8, 1]), epochs=2, verbose=0)
    >>> history.history["loss"][1] < history.history["loss"][0]
    True
    """

    def __init__(self, rule, learning_rate=1.0, *, name="learned_optimizer", **kwargs):
        if isinstance(rule, (str, os.PathLike)):
            rule = saving.load(rule)
        if not isinstance(rule, base.UpdateRule):
            raise TypeError(
                "`rule` must be an UpdateRule, a shipped rule's name or a directory. "
                f"Received: {rule!r} of type {type(rule).__name__}"
            )
        if rule.coupling != "coordinate":
            raise ValueError(
                "LearnedOptimizer needs a rule with coupling 'coordinate'. "
                f"Received: {type(rule).__name__} with coupling {rule.coupling!r}"
            )
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.rule = rule

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        # For each variable the leaves of the rule's state for its coordinates. Made by initializers
        # alone: under `fit` this runs while a graph is traced, where an assignment would be lost.
        self._states = [self._add_state(variable) for variable in variables]

    def _add_state(self, variable):
        with tf.init_scope():
            state = self.rule.initial_state(variable.shape.num_elements())
            leaves = [leaf.numpy() for leaf in tf.nest.flatten(state)]
        path = getattr(variable, "path", variable.name).replace("/", "_").replace(":", "_")
        backend_variable = variable.value if isinstance(variable, keras.Variable) else variable
        with self._distribution_strategy.extended.colocate_vars_with(backend_variable):
            return [
                self.add_variable(
                    shape=leaf.shape,
                    initializer=keras.initializers.Constant(leaf),
                    dtype=leaf.dtype.name,
                    name=f"{path}_state_{index}",
                )
                for index, leaf in enumerate(leaves)
            ]

    def update_step(self, gradient, variable, learning_rate):
        """One variable's step: the reference for what happens to each."""
        states = self._states[self._get_variable_index(variable)]
        state = tf.nest.pack_sequence_as(self.rule.initial_state(1), [s.value for s in states])
        gradient = tf.reshape(tf.cast(tf.convert_to_tensor(gradient), self.rule.dtype), [-1])
        updates, state = self.rule.update(tf.stop_gradient(gradient), state)
        updates = tf.cast(learning_rate, updates.dtype) * updates
        self.assign_add(variable, tf.cast(tf.reshape(updates, variable.shape), variable.dtype))
        for old, new in zip(states, tf.nest.flatten(state)):
            self.assign(old, new)

    def get_config(self):
        config = super().get_config()
        config["rule"] = keras.saving.serialize_keras_object(self.rule)
        return config

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        if isinstance(config["rule"], dict):
            config["rule"] = keras.saving.deserialize_keras_object(
                config["rule"], custom_objects=custom_objects
            )
        return super().from_config(config, custom_objects=custom_objects)
