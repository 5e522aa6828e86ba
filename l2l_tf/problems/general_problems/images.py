"""Small images of digits, MNIST and CIFAR-10, at resolutions at which a step takes microseconds."""

import functools

import numpy as np

from l2l_tf.problems.tfds_images import load_tfds

NUM_EXAMPLES = 20_000  # of the training images, the first ones


def digits():
    """scikit-learn's 1,797 digits: ``(x [n, 8, 8, 1], y)``."""
    import sklearn.datasets

    x, y = sklearn.datasets.load_digits(return_X_y=True)
    return _standardized(x.reshape(-1, 8, 8, 1)), y


def mnist(data_dir, size):
    """MNIST, means of blocks of its 28 pixels: ``(x [n, size, size, 1], y)``."""
    return _smaller("mnist", data_dir, size)


def cifar10(data_dir, size, gray=False):
    """CIFAR-10, means of blocks of its 32 pixels: ``(x [n, size, size, 3 or 1], y)``."""
    x, y = _smaller("cifar10", data_dir, size)
    return (_standardized(x.mean(axis=-1, keepdims=True)) if gray else x), y


@functools.lru_cache
def _smaller(name, data_dir, size):
    images, y = _as_read(name, data_dir)
    n, height, width, channels = images.shape
    blocks = images.reshape(n, size, height // size, size, width // size, channels)
    return _standardized(blocks.mean(axis=(2, 4), dtype="float32")), y


@functools.lru_cache
def _as_read(name, data_dir):
    (train,) = load_tfds(name, ["train"], data_dir)
    return next(train.batch(NUM_EXAMPLES).as_numpy_iterator())


def _standardized(x):
    return ((x - np.mean(x)) / np.std(x)).astype("float32")
