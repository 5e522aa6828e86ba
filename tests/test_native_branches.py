"""The branches of the LSTM's kernel, each built for processors that have no more than it needs.

Each against the rule's own computation by TensorFlow, on any machine whose processor can run it.
The builds may have no warning. The slow tier runs them all once more under the sanitizers.
"""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from native_builds import each_branch, needs_library, op_of, skip_unless_it_runs

import l2l_tf
from l2l_tf.engine.program import Program

# A vector has 4, 8 or 16 columns, a block 8, 16 or 64.
SIZES = [0, 1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 63, 64, 65, 128, 200]
# Of states, with the largest relative error: of bfloat16, half of its last digit.
DTYPES = {"float32": 3e-6, "bfloat16": 2.0**-8}
LAYERS = [(8,), (5, 3)]
OF_BRANCHES = (
    "test_native_branches.py",
    "test_native_backward.py",
    "test_native_hierarchical.py",
)

pytestmark = needs_library


@pytest.fixture(params=each_branch)
def kernel(request):
    """Function of a rule, features and layers' states, as ``rule.run_layers``."""
    skip_unless_it_runs(request.param)
    op = op_of(request.param, "l2l_lstm_step")

    def run(rule, features, layers):
        outputs, states = op(features, Program(rule).weights(), tf.nest.flatten(layers))
        return outputs, tf.nest.pack_sequence_as(layers, states)

    return run


def inputs(layers, n, dtype, seed=0):
    rule = l2l_tf.update_rules.CoordinatewiseLSTM(layers=layers, zero_head=False, seed=1)
    features = tf.random.stateless_normal([2, n], [seed, 0])
    states = rule.initial_state(n)[0]
    seeds = iter(range(1, 100))
    states = tf.nest.map_structure(
        lambda leaf: tf.cast(tf.random.stateless_normal(leaf.shape, [seed, next(seeds)]), dtype),
        states,
    )
    return rule, features, states


def by_tensorflow(rule, features, layers):
    """In float32 throughout."""
    layers = tf.nest.map_structure(lambda leaf: tf.cast(leaf, "float32"), layers)
    return rule.run_layers(features, layers)


def columns(structure, selected):
    return tf.nest.map_structure(lambda leaf: leaf[:, selected], structure)


def gather(structure, indices):
    return tf.nest.map_structure(lambda leaf: tf.gather(leaf, indices, axis=1), structure)


def assert_near(received, expected, dtype):
    """Outputs as near as in float32, whatever the states' dtype. NaN and infinities are equal."""
    outputs, *states = tf.nest.flatten(received)
    expected_outputs, *expected_states = tf.nest.flatten(expected)
    assert outputs.dtype == "float32" and {state.dtype for state in states} == {tf.as_dtype(dtype)}
    assert_near_each([outputs], [expected_outputs], DTYPES["float32"])
    assert_near_each(states, expected_states, DTYPES[dtype])


def assert_near_each(received, expected, tolerance):
    for a, b in zip(received, expected, strict=True):
        assert a.shape == b.shape
        a = tf.cast(a, "float32")
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=DTYPES["float32"])


def assert_same_bits(received, expected):
    for a, b in zip(tf.nest.flatten(received), tf.nest.flatten(expected), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert a.numpy().tobytes() == b.numpy().tobytes()


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_is_that_of_tensorflow(kernel, dtype, layers):
    rule, features, states = inputs(layers, max(SIZES), dtype)
    expected = by_tensorflow(rule, features, states)
    for n in SIZES:
        received = kernel(rule, *columns((features, states), slice(n)))
        assert_near(received, columns(expected, slice(n)), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pieces_are_the_whole(kernel, dtype):
    rule, features, states = inputs(LAYERS[1], max(SIZES), dtype)
    whole = kernel(rule, features, states)
    for border in SIZES:
        pieces = [
            kernel(rule, *columns((features, states), piece))
            for piece in (slice(border), slice(border, None))
        ]
        joined = tf.nest.map_structure(lambda *leaves: tf.concat(leaves, axis=1), *pieces)
        assert_same_bits(joined, whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_state_larger_than_a_cache(kernel, dtype):
    """A multiple of a block, where rows begin with a cache line, and a size that is none."""
    n = 64 * 1100
    rule, features, states = inputs((20,), n, dtype)
    expected = by_tensorflow(rule, features, states)
    for size in (n, n - 1):
        received = kernel(rule, *columns((features, states), slice(size)))
        assert_near(received, columns(expected, slice(size)), dtype)


# Bits of float32. A NaN of all bits is what rounding could make a zero of.
@pytest.mark.parametrize(
    "bits", [0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800000, 0xFF800000], ids=hex
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_passes_through(kernel, dtype, bits):
    """In its own column alone, as by TensorFlow."""
    rule, features, states = inputs(LAYERS[1], 130, dtype)
    clean = kernel(rule, features, states)
    value = np.array(bits, "uint32").view("float32")
    leaves = tf.nest.flatten((features, states))
    for index in range(len(leaves)):
        for column in (0, 70, 129):  # in a block, the last one of which is not full
            changed = leaves[index].numpy()
            # Of bfloat16, the upper half of the bits: a cast need not keep a NaN's.
            changed.view(f"uint{8 * changed.itemsize}")[-1, column] = (
                bits >> 32 - 8 * changed.itemsize
            )
            given = tf.nest.pack_sequence_as(
                (features, states), [*leaves[:index], tf.constant(changed), *leaves[index + 1 :]]
            )
            received = kernel(rule, *given)
            assert_near(received, by_tensorflow(rule, *given), dtype)
            if np.isnan(value):
                assert np.isnan(received[0][0, column])
            others = np.delete(np.arange(130), column)
            assert_same_bits(gather(received, others), gather(clean, others))


def test_gates_far_from_zero(kernel):
    rule, features, states = inputs(LAYERS[0], 64, "float32")
    features = features * 10.0 ** tf.linspace(-6.0, 30.0, 64)
    assert_near(kernel(rule, features, states), by_tensorflow(rule, features, states), "float32")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the runtimes are preloaded as on Linux")
def test_no_branch_fails_under_the_sanitizers(tmp_path):
    """The tests of all branches, with every access of memory and every operation checked.

    TensorFlow, which has not been built so, needs the runtime before all other libraries, and the
    C++ library beside it, in which the runtime looks for what it replaces.
    """
    compiler = os.environ.get("CXX") or "c++"
    runtimes = [
        subprocess.run(
            [*shlex.split(compiler), f"-print-file-name={name}"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    if not all(os.path.isabs(runtime) for runtime in runtimes):
        pytest.skip(f"{shlex.quote(compiler)} has no sanitizers of GCC")
    checks = "-g -fsanitize=address,undefined -fno-sanitize-recover=all -D_GLIBCXX_ASSERTIONS"
    environment = os.environ | {
        "CXX": f"{compiler} {checks}",
        "XDG_CACHE_HOME": str(tmp_path),
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's and TensorFlow's own
    }
    files = [str(pathlib.Path(__file__).with_name(name)) for name in OF_BRANCHES]
    tests = [sys.executable, "-m", "pytest", "-q", "-n0", "-s", "-p", "no:cacheprovider", *files]
    result = subprocess.run(
        [*tests, "-m", "not slow"], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-10_000:] + result.stderr[-10_000:]
    assert " passed" in result.stdout
    for built in tmp_path.rglob("*.so"):
        assert b"__asan_init" in built.read_bytes() and b"__ubsan_handle" in built.read_bytes()
    shutil.rmtree(tmp_path)  # megabytes
