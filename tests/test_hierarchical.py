"""Hierarchical: what it is before it is trained, what no weights can change, its meta-gradient."""

import conftest
import keras
import numpy as np
import pytest
import tensorflow as tf
import test_levels

import l2l_tf
from l2l_tf.engine.step import CoordinatesStep
from l2l_tf.engine.unroll import initial_state, unroll
from l2l_tf.meta_training import objectives
from l2l_tf.meta_training.meta_gradient import meta_gradient
from l2l_tf.update_rules import Hierarchical, backpropagation, levels

SHAPES = [(9, 5), (5,), (3, 3, 2, 4), (), (1,), (70, 1)]
SIZES = [int(np.prod(shape)) for shape in SHAPES]
OWNERS = levels.owners_of(SIZES)
LAYOUT = [(f"tensor_{k}", shape) for k, shape in enumerate(SHAPES)]
units = pytest.mark.parametrize("coordinate_units", [0, 4])
net_by_default = pytest.mark.parametrize(
    "coordinate_units", [pytest.param(0, marks=pytest.mark.slow), 4]
)


def random_rule(scale=0.5, **kwargs):
    """With random weights in place of zeros."""
    rule, rng = Hierarchical(seed=0, **kwargs), np.random.default_rng(1)
    for weight in rule.weights:
        weight.assign_add(scale * rng.normal(size=weight.shape).astype(rule.dtype))
    return rule


def random_gradients(num_steps, dtype="float32"):
    rng = np.random.default_rng(0)
    drift = rng.normal(size=sum(SIZES))
    sizes = np.exp(rng.normal(size=len(SIZES)))[OWNERS]
    return (sizes * (drift + rng.normal(size=[num_steps, sum(SIZES)]))).astype(dtype)


def run(rule, gradients, parameters=None):
    """Updates ``[steps, N]``, log steps ``[steps, K]``; the parameters do not move."""
    updates, states = run_states(rule, gradients, parameters)
    return updates, np.array([control["log_step"].numpy()[0] for _, control in states])


def run_states(rule, gradients, parameters=None):
    """Updates ``[steps, N]``, and the states after each step."""
    tensors = levels.Tensors.of_shapes(SHAPES, rule.dtype)
    parameters = tf.zeros(sum(SIZES), rule.dtype) if parameters is None else parameters

    states, updates = [levels.initial_state(rule, sum(SIZES), tensors)], []
    for gradient in gradients:
        inputs = levels.Inputs(tf.constant(gradient, rule.dtype), parameters)
        update, state = levels.step(rule, inputs, states[-1], tensors, OWNERS)
        updates.append(update.numpy())
        states.append(state)
    return np.array(updates), states[1:]


def sizes_of_steps(parameters):
    """What a step is relative to, for each coordinate."""
    fan_in = np.array([np.prod(shape[:-1]) if len(shape) > 1 else 9.0 for shape in SHAPES])
    squares = np.array([np.mean(parameters[k == OWNERS] ** 2) for k in range(len(SHAPES))])
    return np.sqrt(squares + 0.09 / fan_in)[OWNERS]  # 0.1 for vectors


@units
def test_untrained_it_is_adam_with_relative_steps(coordinate_units):
    gradients = random_gradients(30, "float64")
    parameters = np.random.default_rng(2).normal(size=sum(SIZES)) * (OWNERS != 2)
    rule = Hierarchical(coordinate_units=coordinate_units, dtype="float64", initial_log_step=-4.0)
    updates, _ = run(rule, gradients, parameters)
    rate = l2l_tf.update_rules.Adam(1.0, beta_2=0.99, epsilon=0.0, dtype="float64")
    adam, state = rate, rate.initial_state(sum(SIZES))
    for gradient, received in zip(gradients, updates):
        step, state = adam.update(tf.constant(gradient), state)
        expected = np.exp(-4.0) * sizes_of_steps(parameters) * np.clip(step, -3, 3)
        np.testing.assert_allclose(received, expected, rtol=1e-10)


@units
@pytest.mark.parametrize("power", [0.0, 2.0])
def test_untrained_with_averages_it_is_schedule_free(coordinate_units, power):
    """Against y = (1 - β) z + β x, as published (Defazio et al. 2024), in their variables."""
    gradients, beta = random_gradients(30, "float64"), 0.9
    rule = Hierarchical(
        coordinate_units=coordinate_units,
        dtype="float64",
        averaging=beta,
        averaging_power=power,
        warm_up=12,
    )
    updates, states = run_states(rule, gradients)  # at 0, where a step's size is the same
    step = np.exp(-5.0) * sizes_of_steps(np.zeros(sum(SIZES)))
    x = z = y = v = np.zeros(sum(SIZES))
    for t, (gradient, received) in enumerate(zip(gradients, updates), start=1):
        v = 0.99 * v + 0.01 * gradient**2
        z = z - min(t / 12, 1) * step * np.clip(gradient / np.sqrt(v / (1 - 0.99**t)), -10, 10)
        share = (power + 1) / (t + power)
        x = (1 - share) * x + share * z
        new = (1 - beta) * z + beta * x
        np.testing.assert_allclose(received, new - y, rtol=1e-8, atol=1e-12)
        y = new
    np.testing.assert_allclose(y + rule.final_shift(states[-1][0]), x, rtol=1e-8, atol=1e-12)


def test_without_a_gru_it_is_the_untrained_rule(tmp_path):
    """With half its state; here also through the brake, and from a file."""
    options = {"averaging": 0.9, "averaging_power": 4.0, "warm_up": 5, "decay_after": 20}
    options |= {"depth_power": 0.25, "max_growth": 3.0, "coordinate_units": 0, "dtype": "float64"}
    gradients = random_gradients(60, "float64")
    gradients[30:36, OWNERS == 2] *= 20
    parameters = np.random.default_rng(2).normal(size=sum(SIZES))
    expected, with_gru = run_states(Hierarchical(seed=0, **options), gradients, parameters)
    rule = Hierarchical(control_units=0, **options)
    assert not rule.weights
    l2l_tf.save(rule, tmp_path / "rule")
    for same in (rule, l2l_tf.load(tmp_path / "rule")):
        received, states = run_states(same, gradients, parameters)
        np.testing.assert_allclose(received, expected, rtol=1e-12)
    square, lead = states[-1][0]
    np.testing.assert_array_equal(square, with_gru[-1][0][2])
    np.testing.assert_array_equal(lead, with_gru[-1][0][3])
    assert states[-1][1]["brake"].numpy().max() < -0.2
    with pytest.raises(ValueError, match="`coordinate_units` must be 0 .* coordinate_units=4"):
        Hierarchical(control_units=0, coordinate_units=4)


@units
@pytest.mark.parametrize("factor", [1e-14, 1e12])
def test_the_scale_of_gradients_does_not_matter(coordinate_units, factor):
    rule, gradients = random_rule(coordinate_units=coordinate_units), random_gradients(20)
    expected, log_steps = run(rule, gradients)
    received, others = run(rule, gradients * np.float32(factor))
    assert np.ptp(log_steps, axis=0).min() > 0.1
    np.testing.assert_allclose(others, log_steps, atol=1e-4)
    np.testing.assert_allclose(received, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_no_weights_override_the_caps(scale):
    parameters = np.random.default_rng(2).normal(size=sum(SIZES)).astype("float32")
    for sign in (-1, 1):
        rule = random_rule(scale, max_log_step=-3.0, max_direction=4.0)
        rule._change_bias.assign([[sign * 1e3]])
        updates, log_steps = run(rule, random_gradients(60), parameters)
        most = np.exp(-3.0) * 4.0 * sizes_of_steps(parameters)
        assert np.all(np.abs(updates) <= most * 1.0001)
        assert np.all((log_steps >= -14) & (log_steps <= -3))
    assert log_steps.max() == -3


def test_no_weights_override_the_brake():
    """It takes hold of all tensors at once, and lets go when gradients are as they were."""
    rule = random_rule()
    rule._change_bias.assign([[1e3]])
    gradients = random_gradients(110)
    gradients[30:36, OWNERS == 2] *= 20
    _, states = run_states(rule, gradients)
    steps = np.log([control["step"].numpy()[0] for _, control in states])
    np.testing.assert_allclose(np.diff(steps[29:34], axis=0), -0.3, atol=1e-5)
    log_steps = np.array([control["log_step"].numpy()[0] for _, control in states])
    assert np.all(log_steps[29:] == -2)
    assert np.all(steps.min(axis=0) < steps[29] - 1)
    np.testing.assert_allclose(steps[-1], steps[29], atol=0.1)


def test_control_settles():
    rule = random_rule(settling=5, max_log_step=5.0)
    rule._change_bias.assign([[1e3]])
    _, log_steps = run(rule, random_gradients(20))
    expected = 0.15 * np.minimum(1, 5 / np.arange(2, 21)) ** 2
    np.testing.assert_allclose(
        np.diff(log_steps, axis=0), np.tile(expected[:, None], len(SIZES)), rtol=1e-4
    )


def test_deep_models_take_smaller_steps():
    rule = Hierarchical(depth_power=0.25, max_log_step=-4.5, seed=0)

    def first_log_step(shapes, num_models=1):
        tensors = levels.Tensors.of_shapes(shapes, rule.dtype, num_models)
        return levels.initial_control(rule, tensors)["log_step"].numpy()[0]

    layer = [(3, 4), (4,)]
    np.testing.assert_allclose(first_log_step(2 * layer), 4 * [-5.0])
    deep = first_log_step(32 * layer, num_models=2)  # 16 times as deep: half the step
    np.testing.assert_allclose(deep, 128 * [-5.0 - np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(first_log_step(layer), 2 * [-5.0 + np.log(2) / 4], rtol=1e-6)
    np.testing.assert_allclose(first_log_step(layer[1:]), [-5.0 + np.log(2) / 4], rtol=1e-6)
    rule.max_log_step = -4.9
    np.testing.assert_allclose(first_log_step(layer), 2 * [-4.9])


def test_steps_decay_whatever_the_horizon():
    gradients = random_gradients(3, "float64")
    constant, _ = run(Hierarchical(seed=0, dtype="float64"), gradients)
    decayed, log_steps = run(Hierarchical(decay_after=2, seed=0, dtype="float64"), gradients)
    factors = 1 / np.sqrt(1 + np.array([1, 2, 3]) / 2)
    np.testing.assert_allclose(decayed, factors[:, None] * constant)
    assert np.all(log_steps == log_steps[0])


def test_parameters_that_grow_make_steps_grow_only_so_far():
    rule, gradients = Hierarchical(max_growth=3.0, seed=0), random_gradients(1)
    tensors = levels.Tensors.of_shapes(SHAPES, rule.dtype)
    state, steps = levels.initial_state(rule, sum(SIZES), tensors), []
    for size in (1.0, 2.0, 5.0, 50.0, 1.0):
        inputs = levels.Inputs(tf.constant(gradients[0]), tf.fill([sum(SIZES)], size))
        _, state = levels.step(rule, inputs, state, tensors, OWNERS)
        steps.append(state[1]["step"].numpy()[0])
    sizes = np.array([1.0, 2.0, 3.0, 3.0, 1.0])[:, None]
    np.testing.assert_allclose(steps / steps[0], np.tile(sizes, len(SIZES)), rtol=0.15)
    np.testing.assert_array_equal(steps[2], steps[3])
    np.testing.assert_allclose(steps[3], 3 * steps[0], rtol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e-20, 1e20, 3e37])
def test_everything_is_finite_whatever_the_gradients(scale):
    gradients = random_gradients(6)
    gradients /= np.abs(gradients).max()
    gradients[3:5] = 0
    updates, log_steps = run(random_rule(), gradients * np.float32(scale))
    assert np.isfinite(updates).all() and np.isfinite(log_steps).all()
    if scale < 1e-20:
        assert not updates.any()


def test_a_gradient_that_is_not_a_number_is_seen():
    gradients = random_gradients(2)
    gradients[1, 7] = np.nan
    updates, _ = run(random_rule(), gradients)
    assert np.isfinite(updates[0]).all() and np.isnan(updates[1]).any()


def test_a_coordinate_without_gradients_comes_to_rest():
    """As a row of an embedding that batches do not touch any more."""
    gradients = random_gradients(150)
    gradients[:, 0] = 0
    gradients[1:, 1] = 0
    updates, _ = run(random_rule(), gradients)
    assert not updates[:, 0].any()
    before, after = np.abs(updates[[0, 149], 1])
    assert before > 1e-3 and after < 1e-3 * before


@net_by_default
def test_pieces_and_blocks_give_what_the_whole_does(monkeypatch, coordinate_units):
    rule = random_rule(coordinate_units=coordinate_units)
    rng = np.random.default_rng(2)
    parameters = rng.normal(size=sum(SIZES)).astype("float32")
    gradients = random_gradients(5)
    expected, _ = run(rule, gradients, parameters)

    def in_tensors(vector):
        return [tf.reshape(part, s) for part, s in zip(tf.split(vector, SIZES), SHAPES)]

    for cut in (False, True):
        if cut:
            monkeypatch.undo()
            conftest.in_pieces(monkeypatch, side_by_side=2, least=10, most=64)
        step = CoordinatesStep(rule, LAYOUT, most=64)
        assert len(step.piece_sizes) > 1
        state = step.initial_state(lambda shape, make, **_: make(shape, "float32"))
        for gradient, of_step in zip(gradients, expected):
            inputs = levels.Inputs(in_tensors(gradient), in_tensors(parameters))
            updates, state = step.run(inputs, state)
            received = np.concatenate([np.ravel(update) for update in updates])
            np.testing.assert_allclose(received, of_step, rtol=1e-3, atol=1e-6)


def test_files_keep_it(tmp_path):
    rule = random_rule(coordinate_units=3, control_units=5, max_log_step=-1.5, max_change=0.2)
    expected, _ = run(rule, random_gradients(3))
    l2l_tf.save(rule, tmp_path / "rule")
    for copy in (l2l_tf.load(tmp_path / "rule"), Hierarchical.from_config(rule.get_config())):
        assert copy.get_config() == rule.get_config()
        np.testing.assert_array_equal(run(copy, random_gradients(3))[0], expected)
    saved = tf.saved_model.load(str(tmp_path / "rule"))
    shapes = tf.ragged.constant([list(shape) for shape in SHAPES], tf.int32)
    state = saved.initial_state(shapes)
    for gradient, of_step in zip(random_gradients(3), expected):
        updates, state = saved.update(tf.constant(gradient), tf.zeros(sum(SIZES)), state, shapes)
        np.testing.assert_allclose(updates, of_step, rtol=1e-3, atol=1e-6)


@net_by_default
def test_it_trains_a_model(coordinate_units):
    model = conftest.mlp()
    rule = Hierarchical(coordinate_units=coordinate_units, initial_log_step=-3.0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=l2l_tf.LearnedOptimizer(rule), loss=loss)
    losses = model.fit(conftest.image_data(), epochs=4, verbose=0, shuffle=False).history["loss"]
    assert losses[-1] < 0.7 * losses[0]


@units
def test_the_derivative_by_hand_equals_a_tape(coordinate_units):
    rule = random_rule(coordinate_units=coordinate_units, dtype="float64", max_direction=3.5)
    rng = np.random.default_rng(3)
    inputs = levels.Inputs(*(tf.constant(rng.normal(size=[40])) for _ in range(2)))
    state = tuple(tf.constant(rng.normal(size=[40]) ** 2) for _ in range(3))
    number = 5 + coordinate_units if coordinate_units else 4
    controls, cotangents = (tf.constant(rng.normal(size=n)) for n in ([number, 40], [40]))
    received = rule.backpropagate_step(inputs, state, cotangents, controls)
    expected = backpropagation.of_step(rule, inputs, state, cotangents, controls)
    for a, b in zip(received[0], expected[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    of_weights = [0, *range(5, number)]  # the others do not depend on them
    (a,), (b,) = received[1], expected[1]
    assert np.abs(b).max() > 0.1
    for row in of_weights:
        np.testing.assert_allclose(a[row], b[row], rtol=1e-10, atol=1e-12)
    for a, b in zip(received[2], expected[2], strict=True):
        np.testing.assert_array_equal(a, b)


@net_by_default
@pytest.mark.parametrize("averaging", [0.0, 0.9])
def test_identity_equals_taping_the_unroll(monkeypatch, coordinate_units, averaging):
    if averaging:  # which leads from one segment to the next; the tape stops all of a state there
        monkeypatch.setattr(test_levels, "SEGMENT", test_levels.NUM_STEPS)
    rule = random_rule(
        coordinate_units=coordinate_units, control_units=3, dtype="float64", averaging=averaging
    )
    problem = test_levels.Curved()
    parameters, (batches,) = test_levels.episode(problem)
    shapes = [shape for _, shape in problem.layout]
    states = [[test_levels.start(rule, shapes)]] * test_levels.OPTIMIZEES
    expected, *_ = test_levels.taped(
        [(rule, range(len(shapes)))], problem, parameters, states, batches
    )
    lengths = {"num_steps": test_levels.NUM_STEPS, "segment_length": test_levels.SEGMENT}
    state = initial_state(rule, problem.layout, test_levels.OPTIMIZEES)

    @tf.function
    def received():
        start = test_levels.vector(parameters)
        trajectory = unroll(rule, problem, start, state, batches, **lengths)
        weights = conftest.loss_weights(objectives.loss_sum, trajectory.losses)
        return meta_gradient(rule, problem.layout, trajectory, weights, chunk_size=300)

    for a, b in zip(received(), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-8 * np.abs(b).max())
