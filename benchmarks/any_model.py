"""The rule for any model against Keras' own Adam: a step of ``fit``, the first steps, memory.

"general" has neither a net nor a GRU; "lite" has a GRU, "net" has both.
"""

import keras
import numpy as np
import tensorflow as tf

import l2l_tf
from benchmarks import measure
from l2l_tf.meta_training.new_rules import new_rule
from l2l_tf.update_rules import Adam

VOCABULARY, LENGTH, SEQUENCES = 4000, 32, 8
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def optimizers():
    return {
        "Adam": keras.optimizers.Adam(),
        "general": l2l_tf.LearnedOptimizer(),
        "lite": l2l_tf.LearnedOptimizer(new_rule("hierarchical-lite", layers=[], seed=0)),
        "net": l2l_tf.LearnedOptimizer(new_rule("hierarchical", layers=[], seed=0)),
        "Adam as a rule": l2l_tf.LearnedOptimizer(Adam()),
    }


def transformer(width=256, blocks=4, heads=4):
    """Next words of a vocabulary of 4,000: 5.2 million weights."""
    layers = keras.layers
    inputs = keras.Input([LENGTH], dtype="int32")
    x = layers.Embedding(VOCABULARY, width)(inputs)
    for _ in range(blocks):
        normalized = layers.LayerNormalization()(x)
        attention = layers.MultiHeadAttention(heads, width // heads)
        x = x + attention(normalized, normalized, use_causal_mask=True)
        hidden = layers.Dense(4 * width, "gelu")(layers.LayerNormalization()(x))
        x = x + layers.Dense(width)(hidden)
    return keras.Model(inputs, layers.Dense(VOCABULARY)(layers.LayerNormalization()(x)))


def sentences(num_batches=40):
    rng = np.random.default_rng(0)
    words = rng.integers(0, VOCABULARY, (num_batches * SEQUENCES, LENGTH + 1), dtype="int32")
    return tf.data.Dataset.from_tensor_slices((words[:, :-1], words[:, 1:])).batch(SEQUENCES)


def fit_steps(network, batches, optimizer, num_steps=10):
    """A function that trains for some steps, as ``fit`` does."""
    network.compile(optimizer=optimizer, loss=LOSS)
    network.make_train_function()
    batches = iter(batches.repeat())

    def steps():
        for _ in range(num_steps):
            logs = network.train_function(batches)
        return [logs["loss"], network.trainable_variables[-1].value]

    return steps


def apply_to(optimizer, n, num_variables):
    """A function that makes a step of the optimizer alone, for gradients that are computed anew."""
    shape = [n // num_variables // 100, 100]
    variables = [tf.Variable(tf.random.normal(shape)) for _ in range(num_variables)]
    gradients = [tf.Variable(tf.random.normal(shape)) for _ in range(num_variables)]
    optimizer.build(variables)

    @tf.function
    def step():
        optimizer.apply([gradient * 1.0 for gradient in gradients], variables)
        return variables[0][0, 0]

    return step


def fit(models):
    """Rows for some models.

    Args:
        models: dict of name → (function that builds a model, function that makes its batches).
    """
    rows = []
    for name, (build, batches) in models.items():
        contestants = {
            key: fit_steps(build(), batches(), optimizer) for key, optimizer in optimizers().items()
        }
        seconds, first = measure.median_seconds(contestants, num_rounds=25)
        rows.append(
            {
                "model": name,
                "weights": build().count_params(),
                **{f"{key}, ms": round(100 * s, 2) for key, s in seconds.items()},
                **{
                    f"{key} / Adam": round(seconds[key] / seconds["Adam"], 2)
                    for key in list(seconds)[1:]
                },
                "first ten steps, s": ", ".join(f"{s:.1f}" for s in first.values()),
            }
        )
    return rows


def step():
    """Hierarchical and Adam: nanoseconds a coordinate of the optimizer's step alone."""
    rows = []
    for n, num_variables in ((100_000, 4), (1_000_000, 4), (5_000_000, 50)):
        contestants = {
            key: apply_to(optimizer, n, num_variables) for key, optimizer in optimizers().items()
        }
        seconds, _ = measure.median_seconds(contestants, num_rounds=25)
        rows.append(
            {
                "coordinates": n,
                "variables": num_variables,
                **{f"{key}, ns": round(1e9 * s / n, 2) for key, s in seconds.items()},
            }
        )
    return rows


def _train(name):
    tf.constant(1.0).numpy()  # TensorFlow is there

    def run():
        steps = fit_steps(transformer(), sentences(), optimizers()[name], num_steps=1)
        return [measure.seconds(steps) for _ in range(5)]

    return run


def memory():
    """Hierarchical and Adam, the transformer: peak memory in MiB, model and data included."""
    rows, peaks = [], {}
    for name in optimizers():
        peaks[name], seconds = measure.peak_mebibytes(_train, name)
        rows.append(
            {
                "optimizer": name,
                "peak": round(peaks[name]),
                "peak / Adam": round(peaks[name] / peaks["Adam"], 2),
                "first step, s": round(seconds[0], 1),
            }
        )
    return rows
