"""The native library: compiled at first use, kept in the user's cache, loaded into TensorFlow.

Nothing depends on it but speed: without a compiler, or with ``L2L_TF_NATIVE=0``, XLA's programs
do the same.
"""

import atexit
import functools
import hashlib
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings

import tensorflow as tf

SOURCE = pathlib.Path(__file__).parent / "lstm_step.cc"
FLAGS = ["-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno"]


@functools.cache
def load():
    """The module of the library's ops; None where it cannot be had.

    Compiles it if this machine has not done so yet, in about two seconds. A compiler that fails
    gets a warning with what it said.
    """
    if os.environ.get("L2L_TF_NATIVE", "1") == "0" or sys.platform not in ("linux", "darwin"):
        return None
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        return None
    try:
        return tf.load_op_library(str(_compiled(compiler)))
    except (OSError, subprocess.SubprocessError, tf.errors.OpError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        warnings.warn(
            "The native kernel cannot be had, and XLA's programs take its place, at half of its "
            f"speed. Set L2L_TF_NATIVE=0 to do so without this warning. {compiler} or TensorFlow "
            f"said: {reason.strip()[-1000:]}",
            stacklevel=2,
        )
        return None


def _compiled(compiler):
    """The path of the compiled library, which is whole or absent."""
    link = [*tf.sysconfig.get_compile_flags(), *tf.sysconfig.get_link_flags()]
    command = [compiler, *FLAGS, "-shared", "-fPIC", str(SOURCE), *link]
    # All that the result depends on: "native" is this processor, whose features are its name's.
    parts = [SOURCE.read_text(), *command, tf.version.GIT_VERSION, tf.__version__, _processor()]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    directory = _cache_directory()
    path = directory / f"lstm_step-{digest}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=directory) as beside:
            result = pathlib.Path(beside) / path.name
            subprocess.run(
                [*command, "-o", str(result)], check=True, capture_output=True, text=True
            )
            result.replace(path)
    return path


def _cache_directory():
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    directory = pathlib.Path(base) / "l2l_tf"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if os.access(directory, os.W_OK):
            return directory
    except OSError:
        pass
    own = tempfile.mkdtemp(prefix="l2l_tf-")  # of this process alone
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    return pathlib.Path(own)


def _processor():
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))
