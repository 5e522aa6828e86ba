"""JSON objects of ours, with a format version; and what is said of a damaged file."""

import json
import os

from l2l_tf import paths
from l2l_tf.files import atomic


def write(content, path):
    """Writes a JSON file atomically."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    atomic.write(text.encode(), paths.from_user("path", path))


def parse(data, path, format_version):
    """The object that JSON text holds.

    Args:
        data: bytes or text.
        path: where it is from, for the messages.
        format_version: the only one that it may be of.

    Raises:
        ValueError: it is damaged, or of a newer version.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"it is cut or no JSON ({error})") from error
    if not isinstance(content, dict):
        raise damaged(path, f"it holds a {type(content).__name__}, not an object")
    version = content.get("format_version")
    if not isinstance(version, int) or version < format_version:
        raise damaged(path, f"its format_version is {version!r}")
    if version > format_version:
        raise ValueError(
            f"{path!r} has format version {version}; this l2l_tf reads {format_version}. "
            "Update l2l_tf, or save the rule again with this version."
        )
    return content


def damaged(path, what):
    """The error about a file of ours."""
    return ValueError(
        f"{os.path.basename(path)} in {os.path.dirname(path)!r} is damaged: {what}. Expected what "
        "l2l_tf.save or bin/meta_train wrote. Save it again, or restore the directory from a copy."
    )
