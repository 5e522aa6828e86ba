"""The native kernel against XLA's program and TensorFlow, and where it is not to be had."""

import concurrent.futures
import functools
import gc
import os
import pathlib
import stat
import subprocess
import sys
import tempfile
import time
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

import l2l_tf
from l2l_tf.engine.program import Program
from l2l_tf.update_rules.lstm import kernel
from l2l_tf.update_rules.native import library

needs_library = pytest.mark.skipif(
    library.load() is None
    or any(device.device_type != "CPU" for device in tf.config.list_logical_devices()),
    reason="no C++ compiler, or not a CPU",
)


@pytest.fixture(autouse=True)
def _not_turned_off(monkeypatch):
    """What needs no library is tested also where the environment turns it off."""
    monkeypatch.delenv("L2L_TF_NATIVE", raising=False)


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
    assert kernel.Kernel(rule).can_run()
    received = kernel.Kernel(rule)(Program(rule).weights(), gradients, state)
    assert_near(received, rule.update(gradients, state), 3e-6)


@needs_library
def test_bfloat16_state():
    rule, gradients, state = rule_and_inputs(l2l_tf.update_rules.RNNprop, (8,), 100)
    state = tf.nest.map_structure(lambda leaf: tf.cast(leaf, tf.bfloat16), state)
    updates, received = kernel.Kernel(rule)(Program(rule).weights(), gradients, state)
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
    updates, received = kernel.Kernel(rule)(Program(rule).weights(), gradients, state)
    state = tf.nest.map_structure(lambda leaf: tf.cast(leaf, tf.float32), state)
    expected_updates, expected = rule.update(gradients, state)
    assert_near(updates, expected_updates, 3e-6)
    assert_near(received, tf.nest.map_structure(lambda s: tf.cast(s, dtype), expected), tolerance)


@needs_library
def test_nan_and_large_gates():
    rule, gradients, state = rule_and_inputs(l2l_tf.update_rules.CoordinatewiseLSTM, (4,), 3)
    ((hidden, cell),), moments = state
    hidden = tf.constant([[np.nan, 1e6, -1e6]] * 4, tf.float32)
    state = ((hidden, cell),), moments
    received = kernel.Kernel(rule)(Program(rule).weights(), gradients, state)
    assert np.isnan(received[0][0]) and np.all(np.isfinite(received[0][1:]))
    assert_near(received, rule.update(gradients, state), 3e-6)


@needs_library
def test_its_gradient_is_that_of_tensorflow():
    rule, gradients, state = rule_and_inputs(l2l_tf.update_rules.CoordinatewiseLSTM, (5, 5), 20)
    weights = Program(rule).weights()

    def gradient_of(update):
        with tf.GradientTape() as tape:
            tape.watch(weights)
            updates, new_state = update(weights, gradients, state)
            total = sum(tf.reduce_sum(leaf**2) for leaf in tf.nest.flatten((updates, new_state)))
        return tape.gradient(total, weights)

    def without_kernel(weights, gradients, state):
        with keras.StatelessScope(state_mapping=list(zip(rule.variables, weights))):
            return rule.update(gradients, state)

    expected = gradient_of(without_kernel)
    assert_near(gradient_of(kernel.Kernel(rule)), expected, 1e-4)


@needs_library
def test_its_gradient_leaves_nothing_behind():
    rule, gradients, state = rule_and_inputs(l2l_tf.update_rules.CoordinatewiseLSTM, (5, 5), 20)
    update = tf.function(kernel.Kernel(rule))
    graph = weakref.ref(
        update.get_concrete_function(Program(rule).weights(), gradients, state).graph
    )
    del update
    gc.collect()
    assert graph() is None


@needs_library
def test_inside_of_xla_it_gives_way():
    rule, gradients, state = rule_and_inputs(l2l_tf.update_rules.CoordinatewiseLSTM, (5,), 20)
    update = Program(rule).update
    weights = Program(rule).weights()
    inside = tf.function(update, jit_compile=True)(weights, gradients, state)
    assert_near(inside, update(weights, gradients, state), 3e-6)


@needs_library
def test_shapes_that_do_not_fit_are_refused():
    rule, gradients, state = rule_and_inputs(l2l_tf.update_rules.CoordinatewiseLSTM, (5,), 20)
    features, _ = rule.preprocess(gradients[:19], ())
    weights, states = Program(rule).weights(), tf.nest.flatten(state)
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
    assert not kernel.Kernel(rule).can_run()
    updates, _ = Program(rule).update(Program(rule).weights(), gradients, state)
    assert_near(updates, rule.update(gradients, state)[0], 3e-6)


@needs_library
def test_the_environment_turns_it_off_at_any_time(monkeypatch):
    rule, *_ = rule_and_inputs(l2l_tf.update_rules.CoordinatewiseLSTM, (5,), 20)
    monkeypatch.setenv("L2L_TF_NATIVE", "0")
    assert library.load() is None and not kernel.Kernel(rule).can_run()
    monkeypatch.delenv("L2L_TF_NATIVE")
    assert kernel.Kernel(rule).can_run()


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


@pytest.mark.slow
@needs_library
def test_a_damaged_library_is_compiled_again(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = library._path(library._compiler())
    path.write_bytes(b"")
    # Twice in one process TensorFlow would not register the op: in another one.
    program = "from l2l_tf.update_rules.native import library\nassert library.load() is not None"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert path.stat().st_size > 10_000


def test_without_a_home_its_directory_is_temporary(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.chdir(tmp_path)
    assert library._cache_directory().is_absolute()
    assert not list(tmp_path.iterdir())


def cache_directory(base, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(base))
    return library._cache_directory()


def test_the_cache_is_its_owners_alone(monkeypatch, tmp_path):
    old = os.umask(0)  # of the most generous user
    try:
        directory = cache_directory(tmp_path / "cache", monkeypatch)
    finally:
        os.umask(old)
    assert directory == tmp_path / "cache" / "l2l_tf"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def owned_by_another(monkeypatch, base):
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)


def writable(path, mode):
    return lambda monkeypatch, base: (base / path).chmod(mode)


def a_link(monkeypatch, base):
    (base / "l2l_tf").rename(base / "elsewhere")
    (base / "l2l_tf").symlink_to(base / "elsewhere")


def below_a_link(monkeypatch, base):
    """What looks like the cache is in a directory that everyone can write."""
    base.rename(base.with_name("open"))
    base.with_name("open").chmod(0o777)
    base.symlink_to(base.with_name("open"))


UNTRUSTED = {
    "another's": owned_by_another,
    "the group's": writable("l2l_tf", 0o770),
    "everyone's": writable("l2l_tf", 0o707),
    "in a directory of everyone's": writable(".", 0o777),
    "in one further up": writable("..", 0o777),
    "a link": a_link,
    "below a link": below_a_link,
}


@pytest.mark.parametrize("make_untrusted", UNTRUSTED.values(), ids=UNTRUSTED)
def test_a_cache_that_others_can_write_is_not_used(make_untrusted, monkeypatch, tmp_path):
    base = tmp_path / "home" / "cache"
    (base / "l2l_tf").mkdir(mode=0o755, parents=True)
    assert cache_directory(base, monkeypatch) == base / "l2l_tf"
    make_untrusted(monkeypatch, base)
    with pytest.warns(UserWarning, match="someone else may be able to write"):
        directory = cache_directory(base, monkeypatch)
    assert directory.parent == pathlib.Path(tempfile.gettempdir())
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert not list((base / "l2l_tf").iterdir())


def test_a_sticky_directory_of_everyones_may_hold_the_cache(monkeypatch, tmp_path):
    tmp_path.chmod(0o1777)
    assert cache_directory(tmp_path, monkeypatch) == tmp_path / "l2l_tf"


@pytest.mark.parametrize("kind", ["another's", "the group's", "a link", "ours"])
def test_only_a_library_that_no_one_else_can_have_written_is_loaded(kind, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(library, "_run", lambda command: "")
    loaded, compiled_again = [], []
    monkeypatch.setattr(tf, "load_op_library", loaded.append)
    monkeypatch.setattr(library, "_compile", lambda _, path: compiled_again.append(path))
    monkeypatch.setenv("CXX", "true")
    path = library._path(["true"])
    path.write_bytes(b"code")
    if kind == "a link":
        path.rename(tmp_path / "code")
        path.symlink_to(tmp_path / "code")
    path.chmod(0o770 if kind == "the group's" else 0o700)
    if kind == "another's":
        lstat = os.lstat
        of_another = os.stat_result([*lstat(path)[:4], os.geteuid() + 1, *lstat(path)[5:]])
        monkeypatch.setattr(os, "lstat", lambda p: of_another if p == path else lstat(p))
    library._load.__wrapped__()
    assert loaded == [str(path)]
    assert compiled_again == ([] if kind == "ours" else [path])


@pytest.mark.slow
@needs_library
def test_a_library_is_kept_for_the_next_process(monkeypatch, tmp_path):
    """Also where a umask gives new files to the group."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    program = (
        "import os; os.umask(0o002)\nfrom l2l_tf.update_rules.native import library; library.load()"
    )
    written = []
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program], check=True)
        (path,) = (tmp_path / "l2l_tf").glob("*.so")
        written.append(path.stat().st_mtime_ns)
    assert written[0] == written[1]


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


@needs_library
@pytest.mark.parametrize("num_weights, num_states", [(3, 3), (5, 1), (8, 2), (1, 1)])
def test_as_many_weights_as_layers_need(num_weights, num_states):
    """Also where their sum is right, in which case states would be read as weights."""
    weights = [tf.ones([16, 6]), tf.ones([16, 1]), tf.ones([1, 4]), tf.ones([1, 1])] * 2
    states = [tf.cast(tf.ones([4, 9]), tf.bfloat16)] * num_states
    with pytest.raises(tf.errors.InvalidArgumentError, match="two weights and two states of each"):
        library.load().l2l_lstm_step(tf.ones([2, 9]), weights[:num_weights], states)


def a_compiler(directory, script):
    """A command that runs a shell script; ``$output`` is the file that it is to write, if any."""
    find_output = 'for word; do [ "$last" = -o ] && output=$word; last=$word; done'
    path = directory / "compiler"
    path.write_text(f"#!/bin/sh\n{find_output}\n{script}\n")
    path.chmod(0o700)
    return str(path)


@pytest.fixture
def build_by(monkeypatch, tmp_path):
    """Function of a shell script, as of ``a_compiler``, to what ``library.build`` makes of it."""
    monkeypatch.delenv("L2L_TF_MARCH", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def build(script, **kwargs):
        monkeypatch.setenv("CXX", a_compiler(tmp_path, script))
        return library.build(**kwargs)

    return build


def test_a_library_is_built_once(build_by, tmp_path):
    script = f'[ -z "$output" ] || echo run | tee -a {tmp_path}/runs > "$output"'
    path = build_by(script)
    assert path.parent == tmp_path / "cache" / "l2l_tf" and path.read_text() == "run\n"
    assert build_by(script) == path
    assert (tmp_path / "runs").read_text() == "run\n"
    assert build_by(script, anew=True) == path
    assert (tmp_path / "runs").read_text() == "run\nrun\n"
    assert list(path.parent.iterdir()) == [path]


def test_only_the_step_that_is_named_for_it_compiles(build_by, monkeypatch):
    monkeypatch.setattr(library, "_is_built", False)
    monkeypatch.setattr(library, "_load", lambda: "the library")
    assert library.load(may_build=False) is None
    with pytest.warns(UserWarning, match="cannot be had"):
        build_by("exit 1")
    assert library.load(may_build=False) is None
    build_by('[ -z "$output" ] || echo > "$output"')
    assert library.load(may_build=False) == "the library"


@needs_library
def test_what_has_been_loaded_is_there_without_a_compiler(monkeypatch):
    loaded = library.load()
    monkeypatch.setattr(library, "_run", lambda command: pytest.fail("the compiler is run"))
    monkeypatch.setattr(library, "build", lambda *args: pytest.fail("it is built again"))
    assert library.load() is loaded


def test_two_that_build_at_once_do_not_meet(monkeypatch, tmp_path):
    """Each writes a file of its own; the last one stays, whole."""
    both_are_here = f"""
        [ -z "$output" ] && exit
        touch {tmp_path}/here-$$
        for i in $(seq 100); do [ "$(ls {tmp_path} | grep -c here-)" = 2 ] && break; sleep 0.1; done
        echo a library > "$output"
        """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", a_compiler(tmp_path, both_are_here))
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda _: library.build(), range(2))
    assert len(list(tmp_path.glob("here-*"))) == 2
    assert first == second and first.read_text() == "a library\n"
    assert list(first.parent.iterdir()) == [first]


def test_two_threads_load_one_library(monkeypatch):
    calls = []

    def load_op_library(path):
        calls.append(path)
        time.sleep(0.2)  # for the other thread to come
        return path

    monkeypatch.setattr(library, "build", lambda *args: "library")
    monkeypatch.setattr(tf, "load_op_library", load_op_library)
    monkeypatch.setattr(library, "_load", functools.cache(library._load.__wrapped__))
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        assert list(threads.map(lambda _: library.load(), range(2))) == ["library", "library"]
    assert calls == ["library"]


def test_a_compiler_that_does_not_end_is_ended(build_by, monkeypatch, tmp_path):
    monkeypatch.setattr(library, "MAX_SECONDS", 0.5)
    with pytest.warns(UserWarning, match=r"cannot be had.*timed out after 0\.5 seconds"):
        assert build_by('[ -z "$output" ] || exec sleep 60') is None
    assert not list((tmp_path / "cache" / "l2l_tf").iterdir())


def test_a_compiler_cannot_ask(build_by):
    assert (
        build_by('read answer; [ -z "$output" ] || echo "<$answer>" > "$output"').read_text()
        == "<>\n"
    )


def test_a_compiler_that_is_killed_is_reported(build_by):
    with pytest.warns(UserWarning, match="died with <Signals.SIGKILL"):
        assert build_by('[ -z "$output" ] || kill -9 $$') is None


def test_what_cannot_be_loaded_is_reported(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", a_compiler(tmp_path, '[ -z "$output" ] || echo text > "$output"'))
    with pytest.warns(UserWarning, match="TensorFlow said: .*(file too short|invalid ELF|slice)"):
        assert library._load.__wrapped__() is None


def test_turned_off_nothing_is_built(build_by, monkeypatch):
    monkeypatch.setenv("L2L_TF_NATIVE", "0")
    assert build_by("exit 1") is None


def test_each_architecture_has_a_library_of_its_own(build_by, monkeypatch):
    script = '[ -z "$output" ] || echo "$@" > "$output"'
    paths = {}
    for march in ("", "native", "x86-64-v3", "armv8.2-a+fp16"):
        monkeypatch.setenv("L2L_TF_MARCH", march)
        paths[march] = build_by(script)
        assert f"-march={march or 'native'} " in paths[march].read_text()
    assert paths[""] == paths["native"] and len(set(paths.values())) == 3


@pytest.mark.parametrize("march", ["-native", "x86-64 -O0", "x86-64\n", "../x", "a=b", " "])
def test_an_architecture_is_a_plain_name(march, build_by, monkeypatch):
    monkeypatch.setenv("L2L_TF_MARCH", march)
    with pytest.raises(ValueError, match="L2L_TF_MARCH must be the plain name"):
        build_by("exit 1")


def test_a_compiler_is_a_command(monkeypatch):
    monkeypatch.setenv("CXX", 'c++ "-O2')
    with pytest.raises(ValueError, match="CXX must be a C.. compiler's command"):
        library.build()
    monkeypatch.setenv("CXX", " ")
    assert library._compiler()[0] == "c++"


def test_without_a_directory_a_process_compiles_once(build_by, monkeypatch):
    monkeypatch.setattr(
        library, "_own_directory", functools.cache(library._own_directory.__wrapped__)
    )
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    script = '[ -z "$output" ] || echo $$ > "$output"'
    path = build_by(script)
    assert path.is_file()  # in the cache
    monkeypatch.delenv("XDG_CACHE_HOME")
    private = build_by(script)
    assert private.parent != path.parent and build_by(script) == private
