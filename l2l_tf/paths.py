"""Paths from the user: one way to read them."""

import os

from l2l_tf import arguments


def from_user(name, value):
    """A path as text: ``~`` expanded, without ``file://`` and slashes at its end.

    Args:
        name: of the argument, for the message.
        value: a string or an ``os.PathLike``.

    Raises:
        TypeError, ValueError: it is no path.

    >>> from_user("path", "runs/mine/")
    'runs/mine'
    """
    what = "a path (a string or an os.PathLike)"
    path = os.fspath(arguments.instance(name, value, (str, os.PathLike), what))
    path = arguments.text(name, arguments.instance(name, path, str, what))
    if "\0" in path:  # TensorFlow would take what stands before it for the path.
        raise ValueError(f"`{name}` must be a path without null characters. Received: {path!r}")
    path = os.path.expanduser(path.removeprefix("file://"))
    return path.rstrip("/") or path


def check_is_no_link(path):
    """Refuses a symbolic link: what it points to may be anyone's.

    Raises:
        FileExistsError: it is one.
    """
    if os.path.islink(path):
        raise FileExistsError(
            f"{path!r} is a symbolic link, so it is left as it is. Choose another path, or the one "
            f"that it points to: {os.path.realpath(path)!r}."
        )
