"""What a rule that averages its iterates hands out at the end, and how training goes on from it."""

import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_hierarchical import random_rule

import l2l_tf
from l2l_tf.update_rules import Adam, GroupedRule, Hierarchical, ScheduleFreeAdamW

SHAPES = [(4, 3), (3,), (130, 40)]
RULES = {
    "schedule_free": lambda: ScheduleFreeAdamW(0.1),
    "hierarchical": lambda: random_rule(0.3, averaging=0.9),
    "hierarchical without a GRU": lambda: Hierarchical(
        control_units=0, coordinate_units=0, averaging=0.9
    ),
    "grouped": lambda: GroupedRule([("_0", ScheduleFreeAdamW(0.1)), (".*", Adam(0.1))]),
}


def tensors(seed):
    rng = np.random.default_rng(seed)
    return [tf.constant(rng.normal(size=shape), tf.float32) for shape in SHAPES]


class Run:
    """Some variables, and steps of an optimizer, with gradients that do not depend on them."""

    def __init__(self, rule, jit_compile=None, **kwargs):
        self.variables = [
            keras.Variable(value, name=f"variable_{k}") for k, value in enumerate(tensors(100))
        ]
        self.optimizer = l2l_tf.LearnedOptimizer(rule, **kwargs)
        self.optimizer.build(self.variables)
        self._apply = tf.function(
            lambda gradients: self.optimizer.apply(gradients, self.variables),
            jit_compile=jit_compile,
        )

    def steps(self, *numbers):
        for number in numbers:
            self._apply(tensors(number))
        return self

    def finalize(self):
        self.optimizer.finalize_variable_values(self.variables)
        return self

    def values(self):
        return [v.numpy() for v in self.variables]


def assert_near(received, expected, tolerance=1e-6):
    for a, b in zip(received, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_it_is_the_average_times_the_learning_rate():
    """z and x by the paper's formulas, from what a first step and a second one move."""
    gradients = [g.numpy() for g in tensors(0)]
    run = Run(ScheduleFreeAdamW(0.1), learning_rate=0.5).steps(0, 0)
    start = [v.numpy() for v in tensors(100)]
    # Steps of 0.1 in the direction of the same gradient: z is at 2 of them, x at the mean.
    at_x = [v - 0.5 * 0.15 * np.sign(g) for v, g in zip(start, gradients)]
    assert_near(run.finalize().values(), at_x, 1e-5)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("jit_compile", [None, True])
def test_training_goes_on_as_if_nothing_had_been_handed_out(name, jit_compile):
    whole = Run(RULES[name](), jit_compile).steps(0, 1, 2)
    interrupted = Run(RULES[name](), jit_compile).steps(0, 1, 2)
    assert_near(interrupted.values(), whole.values())
    at_y = interrupted.values()
    at_x = interrupted.finalize().values()
    assert_near(interrupted.finalize().values(), at_x, 0)  # once is all
    moved = [np.abs(x - y).max() > 1e-4 for x, y in zip(at_x, at_y)]
    assert moved == ([True, False, False] if name == "grouped" else [True, True, True])
    whole.steps(3)
    interrupted.steps(3)
    # Of what the rule sees, parameters were those of x for a step.
    assert_near(interrupted.values(), whole.values(), 1e-2 if "hierarchical" in name else 1e-5)
    assert not np.allclose(interrupted.values()[0], interrupted.finalize().values()[0], atol=1e-5)


def test_a_copy_knows_that_it_was_handed_out():
    run = Run(RULES["schedule_free"]()).steps(0, 1).finalize()
    copy = Run(RULES["schedule_free"]())
    copy.optimizer = pickle.loads(pickle.dumps(run.optimizer))
    for variable, value in zip(copy.variables, run.values()):
        variable.assign(value)
    copy.optimizer.build(copy.variables)
    assert_near(copy.steps(2).values(), run.steps(2).values())


def test_a_moving_average_goes_before():
    run = Run(RULES["schedule_free"](), use_ema=True, ema_momentum=0.5).steps(0, 1).finalize()
    average = [v.numpy() for v in run.optimizer._model_variables_moving_average]
    assert_near(run.values(), average)


def test_fit_ends_with_it():
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    y = x.sum(axis=1, keepdims=True)
    seen = {}

    def last_batch(*_):
        seen["y"] = [w.numpy() for w in model.trainable_variables]

    model = keras.Sequential([keras.Input([4]), keras.layers.Dense(1)])
    model.compile(l2l_tf.LearnedOptimizer(RULES["schedule_free"]()), "mse")
    callback = keras.callbacks.LambdaCallback(on_epoch_end=last_batch)
    model.fit(x, y, epochs=2, batch_size=16, verbose=0, callbacks=[callback])
    shifts = model.optimizer._state.step.final_shifts(model.optimizer._state.pieces)
    expected = [value + shift for value, shift in zip(seen["y"], shifts)]
    assert_near([w.numpy() for w in model.trainable_variables], expected)
    assert any(np.abs(shift).max() > 1e-3 for shift in shifts)


@pytest.mark.parametrize("name", ["schedule_free", "hierarchical", "hierarchical without a GRU"])
def test_tensorflow_alone_finds_it_in_the_file(name, tmp_path):
    rule = RULES[name]()
    l2l_tf.save(rule, tmp_path / "rule")
    loaded = tf.saved_model.load(tmp_path / "rule")
    size = tf.ragged.constant([[3]], dtype=tf.int32) if rule.has_control else 3
    state, theta = loaded.initial_state(size), tf.ones([3])
    for _ in range(3):
        shapes = [size] if rule.has_control else []
        update, state = loaded.update(theta, theta, state, *shapes)
        theta += update
    expected = rule.final_shift(state[0] if rule.has_control else state)
    np.testing.assert_allclose(loaded.final_shift(state), expected, rtol=1e-6)
    assert np.abs(expected).max() > 1e-4
