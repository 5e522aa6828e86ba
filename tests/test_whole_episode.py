"""A meta-step as one XLA program: which ones are, and that it is the same as without."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import conv_net, image_data, loss_weights, mlp
from test_neural_style import random_weights

import l2l_tf
from l2l_tf.engine import unroll as unroll_lib
from l2l_tf.engine import whole_episode
from l2l_tf.meta_training.meta_gradient import meta_gradient
from l2l_tf.meta_training.objectives import OBJECTIVES
from l2l_tf.problems.names import NAMES
from l2l_tf.update_rules import base

NUM_STEPS, SEGMENT, NUM_OPTIMIZEES = 6, 3, 2


def lstm():
    """With steps so small that no rounding is magnified by them."""
    return l2l_tf.update_rules.CoordinatewiseLSTM((3,), zero_head=False, output_scale=1e-3, seed=0)


RULES = {
    "lstm": lstm,
    "hierarchical": lambda: l2l_tf.update_rules.Hierarchical(2, 2, seed=0),
}
FAST = [
    ("quadratic", "lstm"),
    ("lasso", "lstm"),
    ("rastrigin", "lstm"),
    ("simple", "lstm"),
    ("quadratic+2*rastrigin", "lstm"),
]
# "general" is a mixture, of more problems than can be compiled here.
ONE_PROBLEM = [name for name in NAMES if name != "general"]
SLOW = [
    *[(name, rule) for name in ONE_PROBLEM for rule in RULES if (name, rule) not in FAST],
    ("digits+0.1*quadratic", "hierarchical"),
]


def problem_of(name, tmp_path):
    options = {}
    if name == "neural_style":
        options = {"image_size": 16, "num_crops": 1, "weights": str(tmp_path / "weights.npz")}
        np.savez(options["weights"], **random_weights())
    try:
        return l2l_tf.problems.get(name, **options)
    except FileNotFoundError as error:
        pytest.skip(f"{name} needs its data: {error}")


def window(problem):
    """Parameters and batches of a few optimizees."""
    seeds = [tf.constant([0, m], tf.int64) for m in range(NUM_OPTIMIZEES)]
    parameters = [base.flatten(problem.sample_parameters(seed)) for seed in seeds]
    batches = [
        next(iter(problem.batches("train", seed, NUM_STEPS + 1).batch(NUM_STEPS + 1)))
        for seed in seeds
    ]
    return tf.stack(parameters), tf.nest.map_structure(lambda *leaves: tf.stack(leaves), *batches)


def meta_step(problem, rule, jit_compile):
    """Losses, meta-gradient and the rule's weights after a step of Adam."""
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(rule.trainable_variables)

    @tf.function(jit_compile=jit_compile, autograph=False)
    def step(parameters, batches):
        trajectory = unroll_lib.unroll(
            rule,
            problem,
            parameters,
            unroll_lib.initial_state(rule, problem.layout, NUM_OPTIMIZEES),
            batches,
            num_steps=NUM_STEPS,
            segment_length=SEGMENT,
        )
        weights = loss_weights(OBJECTIVES["sqrt"], trajectory.losses)
        gradients = meta_gradient(rule, problem.layout, trajectory, weights)
        optimizer.apply_gradients(zip(gradients, rule.trainable_variables))
        return trajectory.losses, gradients

    losses, gradients = step(*window(problem))
    return losses, gradients, [v.numpy() for v in rule.trainable_variables]


def check_the_same(problem, rule, tolerance):
    received, expected = (
        meta_step(problem, RULES[rule](), jit_compile) for jit_compile in (True, None)
    )
    np.testing.assert_allclose(received[0], expected[0], rtol=tolerance)
    for vectors, of_expected in zip(received[1:], map(flat, expected[1:])):
        size = np.linalg.norm(of_expected)
        assert 0 < size < np.inf
        assert np.linalg.norm(flat(vectors) - of_expected) < tolerance * size


def flat(tensors):
    return np.concatenate([np.reshape(tensor, [-1]) for tensor in tensors])


@pytest.mark.parametrize("name, rule", FAST)
def test_a_whole_meta_step_compiles(name, rule, tmp_path):
    check_the_same(problem_of(name, tmp_path), rule, 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name, rule", SLOW)
def test_a_whole_meta_step_compiles_slow(name, rule, tmp_path):
    # Biases before a normalization have gradients of rounding noise, which logarithms magnify: with
    # parameters off by 1e-7, the meta-gradient is off by 2e-3, and some of its values by 2e-2. And
    # a rectifier or a maximum that flips turns steps that are normalized: without XLA too, with
    # parameters off by 1e-7, losses are off by up to 4e-4.
    tolerance = 1e-2 if name.startswith("cifar") else 1e-3
    check_the_same(problem_of(name, tmp_path), rule, tolerance)


def keras_problem(model, **kwargs):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return l2l_tf.problems.KerasProblem(model, image_data(), loss, **kwargs)


def is_one_program(problem, num_optimizees=1, rule="hierarchical"):
    return whole_episode.is_one_program(RULES[rule](), problem, num_optimizees)


def test_small_problems_are_one_program():
    assert is_one_program(l2l_tf.problems.get("quadratic"))
    assert is_one_program(keras_problem(mlp))


def test_what_xla_is_slow_at_is_none():
    assert not is_one_program(keras_problem(conv_net))
    problem = keras_problem(mlp)
    most = whole_episode.MOST_COORDINATES // base.num_coordinates(problem.layout)
    assert is_one_program(problem, most)
    assert not is_one_program(problem, most + 1)
    assert not is_one_program(problem, rule="lstm")  # a state is backpropagated through time


def test_what_xla_cannot_compile_is_none():
    class Python(keras.layers.Layer):
        def call(self, inputs):
            return tf.ensure_shape(tf.py_function(lambda x: x, [inputs], tf.float32), inputs.shape)

    def model():
        layers = [keras.layers.Flatten(), Python(), keras.layers.Dense(3)]
        return keras.Sequential([keras.Input([6, 6, 1]), *layers])

    assert not is_one_program(keras_problem(model))


def test_coupled_rules_are_none():
    rule = l2l_tf.update_rules.KernelwiseLSTM((3, 3), (3,))
    assert not whole_episode.is_one_program(rule, l2l_tf.problems.get("quadratic"), 1)


def test_there_are_no_more_programs_than_memory_maps(monkeypatch):
    wanted = [True, False, True, True]
    for limit in (None, 10**6):
        monkeypatch.setattr(whole_episode, "_most_maps", lambda limit=limit: limit)
        assert whole_episode.few_enough(wanted) == wanted
    limit = whole_episode.MAPS_OF_A_PROCESS + 4 * whole_episode.MAPS
    monkeypatch.setattr(whole_episode, "_most_maps", lambda: limit)
    with pytest.warns(UserWarning, match="3 problems .* enough for 2.*sysctl"):
        assert whole_episode.few_enough(wanted) == [True, False, True, False]
