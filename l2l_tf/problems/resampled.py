"""Problems with other data: few batches, or noisy labels."""

import functools

import tensorflow as tf

from l2l_tf import arguments
from l2l_tf.problems import draws
from l2l_tf.problems.augmentation import Augmentation


class FewBatches(Augmentation):
    """An episode has the data of K batches alone, again and again: it can learn them by heart.

    Of a ``KerasProblem`` with data in memory, these are the examples of K batches, drawn by seed,
    and each pass draws its batches from them anew. Of a stream, or of another problem with a new
    batch each step, they are the first K batches, in another order in each pass, and are kept in
    memory meanwhile. A problem whose batches are all alike, such as a random function, stays as it
    is.

    What a batch has of K is a scalar of int64.

    Args:
        problem: a ``Problem``; see ``Augmentation``.
        num_batches: pair ``(low, high)`` of integers, 1 at least: K is drawn log-uniformly between,
            both included, for each episode.
        probability: that an episode's data are few. Those of others have the largest int64 as K.

    Raises:
        TypeError, ValueError: an argument is not as above.

    >>> from l2l_tf.problems import digits
    >>> problem = FewBatches(digits(), (1, 4))
    >>> (((x, y), _), few) = next(iter(problem.batches("train", [0, 0], 1)))
    >>> x.shape, int(few) in range(1, 5)
    (TensorShape([128, 64]), True)
    """

    def __init__(self, problem, num_batches=(1, 64), *, probability=1.0):
        self._interval = arguments.interval(
            "num_batches", num_batches, arguments.integer, minimum=1
        )
        self._probability = arguments.real("probability", probability, minimum=0, maximum=1)
        settings = {"num_batches": list(self._interval), "probability": self._probability}
        super().__init__(problem, "few-batches", settings)

    def draw(self, seed):
        low, high = self._interval
        # As many logarithms for each integer as to the next one.
        number = draws.log_uniform(draws.fold_in(seed, 0), (low, high + 1))
        number = tf.clip_by_value(tf.cast(number, tf.int64), low, high)  # against rounding
        is_few = draws.happens(draws.fold_in(seed, 1), self._probability)
        return tf.where(is_few, number, tf.int64.max)

    def limit(self, drawn, num_distinct):
        return drawn if num_distinct is None else tf.minimum(drawn, num_distinct)


class NoisyLabels(Augmentation):
    """A share of the labels is wrong: each with probability p that of another example of the batch.

    Integers are replaced, and floats if all of a batch are 0 or 1, such as one-hot labels. Other
    floats are targets: they get normal noise, of p times the standard deviation that they have in
    the batch. Noise is drawn anew each time that an example is seen. Weights of examples stay as
    they are.

    What a batch has of p is a scalar.

    Args:
        problem: a ``Problem`` whose batches have labels: a ``KerasProblem``, or one with
            ``map_labels``; see ``Augmentation``. Around an ensemble's members, not the ensemble.
        shares: pair ``(low, high)`` within 0 to 1: p is drawn uniformly between, for each episode.
        probability: that an episode has noise. Others have p = 0.

    Raises:
        TypeError, ValueError: an argument is not as above.

    >>> from l2l_tf.problems import digits
    >>> problem = NoisyLabels(FewBatches(digits(), (1, 4)), (0.0, 0.2), probability=0.5)
    >>> problem.name
    'digits~few-batches~noisy-labels'
    """

    def __init__(self, problem, shares=(0.0, 0.5), *, probability=1.0):
        self._shares = arguments.interval("shares", shares, minimum=0, maximum=1)
        self._probability = arguments.real("probability", probability, minimum=0, maximum=1)
        settings = {"shares": list(self._shares), "probability": self._probability}
        super().__init__(problem, "noisy-labels", settings)
        if problem.map_labels is None:
            raise ValueError(
                "`problem` must have labels: a KerasProblem on batches (x, y), or a problem with "
                f"`map_labels`. Received: '{problem.name}'. Of an ensemble, augment the members."
            )

    def draw(self, seed):
        share = draws.uniform(draws.fold_in(seed, 0), self._shares)
        is_noisy = draws.happens(draws.fold_in(seed, 1), self._probability)
        return tf.where(is_noisy, share, 0.0)

    def change_batches(self, batches, drawn, seed):
        steps = tf.data.Dataset.range(tf.int64.max)

        def change(batch, step):
            noisy = functools.partial(_noisy, drawn, draws.fold_in(seed, step))
            return self.problem.map_labels(noisy, batch)

        return tf.data.Dataset.zip((batches, steps)).map(change)


def _noisy(share, seed, labels):
    """Labels of a batch, any structure, with noise."""
    size = tf.shape(tf.nest.flatten(labels)[0])[0]
    is_noisy = draws.happens(draws.fold_in(seed, 0), share, [size])
    # By 1 at least, to another example; a batch of one has none.
    shift = tf.random.stateless_uniform(
        [size], draws.fold_in(seed, 1), 1, tf.maximum(size, 2), tf.int32
    )
    own = tf.range(size)
    source = tf.where(is_noisy, (own + shift) % size, own)

    def of_leaf(index, leaf):
        replaced = tf.ensure_shape(tf.gather(leaf, source), leaf.shape)
        if not leaf.dtype.is_floating:
            return replaced
        normal = tf.random.stateless_normal(tf.shape(leaf), draws.fold_in(seed, 2 + index))
        deviation = tf.cast(share, leaf.dtype) * tf.math.reduce_std(leaf, axis=0)
        is_class = tf.reduce_all((leaf == 0) | (leaf == 1))
        return tf.where(is_class, replaced, leaf + deviation * tf.cast(normal, leaf.dtype))

    leaves = [of_leaf(index, leaf) for index, leaf in enumerate(tf.nest.flatten(labels))]
    return tf.nest.pack_sequence_as(labels, leaves)
