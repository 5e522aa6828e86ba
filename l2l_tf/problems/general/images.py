"""Problems on patches of the two photographs that come with scikit-learn."""

import functools

import keras
import numpy as np
import tensorflow as tf

from l2l_tf.problems.general.suite_problem import (
    ABSOLUTE,
    ACCURACY,
    SQUARE,
    SuiteProblem,
)
from l2l_tf.problems.tfds_images import load_tfds

layers = keras.layers
SIZE, NUM_PATCHES, NUM_HELDOUT = 32, 4096, 512
SHARE = 0.75  # of the photographs' width, that patches to train on are from


def image_denoising():
    """Patches with noise of 0.1: strided convolutions and back, added to the input."""
    train, heldout = [(noisy, x) for x, noisy, _ in map(_with_noise, _patches())]

    def build_model():
        x = keras.Input([SIZE, SIZE, 3])
        half = layers.Conv2D(16, 4, 2, "same", activation="relu")(x)
        quarter = layers.Conv2D(24, 3, 2, "same", activation="relu")(half)
        quarter = layers.Conv2D(24, 3, padding="same", activation="relu")(quarter)
        back = layers.Conv2DTranspose(16, 4, 2, "same", activation="relu")(quarter)
        back = layers.Conv2DTranspose(3, 4, 2, "same")(layers.Add()([back, half]))
        return keras.Model(x, layers.Add()([x, back]))

    return SuiteProblem("image_denoising", build_model, "mse", train, heldout, 16, 400, **SQUARE)


def _with_noise(patches):
    x, places = patches
    noise = np.random.RandomState(len(x)).normal(size=x.shape)
    return x, (x + 0.1 * noise).astype("float32"), places


def image_superresolution():
    """From 16×16 to 32×32 by sub-pixel convolutions (Shi et al. 2016), absolute error."""
    train, heldout = [
        (x.reshape(len(x), SIZE // 2, 2, SIZE // 2, 2, 3).mean(axis=(2, 4)), x)
        for x, _ in _patches()
    ]

    def build_model():
        return keras.Sequential(
            [
                keras.Input([SIZE // 2, SIZE // 2, 3]),
                layers.Conv2D(24, 5, padding="same", activation="tanh"),
                layers.Conv2D(12, 3, padding="same"),
                layers.Reshape([16, 16, 2, 2, 3]),
                layers.Permute([1, 3, 2, 4, 5]),
                layers.Reshape([SIZE, SIZE, 3]),
            ]
        )

    return SuiteProblem(
        "image_superresolution", build_model, "mae", train, heldout, 16, 500, **ABSOLUTE
    )


def image_blur():
    """By which of four squares a patch has been blurred, at a random contrast."""

    def blurred(patches):
        x, rng = patches[0], np.random.RandomState(len(patches[0]))
        sizes = rng.randint(0, 4, len(x))
        x = x * rng.uniform(0.5, 1, [len(x), 1, 1, 1])
        kinds = []
        for size in range(1, 5):
            rows = np.mean([np.roll(x, shift, axis=1) for shift in range(size)], axis=0)
            kinds.append(np.mean([np.roll(rows, shift, axis=2) for shift in range(size)], axis=0))
        noise = 0.02 * rng.normal(size=x.shape)
        return (np.choose(sizes[:, None, None, None], kinds) + noise).astype("float32"), sizes

    def build_model():
        hidden = []
        for channels in (16, 24, 32):
            hidden += [
                layers.Conv2D(channels, 3, 2, "same", use_bias=False),
                layers.BatchNormalization(momentum=0.0),  # see ``KerasProblem.outputs``
                layers.ReLU(),
            ]
        head = [layers.Flatten(), layers.Dense(4)]
        return keras.Sequential([keras.Input([SIZE, SIZE, 3]), *hidden, *head])

    train, heldout = map(blurred, _patches())
    return SuiteProblem(
        "image_blur", build_model, _cross_entropy(), train, heldout, 32, 600, **ACCURACY
    )


def image_mixer():
    """The photograph and height that a patch is from: an MLP-mixer (Tolstikhin et al. 2021)."""

    def build_model():
        x = keras.Input([SIZE, SIZE, 3])
        h = layers.Reshape([4, 8, 4, 24])(x)  # 16 squares of 8×8
        h = layers.Reshape([16, 192])(layers.Permute([1, 3, 2, 4])(h))
        h = layers.Dense(32)(h)
        for _ in range(2):
            mixed = layers.Permute([2, 1])(layers.LayerNormalization()(h))
            mixed = layers.Dense(16)(layers.Dense(32, "gelu")(mixed))
            h = layers.Add()([h, layers.Permute([2, 1])(mixed)])
            mixed = layers.Dense(64, "gelu")(layers.LayerNormalization()(h))
            h = layers.Add()([h, layers.Dense(32)(mixed)])
        return keras.Model(x, layers.Dense(6)(layers.GlobalAveragePooling1D()(h)))

    return SuiteProblem(
        "image_mixer", build_model, _cross_entropy(), *_patches(), 32, 600, **ACCURACY
    )


def image_frozen():
    """As ``image_mixer``: a normalized head on convolutions that are random and stay so."""

    def build_model():
        frozen = [
            layers.Conv2D(
                channels, 5, 3, activation="relu", kernel_initializer=keras.initializers.HeNormal(1)
            )
            for channels in (16, 32)
        ]
        for layer in frozen:
            layer.trainable = False
        head = [layers.Flatten(), layers.LayerNormalization(), layers.Dense(32, "relu")]
        return keras.Sequential(
            [keras.Input([SIZE, SIZE, 3]), *frozen, *head, layers.Dropout(0.2), layers.Dense(6)]
        )

    return SuiteProblem(
        "image_frozen", build_model, _cross_entropy(), *_patches(), 32, 600, **ACCURACY
    )


def image_contrastive():
    """Two views of a place, with a shift and another brightness: InfoNCE in batches of 64."""

    def views(patches):
        x, rng = patches[0], np.random.RandomState(len(patches[0]))
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

    train, heldout = map(views, _patches())
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

    def grey(patches):
        x = patches[0][:, 10:22, 10:22].mean(axis=-1).reshape(-1, 144)
        return x, x

    def build_model():
        x = keras.Input([144])
        latent = Latent()(layers.Dense(16)(layers.Dense(64, "silu")(x)))
        return keras.Model(x, layers.Dense(144)(layers.Dense(64, "silu")(latent)))

    def reconstruction(y_true, y_pred):
        return tf.reduce_sum((tf.cast(y_true, y_pred.dtype) - y_pred) ** 2, axis=-1) / (2 * 0.05)

    train, heldout = map(grey, _patches())
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


def mnist_28(data_dir=None):
    """The paper's MLP 784-20-10 with sigmoids on MNIST at its full size."""
    train, heldout = [
        tuple(leaf.numpy() for leaf in next(iter(data.batch(60000))))
        for data in load_tfds("mnist", ["train", "test"], data_dir)
    ]

    def build_model():
        first = [layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(20, "sigmoid")]
        return keras.Sequential([keras.Input([28, 28, 1]), *first, layers.Dense(10)])

    return SuiteProblem(
        "mnist_28", build_model, _cross_entropy(), train, heldout, 128, 1000, **ACCURACY
    )


def _cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@functools.cache
def _patches():
    """``(patches, places)`` to train on and held out, from other parts of the photographs.

    Patches are of -1 to 1; a place is one of six: which photograph, and which third of its height.
    """
    import sklearn.datasets

    images = [sklearn.datasets.load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    sides = []
    for seed, number in enumerate((NUM_PATCHES, NUM_HELDOUT)):
        rng = np.random.RandomState(seed)
        height, width, _ = images[0].shape
        border = int(SHARE * width)
        first, last = ((0, border), (border, width))[seed]
        of_image = rng.randint(0, 2, number)
        tops = rng.randint(0, height - SIZE + 1, number)
        lefts = rng.randint(first, last - SIZE + 1, number)
        patches = np.stack(
            [
                images[i][top : top + SIZE, left : left + SIZE]
                for i, top, left in zip(of_image, tops, lefts)
            ]
        )
        places = 3 * of_image + (tops * 3) // (height - SIZE + 1)
        sides.append((patches.astype("float32") / 127.5 - 1, places))
    return tuple(sides)
