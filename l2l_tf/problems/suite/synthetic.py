"""Problems whose data are drawn: functions, densities, counts, sets, spirals."""

import keras
import numpy as np
import tensorflow as tf

from l2l_tf.problems.suite.suite_problem import ACCURACY, SQUARE, SuiteProblem, split

layers = keras.layers


def deep_narrow():
    """A smooth function of four variables, by 16 hidden layers of 12 units."""
    rng = np.random.RandomState(3)
    x = rng.uniform(-2, 2, size=(8192, 4))
    y = np.sin(2 * x[:, 0]) * x[:, 1] + np.abs(x[:, 2] - x[:, 3]) + 0.1 * rng.normal(size=len(x))
    train, heldout = split(x.astype("float32"), y.astype("float32")[:, None])

    def build_model():
        hidden = [layers.Dense(12, "tanh") for _ in range(16)]
        return keras.Sequential([keras.Input([4]), *hidden, layers.Dense(1)])

    return SuiteProblem(
        "deep_narrow", build_model, "mse", train, heldout, batch_size=64, num_steps=1500, **SQUARE
    )


def mixture_density():
    """Bishop's inverse problem (1994): of t = y + 0.3 sin 2πy + noise, the density of y given t.

    y is in units of 1/20, where no density is above 1 and so no loss below 0.
    """
    rng, scale, components = np.random.RandomState(4), 20.0, 5
    y = rng.uniform(size=4096)
    t = y + 0.3 * np.sin(2 * np.pi * y) + 0.05 * rng.normal(size=len(y))
    train, heldout = split(t.astype("float32")[:, None], (scale * y).astype("float32")[:, None])

    def build_model():
        hidden = layers.Dense(24, "tanh")
        return keras.Sequential([keras.Input([1]), hidden, layers.Dense(3 * components)])

    def loss(y_true, y_pred):
        logits, means, log_widths = tf.split(y_pred, 3, axis=-1)
        log_widths = tf.math.softplus(log_widths)  # a width is 1 at least
        z = (tf.cast(y_true, y_pred.dtype) - scale * means) * tf.exp(-log_widths)
        logs = tf.math.log_softmax(logits) - 0.5 * z**2 - log_widths - 0.5 * np.log(2 * np.pi)
        return -tf.reduce_logsumexp(logs, axis=-1)

    return SuiteProblem(
        "mixture_density",
        build_model,
        loss,
        train,
        heldout,
        batch_size=64,
        num_steps=2000,
        metric=lambda outputs, y: float(np.mean(loss(y, outputs))),
        metric_name="negative log-likelihood",
    )


def poisson_counts():
    """Counts with means from 0.1 to 100, by an MLP for their logarithm: the Poisson deviance."""
    rng = np.random.RandomState(5)
    x = rng.normal(size=(8192, 8))
    log_means = np.clip(1 + 1.5 * np.sin(x[:, 0] + x[:, 1]) + x[:, 2] * x[:, 3], -2.3, 4.6)
    train, heldout = split(
        x.astype("float32"), rng.poisson(np.exp(log_means)).astype("float32")[:, None]
    )

    def build_model():
        return keras.Sequential([keras.Input([8]), layers.Dense(32, "selu"), layers.Dense(1)])

    def deviance(y_true, y_pred):
        y = tf.cast(y_true, y_pred.dtype)
        return 2 * (tf.math.xlogy(y, y) - y * y_pred - y + tf.exp(y_pred))

    return SuiteProblem(
        "poisson_counts",
        build_model,
        deviance,
        train,
        heldout,
        batch_size=128,
        num_steps=1000,
        metric=lambda outputs, y: float(np.mean(deviance(y, outputs))),
        metric_name="deviance",
    )


def point_sets():
    """The largest distance between two of eight points, by deep sets (Zaheer et al. 2017)."""
    rng = np.random.RandomState(6)
    x = rng.normal(size=(8192, 8, 2)).astype("float32")
    y = np.sqrt(((x[:, :, None] - x[:, None]) ** 2).sum(axis=-1)).max(axis=(1, 2))
    train, heldout = split(x, y[:, None])

    def build_model():
        each = [layers.Dense(32, "gelu"), layers.Dense(32, "gelu")]
        of_set = [layers.GlobalAveragePooling1D(), layers.Dense(32, "gelu"), layers.Dense(1)]
        return keras.Sequential([keras.Input([8, 2]), *each, *of_set])

    return SuiteProblem(
        "point_sets", build_model, "mse", train, heldout, batch_size=64, num_steps=1000, **SQUARE
    )


def spirals():
    """Two spirals of one turn and a quarter with noise, by an MLP 2-16-16-1."""
    rng, num_examples = np.random.RandomState(7), 2048
    y = rng.randint(0, 2, num_examples)
    radius = np.sqrt(rng.uniform(0.02, 1, num_examples))
    angle = 2.5 * np.pi * radius + np.pi * y
    x = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    x += 0.06 * rng.normal(size=x.shape)
    train, heldout = split(x.astype("float32"), y.astype("float32")[:, None])

    def build_model():
        hidden = [layers.Dense(16, "tanh") for _ in range(2)]
        return keras.Sequential([keras.Input([2]), *hidden, layers.Dense(1)])

    return SuiteProblem(
        "spirals",
        build_model,
        keras.losses.BinaryCrossentropy(from_logits=True),
        train,
        heldout,
        batch_size=32,
        num_steps=10000,
        **ACCURACY,
    )
