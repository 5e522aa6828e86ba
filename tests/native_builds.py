"""Builds of the native kernels for processors that have no more than they need."""

import functools
import os
import pathlib
import platform
import sys

import pytest
import tensorflow as tf

from l2l_tf.update_rules.native import library

# What a processor must have, in the words of /proc/cpuinfo.
SSE = set()
AVX = {"avx"}
AVX2 = {"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe", "abm"}
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
BRANCHES = {"x86-64": SSE, "x86-64-v3": AVX2, "x86-64-v4": AVX512}
VARIANTS = {"x86-64-v2": {"sse4_2", "ssse3", "popcnt"}, "sandybridge": AVX}  # of the first two

needs_library = pytest.mark.skipif(
    library.build() is None
    or any(device.device_type != "CPU" for device in tf.config.list_logical_devices()),
    reason="no C++ compiler, or not a CPU",
)
each_branch = [*BRANCHES, *[pytest.param(march, marks=pytest.mark.slow) for march in VARIANTS]]


@functools.cache
def processor_features():
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return {word for line in lines if line.startswith("flags") for word in line.split()}


def skip_unless_it_runs(march):
    if platform.machine() not in ("x86_64", "AMD64") or sys.platform != "linux":
        pytest.skip("not Linux on x86-64")
    if not (BRANCHES | VARIANTS)[march] <= processor_features():
        pytest.skip(f"this processor is no {march}")


@functools.cache
def module_of(march):
    """The library as built for an architecture, its ops under names of their own."""
    suffix = "For" + "".join(c for c in march.title() if c.isalnum())
    compiler = os.environ.get("CXX") or "c++"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("L2L_TF_MARCH", march)
        patch.setenv("CXX", f"{compiler} -Wall -Wextra -Werror -DL2L_TF_SUFFIX='\"{suffix}\"'")
        path = library.build()
    assert path is not None  # or there is a warning that has the compiler's
    return tf.load_op_library(str(path))


def op_of(march, name):
    """One of its ops, such as "l2l_lstm_step"."""
    module = module_of(march)
    return next(getattr(module, key) for key in dir(module) if key.startswith(f"{name}_for"))
