"""Meta-training on a small problem: as one XLA program or not, one group and two at once.

What is measured is an episode of `NUM_STEPS` steps, with credit over all of it: unroll, recorded,
and meta-gradient of all coordinates.
"""

import concurrent.futures

import keras
import numpy as np
import tensorflow as tf

import l2l_tf
from benchmarks import measure
from l2l_tf.engine import unroll as unroll_lib
from l2l_tf.meta_training.meta_gradient import meta_gradient
from l2l_tf.meta_training.objectives import OBJECTIVES, values_and_weights
from l2l_tf.update_rules import base

NUM_STEPS, NUM_OPTIMIZEES, BATCH_SIZE = 400, 4, 64


def problem():
    """MLP 196-32-10, ReLU, on images of 14×14."""
    layers = keras.layers
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100 * BATCH_SIZE, 14, 14)).astype("float32")
    y = rng.integers(0, 10, len(x))
    return l2l_tf.problems.KerasProblem(
        lambda: keras.Sequential(
            [keras.Input([14, 14]), layers.Flatten(), layers.Dense(32, "relu"), layers.Dense(10)]
        ),
        tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH_SIZE),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )


def episode(jit_compile):
    """A function that computes losses and meta-gradient of an episode of each optimizee."""
    rule, of = l2l_tf.update_rules.Hierarchical(seed=0), problem()
    seeds = [tf.constant([0, m], tf.int64) for m in range(NUM_OPTIMIZEES)]
    parameters = tf.stack([base.flatten(of.sample_parameters(seed)) for seed in seeds])
    batches = [
        next(iter(of.batches("train", seed, NUM_STEPS + 1).batch(NUM_STEPS + 1))) for seed in seeds
    ]
    batches = tf.nest.map_structure(lambda *leaves: tf.stack(leaves), *batches)

    @tf.function(jit_compile=jit_compile, autograph=False)
    def run(parameters, batches):
        state = unroll_lib.initial_state(rule, of.layout, NUM_OPTIMIZEES)
        trajectory = unroll_lib.unroll(rule, of, parameters, state, batches, num_steps=NUM_STEPS)
        losses = trajectory.losses
        _, weights = values_and_weights(OBJECTIVES["sqrt"], losses, losses[0])
        return trajectory.losses, meta_gradient(rule, of.layout, trajectory, weights)

    return lambda: run(parameters, batches)


def both(*functions):
    """A function that calls each in a thread of its own."""
    threads = concurrent.futures.ThreadPoolExecutor(len(functions))
    return lambda: list(threads.map(lambda function: function(), functions))


def small():
    """Steps of optimizees a second, in episodes of 400 steps of four MLP 196-32-10 side by side."""
    rows = []
    for name, jit_compile in {"TensorFlow, the rule by XLA": None, "one XLA program": True}.items():
        one, other = episode(jit_compile), episode(jit_compile)
        contestants = {"one group": one, "two, from two threads": both(one, other)}
        seconds, first = measure.median_seconds(contestants, num_rounds=5)
        steps = NUM_STEPS * NUM_OPTIMIZEES
        rows.append(
            {
                "what": name,
                "one group": round(steps / seconds["one group"]),
                "two groups at once": round(2 * steps / seconds["two, from two threads"]),
                "first call, s": round(first["one group"], 1),
            }
        )
    return rows
