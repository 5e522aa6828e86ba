"""Hierarchical's native step: both passes, and a control without a GRU, in each branch.

Against the rule in float64.
"""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from native_builds import each_branch, needs_library, op_of, skip_unless_it_runs
from test_hierarchical import random_rule

from l2l_tf.update_rules import Hierarchical, levels

pytestmark = needs_library

# A vector has 4, 8 or 16 coordinates, a block of the net two vectors, a chunk 4,096.
SHAPES = [
    (),
    (1,),
    (3,),
    (4,),
    (5, 3),
    (16,),
    (2, 0),
    (31,),
    (4, 8),
    (33,),
    (64,),
    (5, 13),
    (4400,),
]
SIZES = [int(np.prod(shape)) for shape in SHAPES]
OWNERS = levels.owners_of(SIZES)
BLOCKS = (1, 64)
UNITS = (None, 0, 4, 8)  # of the coordinates' net; None without a GRU, and without momenta
DTYPES = ("float32", "bfloat16")


@pytest.fixture(params=each_branch)
def ops(request):
    """``(summarize, update)``, with the arguments of both that are the same throughout."""
    skip_unless_it_runs(request.param)

    def with_defaults(name):
        op = op_of(request.param, name)
        return lambda *args, threads=2, **kwargs: op(*args, threads=threads, **kwargs)

    return [with_defaults(f"l2l_hierarchical_{name}") for name in ("summarize", "update")]


@pytest.fixture(params=each_branch)
def control(request):
    skip_unless_it_runs(request.param)
    return op_of(request.param, "l2l_hierarchical_control")


def in_tensors(vector):
    return [tf.reshape(part, s) for part, s in zip(tf.split(vector, SIZES), SHAPES)]


def filled_up(vector, block, value=0.0):
    parts = np.split(np.asarray(vector), np.cumsum(SIZES)[:-1])
    return np.concatenate([np.pad(p, (0, -p.size % block), constant_values=value) for p in parts])


AVERAGING = 0.9


def rule_of(units, dtype="float32", averaging=None):
    return random_rule(
        control_units=0 if units is None else 16,
        coordinate_units=units or 0,
        dtype=dtype,
        max_direction=4.0,
        averaging=averaging_of(units) if averaging is None else averaging,
    )


def averaging_of(units):
    return AVERAGING if units is None else 0.0


def num_moments(units):
    return 1 if units is None else 3


def zero_state(units):
    return [np.zeros(sum(SIZES), "float32")] * (num_moments(units) + (averaging_of(units) > 0))


def num_controls(units):
    return (5 + units if units else 4) + (averaging_of(units) > 0)


def net_of(units):
    return [tf.convert_to_tensor(weight) for weight in rule_of(units).weights[-5:]] if units else []


def random_inputs(units, dtype="float32", seed=0, averaging=None):
    """Gradients, parameters, state, controls; some coordinates had no gradient, yet or of late."""
    rng = np.random.default_rng(seed)
    gradients, parameters = rng.normal(size=[2, sum(SIZES)]).astype("float32")
    sizes = np.exp(3 * rng.normal(size=sum(SIZES)))
    fast, slow = 0.3 * sizes * rng.normal(size=[2, sum(SIZES)])
    square = sizes**2 * rng.uniform(0.3, 3.0, sum(SIZES))
    at_rest = rng.random(sum(SIZES)) < 0.1
    state = [np.where(at_rest, 0, leaf).astype("float32") for leaf in (fast, slow, square)]
    gradients = np.where(at_rest & (rng.random(sum(SIZES)) < 0.5), 0, gradients * sizes)
    nearly_at_rest = rng.random(sum(SIZES)) < 0.2
    gradients[nearly_at_rest] *= 1e-3
    state[0][nearly_at_rest] *= 1e-3
    state = [tf.cast(tf.cast(leaf, dtype), "float32").numpy() for leaf in state]
    controls = rng.normal(size=[5 + units if units else 4, len(SIZES)])
    controls[:4] = rng.uniform(0.5, 2.0, [4, len(SIZES)])
    state = state[-num_moments(units) :]
    if averaging_of(units) if averaging is None else averaging:
        controls = np.concatenate([controls, rng.uniform(0.0, 1.0, [1, len(SIZES)])])
        state.append(rng.normal(size=sum(SIZES)).astype("float32"))
    return gradients.astype("float32"), parameters, state, controls.astype("float32")


def summaries_by_tensorflow(units, gradients, parameters, state):
    """And of the same with all contributions' magnitudes, of which rounding is a share."""
    rule = rule_of(units, "float64")
    inputs = levels.Inputs(*(tf.constant(v, tf.float64) for v in (gradients, parameters)))
    state = [tf.constant(leaf, tf.float64) for leaf in state]
    of_each = rule.summarize(inputs, state)
    return [levels.sum_by_tensor(c, OWNERS, len(SIZES)).numpy() for c in (of_each, tf.abs(of_each))]


def update_by_tensorflow(units, gradients, parameters, state, controls):
    has_lead = len(state) > num_moments(units)
    rule = rule_of(units, "float64", averaging=AVERAGING if has_lead else 0.0)
    inputs = levels.Inputs(*(tf.constant(v, tf.float64) for v in (gradients, parameters)))
    state = [tf.constant(leaf, tf.float64) for leaf in state]
    of_each = tf.gather(tf.constant(controls, tf.float64), OWNERS, axis=1)
    return rule.update(inputs, state, of_each)


def summarize(op, units, block, dtype, gradients, parameters, state, **kwargs):
    moments = state[: num_moments(units)]
    moments = [tf.cast(filled_up(leaf, block, value=7.0), dtype) for leaf in moments]
    given = in_tensors(gradients), in_tensors(parameters), moments
    return op(*given, has_net=bool(units), block=block, **kwargs)


def update(op, units, block, dtype, inputs, rate=1.0, decays=None, **kwargs):
    """``(parameters [N], state)``, the latter as the op returns it."""
    gradients, parameters, state, controls = inputs
    moments, lead = state[: num_moments(units)], state[num_moments(units) :]
    lead = [tf.constant(filled_up(leaf, block, value=7.0), "float32") for leaf in lead]
    moved, moments, lead = op(
        in_tensors(gradients),
        in_tensors(parameters),
        controls,
        net_of(units),
        rate,
        tf.zeros(len(SIZES)) if decays is None else decays,
        [tf.cast(filled_up(leaf, block, value=7.0), dtype) for leaf in moments],
        lead=lead,
        averaging=AVERAGING if lead else 0.0,
        max_direction=4.0,
        block=block,
        **kwargs,
    )
    assert [tuple(m.shape) for m in moved] == SHAPES
    return np.concatenate([np.ravel(m) for m in moved]), [*moments, *lead]


@pytest.mark.parametrize(
    "units, block, dtype", [(None, 64, "float32"), (0, 64, "float32"), (8, 1, "bfloat16")]
)
def test_summaries_are_those_of_the_rule(ops, units, block, dtype):
    gradients, parameters, state, _ = random_inputs(units, dtype)
    expected, of_magnitudes = summaries_by_tensorflow(units, gradients, parameters, state)
    received, is_finite = summarize(ops[0], units, block, dtype, gradients, parameters, state)
    assert is_finite and received.shape == expected.shape
    assert np.all(np.abs(received - expected) <= 2e-6 * of_magnitudes + 1e-30)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "units, averaging", [(None, AVERAGING), *itertools.product(UNITS[1:], [0.0, AVERAGING])]
)
def test_a_step_is_that_of_the_rule(ops, units, averaging, dtype):
    inputs = random_inputs(units, dtype, averaging=averaging)
    updates, expected_state = update_by_tensorflow(units, *inputs)
    assert np.abs(updates).max() > 1 and np.mean(np.abs(updates)) > 0.1
    for block in BLOCKS:
        moved, state = update(ops[1], units, block, dtype, inputs)
        np.testing.assert_allclose(moved, inputs[1] + updates, rtol=2e-5, atol=2e-5)
        momenta = num_moments(units) - 1
        scales = [np.abs(inputs[0])] * momenta + [inputs[0] ** 2, np.full(sum(SIZES), 10.0)]
        dtypes = [dtype] * num_moments(units) + ["float32"]  # the last adds up small steps
        for received, expected, scale, of_leaf in zip(state, expected_state, scales, dtypes):
            is_there = filled_up(np.ones(sum(SIZES)), block) > 0
            assert (
                received.dtype == of_leaf
                and not tf.cast(received, tf.float32)[~is_there].numpy().any()
            )
            tolerance = 2.0**-8 if of_leaf == "bfloat16" else 1e-6
            received = tf.cast(received, tf.float64).numpy()[is_there]
            error = np.abs(received - expected)
            assert np.all(error <= tolerance * np.abs(expected) + 1e-6 * scale)


def test_learning_rate_and_weight_decay(ops):
    inputs = random_inputs(8)
    updates, _ = update_by_tensorflow(8, *inputs)
    decays = np.linspace(0.0, 0.2, len(SIZES)).astype("float32")
    moved, _ = update(ops[1], 8, 64, "float32", inputs, 0.3, decays)
    expected = inputs[1] * (1 - decays[OWNERS]) + 0.3 * updates
    np.testing.assert_allclose(moved, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("units", [None, 0, 8])
def test_several_threads_give_the_same_bits(ops, units):
    inputs, received = random_inputs(units), []
    for threads in (1, 2, 5):
        summaries = summarize(ops[0], units, 64, "float32", *inputs[:3], threads=threads)[0]
        moved, state = update(ops[1], units, 64, "float32", inputs, threads=threads)
        received.append([summaries, moved, *state])
    for other in received[1:]:
        for a, b in zip(received[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_seen_wherever_it_is(ops, value):
    gradients, parameters, state, _ = random_inputs(8)
    starts = np.cumsum([0, *SIZES[:-1]])
    for tensor, size in enumerate(SIZES):
        for place in {0, size // 2, size - 1} if size else ():
            changed = gradients.copy()
            changed[starts[tensor] + place] = value
            *_, is_finite = summarize(ops[0], 8, 64, "float32", changed, parameters, state)
            assert not is_finite


@pytest.mark.parametrize("units", [None, 0, 8])
def test_the_whole_range_of_gradients(ops, units):
    """Those beyond it are taken as its ends; no gradient, no step; and none is not a number."""
    rng = np.random.default_rng(3)
    exponents = rng.uniform(-45, 38.5, sum(SIZES))
    gradients = np.where(rng.random(sum(SIZES)) < 0.1, 0, 10**exponents).astype("float32")
    zeros, state = np.zeros(sum(SIZES), "float32"), zero_state(units)
    expected, of_magnitudes = summaries_by_tensorflow(
        units, np.where(gradients < 1e-17, 0, gradients), zeros, state
    )
    summaries, is_finite = summarize(ops[0], units, 64, "float32", gradients, zeros, state)
    assert is_finite
    if units:  # logarithms, of what is neither 0 nor nearly so
        is_near_the_end = (gradients > 1e-20) & (gradients < 1e-17)
        some = np.bincount(OWNERS[is_near_the_end], minlength=len(SIZES)) == 0
        error = np.abs(summaries - expected)[10:, some]
        assert np.all(error <= 2e-6 * of_magnitudes[10:, some])
    controls = np.ones([num_controls(units), len(SIZES)], "float32")
    moved, new_state = update(ops[1], units, 64, "float32", (gradients, zeros, state, controls))
    assert np.isfinite(moved).all() and all(np.isfinite(leaf).all() for leaf in new_state)
    assert not moved[gradients < 1e-20].any()
    inputs = np.where(gradients < 1e-20, 0, gradients), zeros, state, controls
    updates, _ = update_by_tensorflow(units, *inputs)
    is_sure = (gradients == 0) | (gradients > 1e-17)
    np.testing.assert_allclose(moved[is_sure], updates.numpy()[is_sure], rtol=2e-5, atol=2e-5)


def test_a_gradient_that_is_not_a_number_stays_one(ops):
    inputs = random_inputs(8)
    expected, _ = update(ops[1], 8, 64, "float32", inputs)
    for place in (0, 7, sum(SIZES) - 1):
        gradients = inputs[0].copy()
        gradients[place] = np.nan
        moved, state = update(ops[1], 8, 64, "float32", (gradients, *inputs[1:]))
        assert np.isnan(moved[place])
        np.testing.assert_array_equal(np.delete(moved, place), np.delete(expected, place))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"gradients": lambda g: [g[0], g[1][:1]]}, "gradient does not fit"),
        ({"moments": lambda leaves: [leaves[0][:64], *leaves[1:]]}, "state does not fit"),
        ({"moments": lambda leaves: [*leaves[:2], leaves[2][:64]]}, "state does not fit"),
        ({"moments": lambda leaves: leaves[:1]}, "without momenta there is no net"),
        ({"moments": lambda leaves: leaves[:2]}, "1 or 3 moments"),
        ({"lead": lambda leaves: [leaves[0][:64]]}, "state does not fit"),
        ({"controls": lambda c: c[:-1]}, "controls do not fit"),
        ({"controls": lambda c: c[:, :1]}, "controls do not fit"),
        ({"weights": lambda w: w[:4]}, "a net has 5 weights"),
        ({"weights": lambda w: [w[0][:, :6], *w[1:]]}, "net does not fit"),
        ({"weights": lambda w: [*w[:4], w[4][:1]]}, "net does not fit"),
        ({"decays": lambda d: d[:1]}, "decays do not fit"),
        ({"rate": lambda r: tf.zeros([2])}, "learning rate or the decays"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(ops, change, message):
    units = 8
    net = [[units, 7], [units, units], [units, 1], [2, units], [2, 1]]
    given = {
        "gradients": [tf.zeros([2, 2]), tf.zeros([3])],
        "parameters": [tf.zeros([2, 2]), tf.zeros([3])],
        "controls": tf.zeros([6 + units, 2]),
        "weights": [tf.zeros(shape) for shape in net],
        "rate": tf.constant(1.0),
        "decays": tf.zeros([2]),
        "moments": [tf.zeros([128])] * 3,
        "lead": [tf.zeros([128])],
    }
    fixed = {"max_direction": 4.0, "averaging": AVERAGING, "block": 64}
    ops[1](**given, **fixed)
    ((name, function),) = change.items()
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        ops[1](**given | {name: function(given[name])}, **fixed)


OF_CONTROL = {"warm_up": 5, "decay_after": 20, "averaging": 0.9, "averaging_power": 4.0}
OF_CONTROL |= {"max_growth": 3.0}


@pytest.mark.parametrize(
    "options",
    [OF_CONTROL, dict.fromkeys(OF_CONTROL, 0) | {"averaging": 0.9}, {**OF_CONTROL, "averaging": 0}],
)
def test_control_is_that_of_the_rule(control, options):
    """From the first step on, through an alarm; parameters grow, and some gradients are 0."""
    options_of_rule = {**options, "max_growth": options["max_growth"] or None}
    rule = Hierarchical(
        control_units=0, coordinate_units=0, dtype="float64", depth_power=0.25, **options_of_rule
    )
    rng, number = np.random.default_rng(0), len(SHAPES)
    tensors = levels.Tensors.of_shapes(SHAPES, "float64")
    expected_state = rule.initial_control(tensors)
    state = tf.nest.map_structure(lambda leaf: tf.cast(leaf, "float32"), expected_state)
    facts = [tf.cast(fact, "float32") for fact in tensors.facts()]
    were_alarmed = []
    for step in range(12):
        powers, squares = np.exp(rng.normal(size=[2, number])) * SIZES
        powers[0], powers[3] = 0, powers[3] * (1e4 if step == 8 else 1)
        summaries = np.stack([powers, squares * (1 + step) ** 2]).astype("float32")
        received, *new = control(
            summaries,
            *facts,
            state["brake"],
            state.get("first_scale", state["steps"]),
            state["log_step"],
            state["powers"],
            state["steps"],
            **options,
        )
        new = dict(zip(("brake", "first_scale", "powers", "steps"), new))
        state = {name: new.get(name, old) for name, old in state.items()}
        expected, expected_state = rule.control(
            tf.cast(summaries, "float64"), expected_state, tensors
        )
        np.testing.assert_allclose(received, expected, rtol=3e-6)
        for name, leaf in expected_state.items():
            np.testing.assert_allclose(state[name], leaf, rtol=3e-6, err_msg=name)
        were_alarmed.append(state["brake"].numpy().max() < -0.1)
    assert were_alarmed == [False] * 8 + [True] * 4


def test_shapes_that_do_not_fit_the_control_are_refused(control):
    given = [tf.zeros([rows, 4]) for rows in (2, 1, 1, 1, 1, 1, 1, 3, 1)]
    control(*given, **OF_CONTROL)
    for index in range(len(given)):
        wrong = [leaf[:, :3] if i == index else leaf for i, leaf in enumerate(given)]
        with pytest.raises(tf.errors.InvalidArgumentError, match="is not of K tensors"):
            control(*wrong, **OF_CONTROL)
