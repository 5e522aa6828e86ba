"""Problems of images: patches of photographs, and MNIST."""

import keras
import numpy as np

from l2l_tf.problems.suite.patches import SIZE, patches
from l2l_tf.problems.suite.suite_problem import (
    ABSOLUTE,
    ACCURACY,
    SQUARE,
    SuiteProblem,
)
from l2l_tf.problems.tfds_images import load_tfds

layers = keras.layers


def image_denoising():
    """Patches with noise of 0.1: strided convolutions and back, added to the input."""
    train, heldout = [(noisy, x) for x, noisy, _ in map(_with_noise, patches())]

    def build_model():
        x = keras.Input([SIZE, SIZE, 3])
        half = layers.Conv2D(16, 4, 2, "same", activation="relu")(x)
        quarter = layers.Conv2D(24, 3, 2, "same", activation="relu")(half)
        quarter = layers.Conv2D(24, 3, padding="same", activation="relu")(quarter)
        back = layers.Conv2DTranspose(16, 4, 2, "same", activation="relu")(quarter)
        back = layers.Conv2DTranspose(3, 4, 2, "same")(layers.Add()([back, half]))
        return keras.Model(x, layers.Add()([x, back]))

    return SuiteProblem("image_denoising", build_model, "mse", train, heldout, 16, 400, **SQUARE)


def _with_noise(side):
    x, places = side
    noise = np.random.RandomState(len(x)).normal(size=x.shape)
    return x, (x + 0.1 * noise).astype("float32"), places


def image_superresolution():
    """From 16×16 to 32×32 by sub-pixel convolutions (Shi et al. 2016), absolute error."""
    train, heldout = [
        (x.reshape(len(x), SIZE // 2, 2, SIZE // 2, 2, 3).mean(axis=(2, 4)), x)
        for x, _ in patches()
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

    def blurred(side):
        x, rng = side[0], np.random.RandomState(len(side[0]))
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

    train, heldout = map(blurred, patches())
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
        "image_mixer", build_model, _cross_entropy(), *patches(), 32, 600, **ACCURACY
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
        "image_frozen", build_model, _cross_entropy(), *patches(), 32, 600, **ACCURACY
    )


def mnist_28(data_dir=None):
    """The paper's MLP 784-20-10 with sigmoids on MNIST at its full size."""
    train, heldout = [
        tuple(leaf.numpy() for leaf in next(iter(data.batch(60000))))
        for data in load_tfds("mnist", ["train", "test"], data_dir, may_fetch=False)
    ]

    def build_model():
        first = [layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(20, "sigmoid")]
        return keras.Sequential([keras.Input([28, 28, 1]), *first, layers.Dense(10)])

    return SuiteProblem(
        "mnist_28", build_model, _cross_entropy(), train, heldout, 128, 1000, **ACCURACY
    )


def _cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
