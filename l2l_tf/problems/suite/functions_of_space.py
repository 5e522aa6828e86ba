"""Problems whose net is a function of space: an image, or a solution of an equation."""

import keras
import numpy as np
import tensorflow as tf

from l2l_tf.problems.suite.suite_problem import SQUARE, SuiteProblem

layers = keras.layers
VISCOSITY = 0.03


def image_siren():
    """A flower by a net of sines (Sitzmann et al. 2020); held out is every other pixel."""

    def sine(x):
        return tf.sin(30.0 * x)

    def build_model():
        def uniform(limit):
            return keras.initializers.RandomUniform(-limit, limit)

        later = uniform((6 / 64) ** 0.5 / 30)
        hidden = [layers.Dense(64, sine, kernel_initializer=uniform(1 / 2))]
        hidden += [layers.Dense(64, sine, kernel_initializer=later)]
        return keras.Sequential(
            [keras.Input([2]), *hidden, layers.Dense(3, kernel_initializer=later)]
        )

    train, heldout = _pixels("flower.jpg")
    return SuiteProblem("image_siren", build_model, "mse", train, heldout, 256, 2000, **SQUARE)


def image_fourier():
    """A temple by random Fourier features (Tancik et al. 2020) and two hidden layers."""
    frequencies = np.random.RandomState(0).normal(scale=2 * np.pi, size=(2, 32)).astype("float32")

    def build_model():
        x = keras.Input([2])
        angles = keras.ops.matmul(x, frequencies)
        h = layers.Concatenate()([keras.ops.sin(angles), keras.ops.cos(angles)])
        for _ in range(2):
            h = layers.Dense(48, "relu")(h)
        return keras.Model(x, layers.Dense(3, "sigmoid")(h))

    train, heldout = _pixels("china.jpg")
    return SuiteProblem("image_fourier", build_model, "mse", train, heldout, 256, 2000, **SQUARE)


def _pixels(name):
    """Every other pixel of a photograph of 96 in height to train on, and those between."""
    import sklearn.datasets

    image = sklearn.datasets.load_sample_image(name)[:384, 128:512].astype("float32") / 255
    image = image.reshape(96, 4, 96, 4, 3).mean(axis=(1, 3))
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 96)] * 2, indexing="ij"), axis=-1)
    sides = (grid[::2, ::2], image[::2, ::2]), (grid[1::2, 1::2], image[1::2, 1::2])
    return [(x.reshape(-1, 2).astype("float32"), y.reshape(-1, 3)) for x, y in sides]


def burgers():
    """u_t + u u_x = ν u_xx (Raissi et al. 2019), by an MLP 2-20-20-20-1 of points (x, t).

    On -1 ≤ x ≤ 1, 0 ≤ t ≤ 1, from u = -sin πx, and 0 at the borders, both of which hold by
    construction. The loss is the mean square of the residual; the metric, the error of u.
    """
    rng = np.random.RandomState(8)
    points = rng.uniform([-1, 0], [1, 1], size=(4096, 2)).astype("float32")
    x, t, u = _solution()
    at, when = rng.randint(0, len(x), 1024), rng.randint(0, len(t), 1024)
    heldout = np.stack([x[at], t[when]], axis=1).astype("float32"), u[when, at].astype("float32")
    return SuiteProblem(
        "burgers",
        lambda: keras.Sequential([keras.Input([2]), Burgers()]),
        lambda y_true, y_pred: y_pred[:, 1] ** 2,
        (points, np.zeros(len(points), "float32")),
        heldout,
        batch_size=64,
        num_steps=5000,
        metric=lambda outputs, y: np.mean((outputs[:, 0] - y) ** 2),
        metric_name="mean square error",
    )


class Burgers(layers.Layer):
    """Points (x, t) ``[B, 2]`` → u and the equation's residual, ``[B, 2]``."""

    def __init__(self):
        super().__init__()
        hidden = [layers.Dense(20, "tanh") for _ in range(3)]
        self.net = keras.Sequential([keras.Input([2]), *hidden, layers.Dense(1)])

    def call(self, points):
        with tf.GradientTape() as outer:
            outer.watch(points)
            with tf.GradientTape() as inner:
                inner.watch(points)
                x, t = points[:, 0], points[:, 1]
                u = -tf.sin(np.pi * x) + t * (1 - x**2) * self.net(points)[:, 0]
            first = inner.gradient(u, points)
            u_x, u_t = first[:, 0], first[:, 1]
        u_xx = outer.gradient(u_x, points)[:, 0]
        return tf.stack([u, u_t + u * u_x - VISCOSITY * u_xx], axis=1)

    def compute_output_shape(self, shape):
        return (shape[0], 2)


def _solution(num_points=257, num_times=101, steps_between=200):
    """``(x, t, u [num_times, num_points])`` by central differences and small Euler steps."""
    x, t = np.linspace(-1, 1, num_points), np.linspace(0, 1, num_times)
    width, step = x[1] - x[0], (t[1] - t[0]) / steps_between
    u, found = -np.sin(np.pi * x), []
    for _ in t:
        found.append(u)
        for _ in range(steps_between):
            middle = u[1:-1]
            slope = (u[2:] ** 2 - u[:-2] ** 2) / (4 * width)
            bend = (u[2:] - 2 * middle + u[:-2]) / width**2
            u = np.concatenate([[0], middle + step * (VISCOSITY * bend - slope), [0]])
    return x, t, np.array(found)
