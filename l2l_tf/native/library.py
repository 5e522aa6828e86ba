"""The native library: compiled at first use, kept in the user's cache, loaded into TensorFlow.

Nothing depends on it but speed: without a compiler, or with ``L2L_TF_NATIVE=0``, XLA's programs
do the same.

Loading a library runs its code. So the directory and the library must be this user's, and no one
else may be able to write them; otherwise each process compiles one of its own.
"""

import atexit
import functools
import hashlib
import os
import pathlib
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import warnings

import tensorflow as tf

SOURCE = pathlib.Path(__file__).parent / "lstm_step.cc"
FLAGS = ["-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno"]


def load():
    """The module of the library's ops; None where it cannot be had.

    Compiles it if this machine has not done so yet, in about two seconds. A compiler that fails
    gets a warning with what it said.
    """
    return None if os.environ.get("L2L_TF_NATIVE", "1") == "0" else _load()


@functools.cache
def _load():
    compiler = _compiler()
    if sys.platform not in ("linux", "darwin") or shutil.which(compiler[0]) is None:
        return None
    try:
        path = _path(compiler)
        if _is_ours(path, stat.S_ISREG):
            try:
                return tf.load_op_library(str(path))
            except tf.errors.OpError:  # damaged, or for another system that has this directory too
                pass
        _compile(compiler, path)
        return tf.load_op_library(str(path))
    except (OSError, subprocess.SubprocessError, tf.errors.OpError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        warnings.warn(
            "The native kernel cannot be had, and XLA's programs, which are slower, take its "
            "place. Set L2L_TF_NATIVE=0 to do so without this warning. "
            f"{shlex.join(compiler)} or TensorFlow said: {reason.strip()[-1000:]}",
            stacklevel=3,
        )
        return None


def _compiler():
    """A command, with its arguments."""
    return shlex.split(os.environ.get("CXX") or "c++")


def _path(compiler):
    """Where the compiled library is, or is to be."""
    # All that it depends on: "native" is this processor, whose features are its name's.
    version = _run([*compiler, "--version"])
    parts = [SOURCE.read_text(), *_command(compiler), version, tf.version.GIT_VERSION, _processor()]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return _cache_directory() / f"lstm_step-{digest}.so"


def _command(compiler):
    link = [*tf.sysconfig.get_compile_flags(), *tf.sysconfig.get_link_flags()]
    return [*compiler, *FLAGS, "-shared", "-fPIC", str(SOURCE), *link]


def _compile(compiler, path):
    """Writes the library, which is there whole or not at all."""
    with tempfile.TemporaryDirectory(dir=path.parent) as beside:
        result = pathlib.Path(beside) / path.name
        _run([*_command(compiler), "-o", str(result)])
        with result.open("rb") as file:
            os.fsync(file.fileno())
        result.chmod(0o700)  # or `_is_ours` would refuse it where files are the group's too
        result.replace(path)


def _run(command):
    return subprocess.run(
        command, check=True, capture_output=True, text=True, errors="replace"
    ).stdout


def _cache_directory():
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    directory = pathlib.Path(base) / "l2l_tf"
    try:
        if directory.is_absolute():  # "~" stays where no home is known
            directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.mkdir(mode=0o700, exist_ok=True)
            if os.access(directory, os.W_OK):
                if _is_ours(directory, stat.S_ISDIR) and _is_out_of_reach(directory):
                    return directory
                warnings.warn(
                    f"The native kernel is not kept in {str(directory)!r}, which someone else may "
                    "be able to write, and is compiled anew in each process. Expected a directory "
                    "of yours, no link, that neither group nor others can write (chmod 700), in "
                    "none that everyone can; XDG_CACHE_HOME says where.",
                    stacklevel=5,
                )
    except OSError:
        pass
    own = tempfile.mkdtemp(prefix="l2l_tf-")  # of this process alone
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    return pathlib.Path(own)


def _is_ours(path, is_kind):
    """Whether it is of this kind, no link, this user's, and no one else may write it."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    others_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return is_kind(status.st_mode) and status.st_uid == os.geteuid() and not others_write


def _is_out_of_reach(directory):
    """Whether no directory above lets everyone put another one in its place.

    Where files have the sticky bit's protection, only their owners can, as in /tmp.
    """
    parents = {*directory.parents, *directory.resolve().parents}
    modes = [parent.stat().st_mode for parent in parents]
    return all(mode & stat.S_ISVTX or not mode & stat.S_IWOTH for mode in modes)


def _processor():
    names = ("model name", "flags", "Features", "CPU implementer", "CPU part", "CPU variant")
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    known = sorted({line for line in lines if line.startswith(names)})
    return "\n".join(known) or f"{platform.processor()} of {platform.node()}"
