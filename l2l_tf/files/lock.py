"""Locks: one process at a time writes a directory."""

import contextlib
import errno
import json
import os
import platform
import time
import warnings

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

LOCK_FILE = "lock"
# What a file system says that has no locks.
_NONE_THERE = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@contextlib.contextmanager
def held(directory):
    """Holds the lock of an existing directory; reading it needs none.

    The system releases it with the process, however that ends. The file ``lock`` in it says who
    holds it, and stays: to remove it, others would need a lock.

    Raises:
        BlockingIOError: another process holds it, or another thread.
        OSError: the file cannot be written.
    """
    path = os.path.join(directory, LOCK_FILE)
    if fcntl is None or "://" in path:  # as of an object store
        yield
        return
    # Not through a link, and not "w": who holds it is there to be read.
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        _lock(file, path)
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        holder = {"process": os.getpid(), "host": platform.node(), "since": since}
        with contextlib.suppress(OSError):  # The disk is full: the lock holds all the same.
            os.ftruncate(file, 0)
            os.pwrite(file, (json.dumps(holder) + "\n").encode(), 0)
        yield
    finally:
        os.close(file)


def _lock(file, path):
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(
            f"{os.path.dirname(path)!r} is held by {_holder(file)}. Expected: one process at a "
            "time that writes it. Wait for that one or end it, or choose another directory."
        ) from None
    except OSError as error:
        if error.errno not in _NONE_THERE:
            raise
        warnings.warn(
            f"{path!r} cannot be locked ({error.strerror}): nothing here keeps a second process "
            "from writing the same directory.",
            stacklevel=4,
        )


def _holder(file):
    try:
        holder = json.loads(os.pread(file, 1000, 0))
        return f"process {holder['process']} on {holder['host']} since {holder['since']}"
    except (ValueError, TypeError, KeyError):  # It has it since just now.
        return "another process"
