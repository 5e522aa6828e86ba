"""KerasProblem: any Keras model, data and loss as a problem."""

import keras
import tensorflow as tf

from l2l_tf import arguments
from l2l_tf.problems import base, datasets
from l2l_tf.problems.keras_loss import KerasLoss
from l2l_tf.problems.model_builder import ModelBuilder


class KerasProblem(base.Problem):
    """The training of a Keras model, with fresh initial weights for each episode.

    The model is used as it is: the loss is the one that ``train_on_batch`` minimizes, with what its
    layers add and its regularization, in training mode, so that BatchNormalization uses the batch's
    statistics and Dropout draws new masks each step. What a forward pass would change besides
    (moving averages, metrics) is dropped: nothing leaks from one episode to the next.
    Weights that are not trained are those of one model in all episodes, also if they are random.

    Some models do more between two steps than an update: weight constraints, SpectralNormalization,
    stateful layers, the loss scaling of mixed_float16. ``acts_between_steps`` lists what a model
    does. Evaluations then train it as ``fit`` does; meta-training refuses it.

    Args:
        build_model: function without arguments that returns a new ``keras.Model``, with new
            random weights each time. It is called once an episode, under a seed, and so sets none.
        dataset: what to train on: a ``tf.data.Dataset`` of batches ``(x, y)`` or
            ``(x, y, sample_weight)``, as for ``fit``, all of one shape. If it is finite and takes
            `max_bytes` at most, it is read into memory, once, and each episode draws its batches
            from it by seed. Otherwise, and where ``dataset.repeat()`` says so, it is read as a
            stream, from its start in each episode: let it shuffle. Batches that are smaller than
            the first one are left out.
        loss: a Keras loss, its name, or whatever ``Model.compile(loss=...)`` takes. None: the loss
            is what the layers add, or the model's own ``compute_loss``, or that which `build_model`
            has compiled.
        heldout: data of the same kind for reports, never used by meta-training. None takes
            `dataset` for both, and reports say so.
        name: of the problem, for tables.
        max_bytes: see `dataset`. None takes 2 GiB; or 256 MiB, and 20,000 batches, if the dataset
            does not know its cardinality, as a generator's.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: the model has no trainable weights, or a ``train_step`` of its own; the loss
            cannot be computed, does not reach a weight, or is not a finite scalar; `build_model`
            returns no new weights; the batches have several shapes.

    Example:

    >>> import numpy as np
    >>> x, y = np.random.rand(64, 4).astype("float32"), np.random.rand(64, 1).astype("float32")
    >>> problem = KerasProblem(
    ...     build_model=lambda: keras.Sequential([keras.Input([4]), keras.layers.Dense(1)]),
    ...     dataset=tf.data.Dataset.from_tensor_slices((x, y)).batch(16),
    ...     loss="mse",
    ... )
    >>> [shape for name, shape in problem.layout]
    [(4, 1), (1,)]
    """

    def __init__(
        self, build_model, dataset, loss, heldout=None, *, name="keras_problem", max_bytes=None
    ):
        is_model = isinstance(build_model, keras.Model)  # which can be called, too
        what = "that returns a new keras.Model, such as lambda: keras.Sequential([...])"
        arguments.function("build_model", None if is_model else build_model, what)
        self.name = arguments.text("name", name)
        if max_bytes is not None:
            arguments.integer("max_bytes", max_bytes, 1)
        train = datasets.read(dataset, "dataset", max_bytes)
        self.has_heldout = heldout is not None
        held = datasets.read(heldout, "heldout", max_bytes) if self.has_heldout else train
        self._sources = dict(zip(base.SIDES, (train, held)))

        example = train.example()
        self._is_checked = True  # by what follows; see ``check_problem``
        self._builder = ModelBuilder(build_model, example)
        model = self._builder.first(name)
        if not model.trainable_variables:
            raise ValueError(
                f"The model of problem '{name}' has no trainable weights. "
                "Expected: at least one weight to optimize."
            )
        if loss is not None or not model.compiled:
            model.compile(loss=loss)
        self.layout = [(v.path, tuple(v.shape)) for v in model.trainable_variables]
        self.dtype = _only_dtype(model.trainable_variables)
        has_loss = loss is not None or model.loss is not None
        self._model = model
        self._loss = KerasLoss(model, example, name, has_loss)
        self.acts_between_steps = self._loss.acts_between_steps
        self.scales_loss = model.dtype_policy.name == "mixed_float16"
        if keras.utils.unpack_x_y_sample_weight(example)[1] is None:
            self.map_labels = None

    def sample_parameters(self, seed):
        """The weights of a model that ``build_model`` builds under `seed`."""
        return self._built(seed, self._loss.weights, lambda model: model.trainable_variables)

    def sample_state(self, seed):
        of_models = _places(self._loss.state, self._model)
        if not of_models:
            return self._loss.initial_state
        values = self._built(
            seed,
            [self._loss.state[i] for i in of_models],
            lambda model: [model.variables[place] for place in of_models.values()],
        )
        # What Keras does not list among a model's variables starts as in the first model.
        state = list(self._loss.initial_state)
        for index, value in zip(of_models, values):
            state[index] = value
        return state

    def batches(self, side, seed, num_batches):
        return self.few_batches(side, seed, num_batches, num_distinct=None)

    def few_batches(self, side, seed, num_batches, num_distinct):
        source = self._sources[base.SIDES[base.check_side(side)]]
        examples = source.batches(base.fold_in(seed, 0), num_batches, num_distinct)
        # Each step has a seed of its own, for Dropout and the like.
        step_seed = base.fold_in(seed, 1)
        steps = tf.data.Dataset.range(num_batches)
        seeds = steps.map(lambda step: base.fold_in(step_seed, step))
        return tf.data.Dataset.zip(examples, seeds)

    def map_labels(self, function, batch):
        (x, y, *sample_weight), seed = batch
        return (x, function(y), *sample_weight), seed

    def loss_and_gradients(self, parameters, batch):
        example, seed = batch
        loss, gradients = self._loss.at(parameters, example, seed)
        return tf.cast(loss, self.dtype), gradients

    def outputs(self, parameters, x, seen=None):
        """The model's outputs in inference mode, for reports.

        Args:
            parameters: list of tensors, in the layout's order.
            x: what the model takes.
            seen: x of training data, by which a model that keeps statistics of what it has seen
                takes them first, in one pass in training mode. (Those of episodes are dropped.)
                A BatchNormalization with momentum 0 then has the statistics of these.
        """
        model = self._model
        others = [v.value for v in model.non_trainable_variables]
        if seen is not None:
            _, others = model.stateless_call(parameters, others, seen, training=True)
        outputs, _ = model.stateless_call(parameters, others, x, training=False)
        return outputs

    def variables(self):
        return self._loss.weights

    def set_state(self, state):
        for variable, value in zip(self._loss.state, state):
            variable.assign(value)

    def loss_and_gradients_in_place(self, variables, batch, scale_loss):
        if not self.acts_between_steps:
            return super().loss_and_gradients_in_place(variables, batch, scale_loss)
        example, seed = batch
        return self._loss.in_place(example, seed, scale_loss)

    def _built(self, seed, like, variables_of):
        """Values of a new model's variables, in a graph too."""

        def build(seed):
            return [v.numpy() for v in variables_of(self._builder.build(seed))]

        values = tf.nest.flatten(tf.numpy_function(build, [seed], [v.dtype for v in like]))
        for value, variable in zip(values, like):
            value.set_shape(variable.shape)
        return values


def _places(variables, model):
    """Of those variables that are among the model's, dict of index → their place there."""
    places = {id(v): place for place, v in enumerate(model.variables)}
    return {index: places[id(v)] for index, v in enumerate(variables) if id(v) in places}


def _only_dtype(variables):
    dtypes = sorted({v.dtype for v in variables})
    if len(dtypes) > 1:
        raise ValueError(
            "The trainable weights of a problem must be of one dtype. Received: "
            + ", ".join(dtypes)
        )
    return dtypes[0]
