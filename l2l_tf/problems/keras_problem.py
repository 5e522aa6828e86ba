"""KerasProblem: any Keras model, data and loss as a problem."""

import random
import threading

import keras
import numpy as np
import tensorflow as tf

from l2l_tf.problems import base

# Building a model under a seed borrows the global generators of `random` and NumPy: one at a time.
_global_generators = threading.Lock()


class KerasProblem(base.Problem):
    """The training of a Keras model, with fresh initial weights for each episode.

    The model is used as it is: its own layers, loss and regularization, in training mode, so that
    BatchNormalization uses the batch's statistics and Dropout draws new masks each step. What a
    forward pass would change besides (moving averages, metrics) is dropped: nothing leaks from
    one episode to the next.

    Args:
        build_model: function without arguments that returns a new ``keras.Model``, with new
            random weights each time. It is called once an episode.
        dataset: what to train on: a ``tf.data.Dataset`` of batches ``(x, y)`` or
            ``(x, y, sample_weight)``, as for ``fit``. If it is finite and takes `max_bytes` at
            most, it is read into memory, once, and each episode draws its batches from it by
            seed. Otherwise, and where ``dataset.repeat()`` says so, it is read as a stream, from
            its start in each episode: let it shuffle. Batches that are smaller than the first
            one are left out.
        loss: a Keras loss, its name, or whatever ``Model.compile(loss=...)`` takes.
        heldout: data of the same kind for reports, never used by meta-training. None takes
            `dataset` for both.
        name: of the problem, for tables.
        max_bytes: see `dataset`.

    Raises:
        ValueError: the model has no trainable weights, the loss does not reach one of them, or
            the loss is not a finite scalar.

    Example:

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
        self, build_model, dataset, loss, heldout=None, *, name="keras_problem", max_bytes=2**31
    ):
        if not callable(build_model):
            raise TypeError(
                "`build_model` must be a function that returns a new keras.Model. "
                f"Received: {build_model!r}"
            )
        self.name = name
        self._build_model = build_model
        sources = [_read(dataset, "dataset", max_bytes)]
        sources.append(sources[0] if heldout is None else _read(heldout, "heldout", max_bytes))
        self._sources = dict(zip(base.SIDES, sources))

        example = sources[0].example()
        self._model = self._build(example)
        self._model.compile(loss=loss)
        self._seed_states = [
            v for v in self._model.variables if v.path.endswith("seed_generator_state")
        ]
        self.layout = [(v.path, tuple(v.shape)) for v in self._model.trainable_variables]
        self.dtype = _only_dtype(self._model.trainable_variables)
        self._check_model(example)

    def sample_parameters(self, seed):
        """The weights of a model that ``build_model`` builds under `seed`."""
        dtypes = [v.dtype for v in self._model.trainable_variables]
        parameters = tf.numpy_function(self._fresh_weights, [seed], dtypes)
        for value, (_, shape) in zip(parameters, self.layout):
            value.set_shape(shape)
        return parameters

    def batches(self, side, seed, num_batches):
        source = self._sources[base.SIDES[base.check_side(side)]]
        examples = source.batches(base.fold_in(seed, 0), num_batches)
        # Each step has a seed of its own, for Dropout and the like.
        step_seed = base.fold_in(seed, 1)
        steps = tf.data.Dataset.range(num_batches)
        seeds = steps.map(lambda step: base.fold_in(step_seed, step))
        return tf.data.Dataset.zip(examples, seeds)

    def loss_and_gradients(self, parameters, batch):
        example, seed = batch
        values = list(zip(self._model.trainable_variables, parameters))
        for index, state in enumerate(self._seed_states):
            values.append((state, tf.cast(base.fold_in(seed, index), state.dtype)))
        with tf.GradientTape() as tape:
            tape.watch(parameters)
            loss = self._loss(values, example)
        gradients = tape.gradient(loss, parameters)
        if None in gradients:
            unreached = [name for (name, _), g in zip(self.layout, gradients) if g is None]
            raise ValueError(
                f"The loss of problem '{self.name}' does not depend on {unreached}. Expected: a "
                "loss that reaches every trainable weight. Set `trainable = False` on the layers "
                "of the others."
            )
        # An Embedding's gradient comes as IndexedSlices.
        return loss, [tf.convert_to_tensor(g) for g in gradients]

    def _loss(self, values, example):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(example)
        # In this scope variables take the given values, and assignments do not outlive it.
        with keras.StatelessScope(state_mapping=values):
            outputs = self._model(x, training=True)
            return self._model.compute_loss(x, y, outputs, sample_weight, training=True)

    def _build(self, example):
        model = self._build_model()
        if not isinstance(model, keras.Model):
            raise TypeError(
                "`build_model` must return a keras.Model. "
                f"Received: {model!r} of type {type(model).__name__}"
            )
        if not model.built:
            model(keras.utils.unpack_x_y_sample_weight(example)[0])
        return model

    def _fresh_weights(self, seed):
        """Keras' initializers take their seeds from `random`, others from NumPy's generator."""
        entropy = [int(s) % 2**32 for s in seed]
        with _global_generators:
            python_state, numpy_state = random.getstate(), np.random.get_state()
            try:
                random.seed(hash(tuple(entropy)))
                np.random.seed(entropy)
                model = self._build(self._sources["train"].example())
            finally:
                random.setstate(python_state)
                np.random.set_state(numpy_state)
        return [v.numpy() for v in model.trainable_variables]

    def _check_model(self, example):
        if not self.layout:
            raise ValueError(
                f"The model of problem '{self.name}' has no trainable weights. "
                "Expected: at least one weight to optimize."
            )
        seed = tf.zeros([2], tf.int64)
        parameters = [tf.convert_to_tensor(v) for v in self._model.trainable_variables]
        loss, _ = self.loss_and_gradients(parameters, (example, seed))
        if loss.shape.rank != 0 or not np.isfinite(loss.numpy()):
            raise ValueError(
                f"The loss of problem '{self.name}' must be a finite scalar. "
                f"Received: {loss.numpy()} on the first batch, at initial weights"
            )


class _Arrays:
    """Data in memory: batches by seed, epoch after epoch without replacement."""

    def __init__(self, arrays, batch_size):
        # As tensors, a traced function refers to them; as arrays, it would hold copies of them.
        with tf.device("CPU"):
            self._arrays = tf.nest.map_structure(tf.constant, arrays)
        self._batch_size = batch_size
        self._num_examples = len(tf.nest.flatten(arrays)[0])

    def example(self):
        return tf.nest.map_structure(lambda a: a[: self._batch_size], self._arrays)

    def batches(self, seed, num_batches):
        batches_an_epoch = self._num_examples // self._batch_size
        num_epochs = -(-num_batches // batches_an_epoch)

        def order(epoch):
            indices = tf.range(self._num_examples)
            indices = tf.random.experimental.stateless_shuffle(indices, base.fold_in(seed, epoch))
            used = indices[: batches_an_epoch * self._batch_size]
            return tf.data.Dataset.from_tensor_slices(tf.reshape(used, [batches_an_epoch, -1]))

        def batch(indices):
            return tf.nest.map_structure(lambda a: tf.gather(a, indices), self._arrays)

        return tf.data.Dataset.range(num_epochs).flat_map(order).map(batch).take(num_batches)


class _Stream:
    """Data too large for memory, or made anew each time: batches as they come."""

    def __init__(self, dataset, batch_size):
        def is_full(*element):
            return tf.shape(tf.nest.flatten(element)[0])[0] == batch_size

        def with_static_size(*element):
            element = element[0] if len(element) == 1 else element
            return tf.nest.map_structure(
                lambda t: tf.ensure_shape(t, [batch_size] + t.shape[1:]), element
            )

        self._dataset = dataset.filter(is_full).map(with_static_size)

    def example(self):
        return next(iter(self._dataset))

    def batches(self, seed, num_batches):
        return self._dataset.repeat().take(num_batches)


def _read(dataset, argument, max_bytes):
    if not isinstance(dataset, tf.data.Dataset):
        raise TypeError(
            f"`{argument}` must be a tf.data.Dataset of batches (x, y). Received: {dataset!r}. "
            "Arrays become one by tf.data.Dataset.from_tensor_slices((x, y)).batch(128)."
        )
    first = next(iter(dataset.take(1)), None)
    if first is None:
        raise ValueError(f"`{argument}` is empty. Expected: at least one batch (x, y).")
    sizes = {t.shape[0] if t.shape.rank else None for t in tf.nest.flatten(first)}
    if len(sizes) > 1 or None in sizes:
        raise ValueError(
            f"`{argument}` must have batches (x, y) of one size as elements. Received: "
            f"{dataset.element_spec}. If these are single examples, call .batch(128) on it."
        )
    (batch_size,) = sizes
    if dataset.cardinality() != tf.data.INFINITE_CARDINALITY:
        batches, size = [], 0
        for batch in dataset.as_numpy_iterator():
            batches.append(batch)
            size += sum(np.asarray(leaf).nbytes for leaf in tf.nest.flatten(batch))
            if size > max_bytes:
                break
        else:
            arrays = tf.nest.map_structure(lambda *leaves: np.concatenate(leaves), *batches)
            return _Arrays(arrays, batch_size)
    return _Stream(dataset, batch_size)


def _only_dtype(variables):
    dtypes = sorted({v.dtype for v in variables})
    if len(dtypes) > 1:
        raise ValueError(
            "The trainable weights of a problem must be of one dtype. Received: "
            + ", ".join(dtypes)
        )
    return dtypes[0] if dtypes else "float32"
