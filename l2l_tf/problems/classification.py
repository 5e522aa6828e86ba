"""Image classification by small perceptrons: digits (bundled) and MNIST (by TFDS)."""

import keras
import tensorflow as tf

from l2l_tf import arguments
from l2l_tf.problems.keras_problem import KerasProblem
from l2l_tf.problems.tfds_images import load_tfds

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
    # Imported where they are needed, as is all that `import l2l_tf` can do without.
    import sklearn.datasets
    import sklearn.model_selection

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

    Raises:
        TypeError, ValueError: `hidden` are no positive integers, or `activation` is none of Keras'.
        FileNotFoundError: `data_dir` does not hold the data, and there is no network.
    """
    arguments.text("name", name)
    arguments.instance("hidden", hidden, (list, tuple), "a list of numbers of units")
    hidden = [arguments.integer("hidden", units, 1) for units in hidden]
    keras.activations.get(activation)  # Fails now and clearly, if it is none.
    train, heldout = load_tfds("mnist", ["train", "test"], data_dir)
    return KerasProblem(
        build_model=lambda: perceptron((28, 28, 1), 1 / 255, hidden, activation),
        dataset=train.batch(BATCH_SIZE),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        heldout=heldout.batch(BATCH_SIZE),
        name=name,
    )


def _batched(x, y):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH_SIZE)
