"""The native kernel against XLA's program and TensorFlow, and where it is not to be had."""

import gc
import os
import subprocess
import sys
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

import l2l_tf
from l2l_tf.native import library
from l2l_tf.update_rules import compiled, native_lstm

needs_library = pytest.mark.skipif(
    library.load() is None
    or any(device.device_type != "CPU" for device in tf.config.list_logical_devices()),
    reason="no C++ compiler, or not a CPU",
)


def rule_and_inputs(rule_class, layers, n, seed=0):
    rule = rule_class(layers=layers, zero_head=False, seed=1)
    gradients = tf.random.stateless_normal([n], [seed, 0])
    state = tf.nest.map_structure(
        lambda leaf: tf.abs(tf.random.stateless_normal(leaf.shape, [seed, leaf.shape[0]])),
        rule.initial_state(n),
    )
    return rule, gradients, state


def assert_near(received, expected, tolerance):
    for a, b in zip(tf.nest.flatten(received), tf.nest.flatten(expected), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_allclose(
            tf.cast(a, tf.float32), tf.cast(b, tf.float32), rtol=tolerance, atol=tolerance
        )


@needs_library
@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 200])  # a block has 64 columns or less
@pytest.mark.parametrize("layers", [(20, 20), (8,), (3, 1, 5)])
@pytest.mark.parametrize(
    "rule_class", [l2l_tf.update_rules.CoordinatewiseLSTM, l2l_tf.update_rules.RNNprop]
)
def test_a_step_is_that_of_tensorflow(rule_class, layers, n):
    rule, gradients, state = rule_and_inputs(rule_class, layers, n)
    assert native_lstm.can_run(rule)
    received = native_lstm.program(rule)(compiled.weights(rule), gradients, state)
    assert_near(received, rule.update(gradients, state), 3e-6)


@needs_library
def test_bfloat16_state():
    rule, gradients, state = rule_and_inputs(l2l_tf.update_rules.RNNprop, (8,), 100)
    state = tf.nest.map_structure(lambda leaf: tf.cast(leaf, tf.bfloat16), state)
    updates, received = native_lstm.program(rule)(compiled.weights(rule), gradients, state)
    state = tf.nest.map_structure(lambda leaf: tf.cast(leaf, tf.float32), state)
    expected_updates, expected = rule.update(gradients, state)
    assert_near(updates, expected_updates, 3e-6)
    expected = tf.nest.map_structure(lambda leaf: tf.cast(leaf, tf.bfloat16), expected)
    assert_near(received, expected, 2.0**-7)


@needs_library
@pytest.mark.parametrize("dtype, tolerance", [("float32", 3e-6), ("bfloat16", 2.0**-7)])
def test_a_state_larger_than_a_cache(dtype, tolerance):
    n = 64 * 520  # a multiple of a block: rows begin with a cache line
    rule, gradients, state = rule_and_inputs(l2l_tf.update_rules.CoordinatewiseLSTM, (20, 20), n)
    state = tf.nest.map_structure(lambda leaf: tf.cast(leaf, dtype), state)
    updates, received = native_lstm.program(rule)(compiled.weights(rule), gradients, state)
    state = tf.nest.map_structure(lambda leaf: tf.cast(leaf, tf.float32), state)
    expected_updates, expected = rule.update(gradients, state)
    assert_near(updates, expected_updates, 3e-6)
    assert_near(received, tf.nest.map_structure(lambda s: tf.cast(s, dtype), expected), tolerance)


@needs_library
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "rule_class", [l2l_tf.update_rules.CoordinatewiseLSTM, l2l_tf.update_rules.RNNprop]
)
def test_pieces_equal_the_whole(rule_class, dtype):
    sizes = [70, 0, 1, 128, 5]
    rule, gradients, state = rule_and_inputs(rule_class, (5, 3), sum(sizes))
    leaves = [tf.cast(leaf, dtype) for leaf in tf.nest.flatten(state)]
    weights = compiled.weights(rule)
    updates, expected = native_lstm.program_of_pieces(rule)(weights, gradients, [leaves])
    pieces = list(zip(*[tf.split(leaf, sizes, axis=-1) for leaf in leaves]))
    of_pieces, received = native_lstm.program_of_pieces(rule)(weights, gradients, pieces)
    assert_near(of_pieces, updates, 1e-6)
    assert [leaves[0].shape[1] for leaves in received] == sizes
    assert_near([tf.concat(of, axis=-1) for of in zip(*received)], expected[0], 1e-6)


@needs_library
def test_the_gradient_of_pieces_is_that_of_tensorflow():
    rule, gradients, state = rule_and_inputs(l2l_tf.update_rules.CoordinatewiseLSTM, (5, 4), 20)
    weights, leaves = compiled.weights(rule), tf.nest.flatten(state)

    def gradient_of(sizes):
        with tf.GradientTape() as tape:
            tape.watch(weights)
            pieces = list(zip(*[tf.split(leaf, sizes, axis=-1) for leaf in leaves]))
            step = native_lstm.program_of_pieces(rule)(weights, gradients, pieces)
            total = sum(tf.reduce_sum(leaf**2) for leaf in tf.nest.flatten(step))
        return tape.gradient(total, weights)

    assert_near(gradient_of([7, 13]), gradient_of([20]), 1e-4)


@needs_library
def test_nan_and_large_gates():
    rule, gradients, state = rule_and_inputs(l2l_tf.update_rules.CoordinatewiseLSTM, (4,), 3)
    ((hidden, cell),), moments = state
    hidden = tf.constant([[np.nan, 1e6, -1e6]] * 4, tf.float32)
    state = ((hidden, cell),), moments
    received = native_lstm.program(rule)(compiled.weights(rule), gradients, state)
    assert np.isnan(received[0][0]) and np.all(np.isfinite(received[0][1:]))
    assert_near(received, rule.update(gradients, state), 3e-6)


@needs_library
def test_its_gradient_is_that_of_tensorflow():
    rule, gradients, state = rule_and_inputs(l2l_tf.update_rules.CoordinatewiseLSTM, (5, 5), 20)
    weights = compiled.weights(rule)

    def gradient_of(update):
        with tf.GradientTape() as tape:
            tape.watch(weights)
            updates, new_state = update(weights, gradients, state)
            total = sum(tf.reduce_sum(leaf**2) for leaf in tf.nest.flatten((updates, new_state)))
        return tape.gradient(total, weights)

    expected = gradient_of(compiled.program(rule, rule.update))
    assert_near(gradient_of(native_lstm.program(rule)), expected, 1e-4)


@needs_library
def test_its_gradient_leaves_nothing_behind():
    rule, gradients, state = rule_and_inputs(l2l_tf.update_rules.CoordinatewiseLSTM, (5, 5), 20)
    update = tf.function(native_lstm.program(rule))
    graph = weakref.ref(
        update.get_concrete_function(compiled.weights(rule), gradients, state).graph
    )
    del update
    gc.collect()
    assert graph() is None


@needs_library
def test_inside_of_xla_it_gives_way():
    rule, gradients, state = rule_and_inputs(l2l_tf.update_rules.CoordinatewiseLSTM, (5,), 20)
    update = compiled.update_program(rule)
    weights = compiled.weights(rule)
    inside = tf.function(update, jit_compile=True)(weights, gradients, state)
    assert_near(inside, update(weights, gradients, state), 3e-6)


@needs_library
def test_shapes_that_do_not_fit_are_refused():
    rule, gradients, state = rule_and_inputs(l2l_tf.update_rules.CoordinatewiseLSTM, (5,), 20)
    features, _ = rule.preprocess(gradients[:19], ())
    weights, states = compiled.weights(rule), tf.nest.flatten(state)
    with pytest.raises(tf.errors.InvalidArgumentError, match="state of layer 0 does not fit"):
        library.load().l2l_lstm_step(features, weights, states)
    features, _ = rule.preprocess(gradients, ())
    with pytest.raises(tf.errors.InvalidArgumentError, match="state of layer 0 does not fit"):
        library.load().l2l_lstm_step(features, weights, [states[0], states[1][:, 1:]])
    with pytest.raises(tf.errors.InvalidArgumentError, match="two states of each layer"):
        library.load().l2l_lstm_step(features, weights, states[:1])


@needs_library
def test_a_rule_with_weights_of_its_own_is_left_to_xla():
    class Scaled(l2l_tf.update_rules.CoordinatewiseLSTM):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

        def postprocess(self, outputs):
            return self.scale * super().postprocess(outputs)

    rule, gradients, state = rule_and_inputs(Scaled, (5,), 20)
    assert not native_lstm.can_run(rule)
    updates, _ = compiled.update_program(rule)(compiled.weights(rule), gradients, state)
    assert_near(updates, rule.update(gradients, state)[0], 3e-6)


@needs_library
def test_the_environment_turns_it_off_at_any_time(monkeypatch):
    rule, *_ = rule_and_inputs(l2l_tf.update_rules.CoordinatewiseLSTM, (5,), 20)
    monkeypatch.setenv("L2L_TF_NATIVE", "0")
    assert library.load() is None and not native_lstm.can_run(rule)
    monkeypatch.delenv("L2L_TF_NATIVE")
    assert native_lstm.can_run(rule)


@needs_library
def test_no_saved_model_has_the_kernel(tmp_path):
    rule = l2l_tf.update_rules.CoordinatewiseLSTM(layers=(4,), zero_head=False)
    model = keras.Sequential([keras.Input([3]), keras.layers.Dense(2)])
    model.compile(optimizer=l2l_tf.LearnedOptimizer(rule), loss="mse")
    model.fit(np.ones([4, 3]), np.ones([4, 2]), verbose=0)
    model.export(tmp_path / "exported", verbose=False)
    tf.saved_model.save(model, str(tmp_path / "saved"))
    l2l_tf.save(rule, str(tmp_path / "rule"))
    graphs = list(tmp_path.rglob("saved_model.pb"))
    assert len(graphs) == 3
    assert not any(b"L2lLstmStep" in graph.read_bytes() for graph in graphs)


@needs_library
def test_a_damaged_library_is_compiled_again(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = library._path(library._compiler())
    path.write_bytes(b"")
    # Twice in one process TensorFlow would not register the op: in another one.
    program = "from l2l_tf.native import library; assert library.load() is not None"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert path.stat().st_size > 10_000


def test_without_a_home_its_directory_is_temporary(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.chdir(tmp_path)
    assert library._cache_directory().is_absolute()
    assert not list(tmp_path.iterdir())


def test_without_a_compiler_it_is_absent(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert library._load.__wrapped__() is None


def test_a_compiler_that_fails_is_reported(monkeypatch, tmp_path):
    def fail(command, **kwargs):
        if "-o" in command:
            raise subprocess.CalledProcessError(1, command, stderr="no space left")
        return subprocess.CompletedProcess(command, 0, stdout="version 1")

    monkeypatch.setenv("CXX", "true -m64")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.warns(UserWarning, match="no space left"):
        assert library._load.__wrapped__() is None
    assert not list((tmp_path / "l2l_tf").iterdir())
