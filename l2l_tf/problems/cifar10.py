"""CIFAR-10 (by TFDS) and the convolutional net of the 2016 paper, its third experiment."""

import keras
import numpy as np
import tensorflow as tf

from l2l_tf import arguments
from l2l_tf.problems.keras_problem import KerasProblem
from l2l_tf.problems.tfds_images import load_tfds

BATCH_SIZE = 128
NUM_LABELS = 10


def cifar(data_dir=None, labels=range(NUM_LABELS), name="cifar10"):
    """CIFAR-10 by TensorFlow Datasets: a convolutional net, batches of 128; section 3.3.

    The images of some `labels` alone make a problem of their own. The paper tests on five and on
    two labels a rule that was trained on all, and one ("LSTM-sub") that was trained on the others.
    It does not say which: "cifar5" and "cifar2" have the first ones. The test images are held out.

    Args:
        data_dir: as for ``tfds.load``; None takes TFDS' default directory.
        labels: the CIFAR-10 labels of the images to classify, two at least. The problem's own
            labels are their places in `labels`: 0, 1, …
        name: of the problem, for tables.

    Raises:
        TypeError: `labels` are not integers.
        ValueError: `labels` are not different numbers from 0 to 9, or less than two.
        FileNotFoundError: `data_dir` does not hold the data, and there is no network.
    """
    arguments.text("name", name)
    arguments.instance("labels", labels, (list, tuple, range, np.ndarray), "a list of integers")
    labels = [arguments.integer("labels", label) for label in labels]
    if len(labels) < 2 or len(set(labels)) < len(labels) or set(labels) - set(range(NUM_LABELS)):
        raise ValueError(
            f"`labels` must be two or more different integers from 0 to {NUM_LABELS - 1}. "
            f"Received: labels={labels}"
        )
    train, heldout = load_tfds("cifar10", ["train", "test"], data_dir)
    return KerasProblem(
        build_model=lambda: conv_net(len(labels)),
        dataset=_only(labels, train),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        heldout=_only(labels, heldout),
        name=name,
    )


def conv_net(num_labels):
    """The paper's optimizee (section 3.3): three convolutions, a dense layer, a linear output.

    All but the last with batch normalization and ReLU, the convolutions with max pooling. The paper
    does not say the sizes: 16 channels, 5×5, are those of DeepMind's code. Unlike there, the layers
    before a normalization have no bias, whose gradient would be rounding noise alone; pooling comes
    before the normalization, which then has a quarter of the work; and weights start as Keras' do,
    not as N(0, 0.01²). The names let groups of variables be picked.
    """
    layers = [keras.Input((32, 32, 3)), keras.layers.Rescaling(1 / 127.5, offset=-1)]
    for index in range(3):
        layers += [
            keras.layers.Conv2D(16, 5, padding="same", use_bias=False, name=f"conv_{index}"),
            keras.layers.MaxPooling2D(),
            keras.layers.BatchNormalization(name=f"conv_{index}_norm"),
            keras.layers.ReLU(),
        ]
    layers += [
        keras.layers.Flatten(),
        keras.layers.Dense(32, use_bias=False, name="dense"),
        keras.layers.BatchNormalization(name="dense_norm"),
        keras.layers.ReLU(),
        keras.layers.Dense(num_labels, name="output"),
    ]
    return keras.Sequential(layers, name="conv_net")


def _only(labels, dataset):
    """Batches of the images with these labels, which are numbered anew."""
    places = np.full(NUM_LABELS, -1)
    places[labels] = range(len(labels))

    def select(images, old):
        new = tf.gather(tf.constant(places), old)
        kept = new >= 0
        return tf.boolean_mask(images, kept), tf.boolean_mask(new, kept)

    # Batches are selected from faster than single images. Images stay bytes, 3 kB each.
    return dataset.batch(1024).map(select).rebatch(BATCH_SIZE)
