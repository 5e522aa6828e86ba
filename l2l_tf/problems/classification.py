"""Image classification by small perceptrons: digits (bundled) and MNIST (by TFDS)."""

import os

import keras
import sklearn.datasets
import sklearn.model_selection
import tensorflow as tf
import tensorflow_datasets as tfds

from l2l_tf.problems.keras_problem import KerasProblem
from l2l_tf.problems.online import is_online

BATCH_SIZE = 128


def perceptron(input_shape, input_scale, hidden=(20,), activation="sigmoid"):
    """The paper's optimizee (section 3.2): a perceptron with ten outputs, its inputs rescaled."""
    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Rescaling(input_scale),
            keras.layers.Flatten(),
            *[keras.layers.Dense(units, activation) for units in hidden],
            keras.layers.Dense(10),
        ]
    )


def digits():
    """The 1,797 handwritten 8×8 digits that come with scikit-learn.

    MLP 64-20-10, sigmoid, batches of 128. A third of the images is held out.
    """
    x, y = sklearn.datasets.load_digits(return_X_y=True)
    x_train, x_heldout, y_train, y_heldout = sklearn.model_selection.train_test_split(
        x.astype("float32"), y, test_size=1 / 3, random_state=0, stratify=y
    )
    return KerasProblem(
        build_model=lambda: perceptron((64,), 1 / 16),
        dataset=_batched(x_train, y_train),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        heldout=_batched(x_heldout, y_heldout),
        name="digits",
    )


def mnist(data_dir=None, hidden=(20,), activation="sigmoid", name="mnist"):
    """MNIST by TensorFlow Datasets: MLP 784-20-10, sigmoid, batches of 128; section 3.2.

    The 10,000 test images are held out.

    Args:
        data_dir: as for ``tfds.load``; None takes TFDS' default directory.
        hidden: units of each hidden layer.
        activation: of the hidden layers.
        name: of the problem, for tables.
    """
    train, heldout = load_tfds("mnist", ["train", "test"], data_dir)
    return KerasProblem(
        build_model=lambda: perceptron((28, 28, 1), 1 / 255, hidden, activation),
        dataset=train.batch(BATCH_SIZE),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        heldout=heldout.batch(BATCH_SIZE),
        name=name,
    )


def load_tfds(name, splits, data_dir):
    """``tfds.load`` of ``(image, label)``, which looks before it leaps.

    Without the data and without a network, TFDS itself retries for minutes before it fails.

    Raises:
        FileNotFoundError: the data are not in `data_dir`, and there is no network to get them.
    """
    if data_dir is not None:
        data_dir = os.path.expanduser(data_dir)
    builder = tfds.builder(name, data_dir=data_dir)
    if not builder.is_prepared() and not is_online():
        raise FileNotFoundError(
            f"No dataset '{name}' in data_dir={builder.data_dir_root!r}, and no network to fetch "
            f"it. Expected {str(builder.data_path)!r}, as prepared by TFDS. On a machine with a "
            f"network: tfds build {name} --data_dir=DIR; then pass that DIR as data_dir."
        )
    return tfds.load(name, split=splits, data_dir=data_dir, as_supervised=True)


def _batched(x, y):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH_SIZE)
