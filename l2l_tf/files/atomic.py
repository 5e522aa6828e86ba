"""Files and directories that are there whole or not at all, whenever the process is killed.

What is written goes to a new name beside its path and is then renamed, through ``tf.io.gfile``.
Where directories are renamed file by file (object stores), one may be left in part; each file is
still whole, at its place or in the old directory, where ``read`` finds it.
"""

import contextlib
import os
import platform
import re
import uuid
import warnings

import tensorflow as tf

# `path` + this is the old directory, while a new one takes its place. No file system that gfile
# knows exchanges two directories at once: in between, the old one is at this name alone.
REPLACED = ".l2l_tf-replaced"

_SIGNS_OF_A_FULL_DISK = ("No space left", "uota exceeded", "File too large")


@contextlib.contextmanager
def file_errors(action, path):
    """TensorFlow's errors about files, which are no OSErrors, as OSErrors."""
    try:
        yield
    except tf.errors.OpError as error:
        reason = re.sub(r"\{\{.*?\}\} ", "", error.message) or type(error).__name__
        is_full = any(sign in reason for sign in _SIGNS_OF_A_FULL_DISK)
        hint = "Check the path and its permissions."
        if is_full:
            hint = "Make room there and do the same again: what was there before is whole."
        raise OSError(f"Cannot {action} {path!r}: {reason}. {hint}") from error


def write(data, path):
    """Writes a file of these bytes atomically."""
    with file_errors("write", path):
        beside = _beside(path, _remove_file)
        try:
            with tf.io.gfile.GFile(beside, "wb") as file:
                file.write(data)
            tf.io.gfile.rename(beside, path, overwrite=True)
        except tf.errors.OpError:
            with contextlib.suppress(tf.errors.OpError):  # it would hide the error that led here
                _remove_file(beside)
            raise


@contextlib.contextmanager
def new_directory(path, remove):
    """Yields a directory to fill, which then becomes `path` and replaces what was there.

    Args:
        path: no link.
        remove: function of a path that removes what a killed process left there, and nothing else.
    """
    beside, old = _beside(path, remove), path + REPLACED
    try:
        tf.io.gfile.makedirs(beside)
        yield beside
        if tf.io.gfile.exists(path):
            remove(old)  # left by a killed process; what is at `path` is newer
            tf.io.gfile.rename(path, old)
        tf.io.gfile.rename(beside, path)
        remove(old)
    finally:
        with contextlib.suppress(tf.errors.OpError):  # it would hide the error that led here
            if tf.io.gfile.exists(beside):
                tf.io.gfile.rmtree(beside)


def put_back(path, is_whole):
    """Undoes a replacement that was killed half way, if `is_whole` of the old directory."""
    old = path + REPLACED
    if os.path.lexists(path) or os.path.islink(old) or tf.io.gfile.exists(path):
        return
    if is_whole(old):
        tf.io.gfile.rename(old, path)


def read(directory, names):
    """The first file of these names, as it was before a replacement that was killed.

    Returns:
        Its name and its bytes; or None, None if there is none.
    """
    for place in (directory, directory + REPLACED, directory):  # again: it may have ended meanwhile
        for name in names:
            try:
                with tf.io.gfile.GFile(os.path.join(place, name), "rb") as file:
                    data = file.read()
            except (tf.errors.NotFoundError, tf.errors.FailedPreconditionError):  # or not a file
                continue
            if place != directory:
                warnings.warn(
                    f"{directory!r} is missing: a save was killed or is running. Read what it was "
                    f"to replace, {place!r}.",
                    stacklevel=4,
                )
            return name, data
    return None, None


def exists(path):
    """Whether there is anything at `path`, or there was before a replacement that was killed."""
    return tf.io.gfile.exists(path) or tf.io.gfile.exists(path + REPLACED)


def _remove_file(path):
    if not os.path.islink(path) and not tf.io.gfile.isdir(path):
        tf.io.gfile.remove(path)


def _beside(path, remove):
    """A new name beside `path`. Removes what killed processes of this machine left at such."""
    directory, prefix = os.path.split(f"{path}.l2l_tf-writing-{platform.node()}-")
    left = re.compile(re.escape(prefix) + "([0-9]+)-[0-9a-f]{8}")
    is_posix_directory = os.name == "posix" and tf.io.gfile.isdir(directory or ".")
    for name in tf.io.gfile.listdir(directory or ".") if is_posix_directory else []:
        match = left.fullmatch(name.rstrip("/"))
        if match and not _runs(int(match[1])):
            with contextlib.suppress(tf.errors.OpError):  # not ours to remove, or just gone
                remove(os.path.join(directory, match[0]))
    return os.path.join(directory, f"{prefix}{os.getpid()}-{uuid.uuid4().hex[:8]}")


def _runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's; or no pid, so not a name of ours
        return True
    return True
