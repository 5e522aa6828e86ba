"""The mixture: some fifty small problems of many kinds, each with augmentations around it."""

import keras
import tensorflow as tf

from l2l_tf.problems.general_problems import images, models, synthetic
from l2l_tf.problems.keras_problem import KerasProblem
from l2l_tf.problems.mixture import Mixture
from l2l_tf.problems.resampled import FewBatches, NoisyLabels
from l2l_tf.problems.rescaled import ScaledParameters

NUM_CLASSES = 10


def general(data_dir=None):
    """What the rule for any model is meta-trained on: a ``Mixture`` of small problems.

    Perceptrons, convolutional, residual and recurrent nets, transformers, embeddings, autoencoders
    and linear models, of 100 to 20,000 weights; on digits, MNIST and CIFAR-10 at low resolutions,
    and on synthetic regression, classification and sequences, which each episode draws anew.
    Around each: few data or all, some wrong labels, parameters in other units.

    Args:
        data_dir: as for ``tfds.load``, of MNIST and CIFAR-10; None takes TFDS' default directory.

    Raises:
        FileNotFoundError: `data_dir` does not hold the data, and there is no network.
    """
    problems = [*_images(data_dir), *_autoencoders(data_dir), *_synthetic(), *_sequences()]
    return Mixture([(_augmented(problem), 1.0) for problem in problems], name="general")


def _augmented(problem):
    problem = FewBatches(problem, (4, 128), probability=0.3)
    if problem.map_labels is not None and not problem.name.startswith("autoencoder"):
        problem = NoisyLabels(problem, (0.0, 0.4), probability=0.2)
    return ScaledParameters(problem)


def _images(data_dir):
    digits = images.digits()
    m7, m14 = (images.mnist(data_dir, size) for size in (7, 14))
    c8, c16 = (images.cifar10(data_dir, size) for size in (8, 16))
    gray = images.cifar10(data_dir, 8, gray=True)
    hinge = keras.losses.CategoricalHinge()
    return [
        _classifier("mlp-1", m7, 64, _mlp([24])),
        _classifier("mlp-2", m14, 32, _mlp([32], initializer="he_normal")),
        _classifier("mlp-3", m14, 128, _mlp([20, 20], "tanh")),
        _classifier("mlp-4", m14, 64, _mlp([24], "sigmoid", initializer="random_normal")),
        _classifier("mlp-5", gray, 64, _mlp([32])),
        _classifier("mlp-6", c8, 64, _mlp([32, 32], initializer="he_normal")),
        _classifier("mlp-7", c8, 64, _mlp([24], "gelu", norm="batch")),
        _classifier("mlp-8", m7, 64, _mlp([32, 32, 32], "elu", norm="layer")),
        _classifier("mlp-9", m14, 128, _mlp([64], "tanh", norm="layer")),
        _classifier("mlp-10", c8, 64, _mlp([48], "sigmoid")),
        _classifier("mlp-11", digits, 32, _mlp([16] * 4, "selu", initializer="lecun_normal")),
        _classifier("mlp-12", digits, 16, _mlp([64], "sigmoid", dropout=0.3)),
        _classifier("mlp-13", m7, 32, _mlp([40], "swish", penalty="l2")),
        _classifier("mlp-14", m7, 64, _mlp([20, 20], scale=6.0)),
        _classifier("mlp-15", gray, 128, _mlp([12] * 6, "tanh")),
        _classifier("mlp-residual", m7, 64, models.residual_mlp),
        _classifier("linear-1", m7, 32, _mlp([])),
        _classifier("linear-2", m14, 128, _mlp([], scale=0.1)),
        _classifier("mlp-hinge", m7, 32, _mlp([24]), one_hot=True, loss=hinge),
        _classifier("mlp-squares", m14, 64, _mlp([24], "tanh"), one_hot=True, loss="mse"),
        _classifier("conv-1", m14, 32, _conv([8, 16], norm="batch")),
        _classifier("conv-2", c8, 32, _conv([12, 16])),
        _classifier("conv-3", c16, 32, _conv([8, 12, 16], initializer="he_normal", pooling=True)),
        _classifier("conv-4", c8, 64, _conv([8, 16], "elu", flat=True)),
        _classifier("conv-5", c16, 32, _conv([8, 16, 16], "swish", norm="layer", separable=True)),
        _classifier("conv-residual", c8, 32, models.residual_conv_net),
        _classifier("rows-lstm", m7, 64, _recurrent("LSTM", 12), shape=(7, 7)),
        _classifier("rows-rnn", m7, 32, _recurrent("SimpleRNN", 20), shape=(7, 7)),
        _classifier("patches", m7, 32, _patches(7, 7), shape=(7, 7)),
    ]


def _autoencoders(data_dir):
    m7, m14 = (images.mnist(data_dir, size) for size in (7, 14))
    gray = images.cifar10(data_dir, 8, gray=True)
    return [
        _autoencoder("autoencoder-1", m7, 64, [32, 8, 32]),
        _autoencoder("autoencoder-2", gray, 64, [48, 12, 48], "tanh"),
        _autoencoder("autoencoder-3", m14, 32, [48, 24, 8, 24, 48]),
        _autoencoder("autoencoder-4", m7, 128, [24], "sigmoid", noise=0.5),
        _autoencoder("autoencoder-5", gray, 32, [32, 16, 8, 4, 8, 16, 32], "elu"),
    ]


def _synthetic():
    regression, classification = synthetic.regression, synthetic.classification
    mlp, squares, binary = models.mlp, "mse", keras.losses.BinaryCrossentropy(from_logits=True)
    return [
        _drawn(
            "regression-1",
            regression(),
            squares,
            64,
            lambda: mlp([16], 1, [32, 32], "tanh", "lecun_normal"),
        ),
        _drawn("regression-2", regression(), "huber", 32, lambda: mlp([16], 1, [32])),
        _drawn("regression-3", regression(8, 4), squares, 128, lambda: mlp([8], 4, [10] * 8)),
        _drawn(
            "regression-4",
            regression(spread=2.0),
            "mae",
            64,
            lambda: mlp([16], 1, [24, 24], "gelu"),
        ),
        _drawn("linear-3", synthetic.linear_regression(), squares, 64, lambda: mlp([16], 1)),
        _drawn("linear-4", classification(8, 3), _cross_entropy(), 32, lambda: mlp([8], 3)),
        _drawn(
            "classes-1",
            classification(),
            _cross_entropy(),
            64,
            lambda: mlp([16], 5, [24, 24, 24], "swish"),
        ),
        _drawn(
            "classes-2",
            classification(spread=2.0),
            _cross_entropy(),
            128,
            lambda: mlp([16], 5, [40], norm="batch"),
        ),
        _drawn("waves-1", synthetic.waves(), squares, 128, lambda: mlp([1], 1, [48, 48], "tanh")),
        _drawn(
            "waves-2",
            synthetic.waves(2, 8.0),
            squares,
            256,
            lambda: mlp([2], 1, [32, 32, 32], scale=4.0),
        ),
        _drawn(
            "waves-3",
            synthetic.waves(2, 20.0),
            squares,
            128,
            lambda: mlp([2], 1, [32, 32], keras.ops.sin, scale=8.0),
        ),
        _drawn(
            "waves-4", synthetic.waves(3, 3.0), squares, 64, lambda: mlp([3], 1, [40, 40], "gelu")
        ),
        _drawn("deep-1", regression(6), squares, 64, lambda: mlp([6], 1, [14] * 14, "tanh")),
        _drawn(
            "deep-2",
            classification(8, 4),
            _cross_entropy(),
            32,
            lambda: mlp([8], 4, [16] * 10, "selu", "lecun_normal"),
        ),
        _drawn("checkers", synthetic.checkers(), binary, 32, lambda: mlp([2], 1, [20, 20], "tanh")),
        _drawn("sets", synthetic.sets(), squares, 64, lambda: models.set_net(6, 3)),
        _drawn(
            "ratings-2",
            synthetic.ratings(500, 300),
            squares,
            128,
            lambda: models.factorization(500, 300, 8),
        ),
        _drawn(
            "topics-2",
            synthetic.topics(1500, 12, 10),
            _cross_entropy(),
            64,
            lambda: models.bag_of_words(12, 1500, 10, 12),
        ),
        _drawn("ratings", synthetic.ratings(), squares, 64, lambda: models.factorization(150, 80)),
        _drawn("table", synthetic.table(), binary, 32, lambda: models.tabular_net(6, (60, 20, 5))),
        _drawn(
            "topics",
            synthetic.topics(),
            _cross_entropy(),
            32,
            lambda: models.bag_of_words(16, 300, 8),
        ),
    ]


def _sequences():
    markov, recurrent = synthetic.markov_chains, models.recurrent_net
    transformer = models.transformer
    return [
        _drawn(
            "chains-gru",
            markov(length=8),
            _cross_entropy(),
            32,
            lambda: recurrent([8], 20, "GRU", tokens=20, at_each_step=True),
        ),
        _drawn(
            "chains-transformer",
            markov(),
            _cross_entropy(),
            16,
            lambda: transformer(16, 20, tokens=20),
        ),
        _drawn(
            "chains-lstm",
            markov(80, 8, 3.0),
            _cross_entropy(),
            16,
            lambda: recurrent([8], 80, "LSTM", 20, tokens=80, at_each_step=True),
        ),
        _drawn(
            "sums-gru", synthetic.marked_sums(8), "mse", 64, lambda: recurrent([8, 2], 1, "GRU", 12)
        ),
        _drawn(
            "tones-rnn",
            synthetic.tones(12),
            _cross_entropy(),
            64,
            lambda: recurrent([12, 1], 6, "SimpleRNN", 24),
        ),
        _drawn(
            "tones-lstm",
            synthetic.tones(12),
            _cross_entropy(),
            32,
            lambda: recurrent([12, 1], 6, "LSTM", 12),
        ),
        _drawn(
            "repeats-transformer",
            synthetic.repetitions(),
            _cross_entropy(),
            32,
            lambda: transformer(16, 16, tokens=16, norm_first=False),
        ),
        _drawn(
            "repeats-transformer-2",
            synthetic.repetitions(8, 12, 4),
            _cross_entropy(),
            64,
            lambda: transformer(12, 8, tokens=8, units=24, num_heads=4, num_blocks=1),
        ),
    ]


def _classifier(name, data, batch_size, build, *, shape=None, one_hot=False, loss=None):
    """A problem on images; `build` takes the inputs' shape and the number of classes."""
    x, y = data
    x = x if shape is None else x.reshape(-1, *shape)
    y = keras.utils.to_categorical(y, NUM_CLASSES) if one_hot else y
    return KerasProblem(
        lambda: build(x.shape[1:], NUM_CLASSES),
        tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size),
        loss or _cross_entropy(),
        name=name,
    )


def _autoencoder(name, data, batch_size, widths, *args, **kwargs):
    x, _ = data
    flat = x.reshape(len(x), -1)
    return KerasProblem(
        lambda: models.autoencoder(x.shape[1:], flat.shape[1], widths, *args, **kwargs),
        tf.data.Dataset.from_tensor_slices((x, flat)).batch(batch_size),
        "mse",
        name=name,
    )


def _drawn(name, draw, loss, batch_size, build_model):
    return synthetic.SyntheticProblem(build_model, draw, loss, batch_size, name=name)


def _mlp(*args, **kwargs):
    return lambda inputs, outputs: models.mlp(inputs, outputs, *args, **kwargs)


def _conv(*args, **kwargs):
    return lambda inputs, outputs: models.conv_net(inputs, outputs, *args, **kwargs)


def _recurrent(cell, units):
    return lambda inputs, outputs: models.recurrent_net(inputs, outputs, cell, units)


def _patches(length, patch):
    return lambda inputs, outputs: models.transformer(length, outputs, patch=patch, causal=False)


def _cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
