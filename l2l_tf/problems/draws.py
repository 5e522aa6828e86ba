"""Draws: what an episode takes at random, as a function of its seed."""

import math

import tensorflow as tf


def fold_in(seed, *data):
    """A new seed for each integer in `data`: independent streams out of one seed."""
    for value in data:
        # What is drawn depends on the integer's dtype: always the same one.
        seed = tf.random.experimental.stateless_fold_in(
            seed, tf.cast(value, tf.int64), alg="philox"
        )
    return seed


def uniform(seed, interval, shape=()):
    """Numbers between the two ends of an interval, float32."""
    low, high = interval
    return low + (high - low) * tf.random.stateless_uniform(shape, seed)


def log_uniform(seed, interval, shape=()):
    """Numbers above 0 whose logarithms are uniform between those of the two ends, float32."""
    return tf.exp(uniform(seed, [math.log(end) for end in interval], shape))


def happens(seed, probability, shape=()):
    """True with this probability."""
    return tf.random.stateless_uniform(shape, seed) < probability


def seen_again(batches, seed, num_batches, num_distinct):
    """`num_batches` elements: the first `num_distinct` of `batches`, then these in other orders."""
    num_batches = tf.cast(num_batches, tf.int64)
    is_few = num_distinct < num_batches
    num_kept = tf.minimum(num_distinct, num_batches)
    # As an element of one component: a function of it gets one argument, whatever its structure.
    kept = tf.data.Dataset.zip((batches,)).batch(num_kept).take(tf.cast(is_few, tf.int64))

    def passes(kept):
        def order(epoch):
            indices = tf.range(num_kept)
            shuffled = tf.random.experimental.stateless_shuffle(indices, fold_in(seed, epoch))
            return tf.data.Dataset.from_tensor_slices(tf.where(epoch == 0, indices, shuffled))

        epochs = tf.data.Dataset.range(-(-num_batches // num_kept))
        return epochs.flat_map(order).map(
            lambda index: tf.nest.map_structure(lambda leaf: tf.gather(leaf, index), kept)
        )

    # Where they are not few, none is kept.
    whole = batches.take(tf.where(is_few, tf.zeros_like(num_batches), num_batches))
    return whole.concatenate(kept.flat_map(passes).take(num_batches))
