"""Keras loss: what ``train_on_batch`` minimizes, at values that are put in a model's place."""

import contextlib
import inspect
import textwrap
import warnings
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from l2l_tf import hooks
from l2l_tf.arguments import few
from l2l_tf.problems import base
from l2l_tf.problems.loss_graph import LossGraph, NotingScope, without


class KerasLoss:
    """The loss that Keras trains a compiled model on, with its gradients.

    Compiled loss, losses that layers add (``add_loss``, activity and weight regularizers), or a
    ``compute_loss`` of the model's own: exactly that of ``train_on_batch``, in training mode.

    It is computed in one of two ways. ``at``: as a function, with values substituted for the
    model's variables, and what a forward pass would change besides is dropped. Or ``in_place``, as
    ``fit`` does it: at the variables, which a forward pass may change.

    Args:
        model: ``keras.Model``, built and compiled.
        example: a batch, of the shapes and dtypes of all.
        name: of the problem, for errors.
        has_loss: whether the model is compiled with a loss, which every weight is to reach. Else
            the loss is what layers add, and the weights behind them have a gradient of 0.

    Attributes:
        acts_between_steps: what else than updates acts on loss or weights from one step to the
            next: constraints, layers that remember, loss scaling. A list of texts, empty if ``at``
            is all that ``fit`` would do.
        state: the variables besides the weights that a forward pass changes, and which each episode
            is to start from again; empty without `acts_between_steps`. Their values at first are
            `initial_state`.

    Raises:
        ValueError: the loss cannot be computed, or does not reach a weight, or is not a finite
            scalar; or the model has a ``train_step`` of its own.
    """

    def __init__(self, model, example, name, has_loss=True):
        self._model = model
        self._name = name
        self._has_loss = has_loss
        self._generator = keras.random.SeedGenerator(0)  # for draws that have none of their own
        self._seed_states = [*filter(_is_seed_state, model.variables), self._generator.state]
        self._variables = without(model.variables, self._seed_states)
        self._inlines = False
        self._check_train_step()
        self.acts_between_steps = _constraints(model) + _of_dtypes(model)
        self.state = []
        self._analyze(example)
        self.initial_state = [tf.constant(v.numpy()) for v in self.state]

    @property
    def weights(self):
        return self._model.trainable_variables

    def at(self, values, example, seed):
        """Loss and gradients at `values` for the weights: ``(scalar, list)``."""
        with tf.GradientTape() as tape:
            tape.watch(values)
            loss, _ = self._substituted(list(zip(self.weights, values)), example, seed)
        return loss, self._checked(tape.gradient(loss, values))

    def in_place(self, example, seed, scale_loss):
        """Loss and gradients at the variables, which the forward pass may change.

        `scale_loss` is that of the Keras optimizer that takes the gradients: they are of the scaled
        loss.
        """
        for index, state in enumerate(self._seed_states):
            state.assign(_seed_of(state, seed, index))
        with tf.GradientTape() as tape:
            loss = self._forward(example)
            scaled = scale_loss(loss)
        gradients = tape.gradient(scaled, [v.value for v in self.weights])
        return loss, self._checked(gradients)

    def _forward(self, example):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(example)
        model = self._model
        with hooks.seed_generator(self._generator), hooks.on_one_replica():
            outputs = model(x, training=True)
            # One of the model's own may be written for Keras before 3.3, without `training`.
            has_training = "training" in inspect.signature(model.compute_loss).parameters
            options = {"training": True} if has_training else {}
            return model.compute_loss(x, y, outputs, sample_weight, **options)

    def _substituted(self, values, example, seed):
        """The loss with values in place of variables, a list of pairs; and the scope."""
        values = [*values]
        for index, state in enumerate(self._seed_states):
            values.append((state, _seed_of(state, seed, index)))
        inlined = hooks.functions_inlined if self._inlines else contextlib.nullcontext
        # In this scope variables take the given values, and assignments do not outlive it.
        scope = NotingScope(state_mapping=values, collect_losses=True)
        with scope, inlined():
            return self._forward(example), scope

    def _checked(self, gradients):
        self._check_reached(v for v, g in zip(self.weights, gradients) if g is None)
        return [
            # An Embedding's gradient comes as IndexedSlices.
            tf.zeros(v.shape, v.dtype) if g is None else tf.convert_to_tensor(g)
            for v, g in zip(self.weights, gradients)
        ]

    def _check_reached(self, unreached):
        names = [v.path for v in unreached]
        if names and self._has_loss:
            raise ValueError(
                f"The loss of problem '{self._name}' does not depend on {names}. Expected: a loss "
                "that reaches every trainable weight. Set `trainable = False` on the layers of the "
                "others."
            )

    def _check_train_step(self):
        for method in ("train_step", "make_train_function"):
            if getattr(type(self._model), method) is not getattr(keras.Model, method):
                raise ValueError(
                    f"The model of problem '{self._name}' has a `{method}` of its own "
                    f"({type(self._model).__name__}.{method}), which an optimizee cannot have: its "
                    "gradients and updates are those of the update rule. Expected a model whose "
                    "loss is the compiled one, or that of `compute_loss` or `add_loss`: put the "
                    "loss there."
                )

    def _analyze(self, example):
        """Finds out what acts between steps; and that the loss is a finite scalar."""
        # First with the variables themselves: a tf.function within the model that is traced now has
        # read those, and not values of one trace alone.
        self._traced(self._forward, example)
        trace = self._traced_with_substitutes(example)
        if trace.graph.missed or trace.unlisted:
            self._inlines = bool(trace.graph.missed)
            # Among them the seed generators that belong to no layer, such as a module's.
            self._seed_states += filter(_is_seed_state, trace.unlisted)
            self._variables += [v for v in trace.unlisted if not _is_seed_state(v)]
            trace = self._traced_with_substitutes(example)
        found, acting = trace.graph, trace.graph.acting
        unsubstituted = [v.path for v in self.weights if id(v) in found.missed]
        if unsubstituted:
            self.acts_between_steps.append(
                f"a tf.function in the model that reads {few(unsubstituted)} where nothing can be "
                "substituted"
            )
            acting = self._variables
        elif found.foreign:
            raise ValueError(
                f"The model of problem '{self._name}' changes {few(found.foreign)} in its forward "
                "pass: tf.Variables that Keras does not know, so an episode would start from where "
                "the one before ended. Make them by `self.add_weight(..., trainable=False)`."
            )
        else:
            self._check_reached(trace.unreached)
            self._check_weights_are_left_alone(acting)
            self.acts_between_steps += [f"the layers' state {v.path}" for v in acting]
        if found.draws:
            warnings.warn(
                f"The model of problem '{self._name}' draws random numbers in its forward pass by "
                f"{few(found.draws)}, which our seeds do not reach: each optimizer gets others, "
                "and nothing repeats. Use keras.random with a keras.random.SeedGenerator.",
                stacklevel=4,
            )
        if self.acts_between_steps:
            self.state = without(acting, self.weights)
        if np.ndim(trace.loss) != 0 or not np.isfinite(trace.loss):
            raise ValueError(
                f"The loss of problem '{self._name}' must be a finite scalar. "
                f"Received: {np.asarray(trace.loss)} on the first batch, at initial weights"
            )

    def _check_weights_are_left_alone(self, changed):
        ids = {id(v) for v in self.weights}
        names = [v.path for v in changed if id(v) in ids]
        if names:
            raise ValueError(
                f"The model of problem '{self._name}' changes its own trainable weights in the "
                f"forward pass ({few(names)}), as SpectralNormalization does. Expected of an "
                "optimizee: weights that nothing but the optimizer moves, so that all optimizers "
                "are compared at the weights that they have found. Leave that layer out."
            )

    def _traced_with_substitutes(self, example):
        """The loss on `example`, with values in place of all variables, as a ``_Trace``."""
        variables, of_graph, trace = self._variables, {}, {}
        ids_of_weights = {id(v) for v in self.weights}

        def loss_and_gradients(values, example):
            pairs = list(zip(variables, values))
            weights, of_weights = zip(*((v, x) for v, x in pairs if id(v) in ids_of_weights))
            with tf.GradientTape() as tape:
                tape.watch(of_weights)
                loss, scope = self._substituted(pairs, example, tf.zeros([2], tf.int64))
            gradients = tape.gradient(loss, of_weights)
            of_graph["values"] = values
            of_graph["updates"] = [scope.get_current_value(v) for v in variables]
            of_graph["results"] = [loss, *(g for g in gradients if g is not None)]
            trace["unreached"] = [v for v, g in zip(weights, gradients) if g is None]
            trace["unlisted"] = without(scope.updated, [*variables, *self._seed_states])
            return loss

        values = [tf.convert_to_tensor(v.value) for v in variables]
        function = self._traced(loss_and_gradients, values, example)
        loss = function(values, example).numpy()
        return _Trace(loss, LossGraph(function.graph, variables, **of_graph), **trace)

    def _traced(self, function, *args):
        try:
            return tf.function(function, autograph=False).get_concrete_function(*args)
        except Exception as error:  # The user's model and loss raise anything.
            raise ValueError(
                f"The loss of problem '{self._name}' cannot be computed on a batch of the dataset, "
                f"of {_described(args[-1])}: {textwrap.shorten(str(error), 400)}"
            ) from error


class _Trace(NamedTuple):
    """Of a loss with values in place of variables.

    `unreached` are the weights on which it does not depend; `unlisted` the variables that the
    forward pass changes and Keras does not list as the model's, such as the states of a stateful
    RNN and metrics.
    """

    loss: np.ndarray
    graph: LossGraph
    unreached: list
    unlisted: list


def _constraints(model):
    return [
        f"the constraint {type(v.constraint).__name__} of {v.path}"
        for v in model.trainable_variables
        if v.constraint is not None
    ]


def _of_dtypes(model):
    found = [
        f"weights in {dtype}, rounded at each step"
        for dtype in sorted({v.dtype for v in model.trainable_variables})
        if dtype not in ("float32", "float64")
    ]
    if model.dtype_policy.name == "mixed_float16":
        found.append("the loss scaling of mixed_float16")
    return found


def _is_seed_state(variable):
    """Whether it is the state of a ``keras.random.SeedGenerator``."""
    return variable.path.endswith("seed_generator_state")


def _seed_of(state, seed, index):
    """The value of a seed generator's state in a step."""
    return tf.cast(base.fold_in(seed, index), state.dtype)


def _described(example):
    return ", ".join(f"{leaf.dtype.name} {tuple(leaf.shape)}" for leaf in tf.nest.flatten(example))
