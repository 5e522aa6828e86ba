"""LearnedOptimizer: a Keras optimizer around an update rule."""

import contextlib
import numbers
import os
import warnings

import keras
import tensorflow as tf

from l2l_tf import arguments, hooks, saving
from l2l_tf.engine.model_step import ModelStep
from l2l_tf.optimizer_state import OptimizerState
from l2l_tf.update_rules import base

# Gradients below this size are checked together.
SMALL = 4096
STATE_DTYPES = ("float32", "bfloat16", "float64")


@keras.saving.register_keras_serializable("l2l_tf")
class LearnedOptimizer(hooks.AllVariablesOptimizer):
    """Trains a Keras model with an update rule, learned or hand-designed.

    The rule sees the gradients of all variables, in float32, and for each coordinate, or each
    tensor, a state of its own. Of a ``GroupedRule``, each rule sees the variables whose path
    matches its pattern. What it returns is multiplied by `learning_rate` and added to the
    variables.

    Everything that Keras' own optimizers do, this one does. Where they leave a choice:

    * **Weight decay** is that of AdamW at its default learning rate: at each step a weight loses
      ``0.001 * learning_rate * weight_decay`` of itself. The numbers known from AdamW carry over.
    * **Gradients that are not finite** skip the whole step: weights, weight decay and the rule's
      state stay, `iterations` goes on, and ``optimizer.skipped_steps`` counts it.
      With accumulation, that is the whole window of steps. (As Keras clips first, `clipvalue` turns
      an infinite gradient into a finite one; and in a MultiOptimizer each optimizer sees, and
      skips, the variables that are its own.)
    * **Sparse gradients** (of an Embedding): rows that a batch does not touch have a gradient of 0;
      the rule sees it, and their state advances, as the moments of Keras' Adam do.

    * **At its end**, ``fit`` leaves the average of the iterates in the model's variables, if the
      rule has one (as "general"; not with `use_ema`, whose average goes before). So does
      ``finalize_variable_values`` in a loop of one's own. What is seen on the way, as by
      validation, are the parameters where gradients are taken; the next step goes on from these.

    A rule is meta-trained to do well at a learning rate of 1.0, without clipping or decay. With no
    rule named, it is "general", for any model: there is nothing to tune.

    Args:
        rule: an ``UpdateRule``; or what ``l2l_tf.load`` takes: a shipped rule's name or a
            directory that ``l2l_tf.save`` or ``bin/meta_train`` wrote.
        learning_rate: factor on the rule's updates: a float, a schedule, or a callable.
        weight_decay, clipnorm, clipvalue, global_clipnorm, use_ema, ema_momentum,
            ema_overwrite_frequency, loss_scale_factor, gradient_accumulation_steps, name: as of
            ``keras.optimizers.Optimizer``; for `weight_decay` see above.
        state_dtype: "float32", or "bfloat16" to keep the rule's state in half the memory (that of
            a ``control``, some numbers a tensor, stays in float32); or "float64".

    Raises:
        TypeError, ValueError: what `rule` or another argument is not.

    Reference: Andrychowicz et al. 2016, "Learning to learn by gradient descent by gradient
    descent".

    Example:

    >>> import numpy as np, l2l_tf
    >>> model = keras.Sequential([keras.Input([4]), keras.layers.Dense(1)])
    >>> model.compile(optimizer=l2l_tf.LearnedOptimizer(), loss="mse")
    >>> history = model.fit(np.ones([8, 4]), np.ones([8, 1]), epochs=9, verbose=0)
    >>> history.history["loss"][-1] < history.history["loss"][0]
    True

    And with a rule by hand:

    >>> rule = l2l_tf.update_rules.Momentum(learning_rate=0.1, nesterov=True)
    >>> optimizer = l2l_tf.LearnedOptimizer(rule)
    """

    # Keras multiplies decoupled weight decay by the learning rate, and the weight decays that
    # people know (0.004, 0.01) go with AdamW's learning rate of 0.001. Here the learning rate is a
    # factor on the rule, 1.0 by default: this makes up for it.
    weight_decay_scale = 0.001

    def __init__(
        self,
        rule="general",
        learning_rate=1.0,
        weight_decay=None,
        clipnorm=None,
        clipvalue=None,
        global_clipnorm=None,
        use_ema=False,
        ema_momentum=0.99,
        ema_overwrite_frequency=None,
        loss_scale_factor=None,
        gradient_accumulation_steps=None,
        state_dtype="float32",
        name="learned_optimizer",
        **kwargs,
    ):
        if isinstance(rule, (str, os.PathLike)):
            rule = saving.load(rule)
        _check_rule(rule)
        arguments.choice("state_dtype", state_dtype, STATE_DTYPES)
        # Of Keras' own arguments, what Keras takes as it comes.
        if isinstance(learning_rate, numbers.Number):
            arguments.real("learning_rate", learning_rate, minimum=0)
        if weight_decay is not None:
            arguments.real("weight_decay", weight_decay, minimum=0)
        positive = {
            "clipnorm": clipnorm,
            "clipvalue": clipvalue,
            "global_clipnorm": global_clipnorm,
            "loss_scale_factor": loss_scale_factor,
        }
        for key, value in positive.items():
            if value is not None:
                arguments.real(key, value, above=0)
        arguments.boolean("use_ema", use_ema)
        arguments.real("ema_momentum", ema_momentum, minimum=0, maximum=1)
        if gradient_accumulation_steps is not None:
            arguments.integer("gradient_accumulation_steps", gradient_accumulation_steps, 2)
        super().__init__(
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            clipnorm=clipnorm,
            clipvalue=clipvalue,
            global_clipnorm=global_clipnorm,
            use_ema=use_ema,
            ema_momentum=ema_momentum,
            ema_overwrite_frequency=ema_overwrite_frequency,
            loss_scale_factor=loss_scale_factor,
            gradient_accumulation_steps=gradient_accumulation_steps,
            name=name,
            **kwargs,
        )
        self._check_weight_decay()
        self.rule = rule
        self.state_dtype = state_dtype
        self._not_decayed = ()  # names, for the config
        self._is_checked = False  # whether the rule was tried, at the first step
        # Of a pickled optimizer: the shapes of the model's variables, and values for what `build`
        # makes.
        self._restored_shapes, self._restored = None, []
        self._state = None
        self._final_rate = None  # of a rule with a final shift, a variable

    def set_weights(self, weights):
        super().set_weights(weights)  # those that Keras keeps
        if self._state:
            of_state = weights[len(super().variables) :]
            for leaf, value in zip(self._state.leaves, of_state):
                leaf.assign(value)

    def _trackable_children(self, save_type="checkpoint", **kwargs):
        children = super()._trackable_children(save_type, **kwargs)
        if save_type != "checkpoint" and self._state:
            del children["_state"]
            children |= self._state.trackable_pieces()
        return children

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        super().exclude_from_weight_decay(var_list, var_names)
        self._not_decayed = tuple(var_names or ())  # `var_list` is of one model: not for a config

    @property
    def skipped_steps(self):
        """Steps skipped because a gradient was not finite."""
        return int(self._skipped_steps.numpy()) if self.built else 0

    def build(self, variables):
        if self.built or not variables:
            # Built for none, as Keras would have it when it loads an .h5 file, an optimizer could
            # train nothing. Keras then says that it starts anew.
            return
        # Under `fit` this runs while a graph is traced, which needs no part in it: variables that
        # it makes have it traced twice. (Those of replicas are made by all replicas together.)
        with contextlib.nullcontext() if tf.distribute.has_strategy() else tf.init_scope():
            self._build(variables)

    def _build(self, variables):
        self._check_restored(variables)
        # The rule never sees a variable whose gradient is its next value.
        seen = [v for v in variables if not self._is_overwritten(v)]
        layout = [(_name(variable), tuple(variable.shape)) for variable in seen]
        step = ModelStep(self.rule, layout)
        super().build(variables)
        self._skipped_steps = self.add_variable(
            shape=(), initializer="zeros", dtype="int64", name="skipped_steps"
        )
        if step.has_final_shift():
            # How many times it is in the variables now: see `finalize_variable_values`.
            self._final_rate = self.add_variable(
                shape=(), initializer="zeros", dtype="float32", name="final_rate"
            )
        self._places = {self._index_of(v): place for place, v in enumerate(seen)}
        names = [name for name, _ in layout]
        self._state = OptimizerState(step, self.state_dtype, names, self._restored or None)
        self._restored = []

    def _check_restored(self, variables):
        shapes = [tuple(variable.shape) for variable in variables]
        if self._restored_shapes is not None and list(self._restored_shapes) != shapes:
            raise ValueError(
                "The pickled optimizer was built for other variables than these. Expected shapes: "
                f"{list(self._restored_shapes)}. Received: {shapes}"
            )

    def add_variable(self, shape, initializer="zeros", **kwargs):
        if getattr(self, "_restored", None):
            initializer = keras.initializers.Constant(self._restored.pop(0))
        return super().add_variable(shape, initializer, **kwargs)

    @property
    def variables(self):
        return [*super().variables, *(self._state.leaves if self._state else [])]

    def update_step(self, gradient, variable, learning_rate):
        with_control = [rule for rule in base.made_of(self.rule) if rule.has_control]
        if with_control and len(self._trainable_variables) > 1:
            raise NotImplementedError(
                f"The rule '{with_control[0].name}' ({type(with_control[0]).__name__}) has sums "
                "over all variables of a model, and this version of Keras gives an optimizer one "
                "variable at a time. Use a version that l2l_tf is tested with, or a rule without "
                f"`control`. Received: Keras {keras.__version__}"
            )
        self._step(*self._arguments_of_step([variable]), [gradient], learning_rate)

    def finalize_variable_values(self, var_list):
        """At the end of ``fit``: of a rule that averages its iterates, hands out the average.

        The next step goes on from where the iterates were. As in Keras, with `use_ema` the
        variables are their moving averages.

        Args:
            var_list: the model's trainable variables; those that this optimizer does not train
                stay as they are.
        """
        super().finalize_variable_values(var_list)
        if self.use_ema or self._final_rate is None:
            return
        before = tf.convert_to_tensor(self._final_rate)
        rate = tf.cast(tf.convert_to_tensor(self.learning_rate), tf.float32)
        rate = tf.where(before == 0.0, rate, 0.0)  # once
        variables = self._trainable_variables
        self._shift(variables, map(self._index_of, variables), self._state.pieces, rate)
        self._final_rate.assign(before + rate)

    def _go_on(self, variables, indices, state, final_rate):
        """Takes the final shift back, at the first step after it."""

        def go_on():
            self._shift(variables, indices, state, -final_rate)
            self.assign(final_rate, tf.zeros_like(final_rate))
            return tf.constant(True)

        tf.cond(tf.equal(final_rate, 0.0), lambda: tf.constant(False), go_on)

    def _shift(self, variables, indices, state, rate):
        shifts = self._state.step.final_shifts(state)
        for variable, index in zip(variables, indices):
            place = self._places.get(index)
            if place is not None and shifts[place] is not None:
                shift = tf.cast(rate, shifts[place].dtype) * shifts[place]
                self.assign_add(variable, tf.cast(shift, variable.dtype))

    def _arguments_of_step(self, variables):
        """``(counters, variables, index and weight decay of each, state)``."""
        counters = [self._skipped_steps.value]
        if self._final_rate is not None:
            counters.append(self._final_rate.value)
        decays = [
            self.weight_decay_scale * (self.weight_decay or 0.0) * self._is_decayed(variable)
            for variable in variables
        ]
        indices = [self._index_of(variable) for variable in variables]
        return counters, list(variables), indices, decays, self._state.pieces

    def _step(self, counters, variables, indices, decays, state, gradients, learning_rate):
        """One step of one replica, for some of the variables."""
        self._check_weights()
        skipped_steps, *final_rate = counters
        for rate in final_rate:
            self._go_on(variables, indices, state, rate)
        # IndexedSlices become dense. A gradient may be finite in float64 and not in float32.
        gradients = [
            tf.reshape(tf.cast(tf.convert_to_tensor(g), self.rule.dtype), variable.shape)
            for g, variable in zip(gradients, variables)
        ]
        learning_rate = tf.convert_to_tensor(learning_rate)
        present = [self._places[index] for index in indices]

        def parameters():
            return [tf.cast(tf.convert_to_tensor(v), self.rule.dtype) for v in variables]

        step = self._state.step
        seen, are_finite, unchecked = step.look(
            present, gradients, [tf.convert_to_tensor(v) for v in variables], state
        )

        def apply():
            rate = tf.cast(learning_rate, self.rule.dtype)
            shares = [tf.cast(decay * learning_rate, self.rule.dtype) for decay in decays]
            changes = step(present, gradients, parameters(), state, self.assign, seen, rate, shares)
            for variable, decay, (update, value) in zip(variables, decays, changes):
                if value is not None:
                    self.assign(variable, value)
                    continue
                update = tf.cast(tf.cast(learning_rate, update.dtype) * update, variable.dtype)
                update = tf.reshape(update, variable.shape)
                if decay:
                    update -= tf.cast(decay * learning_rate, variable.dtype) * variable
                self.assign_add(variable, update)
            return tf.constant(0, tf.int64)

        is_finite = tf.reduce_all([*are_finite, _all_finite(unchecked)])
        skipped_steps.assign_add(tf.cond(is_finite, apply, lambda: tf.constant(1, tf.int64)))

    def _check_weights(self):
        """Once, at the first step: by then, whatever is restored has brought the rule's weights."""
        if self._is_checked:
            return
        self._is_checked = True
        for rule in base.made_of(self.rule):
            if rule.awaits_weights:
                self._is_checked = False
                raise ValueError(
                    f"The file that this optimizer was loaded from lacks the weights of its update "
                    f"rule '{rule.name}'. Save the model again, or make the optimizer anew: "
                    "LearnedOptimizer(rule)."
                )
        with tf.init_scope():
            at_rest = self._state.step.rules_at_rest()
        for rule in at_rest:
            warnings.warn(
                f"The rule '{rule.name}' ({type(rule).__name__}) moves no weight: its step is "
                "exactly 0 for gradients that are not. So is that of a learned rule before it is "
                "meta-trained. Train it with l2l_tf.MetaTrainer or bin/meta_train, or take a "
                f"shipped one: {_shipped()}.",
                stacklevel=2,
            )

    def __repr__(self):
        rate = type(self._learning_rate).__name__  # of a schedule, or a function
        if isinstance(self._learning_rate, keras.Variable):
            with tf.init_scope():
                rate = f"{float(self._learning_rate.numpy()):.6g}"
        of_groups = ", ".join(type(rule).__name__ for rule in base.made_of(self.rule))
        of_groups = f"({of_groups})" if self.rule.rules else ""
        return (
            f"<{type(self).__name__} name={self.name} rule={type(self.rule).__name__}{of_groups} "
            f"learning_rate={rate}>"
        )

    def load_own_variables(self, store):
        shapes = [tuple(store[key].shape) for key in sorted(store.keys(), key=int)]
        expected = [tuple(variable.shape) for variable in self.variables]
        if shapes != expected:
            warnings.warn(
                f"The saved state does not fit optimizer '{self.name}', which keeps its own: "
                f"expected {len(expected)} variables with the shapes of its rule's state, received "
                f"{len(shapes)}"
                + (" with other shapes" if len(shapes) == len(expected) else "")
                + ". It was saved by another optimizer, or for another model; or this one is not "
                "built yet, as by `optimizer.build(model.trainable_variables)`.",
                stacklevel=2,
            )
            return
        super().load_own_variables(store)

    def get_config(self):
        config = super().get_config()
        config["rule"] = keras.saving.serialize_keras_object(self.rule)
        if hooks.writes_keras_file():
            self.rule.leave_weights_to_the_file(config["rule"]["config"])
        config["state_dtype"] = self.state_dtype
        if self._not_decayed:
            config["not_decayed"] = list(self._not_decayed)
        return config

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        if isinstance(config.get("rule"), dict):
            config["rule"] = keras.saving.deserialize_keras_object(
                config["rule"], custom_objects=custom_objects
            )
        not_decayed = config.pop("not_decayed", [])
        optimizer = super().from_config(config, custom_objects=custom_objects)
        if not_decayed:
            optimizer.exclude_from_weight_decay(var_names=not_decayed)
        return optimizer

    def __reduce__(self):
        # Pickle and deepcopy keep the state, for a model with the same variables.
        shapes = self._restored_shapes and list(self._restored_shapes)
        if self.built:
            shapes = [tuple(variable.shape) for variable in self._trainable_variables]
        return _unpickle, (type(self), self.get_config(), self._values(), shapes)

    def save_own_variables(self, store):
        for index, value in enumerate(self._values()):
            store[str(index)] = value

    def _values(self):
        return [*(variable.numpy() for variable in self.variables), *self._restored]


def _unpickle(cls, config, values, shapes):
    optimizer = cls.from_config(config)
    values = list(values)
    for variable in optimizer.variables:  # iterations, and the learning rate if it is a number
        variable.assign(values.pop(0))
    optimizer._restored_shapes, optimizer._restored = shapes, values
    return optimizer


def _name(variable):
    return getattr(variable, "path", variable.name)


def _check_rule(rule):
    hint = f"Shipped rules: {_shipped()}."
    if isinstance(rule, numbers.Number):
        hint = (
            f"A learning rate goes by its name: LearnedOptimizer(rule, learning_rate={rule}). "
            + hint
        )
    what = "an UpdateRule, a shipped rule's name or a directory"
    arguments.instance("rule", rule, base.UpdateRule, what, hint)


def _shipped():
    return ", ".join(saving.pretrained_names()) or "none"


def _all_finite(gradients):
    # Of many small variables at once: what each operation costs is more than its work.
    small = [g for g in gradients if g.shape.num_elements() < SMALL]
    large = [g for g in gradients if g.shape.num_elements() >= SMALL]
    if len(small) > 1:
        small = [tf.concat([tf.reshape(g, [-1]) for g in small], axis=0)]
    return tf.reduce_all([True, *[tf.reduce_all(tf.math.is_finite(g)) for g in small + large]])
