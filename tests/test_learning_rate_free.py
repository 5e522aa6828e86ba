"""AdamW, Prodigy and Schedule-Free AdamW, step for step against other implementations."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import l2l_tf
from l2l_tf.problems import Quadratic
from l2l_tf.update_rules import AdamW, Prodigy, ScheduleFreeAdamW, levels

SIZES, NUM_STEPS = (4, 2), 60
START = np.linspace(-1, 1, 6)
MATRIX = np.random.RandomState(0).normal(size=(6, 6))


def gradient(theta, step):
    """Of a quadratic whose minimum moves a little."""
    return MATRIX.T @ (MATRIX @ (theta - 1)) + 0.1 * np.sin(np.arange(6) + step)


def run(rule):
    """Parameters after each step ``[steps, 6]``, and the rule's last state."""
    theta = tf.constant(START)
    tensors = levels.Tensors.of_shapes([(n,) for n in SIZES], "float64")
    state, owners, found = levels.initial_state(rule, 6, tensors), levels.owners_of(SIZES), []
    for step in range(NUM_STEPS):
        inputs = levels.inputs(rule, tf.constant(gradient(theta.numpy(), step)), theta)
        updates, state = levels.step(rule, inputs, state, tensors, owners)
        theta += updates
        found.append(theta.numpy())
    return np.array(found), state


@pytest.mark.parametrize("num_steps", [None, 40])
def test_adamw_equals_keras(num_steps):
    rate = 0.05
    ours, _ = run(AdamW(rate, weight_decay=0.1, num_steps=num_steps, dtype="float64"))
    if num_steps:
        rate = keras.optimizers.schedules.CosineDecay(rate, num_steps)
    optimizer = keras.optimizers.AdamW(rate, weight_decay=0.1)
    variable, found = tf.Variable(START), []
    for step in range(NUM_STEPS):
        optimizer.apply_gradients([(tf.constant(gradient(variable.numpy(), step)), variable)])
        found.append(variable.numpy())
    np.testing.assert_allclose(ours, found, rtol=1e-4, atol=1e-5)  # Keras' rates are float32


def prodigy(gamma, d0, beta_1, beta_2, epsilon, horizon):
    """Mishchenko and Defazio 2023, algorithm 4, line by line."""
    x = START.copy()
    d, r, s, m, v = d0, 0.0, np.zeros(6), np.zeros(6), np.zeros(6)
    found = []
    for k in range(NUM_STEPS):
        rate = gamma
        if horizon:
            rate *= (1 + np.cos(np.pi * min(k / horizon, 1))) / 2
        g = gradient(x, k)
        m = beta_1 * m + (1 - beta_1) * d * g
        v = beta_2 * v + (1 - beta_2) * d**2 * g**2
        root = np.sqrt(beta_2)
        r = root * r + (1 - root) * rate * d**2 * g.dot(START - x)
        s = root * s + (1 - root) * rate * d**2 * g
        next_d = max(d, r / np.abs(s).sum())
        x = x - rate * d * m / (np.sqrt(v) + d * epsilon)
        d = next_d
        found.append(x)
    return np.array(found), d


@pytest.mark.parametrize("horizon", [None, 40])
@pytest.mark.parametrize("epsilon", [1e-8, 0.1])
def test_prodigy_equals_the_paper(horizon, epsilon):
    ours, (_, (_, d, _)) = run(Prodigy(epsilon=epsilon, num_steps=horizon, dtype="float64"))
    theirs, last = prodigy(1.0, 1e-6, 0.9, 0.999, epsilon, horizon)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-8)
    assert np.all(d == d[0]) and d[0] > 1e-3  # of the model, and it has grown
    assert float(d[0]) <= last * (1 + 1e-6)


def schedule_free(gamma, decay, beta_1, beta_2, epsilon, warmup):
    """Defazio et al. 2024, algorithm 1, with the bias correction at the second moment."""
    x, z, v, squares = START.copy(), START.copy(), np.zeros(6), 0.0
    at_y, at_x = [], []
    for t in range(1, NUM_STEPS + 1):
        y = (1 - beta_1) * z + beta_1 * x
        g = gradient(y, t - 1)
        v = beta_2 * v + (1 - beta_2) * g**2
        rate = gamma * (min(1, t / warmup) if warmup else 1)
        z = z - rate * g / (np.sqrt(v / (1 - beta_2**t)) + epsilon) - rate * decay * y
        squares += rate**2
        c = rate**2 / squares
        x = (1 - c) * x + c * z
        at_y.append((1 - beta_1) * z + beta_1 * x)
        at_x.append(x)
    return np.array(at_y), at_x[-1]


@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_schedule_free_equals_the_paper(warmup, decay):
    rule = ScheduleFreeAdamW(1 / 16, weight_decay=decay, warmup_steps=warmup, dtype="float64")
    ours, state = run(rule)
    at_y, at_x = schedule_free(1 / 16, decay, 0.9, 0.999, 1e-8, warmup)
    np.testing.assert_allclose(ours, at_y, rtol=1e-8, atol=1e-10)
    final = ours[-1] + rule.final_shift(state)
    np.testing.assert_allclose(final, at_x, rtol=1e-8, atol=1e-10)
    assert np.abs(at_x - at_y[-1]).max() > 1e-3


@pytest.mark.parametrize(
    "rule",
    [AdamW(0.1, num_steps=9), Prodigy(num_steps=9), ScheduleFreeAdamW(0.1, warmup_steps=3)],
    ids=lambda rule: type(rule).__name__,
)
def test_files_keep_them_and_fit_takes_them(rule, tmp_path):
    l2l_tf.save(rule, tmp_path / "rule")
    copy = l2l_tf.load(tmp_path / "rule")
    assert copy.get_config() == rule.get_config()
    results = [l2l_tf.evaluate(Quadratic(), {"it": r}, [], 20, 2) for r in (rule, copy)]
    losses = [result.optimizers["it"]["loss"] for result in results]
    np.testing.assert_array_equal(*losses)
    variable = tf.Variable([3.0, 3.0])
    optimizer = l2l_tf.LearnedOptimizer(rule)
    for _ in range(3):
        optimizer.apply([2 * variable], [variable])
    assert np.all(variable.numpy() < 3)
