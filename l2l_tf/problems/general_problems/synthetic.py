"""Synthetic problems: each episode has data of its own, drawn by seed from a family of tasks."""

import math

import tensorflow as tf

from l2l_tf.problems import base, datasets, draws
from l2l_tf.problems.keras_problem import KerasProblem

NUM_EXAMPLES = 2048


class SyntheticProblem(KerasProblem):
    """The training of a Keras model on data that are drawn anew for each episode.

    Args:
        build_model, loss, name: as of ``KerasProblem``.
        draw: function of a seed ``[2]`` that returns ``(x, y)``, tensors with the examples as first
            axis, in TensorFlow operations. The same seed gives the same data.
        batch_size: int.
    """

    def __init__(self, build_model, draw, loss, batch_size, *, name):
        example = draw(tf.zeros([2], tf.int64))
        dataset = tf.data.Dataset.from_tensor_slices(example).batch(batch_size)
        super().__init__(build_model, dataset, loss, name=name)
        self._sources = {
            side: datasets.Drawn(draw, index, batch_size) for index, side in enumerate(base.SIDES)
        }
        self.has_heldout = True  # other draws


def regression(num_inputs=16, num_outputs=1, spread=1.0):
    """Targets of a random net with a hidden layer, some with noise; inputs of different scales.

    Args:
        num_inputs, num_outputs: ints.
        spread: a scale's logarithm is uniform in ± `spread`.
    """

    def draw(seed):
        x = _inputs(seed, num_inputs, spread)
        y = _teacher(seed, x, num_outputs)
        y = (y - tf.reduce_mean(y, axis=0)) / tf.math.reduce_std(y, axis=0)
        noise = _pick(draws.fold_in(seed, 10), [0.0, 0.1, 0.3])
        return x, y + noise * _normal(seed, 11, y.shape)

    return draw


def linear_regression(num_inputs=16, spread=2.0):
    """Linear targets with noise, of inputs of very different scales: an ill-conditioned problem."""

    def draw(seed):
        x = _inputs(seed, num_inputs, spread)
        y = x @ _normal(seed, 12, [num_inputs, 1])
        return x, y / tf.math.reduce_std(y) + 0.1 * _normal(seed, 11, y.shape)

    return draw


def classification(num_inputs=16, num_classes=5, spread=1.0):
    """Classes by the largest output of a random net."""

    def draw(seed):
        x = _inputs(seed, num_inputs, spread)
        return x, tf.argmax(_teacher(seed, x, num_classes), axis=-1, output_type=tf.int32)

    return draw


def waves(num_inputs=1, highest=12.0, num_waves=6):
    """Sums of sines of up to `highest` radians a unit, over the cube of side 2."""

    def draw(seed):
        x = draws.uniform(draws.fold_in(seed, 0), (-1.0, 1.0), [NUM_EXAMPLES, num_inputs])
        frequencies = draws.uniform(
            draws.fold_in(seed, 1), (-highest, highest), [num_inputs, num_waves]
        )
        phases = draws.uniform(draws.fold_in(seed, 2), (0.0, 2 * math.pi), [num_waves])
        amplitudes = _normal(seed, 3, [num_waves, 1])
        return x, tf.sin(x @ frequencies + phases) @ amplitudes / tf.norm(amplitudes)

    return draw


def checkers(highest=6.0):
    """Two classes of points of a square, in a checkerboard of random angle and up to so many waves.

    A net can tell all apart.
    """

    def draw(seed):
        x = draws.uniform(draws.fold_in(seed, 0), (-1.0, 1.0), [NUM_EXAMPLES, 2])
        angle = draws.uniform(draws.fold_in(seed, 1), (0.0, 2 * math.pi))
        frequency = draws.uniform(draws.fold_in(seed, 2), (2.0, highest))
        turned = tf.stack([tf.cos(angle), tf.sin(angle)]), tf.stack([-tf.sin(angle), tf.cos(angle)])
        sides = [tf.sin(frequency * tf.linalg.matvec(x, axis)) for axis in turned]
        return x, tf.cast(sides[0] * sides[1] > 0, tf.float32)[:, None]

    return draw


def sets(size=6, num_inputs=3):
    """Sets of points, and the mean over a set of what a random net says of each."""

    def draw(seed):
        x = _normal(seed, 5, [NUM_EXAMPLES, size, num_inputs])
        y = tf.reshape(_teacher(seed, tf.reshape(x, [-1, num_inputs]), 1), [NUM_EXAMPLES, size])
        y = tf.reduce_mean(y, axis=1, keepdims=True)
        return x, (y - tf.reduce_mean(y)) / tf.math.reduce_std(y)

    return draw


def markov_chains(num_tokens=20, length=16, sharpness=2.0):
    """Sequences of a random Markov chain, and what comes next: ``(x, y)``, both [n, length]."""

    def draw(seed):
        transitions = sharpness * _normal(seed, 0, [num_tokens, num_tokens])
        token = tf.zeros([NUM_EXAMPLES], tf.int64)
        tokens = []
        for step in range(length + 1):
            noise = draws.uniform(
                draws.fold_in(seed, 1, step), (1e-6, 1.0), [NUM_EXAMPLES, num_tokens]
            )
            gumbel = -tf.math.log(-tf.math.log(noise * (1 - 1e-6)))
            token = tf.argmax(tf.gather(transitions, token) + gumbel, axis=-1)
            tokens.append(token)
        tokens = tf.cast(tf.stack(tokens, axis=1), tf.int32)
        return tokens[:, :-1], tokens[:, 1:]

    return draw


def repetitions(num_tokens=16, length=16, period=5):
    """Sequences that repeat a random pattern of `period` tokens, and what comes next."""

    def draw(seed):
        pattern = tf.random.stateless_uniform(
            [NUM_EXAMPLES, period], draws.fold_in(seed, 0), 0, num_tokens, tf.int32
        )
        tokens = tf.tile(pattern, [1, length // period + 2])
        return tokens[:, :length], tokens[:, 1 : length + 1]

    return draw


def marked_sums(length=12):
    """Of two channels, numbers and marks, the sum of two marked numbers (the "adding problem")."""

    def draw(seed):
        numbers = draws.uniform(draws.fold_in(seed, 0), (0.0, 1.0), [NUM_EXAMPLES, length])
        order = draws.uniform(draws.fold_in(seed, 1), (0.0, 1.0), [NUM_EXAMPLES, length])
        marks = tf.reduce_sum(tf.one_hot(tf.math.top_k(order, 2).indices, length), axis=1)
        return tf.stack([numbers, marks], axis=-1), tf.reduce_sum(numbers * marks, 1, True)

    return draw


def tones(length=20, num_classes=6):
    """Noisy sines, whose class is their frequency: ``(x [n, length, 1], y)``."""

    def draw(seed):
        y = tf.random.stateless_uniform(
            [NUM_EXAMPLES], draws.fold_in(seed, 0), 0, num_classes, tf.int32
        )
        phases = draws.uniform(draws.fold_in(seed, 1), (0.0, 2 * math.pi), [NUM_EXAMPLES, 1])
        highest = draws.uniform(draws.fold_in(seed, 3), (1.0, 2.5))
        frequencies = highest * (1 + tf.cast(y, tf.float32))[:, None] / num_classes
        x = tf.sin(frequencies * tf.range(length, dtype=tf.float32) + phases)
        return (x + 0.3 * _normal(seed, 2, x.shape))[..., None], y

    return draw


def ratings(num_users=150, num_items=80, rank=4):
    """Users' ratings of items, of which few are popular: ``(x [n, 2], y [n, 1])``."""

    def draw(seed):
        users = _zipf(draws.fold_in(seed, 0), num_users, [NUM_EXAMPLES])
        items = _zipf(draws.fold_in(seed, 1), num_items, [NUM_EXAMPLES])
        of_users = tf.gather(_normal(seed, 2, [num_users, rank]), users)
        of_items = tf.gather(_normal(seed, 3, [num_items, rank]), items)
        y = tf.reduce_sum(of_users * of_items, axis=-1, keepdims=True) / math.sqrt(rank)
        return tf.stack([users, items], axis=-1), y + 0.2 * _normal(seed, 4, y.shape)

    return draw


def table(num_numbers=6, cardinalities=(60, 20, 5)):
    """Rows of numbers and categories, and a class of two: ``(x [n, columns], y [n, 1])``."""

    def draw(seed):
        numbers = _inputs(seed, num_numbers, 1.0)
        logits = _teacher(seed, numbers, 1)
        columns = [numbers]
        for index, size in enumerate(cardinalities):
            category = _zipf(draws.fold_in(seed, 20 + index), size, [NUM_EXAMPLES])
            logits += tf.gather(_normal(seed, 30 + index, [size, 1]), category)
            columns.append(tf.cast(category, tf.float32)[:, None])
        noise = 0.5 * _normal(seed, 11, logits.shape)
        is_above = logits + noise > tf.reduce_mean(logits)
        return tf.concat(columns, axis=-1), tf.cast(is_above, tf.float32)

    return draw


def topics(num_words=300, length=16, num_topics=8):
    """Bags of words, of which each topic has its own frequent ones: ``(x [n, length], y)``."""

    def draw(seed):
        y = tf.random.stateless_uniform(
            [NUM_EXAMPLES], draws.fold_in(seed, 0), 0, num_topics, tf.int32
        )
        order = draws.uniform(draws.fold_in(seed, 1), (0.0, 1.0), [num_topics, num_words])
        places = tf.argsort(order, axis=-1)
        ranks = _zipf(draws.fold_in(seed, 2), num_words, [NUM_EXAMPLES, length])
        own = tf.gather(tf.gather(places, y), ranks, batch_dims=1)
        is_own = draws.happens(draws.fold_in(seed, 3), 0.5, [NUM_EXAMPLES, length])
        return tf.where(is_own, own, ranks), y

    return draw


def _inputs(seed, number, spread):
    scales = tf.exp(draws.uniform(draws.fold_in(seed, 0), (-spread, spread), [number]))
    x = scales * _normal(seed, 1, [NUM_EXAMPLES, number])
    return x / tf.math.reduce_std(x)


def _teacher(seed, x, num_outputs, units=24):
    first = _normal(seed, 2, [x.shape[1], units]) * (2 / math.sqrt(x.shape[1]))
    second = _normal(seed, 3, [units, num_outputs]) / math.sqrt(units)
    return tf.tanh(x @ first) @ second * _pick(draws.fold_in(seed, 4), [1.0, 3.0])


def _normal(seed, stream, shape):
    return tf.random.stateless_normal(shape, draws.fold_in(seed, stream))


def _pick(seed, values):
    index = tf.random.stateless_uniform([], seed, 0, len(values), tf.int32)
    return tf.gather(tf.constant(values), index)


def _zipf(seed, number, shape):
    """Integers below `number`, k with a probability of about 1/(k + 1)."""
    place = draws.log_uniform(seed, (1.0, number + 1.0), shape)
    return tf.clip_by_value(tf.cast(place, tf.int32) - 1, 0, number - 1)
