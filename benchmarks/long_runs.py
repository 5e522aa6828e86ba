"""Benchmarks of long runs: `general` on what learned optimizers are usually tried on.

  python benchmarks/long_runs.py --only=mnist    --data_dir=DIR
  python benchmarks/long_runs.py --only=cifar10  --data_dir=DIR

mnist: perceptrons 784-20-10 (sigmoid, ReLU) and 784-20-20-10 on MNIST, 10,000 steps with batches of
128; the natural logarithm of the training loss over all of the data (as Chen et al. 2020, "Training
stronger baselines for learning to optimize", have it). cifar10: a residual net of about 300,000
weights, 5 epochs; loss and accuracy on the test set. Adam and Adam with cosine decay are tuned on a
seed of their own, by a factor of 2, until the best rate has neighbours on both sides; all have the
same initial weights and the same batches.
"""

import functools
import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import keras
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import app, flags

import l2l_tf
from l2l_tf.evaluation.rate_search import coarse_to_fine

_ONLY = flags.DEFINE_enum("only", "mnist", ["mnist", "cifar10"], "What to run.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "As for tfds.load.")
_RULE = flags.DEFINE_string("rule", "general", "A shipped rule, a directory with one, or ''.")
BASELINES = "adam", "adam_cosine", "adam_default"
_BASELINES = flags.DEFINE_list(
    "baselines",
    list(BASELINES),
    "Beside it: Adam and Adam with cosine decay, tuned; Adam at Keras' default.",
)
flags.register_validator(
    "baselines", lambda names: set(names) <= set(BASELINES), f"Expected some of {BASELINES}."
)
_NUM_SEEDS = flags.DEFINE_integer("num_seeds", 2, "To report on.", 1)

TUNING_SEED = 1000
UNIT = 0.001  # learning rates are this times powers of 2
layers = keras.layers


def data(name):
    """``(x, y)`` for training, ``(x, y)`` for testing; x in [0, 1], less its mean."""
    splits = tfds.load(
        name, split=["train", "test"], batch_size=-1, as_supervised=True, data_dir=_DATA_DIR.value
    )
    (x, y), (x_test, y_test) = tfds.as_numpy(splits)
    x, x_test = x.astype("float32") / 255, x_test.astype("float32") / 255
    mean = x.mean(axis=(0, 1, 2), keepdims=True) if name == "cifar10" else 0.0
    return (x - mean, y), (x_test - mean, y_test)


def perceptron(widths, activation):
    hidden = [layers.Dense(units, activation) for units in widths]
    return keras.Sequential([keras.Input([28, 28, 1]), layers.Flatten(), *hidden, layers.Dense(10)])


def residual_net():
    """A residual net (He et al. 2016) at half the resolution: stages of 32, 48 and 64 channels."""
    x = entry = keras.Input([32, 32, 3])
    x = layers.Conv2D(32, 3, 2, padding="same", use_bias=False)(x)
    for stage, filters in enumerate((32, 48, 64)):
        for block in range(2):
            stride = 2 if stage and block == 0 else 1
            inner = layers.Activation("relu")(layers.BatchNormalization()(x))
            if stride > 1 or x.shape[-1] != filters:
                x = layers.Conv2D(filters, 1, stride, use_bias=False)(inner)
            inner = layers.Conv2D(filters, 3, stride, padding="same", use_bias=False)(inner)
            inner = layers.Activation("relu")(layers.BatchNormalization()(inner))
            inner = layers.Conv2D(filters, 3, padding="same", use_bias=False)(inner)
            x = layers.Add()([x, inner])
    x = layers.Activation("relu")(layers.BatchNormalization()(x))
    return keras.Model(entry, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def trained(build_model, train, optimizer, num_steps, batch_size, seed):
    """``(model, mean loss of the minibatches of the last twentieth of the steps)``."""
    keras.utils.set_random_seed(seed)
    model = build_model()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    batches = tf.data.Dataset.from_tensor_slices(train).shuffle(len(train[0]), seed=seed)
    batches = batches.repeat().batch(batch_size)
    steps = max(1, num_steps // 20)
    history = model.fit(batches, epochs=num_steps // steps, steps_per_epoch=steps, verbose=0)
    return model, history.history["loss"][-1]


def adam(num_steps, rate, cosine):
    schedule = keras.optimizers.schedules.CosineDecay(rate, num_steps) if cosine else rate
    return keras.optimizers.Adam(schedule)


def run(name, build_model, train, test, num_steps, batch_size):
    """Prints a row for each optimizer and seed."""

    def tuned(cosine):
        def score(exponent):
            optimizer = adam(num_steps, UNIT * 2.0**exponent, cosine)
            return trained(build_model, train, optimizer, num_steps, batch_size, TUNING_SEED)[1]

        best, scores = coarse_to_fine(score, [0, 2, 4], 2, 10)
        print(f"{name}, cosine={cosine}: {sorted(scores.items())}", flush=True)
        return UNIT * 2.0**best

    optimizers = {}
    if _RULE.value:
        optimizers[_RULE.value] = lambda: l2l_tf.LearnedOptimizer(_RULE.value)
    for baseline in _BASELINES.value:
        cosine = baseline == "adam_cosine"
        rate = UNIT if baseline == "adam_default" else tuned(cosine)
        optimizers[f"{baseline}, {rate:g}"] = functools.partial(adam, num_steps, rate, cosine)
    for seed in range(_NUM_SEEDS.value):
        for label, make in optimizers.items():
            start = time.perf_counter()
            model, _ = trained(build_model, train, make(), num_steps, batch_size, seed)
            seconds = time.perf_counter() - start
            of_train = model.evaluate(*train, batch_size=1000, verbose=0)
            of_test = model.evaluate(*test, batch_size=1000, verbose=0)
            print(
                f"| {name} | {label} | {seed} | {np.log(of_train[0]):.2f} | {of_test[0]:.4f} | "
                f"{of_test[1]:.4f} | {seconds:.0f} |",
                flush=True,
            )


def main(_):
    print("| problem | optimizer | seed | log training loss | test loss | accuracy | seconds |")
    print("|---|---|---|---|---|---|---|", flush=True)
    train, test = data(_ONLY.value)
    if _ONLY.value == "mnist":
        for widths, activation in (([20], "sigmoid"), ([20], "relu"), ([20, 20], "sigmoid")):
            name = f"784-{'-'.join(map(str, widths))}-10 {activation}"
            build_model = functools.partial(perceptron, widths, activation)
            run(name, build_model, train, test, 10_000, 128)
    else:
        run("residual net", residual_net, train, test, 5 * len(train[0]) // 128, 128)


if __name__ == "__main__":
    app.run(main)
