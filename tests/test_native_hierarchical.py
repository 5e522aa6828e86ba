"""Both passes of Hierarchical's native step, in each branch, against the rule in float64."""

import numpy as np
import pytest
import tensorflow as tf
from native_builds import each_branch, needs_library, op_of, skip_unless_it_runs
from test_hierarchical import random_rule

from l2l_tf.update_rules import levels

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
UNITS = (0, 4, 8)
DTYPES = ("float32", "bfloat16")


@pytest.fixture(params=each_branch)
def ops(request):
    """``(summarize, update)``, with the arguments of both that are the same throughout."""
    skip_unless_it_runs(request.param)

    def with_defaults(name):
        op = op_of(request.param, name)
        return lambda *args, threads=2, **kwargs: op(*args, threads=threads, **kwargs)

    return [with_defaults(f"l2l_hierarchical_{name}") for name in ("summarize", "update")]


def in_tensors(vector):
    return [tf.reshape(part, s) for part, s in zip(tf.split(vector, SIZES), SHAPES)]


def filled_up(vector, block, value=0.0):
    parts = np.split(np.asarray(vector), np.cumsum(SIZES)[:-1])
    return np.concatenate([np.pad(p, (0, -p.size % block), constant_values=value) for p in parts])


AVERAGING = 0.9


def rule_of(units, dtype="float32", scale=0.5, averaging=0.0):
    return random_rule(
        scale, coordinate_units=units, dtype=dtype, max_direction=4.0, averaging=averaging
    )


def net_of(units):
    return [tf.convert_to_tensor(weight) for weight in rule_of(units).weights[-5:]] if units else []


def random_inputs(units, dtype="float32", seed=0, averaging=0.0):
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
    if averaging:
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
    rule = rule_of(units, "float64", averaging=AVERAGING if len(state) == 4 else 0.0)
    inputs = levels.Inputs(*(tf.constant(v, tf.float64) for v in (gradients, parameters)))
    state = [tf.constant(leaf, tf.float64) for leaf in state]
    of_each = tf.gather(tf.constant(controls, tf.float64), OWNERS, axis=1)
    return rule.update(inputs, state, of_each)


def summarize(op, units, block, dtype, gradients, parameters, state, **kwargs):
    state = [tf.cast(filled_up(leaf, block, value=7.0), dtype) for leaf in state]
    given = in_tensors(gradients), in_tensors(parameters), *state
    return op(*given, has_net=units > 0, block=block, **kwargs)


def update(op, units, block, dtype, inputs, rate=1.0, decays=None, **kwargs):
    """``(parameters [N], state)``, the latter as the op returns it."""
    gradients, parameters, state, controls = inputs
    lead = [tf.constant(filled_up(leaf, block, value=7.0), "float32") for leaf in state[3:]]
    moved, *state, lead = op(
        in_tensors(gradients),
        in_tensors(parameters),
        controls,
        net_of(units),
        rate,
        tf.zeros(len(SIZES)) if decays is None else decays,
        *[tf.cast(filled_up(leaf, block, value=7.0), dtype) for leaf in state[:3]],
        lead=lead,
        averaging=AVERAGING if lead else 0.0,
        max_direction=4.0,
        block=block,
        **kwargs,
    )
    assert [tuple(m.shape) for m in moved] == SHAPES
    return np.concatenate([np.ravel(m) for m in moved]), [*state, *lead]


@pytest.mark.parametrize("units, block, dtype", [(0, 64, "float32"), (8, 1, "bfloat16")])
def test_summaries_are_those_of_the_rule(ops, units, block, dtype):
    gradients, parameters, state, _ = random_inputs(units, dtype)
    expected, of_magnitudes = summaries_by_tensorflow(units, gradients, parameters, state)
    received, is_finite = summarize(ops[0], units, block, dtype, gradients, parameters, state)
    assert is_finite and received.shape == expected.shape
    assert np.all(np.abs(received - expected) <= 2e-6 * of_magnitudes + 1e-30)


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("averaging", [0.0, AVERAGING])
def test_a_step_is_that_of_the_rule(ops, units, dtype, averaging):
    inputs = random_inputs(units, dtype, averaging=averaging)
    updates, expected_state = update_by_tensorflow(units, *inputs)
    assert np.abs(updates).max() > 1 and np.mean(np.abs(updates)) > 0.1
    for block in BLOCKS:
        moved, state = update(ops[1], units, block, dtype, inputs)
        np.testing.assert_allclose(moved, inputs[1] + updates, rtol=2e-5, atol=2e-5)
        scales = [np.abs(inputs[0])] * 2 + [inputs[0] ** 2, np.full(sum(SIZES), 10.0)]
        dtypes = [dtype] * 3 + ["float32"]  # the last adds up small steps
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


@pytest.mark.parametrize("units", [0, 8])
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


@pytest.mark.parametrize("units", [0, 8])
def test_the_whole_range_of_gradients(ops, units):
    """Those beyond it are taken as its ends; no gradient, no step; and none is not a number."""
    rng = np.random.default_rng(3)
    exponents = rng.uniform(-45, 38.5, sum(SIZES))
    gradients = np.where(rng.random(sum(SIZES)) < 0.1, 0, 10**exponents).astype("float32")
    zeros = np.zeros(sum(SIZES), "float32")
    state = [zeros] * 3
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
    controls = np.ones([5 + units if units else 4, len(SIZES)], "float32")
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
        ({"fast": lambda leaf: leaf[:64]}, "state does not fit"),
        ({"square": lambda leaf: leaf[:64]}, "state does not fit"),
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
        **{leaf: tf.zeros([128]) for leaf in ("fast", "slow", "square")},
        "lead": [tf.zeros([128])],
    }
    fixed = {"max_direction": 4.0, "averaging": AVERAGING, "block": 64}
    ops[1](**given, **fixed)
    ((name, function),) = change.items()
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        ops[1](**given | {name: function(given[name])}, **fixed)
