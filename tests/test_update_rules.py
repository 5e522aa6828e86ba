import keras
import numpy as np
import pytest
import tensorflow as tf

from l2l_tf import update_rules
from l2l_tf.update_rules.base import UpdateRule

RULES = {
    "lstm": lambda **k: update_rules.CoordinatewiseLSTM((4, 3), zero_head=False, seed=1, **k),
    "rnnprop": lambda **k: update_rules.RNNprop((4, 3), zero_head=False, seed=1, **k),
    "sgd": lambda **k: update_rules.SGD(0.1, **k),
    "momentum": lambda **k: update_rules.Momentum(0.1, **k),
    "nag": lambda **k: update_rules.Momentum(0.1, nesterov=True, **k),
    "rmsprop": lambda **k: update_rules.RMSprop(0.1, **k),
    "adam": lambda **k: update_rules.Adam(0.1, **k),
}
KERAS = {
    "sgd": lambda: keras.optimizers.SGD(0.1),
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "nag": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "rmsprop": lambda: keras.optimizers.RMSprop(0.1),
    "adam": lambda: keras.optimizers.Adam(0.1),
}
every_rule = pytest.mark.parametrize("name", RULES)


def run(rule, gradients):
    """Updates ``[steps, N]`` for gradients ``[steps, N]``."""
    state = rule.initial_state(gradients.shape[1])
    updates = []
    for gradient in gradients:
        update, state = rule.update(tf.constant(gradient), state)
        updates.append(update.numpy())
    return np.array(updates)


def random_gradients(steps=4, n=6, dtype="float32"):
    return np.random.default_rng(0).normal(size=(steps, n)).astype(dtype)


@every_rule
def test_coordinates_are_independent(name):
    gradients = random_gradients()
    whole = run(RULES[name](), gradients)
    assert np.abs(whole).min() > 0
    part = run(RULES[name](), gradients[:, 2:4])
    np.testing.assert_allclose(part, whole[:, 2:4], rtol=1e-5, atol=1e-8)


@every_rule
def test_structure_of_the_state_is_kept_and_ends_in_coordinates(name):
    rule = RULES[name]()
    state = rule.initial_state([("kernel", (2, 3)), ("bias", (1,))])
    _, after = rule.update(tf.ones([7]), state)
    tf.nest.assert_same_structure(state, after)
    for leaf, new in zip(tf.nest.flatten(state), tf.nest.flatten(after)):
        assert leaf.shape == new.shape and leaf.shape[-1] == 7


@every_rule
def test_config_carries_the_meta_parameters(name):
    rule = RULES[name]()
    for variable in rule.weights:
        variable.assign_add(0.01 * tf.random.uniform(variable.shape))
    copy = type(rule).from_config(rule.get_config())
    gradients = random_gradients()
    np.testing.assert_array_equal(run(copy, gradients), run(rule, gradients))


@every_rule
def test_one_trace_serves_any_number_of_steps(name):
    rule = RULES[name]()
    traces = []

    @tf.function
    def step(gradient, state):
        traces.append(1)
        return rule.update(gradient, state)

    state = rule.initial_state(3)
    for _ in range(3):
        _, state = step(tf.ones([3]), state)
    assert len(traces) == 1


@every_rule
def test_global_dtype_policy_does_not_change_a_rule(name):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        rule = RULES[name]()
        assert {v.dtype for v in rule.weights} == {"float32"}
        assert run(rule, random_gradients()).dtype == np.float32
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("name", KERAS)
def test_hand_designed_rules_equal_keras_step_for_step(name):
    gradients = random_gradients(steps=5, dtype="float64")
    variable = tf.Variable(np.zeros(6))
    optimizer = KERAS[name]()
    positions = []
    for gradient in gradients:
        optimizer.apply_gradients([(tf.constant(gradient), variable)])
        positions.append(variable.numpy())
    ours = np.cumsum(run(RULES[name](dtype="float64"), gradients), axis=0)
    # Keras keeps its hyperparameters in float32 (1 - 0.999^t loses five digits there).
    np.testing.assert_allclose(ours, positions, rtol=2e-5, atol=1e-7)


def test_lstm_equals_keras_lstm_cells():
    rule = RULES["lstm"]()
    gradients = random_gradients()
    features = np.stack(
        [np.clip(np.log(np.abs(gradients)) / 10, -1, None), np.sign(gradients)], axis=-1
    )  # [steps, N, 2]; all magnitudes are above exp(-10)
    cells = []
    kernels = [w.numpy() for w in rule.trainable_variables]
    for units, kernel, bias in ((4, kernels[0], kernels[1]), (3, kernels[2], kernels[3])):
        cell = keras.layers.LSTMCell(units)
        cell.build((None, kernel.shape[1] - units))
        cell.set_weights([kernel.T[:-units], kernel.T[-units:], bias[:, 0]])
        cells.append(cell)
    layer = keras.layers.RNN(keras.layers.StackedRNNCells(cells), return_sequences=True)
    hidden = layer(np.transpose(features, [1, 0, 2])).numpy()  # [N, steps, 3]
    expected = rule.output_scale * (hidden @ kernels[4][0] + kernels[5][0]).T
    np.testing.assert_allclose(run(rule, gradients), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["lstm", "rnnprop"])
def test_backpropagation_by_hand_equals_the_tape(name):
    rule = RULES[name](dtype="float64")
    rng = np.random.default_rng(0)
    gradients, cotangents = (tf.constant(rng.normal(size=(7, 5))) for _ in range(2))
    state = tf.nest.map_structure(
        lambda leaf: tf.constant(rng.uniform(0.1, 0.9, size=leaf.shape)), rule.initial_state(5)
    )
    by_hand = rule.backpropagate(gradients, state, cotangents)
    by_tape = UpdateRule.backpropagate(rule, gradients, state, cotangents)
    for ours, expected, variable in zip(by_hand, by_tape, rule.trainable_variables):
        assert np.abs(expected).min() > 0 and expected.shape == variable.shape
        np.testing.assert_allclose(ours, expected, rtol=1e-9)


def test_zero_head_makes_no_step_and_seed_fixes_the_rest():
    rule = update_rules.CoordinatewiseLSTM(seed=3)
    assert not run(rule, random_gradients()).any()
    again = update_rules.CoordinatewiseLSTM(seed=3)
    other = update_rules.CoordinatewiseLSTM(seed=4)
    np.testing.assert_array_equal(rule.weights[0], again.weights[0])
    assert np.abs(rule.weights[0].numpy() - other.weights[0].numpy()).max() > 0.01


def test_rnnprop_is_bounded_and_blind_to_the_scale_of_the_loss():
    gradients = random_gradients()
    updates = run(RULES["rnnprop"](), gradients)
    assert np.abs(updates).max() < 0.1
    np.testing.assert_allclose(run(RULES["rnnprop"](), 1000 * gradients), updates, rtol=1e-3)


NAN = float("nan")
LSTMS = [
    update_rules.CoordinatewiseLSTM,
    update_rules.RNNprop,
    update_rules.GlobalAveragingLSTM,
    update_rules.KernelwiseLSTM,
]
WITH_P = [cls for cls in LSTMS if cls is not update_rules.RNNprop]
BAD = [
    (cls, {key: value}, error)
    for classes, key, value, error in [
        (LSTMS, "layers", (), ValueError),
        (LSTMS, "layers", (20, 0), ValueError),
        (LSTMS, "layers", [1.5], TypeError),
        (LSTMS, "layers", (True,), TypeError),
        (LSTMS, "layers", "20", TypeError),
        (LSTMS, "output_scale", NAN, ValueError),
        (LSTMS, "output_scale", 0, ValueError),
        (LSTMS, "output_scale", "0.1", TypeError),
        (LSTMS, "zero_head", "yes", TypeError),
        (LSTMS, "seed", 1.5, TypeError),
        (LSTMS, "dtype", "int8", ValueError),
        (LSTMS, "dtype", 32, TypeError),
        (LSTMS, "name", 3, ValueError),
        (WITH_P, "p", 0, ValueError),
        (WITH_P, "p", NAN, ValueError),
        (WITH_P, "p", 1000, ValueError),
        (WITH_P, "p", "10", TypeError),
        (LSTMS[2:3], "num_averaging", True, TypeError),
        (LSTMS[2:3], "num_averaging", 2.0, TypeError),
        (LSTMS[2:3], "num_averaging", 0, ValueError),
        (LSTMS[3:], "kernel_shape", 5, ValueError),
        (LSTMS[3:], "kernel_shape", (5, 1.5), TypeError),
        (LSTMS[3:], "kernel_shape", (0, 5), ValueError),
        ([update_rules.RNNprop, update_rules.Adam], "beta_1", 1.0, ValueError),
        ([update_rules.RNNprop, update_rules.Adam], "beta_2", NAN, ValueError),
        ([update_rules.RNNprop, update_rules.Adam], "beta_2", "0.9", TypeError),
        ([update_rules.RMSprop], "rho", 1.0, ValueError),
        ([update_rules.RMSprop, update_rules.Adam], "epsilon", -1e-7, ValueError),
        ([update_rules.RMSprop, update_rules.Adam], "epsilon", None, TypeError),
        ([update_rules.Momentum], "momentum", NAN, ValueError),
        ([update_rules.Momentum], "momentum", 1.1, ValueError),
        ([update_rules.Momentum], "nesterov", 1, TypeError),
        ([update_rules.SGD, update_rules.Adam], "learning_rate", NAN, ValueError),
        ([update_rules.SGD, update_rules.Adam], "learning_rate", 0, ValueError),
        ([update_rules.SGD, update_rules.Adam], "learning_rate", "0.1", TypeError),
    ]
    for cls in classes
]


@pytest.mark.parametrize("cls, kwargs, error", BAD)
def test_bad_arguments_are_named(cls, kwargs, error):
    ((key, _),) = kwargs.items()
    with pytest.raises(error, match=rf"`{key}` must .*Received: .*{key}=") as caught:
        cls(**kwargs)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: update_rules.CoordinatewiseLSTM(layers=()), r"`layers`.*\(20, 20\)"),
        (lambda: update_rules.CoordinatewiseLSTM(layers=(20, 0)), "`layers`"),
        (lambda: update_rules.CoordinatewiseLSTM(p=0), "`p` must be .* above 0"),
        (lambda: update_rules.RNNprop(beta_2=1.0), "beta_2=1.0"),
        (lambda: update_rules.SGD(learning_rate=-1), "learning_rate=-1"),
        (lambda: update_rules.SGD(dtype="int8"), "'int8'"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_arguments_of_numpy_and_tensorflow():
    rule = update_rules.CoordinatewiseLSTM([np.int64(3)], dtype=tf.float32, seed=np.int32(1))
    assert rule.layers == (3,) and rule.dtype == "float32"
    assert rule.get_config() == type(rule).from_config(rule.get_config()).get_config()


@pytest.mark.parametrize("dtype, p", [("float32", 87), ("float64", 708)])
def test_the_largest_p_gives_numbers(dtype, p):
    rule = update_rules.CoordinatewiseLSTM((3,), p=p, zero_head=False, seed=0, dtype=dtype)
    gradients = np.array([[0.0, 1e-30, -1.0, 1e30]], dtype)
    assert np.isfinite(run(rule, gradients)).all()
    with pytest.raises(ValueError, match=f"at most {p}. Received: p={p + 1}"):
        update_rules.CoordinatewiseLSTM(p=p + 1, dtype=dtype)


def test_weights_that_do_not_fit_are_refused():
    config = RULES["lstm"]().get_config()
    with pytest.raises(ValueError, match="do not fit"):
        update_rules.CoordinatewiseLSTM.from_config({**config, "layers": [4]})


def test_an_unfinished_rule_says_what_is_missing():
    with pytest.raises(NotImplementedError, match="initial_state"):
        UpdateRule().initial_state(1)
