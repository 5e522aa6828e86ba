"""Data of a Keras problem: a ``tf.data.Dataset`` as batches of one shape, drawn by seed."""

import warnings

import numpy as np
import tensorflow as tf

from l2l_tf import arguments
from l2l_tf.problems import base

# What is read into memory at most: of data that are known to end; and of data of which nobody knows
# whether they do, such as a generator's.
MAX_BYTES = 2**31
MAX_BYTES_UNKNOWN, MAX_BATCHES_UNKNOWN = 2**28, 20_000


def read(dataset, argument, max_bytes=None):
    """A dataset as a source of batches.

    Args:
        dataset: ``tf.data.Dataset`` of batches ``(x, y)`` or ``(x, y, sample_weight)``.
        argument: its name, for errors.
        max_bytes: what to read into memory at most; None takes 2 GiB, or 256 MiB in 20,000 batches
            if the data's cardinality is unknown.

    Returns:
        An object with ``example()``, a batch, and ``batches(seed, num_batches, num_distinct)``, a
        ``tf.data.Dataset``; `num_distinct` is None, or as of ``Problem.few_batches``: of data in
        memory, the examples of so many batches are drawn, and batches from these.

    Raises:
        TypeError: it is no ``tf.data.Dataset``.
        ValueError: its batches are ragged, sparse or of several shapes; or it has none.
    """
    arguments.instance(
        argument,
        dataset,
        tf.data.Dataset,
        "a tf.data.Dataset of batches (x, y)",
        "Arrays become one by tf.data.Dataset.from_tensor_slices((x, y)).batch(128).",
    )
    _check_dense(dataset.element_spec, argument)
    first = next(iter(dataset.take(1)), None)
    if first is None:
        raise ValueError(f"`{argument}` is empty. Expected: at least one batch (x, y).")
    batch_size = _batch_size(first, dataset, argument)
    if dataset.cardinality() != tf.data.INFINITE_CARDINALITY:
        arrays = _read_into_memory(dataset, first, argument, max_bytes)
        if arrays is not None:
            return _Arrays(arrays, batch_size)
    return _Stream(dataset, first, batch_size, argument)


class _Arrays:
    """Data in memory: each epoch of an episode in an order of its own."""

    def __init__(self, arrays, batch_size):
        # As tensors, a traced function refers to them; as arrays, it would hold copies of them.
        with tf.device("CPU"):
            self._arrays = tf.nest.map_structure(tf.constant, arrays)
        self._num_examples = len(tf.nest.flatten(arrays)[0])
        self._batch_size = batch_size

    def example(self):
        return tf.nest.map_structure(lambda a: a[: self._batch_size], self._arrays)

    def batches(self, seed, num_batches, num_distinct=None):
        size = self._num_examples, self._batch_size
        return _drawn_batches(self._arrays, *size, seed, num_batches, num_distinct)


class Drawn:
    """A source whose data are drawn anew for each episode, by its seed.

    Args:
        draw: function of a seed ``[2]`` that returns a structure of tensors with the examples as
            first axis, of shapes that are known.
        stream: int: sources of other streams draw other data of the same seed.
        batch_size: int.
    """

    def __init__(self, draw, stream, batch_size):
        self._draw = draw
        self._stream = stream
        self._batch_size = batch_size

    def batches(self, seed, num_batches, num_distinct=None):
        arrays = self._draw(base.fold_in(seed, -2, self._stream))
        size = tf.nest.flatten(arrays)[0].shape[0], self._batch_size
        return _drawn_batches(arrays, *size, seed, num_batches, num_distinct)


class _Stream:
    """Data too large for memory, or made anew each time: batches as they come."""

    def __init__(self, dataset, first, batch_size, argument):
        shapes = tf.nest.map_structure(lambda t: t.shape, first)
        for spec, shape in zip(tf.nest.flatten(dataset.element_spec), _flat_shapes(first)):
            if spec.shape.rank is None or None in spec.shape[1:]:
                raise ValueError(
                    f"`{argument}` is read as a stream, whose batches must be of one shape that is "
                    f"known. Received: {_textual(dataset.element_spec)}, and a first batch of "
                    f"shape {tuple(shape)}. Pad the batches to one shape, as by `padded_batch`; if "
                    "they have one, say so by .map(lambda x, y: (tf.ensure_shape(x, ...), y))."
                )

        def is_full(*element):
            return tf.shape(tf.nest.flatten(element)[0])[0] == batch_size

        def with_static_size(*element):
            element = element[0] if len(element) == 1 else element
            return tf.nest.map_structure(tf.ensure_shape, element, shapes)

        self._dataset = dataset.filter(is_full).map(with_static_size)

    def example(self):
        return next(iter(self._dataset))

    def batches(self, seed, num_batches, num_distinct=None):
        batches = self._dataset.repeat().take(num_batches)
        if num_distinct is None:
            return batches
        return base.seen_again(batches, seed, num_batches, num_distinct)


def _drawn_batches(arrays, num_examples, batch_size, seed, num_batches, num_distinct):
    """Batches of arrays, each epoch in an order of its own; see ``read``."""
    batches_an_epoch = num_examples // batch_size
    examples = tf.range(num_examples)
    if num_distinct is not None:
        is_few = num_distinct < batches_an_epoch
        size = tf.where(is_few, num_distinct * batch_size, num_examples)
        # No epoch has this number.
        examples = _shuffled(examples, base.fold_in(seed, -1))[:size]
        batches_an_epoch = tf.minimum(num_distinct, batches_an_epoch)
    num_epochs = -(-num_batches // batches_an_epoch)

    def order(epoch):
        indices = _shuffled(examples, base.fold_in(seed, epoch))
        used = indices[: batches_an_epoch * batch_size]
        return tf.data.Dataset.from_tensor_slices(tf.reshape(used, [-1, batch_size]))

    def batch(indices):
        return tf.nest.map_structure(lambda a: tf.gather(a, indices), arrays)

    return tf.data.Dataset.range(num_epochs).flat_map(order).map(batch).take(num_batches)


def _shuffled(indices, seed):
    return tf.random.experimental.stateless_shuffle(indices, seed)


def _check_dense(spec, argument):
    for leaf in tf.nest.flatten(spec):
        if not isinstance(leaf, tf.TensorSpec):
            kind = type(leaf).__name__.removesuffix("Spec")
            to_dense = {"RaggedTensor": ".to_tensor()", "SparseTensor": "tf.sparse.to_dense(x)"}
            raise ValueError(
                f"`{argument}` must have batches of dense tensors of one shape. Received a {kind}: "
                f"{_textual(spec)}. Make it dense and of one shape, as by "
                f".map(lambda x, y: (x{to_dense.get(kind, '')}, y)) with a fixed `shape`."
            )


def _batch_size(first, dataset, argument):
    sizes = {t.shape[0] if t.shape.rank else None for t in tf.nest.flatten(first)}
    if len(sizes) != 1 or None in sizes:
        raise ValueError(
            f"`{argument}` must have batches (x, y) of one size as elements. Received: "
            f"{_textual(dataset.element_spec)}. If these are single examples, call .batch(128) on "
            "it."
        )
    return sizes.pop()


def _read_into_memory(dataset, first, argument, max_bytes):
    """All batches, one after another, as arrays; None if there are too many."""
    limit, max_batches = max_bytes or MAX_BYTES, None
    if max_bytes is None and dataset.cardinality() == tf.data.UNKNOWN_CARDINALITY:
        limit, max_batches = MAX_BYTES_UNKNOWN, MAX_BATCHES_UNKNOWN
    batches, size, expected = [], 0, _flat_shapes(first)
    for batch in dataset.as_numpy_iterator():
        received = _flat_shapes(batch)
        if [shape[1:] for shape in received] != [shape[1:] for shape in expected]:
            raise ValueError(
                f"`{argument}` must have batches of one shape, apart from the last one's size. "
                f"Received: the shapes {expected} in batch 0, {received} in batch {len(batches)}. "
                "Pad them to one shape, as by `padded_batch` with `padded_shapes`, or cut them."
            )
        batches.append(batch)
        size += sum(np.asarray(leaf).nbytes for leaf in tf.nest.flatten(batch))
        if size > limit or len(batches) == max_batches:
            warnings.warn(
                f"`{argument}` did not end within {len(batches):,} batches, {size / 2**20:,.0f} "
                "MiB. So it is read as a stream, from its start in each episode: let it shuffle. "
                "To have it in memory, where each episode draws its batches by seed, pass a larger "
                "`max_bytes`; to stream it without this warning, call .repeat() on it.",
                stacklevel=4,
            )
            return None
    return tf.nest.map_structure(lambda *leaves: np.concatenate(leaves), *batches)


def _flat_shapes(batch):
    return [tuple(leaf.shape) for leaf in tf.nest.flatten(batch)]


def _textual(spec):
    """An element's dtypes and shapes, in short."""
    return ", ".join(
        f"{leaf.dtype.name if hasattr(leaf, 'dtype') else leaf}"
        f"{tuple(leaf.shape) if leaf.shape.rank is not None else ' of unknown rank'}"
        for leaf in tf.nest.flatten(spec)
    )
