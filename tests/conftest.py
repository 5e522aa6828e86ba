import json
import os
import signal
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest
import tensorflow as tf

import l2l_tf
from l2l_tf.engine import pieces
from l2l_tf.meta_training import objectives
from l2l_tf.problems import KerasProblem

# Where a shell runs the tests in the background, a Ctrl-C is ignored, also by what they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Two devices, for tests of distribution.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


@pytest.fixture(autouse=True)
def _fresh_keras():
    """Layer names and seeds as in a fresh process, whatever ran before."""
    keras.utils.clear_session(free_memory=False)  # to collect garbage at each test takes minutes
    keras.utils.set_random_seed(0)


def image_data(num_examples=48, size=6, batch_size=8, seed=0):
    """Separable toy images: the class is the brightest third."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, num_examples)
    x = rng.normal(size=(num_examples, size, size, 1)).astype("float32")
    x += (np.arange(size) * 3 // size == y[:, None])[:, None, :, None]
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size)


def mlp():
    layers = keras.layers
    return keras.Sequential(
        [keras.Input([6, 6, 1]), layers.Flatten(), layers.Dense(5, "sigmoid"), layers.Dense(3)]
    )


def conv_net():
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input([6, 6, 1]),
            # A bias before the normalization would have a gradient of rounding noise alone.
            layers.Conv2D(4, 3, use_bias=False, kernel_regularizer=keras.regularizers.L2(0.01)),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Dropout(0.2),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )


def loss_on_batch(model, x, y):
    """What ``train_on_batch`` returns: the loss of this batch, before its step.

    Keras before 3.15 returns the mean since metrics were reset.
    """
    model.reset_metrics()
    return float(np.asarray(model.train_on_batch(x, y)))


def keras_problem(build_model=mlp, **kwargs):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return KerasProblem(build_model, image_data(), loss, **kwargs)


class OneByOne(l2l_tf.LearnedOptimizer):
    """As a Keras without the private hook would run it."""

    _distributed_tf_update_step = keras.optimizers.Optimizer._distributed_tf_update_step


def in_pieces(monkeypatch, **kwargs):
    """Coordinates are cut as a machine would that wants them so; see ``pieces.Policy``."""
    policy = pieces.policy()._replace(times=1, **kwargs)
    monkeypatch.setattr(pieces, "policy", lambda: policy)
    monkeypatch.setattr(pieces, "BLOCK", 1)


def in_tensorflow_alone(program):
    """What a program prints, as JSON, in another process that can import neither us nor Keras."""
    blocked = 'import sys\nsys.modules["l2l_tf"] = sys.modules["keras"] = None\n'
    done = subprocess.run([sys.executable, "-c", blocked + program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def loss_weights(objective, losses):
    """w_t, as of ``objectives.values_and_weights``."""
    return objectives.values_and_weights(objective, losses, losses[0])[1]


def mean_objective(objective, losses):
    return tf.reduce_mean(objectives.values(objective, losses, losses[0])[0])
