"""The native kernel of the LSTM's backward pass: each branch against TensorFlow in float64."""

import conftest
import numpy as np
import pytest
import tensorflow as tf
from native_builds import each_branch, needs_library, op_of, skip_unless_it_runs
from test_meta_gradient import episode

from l2l_tf import update_rules
from l2l_tf.engine.program import Program
from l2l_tf.engine.unroll import initial_state, unroll
from l2l_tf.meta_training.meta_gradient import meta_gradient
from l2l_tf.update_rules.lstm.kernel import Kernel
from l2l_tf.update_rules.native import library

# A vector has 4, 8 or 16 columns, a block 8, 16 or 32.
SIZES = [0, 1, 7, 8, 9, 16, 31, 32, 33, 100]
LAYERS = [(20, 20), (8,), (3, 1, 5)]
RULES = [update_rules.CoordinatewiseLSTM, update_rules.RNNprop]

pytestmark = needs_library


@pytest.fixture(autouse=True)
def _not_turned_off(monkeypatch):
    monkeypatch.delenv("L2L_TF_NATIVE", raising=False)


@pytest.fixture(params=each_branch)
def op(request):
    """Function of a rule, features, state and cotangents to the derivatives by all weights."""
    skip_unless_it_runs(request.param)
    op = op_of(request.param, "l2l_lstm_backpropagate")

    def run(rule, gradients, state, cotangents):
        layers, moments = state
        return op(
            rule.features(gradients, moments),
            Program(rule).weights(),
            tf.nest.flatten(layers),
            cotangents,
            output_scale=rule.output_scale,
            bounded=rule.bounded,
        )

    return run


def inputs(rule_class, layers, n, num_steps=4, dtype="float32"):
    """A rule, and gradients, state and cotangents for it; in each dtype the same numbers."""
    rule = rule_class(layers, zero_head=False, seed=1, dtype=dtype)
    weights = rule_class(layers, zero_head=False, seed=1).variables
    for index, (variable, weight) in enumerate(zip(rule.variables, weights)):
        noise = 0.2 * tf.random.stateless_normal(weight.shape, [2, index])
        variable.assign(tf.cast(weight.value + noise, dtype))
    gradients = 0.1 * tf.random.stateless_normal([num_steps, n], [0, 1])
    cotangents = tf.random.stateless_normal([num_steps, n], [0, 2])
    seeds = iter(range(100))
    state = tf.nest.map_structure(
        lambda leaf: 0.1 + 0.8 * tf.random.stateless_uniform(leaf.shape, [3, next(seeds)]),
        rule.initial_state(n),
    )
    return rule, *tf.nest.map_structure(
        lambda leaf: tf.cast(leaf, dtype), (gradients, state, cotangents)
    )


def assert_near(received, expected, tolerance=1e-5):
    """Relative to the largest derivative by a weight tensor: others may cancel."""
    for a, b in zip(received, expected, strict=True):
        assert a.dtype == "float32" and a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("rule_class", RULES)
def test_the_derivatives_are_those_of_tensorflow(op, rule_class, layers):
    for n in SIZES:
        rule, *given = inputs(rule_class, layers, n, dtype="float64")
        expected = rule.backpropagate(*given)
        assert n == 0 or all(np.abs(e).max() > 0 for e in expected)
        assert_near(op(*inputs(rule_class, layers, n)), expected)


@pytest.mark.parametrize("num_steps", [1, 2, 50])
def test_any_number_of_steps(op, num_steps):
    rule, *given = inputs(RULES[0], (5, 3), 40, num_steps, "float64")
    assert_near(op(*inputs(RULES[0], (5, 3), 40, num_steps)), rule.backpropagate(*given))


def test_a_column_without_cotangents_counts_for_nothing(op):
    """Whatever its gradients, and as a chunk that is moved back relies on."""
    rule, gradients, state, cotangents = inputs(RULES[0], (5, 3), 100)
    is_counted = tf.cast(tf.range(100) < 60, "float32")
    received = op(rule, gradients * (2.0 - is_counted), state, cotangents * is_counted)
    clean = op(rule, gradients, state, cotangents * is_counted)
    for a, b in zip(received, clean):
        np.testing.assert_array_equal(a, b)


def test_gates_far_from_zero(op):
    """Beyond 7.9 the kernel's derivative of a gate is that there, 5e-7, in place of less."""

    def given(dtype):
        rule, *others = inputs(RULES[0], (8,), 64, dtype=dtype)
        rule.variables[0].assign(20.0 * rule.variables[0])
        return rule, *others

    rule, *others = given("float64")
    gates = rule.variables[0] @ tf.concat([rule.features(others[0], ())[0], others[1][0][0][0]], 0)
    assert np.abs(gates).max() > 20 and np.mean(np.abs(gates) > 7.9) > 0.3
    assert_near(op(*given("float32")), rule.backpropagate(*others), 2e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("column", [0, 99])
def test_what_is_not_finite_is_seen(op, column, value):
    """As NaN in what it reaches: by a cotangent, all of them."""
    rule, gradients, state, cotangents = inputs(RULES[1], (5, 3), 100)
    changed = cotangents.numpy()
    changed[-1, column] = value
    for derivative in op(rule, gradients, state, tf.constant(changed)):
        assert not np.all(np.isfinite(derivative))
    changed = gradients.numpy()
    changed[0, column] = np.nan
    for derivative in op(rule, tf.constant(changed), state, cotangents):
        assert np.any(np.isnan(derivative))


def test_a_program_takes_it():
    rule, gradients, state, cotangents = inputs(RULES[1], (8,), 100)
    assert Kernel(rule).can_backpropagate(state)
    received = Program(rule).backpropagate(Program(rule).weights(), gradients, state, cotangents)
    direct = library.load().l2l_lstm_backpropagate(
        rule.features(gradients, state[1]),
        Program(rule).weights(),
        tf.nest.flatten(state[0]),
        cotangents,
        output_scale=rule.output_scale,
        bounded=True,
    )
    assert_near(received, direct, 1e-6)


class Doubled(update_rules.CoordinatewiseLSTM):
    def postprocess(self, outputs):
        return 2.0 * super().postprocess(outputs)


class Own(update_rules.CoordinatewiseLSTM):
    def backpropagate(self, *args):
        return [3.0 * gradient for gradient in super().backpropagate(*args)]


@pytest.mark.parametrize("rule_class", [Doubled, Own])
def test_a_rule_with_a_method_of_its_own_is_left_to_xla(rule_class):
    rule, gradients, state, cotangents = inputs(rule_class, (5,), 20)
    assert rule.kernel().can_run(state) and not rule.kernel().can_backpropagate(state)
    received = Program(rule).backpropagate(Program(rule).weights(), gradients, state, cotangents)
    assert_near(received, rule.backpropagate(gradients, state, cotangents))


def test_where_it_gives_way(monkeypatch):
    rule, gradients, state, cotangents = inputs(RULES[0], (5,), 20)
    program, weights = Program(rule), Program(rule).weights()
    by_kernel = program.backpropagate(weights, gradients, state, cotangents)
    by_xla = tf.function(program.backpropagate, jit_compile=True)
    assert_near(by_kernel, by_xla(weights, gradients, state, cotangents))
    halves = tf.nest.map_structure(lambda leaf: tf.cast(leaf, tf.bfloat16), state)
    assert not rule.kernel().can_backpropagate(halves)
    assert not inputs(RULES[0], (5,), 20, dtype="float64")[0].kernel().can_backpropagate(())
    monkeypatch.setenv("L2L_TF_NATIVE", "0")
    assert not rule.kernel().can_backpropagate(state)
    assert_near(by_kernel, program.backpropagate(weights, gradients, state, cotangents))


def test_shapes_that_do_not_fit_are_refused():
    rule, gradients, (layers, moments), cotangents = inputs(RULES[0], (5,), 20)
    features, weights = rule.features(gradients, moments), Program(rule).weights()
    states = tf.nest.flatten(layers)

    def run(features=features, states=states, cotangents=cotangents, weights=weights):
        op = library.load().l2l_lstm_backpropagate
        return op(features, weights, states, cotangents, output_scale=1.0, bounded=False)

    for changes, message in (
        ({"features": features[0]}, r"features \[T, F, N\]"),
        ({"cotangents": cotangents[1:]}, r"cotangents \[T, N\]"),
        ({"cotangents": cotangents[:, 1:]}, r"cotangents \[T, N\]"),
        ({"features": features[:, 1:]}, "kernel and bias of layer 0 do not fit"),
        ({"states": [states[0], states[1][:, 1:]]}, "state of layer 0 does not fit"),
        ({"states": states[:1]}, "two states of each layer"),
        ({"weights": weights[:2]}, "two weights and two states"),
        ({"weights": [*weights[:2], tf.ones([2, 5]), tf.ones([2, 1])]}, "one output"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            run(**changes)


def test_a_meta_gradient_depends_on_it_by_rounding_alone(monkeypatch):
    """By chunks, and with segments side by side; to the bit the same however many run at once."""
    problem, rule = conftest.keras_problem(), inputs(RULES[1], (5, 4), 1)[0]
    parameters, (batches,) = episode(problem)
    state = initial_state(rule, problem.layout, 2)
    trajectory = unroll(rule, problem, parameters, state, batches, num_steps=6, segment_length=3)
    weights = tf.ones_like(trajectory.losses)
    received = []
    for native, side_by_side in (("1", 1), ("1", 2), ("0", 1)):
        monkeypatch.setenv("L2L_TF_NATIVE", native)
        conftest.in_pieces(monkeypatch, side_by_side=side_by_side)
        of_trajectory = tf.function(
            lambda: meta_gradient(rule, problem.layout, trajectory, weights, chunk_size=72)
        )
        received.append(of_trajectory())
    for one, two in zip(*received[:2]):
        np.testing.assert_array_equal(one, two)
    assert_near(received[0], received[2])
