"""Problems on tables: measurements, categories, ratings."""

import keras
import numpy as np
import tensorflow as tf

from l2l_tf.problems.suite.suite_problem import ACCURACY, SQUARE, SuiteProblem, split

layers = keras.layers
QUANTILES = (0.1, 0.5, 0.9)


def cancer_logistic():
    """Scikit-learn's breast cancer data in their own units: scales from 0.001 to 1,000.

    All are divided by 100, and nothing is standardized: the Hessian's condition is above 10⁹.
    """
    import sklearn.datasets

    x, y = sklearn.datasets.load_breast_cancer(return_X_y=True)
    train, heldout = split(x.astype("float32") / 100, y.astype("float32")[:, None])
    return SuiteProblem(
        "cancer_logistic",
        lambda: keras.Sequential([keras.Input([30]), layers.Dense(1)]),
        keras.losses.BinaryCrossentropy(from_logits=True),
        train,
        heldout,
        batch_size=64,
        num_steps=2000,
        **ACCURACY,
    )


def wine_hinge():
    """Scikit-learn's wines, standardized."""
    import sklearn.datasets

    x, y = sklearn.datasets.load_wine(return_X_y=True)
    train, heldout = split(_standardized(x), np.eye(3, dtype="float32")[y])
    l2 = keras.regularizers.L2(0.003)

    def build_model():
        hidden = layers.Dense(24, "leaky_relu", kernel_regularizer=l2)
        return keras.Sequential([keras.Input([13]), hidden, layers.Dense(3, kernel_regularizer=l2)])

    return SuiteProblem(
        "wine_hinge",
        build_model,
        keras.losses.CategoricalHinge(),
        train,
        heldout,
        batch_size=16,
        num_steps=500,
        metric=lambda outputs, y: np.mean(outputs.argmax(axis=1) == y.argmax(axis=1)),
        metric_name="accuracy",
        higher_is_better=True,
    )


def diabetes_quantiles():
    """Scikit-learn's diabetes data: quantiles 0.1, 0.5 and 0.9 of the progression."""
    import sklearn.datasets

    x, y = sklearn.datasets.load_diabetes(return_X_y=True)
    train, heldout = split(_standardized(x), _standardized(y[:, None]))

    def build_model():
        hidden = [layers.Dense(32, "elu") for _ in range(2)]
        return keras.Sequential([keras.Input([10]), *hidden, layers.Dense(len(QUANTILES))])

    return SuiteProblem(
        "diabetes_quantiles",
        build_model,
        _pinball,
        train,
        heldout,
        batch_size=32,
        num_steps=1000,
        metric=lambda outputs, y: float(np.mean(_pinball(y, outputs))),
        metric_name="pinball loss",
    )


def _pinball(y_true, y_pred):
    error = tf.cast(y_true, y_pred.dtype) - y_pred
    tau = tf.constant(QUANTILES, y_pred.dtype)
    return tf.reduce_mean(tf.maximum(tau * error, (tau - 1) * error), axis=-1)


def categories():
    """Labels by a random logistic model of a rare and two common categories, and four numbers."""
    rng, num_examples, sizes = np.random.RandomState(1), 16384, (800, 30, 7)
    columns = [np.minimum(rng.zipf(1.3, num_examples) - 1, sizes[0] - 1)]
    columns += [rng.randint(0, size, num_examples) for size in sizes[1:]]
    numbers = rng.normal(size=(num_examples, 4))
    logits = sum(rng.normal(size=size)[column] for size, column in zip(sizes, columns))
    logits += np.sin(2 * numbers[:, 0]) + numbers[:, 1] * numbers[:, 2]
    y = rng.uniform(size=num_examples) < 1 / (1 + np.exp(-2 * logits))
    x = (np.stack(columns, axis=1).astype("int32"), numbers.astype("float32"))
    train, heldout = split(x, y.astype("float32")[:, None])

    def build_model():
        indices, numbers = keras.Input([3], dtype="int32"), keras.Input([4])
        embedded = [
            layers.Embedding(size, units)(indices[:, column])
            for column, (size, units) in enumerate(zip(sizes, (12, 4, 3)))
        ]
        hidden = layers.Dense(32, "relu")(layers.Concatenate()([*embedded, numbers]))
        return keras.Model((indices, numbers), layers.Dense(1)(hidden))

    return SuiteProblem(
        "categories",
        build_model,
        keras.losses.BinaryCrossentropy(from_logits=True),
        train,
        heldout,
        batch_size=128,
        num_steps=1000,
        **ACCURACY,
    )


def factorization():
    """12,000 ratings of 300 items by 400 users, of rank 4 with noise; a batch touches few rows."""
    rng, num_users, num_items, num_ratings = np.random.RandomState(2), 400, 300, 16000
    users, items = rng.randint(0, num_users, num_ratings), rng.randint(0, num_items, num_ratings)
    of_users, of_items = rng.normal(size=(num_users, 4)), rng.normal(size=(num_items, 4))
    ratings = (of_users[users] * of_items[items]).sum(axis=1) / 2
    ratings += rng.normal(size=num_users)[users] + 0.3 * rng.normal(size=num_ratings)
    x = np.stack([users, items], axis=1).astype("int32")
    train, heldout = split(x, ratings.astype("float32")[:, None])

    def build_model():
        pair = keras.Input([2], dtype="int32")
        user, item = pair[:, 0], pair[:, 1]
        product = layers.Dot(axes=1)(
            [layers.Embedding(num_users, 8)(user), layers.Embedding(num_items, 8)(item)]
        )
        biases = [layers.Embedding(num_users, 1)(user), layers.Embedding(num_items, 1)(item)]
        return keras.Model(pair, layers.Add()([product, *biases]))

    return SuiteProblem(
        "factorization",
        build_model,
        "mse",
        train,
        heldout,
        batch_size=64,
        num_steps=2000,
        **SQUARE,
    )


def _standardized(x):
    return ((x - x.mean(axis=0)) / x.std(axis=0)).astype("float32")
