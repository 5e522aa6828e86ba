"""The native library: compiled once a machine, kept in the user's cache, loaded into TensorFlow.

Nothing depends on it but speed: without a compiler, or with ``L2L_TF_NATIVE=0``, XLA's programs
do the same. ``L2L_TF_MARCH`` names the processor to compile for, as the compiler's ``-march``; by
default, the one at hand. What is compiled for another may end the process by an illegal
instruction.

Loading a library runs its code. So the directory and the library must be this user's, and no one
else may be able to write them; otherwise each process compiles one of its own.
"""

import atexit
import functools
import hashlib
import os
import pathlib
import platform
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import warnings

import tensorflow as tf

SOURCES = sorted(pathlib.Path(__file__).parent.glob("*.cc"))
HEADERS = sorted(pathlib.Path(__file__).parent.glob("*.h"))
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-pthread"]
MAX_SECONDS = 120  # of a run of the compiler, which takes about eight
_lock = threading.Lock()
_is_built = False  # by a call of `build` in this process, or found by it


def build(anew=False):
    """Compiles the library, unless this machine has done so before, in about eight seconds.

    This is the one step that compiles. Whoever wants the kernel calls it once a process; ``load``
    takes what it has written.

    Args:
        anew: also over a library that is there, which TensorFlow could not load.

    Returns:
        The library's path. None where there is no compiler, where it fails (with a warning that
        has what it said), and with ``L2L_TF_NATIVE=0``.

    Raises:
        ValueError: ``L2L_TF_MARCH`` or ``CXX`` can be no architecture or command.
    """
    global _is_built
    if _is_off():
        return None
    compiler = _compiler()
    if sys.platform not in ("linux", "darwin") or shutil.which(compiler[0]) is None:
        return None
    try:
        path = _path(compiler)
        if anew or not _is_ours(path, stat.S_ISREG):
            _compile(compiler, path)
    except (OSError, subprocess.SubprocessError) as error:
        is_known = isinstance(error, subprocess.CalledProcessError) and error.stderr
        _warn(f"{shlex.join(compiler)} said", error.stderr if is_known else error)
        return None
    _is_built = True
    return path


def load(may_build=True):
    """The module of the library's ops; None where it cannot be had.

    Args:
        may_build: call ``build`` where no one has done so. Without, there is no library until then:
            to ask whether there is one takes no time.
    """
    if _is_off() or not (may_build or _is_built):
        return None
    with _lock:  # two threads would register the op twice
        return _load()


@functools.cache
def _load():
    for anew in (False, True):  # it is damaged, or another system's that has this directory too
        path = build(anew)
        if path is None:
            return None
        try:
            return tf.load_op_library(str(path))
        except tf.errors.OpError as error:
            reason = error
    _warn("TensorFlow said", reason)
    return None


def _is_off():
    return os.environ.get("L2L_TF_NATIVE", "1") == "0"


def _warn(who, reason):
    warnings.warn(
        "The native kernel cannot be had, and XLA's programs, which are slower, take its place. "
        "Set L2L_TF_NATIVE=0 to do so without this warning. "
        f"{who}: {str(reason).strip()[-1000:]}",
        stacklevel=4,
    )


def _compiler():
    """A command, with its arguments."""
    command = os.environ.get("CXX", "").strip() or "c++"
    try:
        return shlex.split(command)
    except ValueError as error:  # a quote that does not end
        raise ValueError(
            "The environment's CXX must be a C++ compiler's command, quoted as in a shell. "
            f"Received: {command!r}"
        ) from error


def _march():
    """The architecture's name, as the compiler has it."""
    march = os.environ.get("L2L_TF_MARCH") or "native"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+_-]*", march):
        raise ValueError(
            "The environment's L2L_TF_MARCH must be the plain name of an architecture, of letters, "
            f"digits and . + _ -, such as x86-64-v3. Received: {march!r}"
        )
    return march


def _path(compiler):
    """Where the compiled library is, or is to be."""
    # All that it depends on: "native" is this processor, whose features are its name's.
    sources = [path.read_text(encoding="utf-8") for path in (*SOURCES, *HEADERS)]
    command = _command(compiler)
    version = _run([*compiler, "--version"])
    parts = [*sources, *command, version, tf.version.GIT_VERSION, _processor()]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return _cache_directory() / f"kernels-{digest}.so"


def _command(compiler):
    link = [*tf.sysconfig.get_compile_flags(), *tf.sysconfig.get_link_flags()]
    flags = [*FLAGS, f"-march={_march()}", "-shared", "-fPIC"]
    return [*compiler, *flags, *map(str, SOURCES), *link]


def _compile(compiler, path):
    """Writes the library, which is there whole or not at all, also if others write it now."""
    with tempfile.TemporaryDirectory(dir=path.parent) as beside:
        result = pathlib.Path(beside) / path.name
        _run([*_command(compiler), "-o", str(result)])
        with result.open("rb") as file:
            os.fsync(file.fileno())
        result.chmod(0o700)  # or `_is_ours` would refuse it where files are the group's too
        result.replace(path)


def _run(command):
    return subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,  # what is no compiler does not wait for someone to type
        timeout=MAX_SECONDS,
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
    return _own_directory()


@functools.cache
def _own_directory():
    """Of this process alone."""
    own = tempfile.mkdtemp(prefix="l2l_tf-")
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
