"""Problems of images whose loss is not of a label: contrastive, variational."""

import keras
import numpy as np
import tensorflow as tf

from l2l_tf.problems.suite.patches import patches
from l2l_tf.problems.suite.suite_problem import SQUARE, SuiteProblem

layers = keras.layers


def image_contrastive():
    """Two views of a place, with a shift and another brightness: InfoNCE in batches of 64."""

    def views(side):
        x, rng = side[0], np.random.RandomState(len(side[0]))
        pairs = np.empty([len(x), 2, 12, 12, 3], "float32")
        for pair, patch in zip(pairs, x):
            for view in range(2):
                top, left = rng.randint(6, 14, 2)
                crop = patch[top : top + 12, left : left + 12]
                pair[view] = crop * rng.uniform(0.7, 1.3) + rng.uniform(-0.1, 0.1)
        return pairs, np.zeros(len(x), "int32")

    def build_model():
        x = keras.Input([2, 12, 12, 3])
        h = layers.Dense(64, "relu")(layers.Reshape([2, 432])(x))
        return keras.Model(x, layers.UnitNormalization()(layers.Dense(32)(h)))

    def logits(embedded):
        return tf.matmul(embedded[:, 0], embedded[:, 1], transpose_b=True) / 0.2

    def loss(y_true, y_pred):
        similar = logits(y_pred)
        return tf.nn.sparse_softmax_cross_entropy_with_logits(
            tf.range(tf.shape(similar)[0]), similar
        )

    def retrieval(outputs, y):
        batches = np.split(outputs, len(outputs) // 64)
        return np.mean([logits(b).numpy().argmax(axis=1) == np.arange(64) for b in batches])

    train, heldout = map(views, patches())
    return SuiteProblem(
        "image_contrastive",
        build_model,
        loss,
        train,
        heldout,
        batch_size=64,
        num_steps=500,
        metric=retrieval,
        metric_name="accuracy of retrieval",
        higher_is_better=True,
    )


def image_vae():
    """Grey patches of 12×12, eight latents; the reconstruction has a variance of 0.05."""

    def grey(side):
        x = side[0][:, 10:22, 10:22].mean(axis=-1).reshape(-1, 144)
        return x, x

    def build_model():
        x = keras.Input([144])
        latent = Latent()(layers.Dense(16)(layers.Dense(64, "silu")(x)))
        return keras.Model(x, layers.Dense(144)(layers.Dense(64, "silu")(latent)))

    def reconstruction(y_true, y_pred):
        return tf.reduce_sum((tf.cast(y_true, y_pred.dtype) - y_pred) ** 2, axis=-1) / (2 * 0.05)

    train, heldout = map(grey, patches())
    return SuiteProblem(
        "image_vae", build_model, reconstruction, train, heldout, 64, 1000, **SQUARE
    )


class Latent(layers.Layer):
    """A draw from N(μ, σ²), in training; adds the divergence from N(0, 1) to the loss."""

    def __init__(self):
        super().__init__()
        self.seeds = keras.random.SeedGenerator(0)

    def call(self, moments, training=False):
        mean, log_variance = tf.split(moments, 2, axis=-1)
        divergence = tf.exp(log_variance) + mean**2 - 1 - log_variance
        self.add_loss(0.5 * tf.reduce_mean(tf.reduce_sum(divergence, axis=-1)))
        if not training:
            return mean
        noise = keras.random.normal(tf.shape(mean), seed=self.seeds)
        return mean + tf.exp(0.5 * log_variance) * noise

    def compute_output_shape(self, shape):
        return (*shape[:-1], shape[-1] // 2)
