"""Shipped rules: their names, and where they are."""

import difflib
import pathlib

from l2l_tf import paths
from l2l_tf.rule_directory import RULE_FILE

_DIRECTORY = pathlib.Path(__file__).parent / "pretrained"


def pretrained_names():
    """Names of the shipped rules, for ``load`` and ``LearnedOptimizer``."""
    if not _DIRECTORY.is_dir():
        return []
    return sorted(p.name for p in _DIRECTORY.iterdir() if (p / RULE_FILE).exists())


def pretrained_path(name):
    """The directory of a shipped rule, or of one to ship."""
    return str(_DIRECTORY / name)


def did_you_mean(name):
    """A sentence with the shipped rules whose names are nearest; empty if none is near."""
    near = difflib.get_close_matches(name, pretrained_names(), n=2)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def path_to_write(name, value):
    """The path of what is to be loaded again, from an argument `name`."""
    path = paths.from_user(name, value)
    if isinstance(value, str) and value in pretrained_names():
        raise ValueError(
            f"{value!r} is the name of a shipped rule, so l2l_tf.load({value!r}) would not load "
            f"what is written there. Choose another path, or write './{value}'. "
            f"Received: {name}={value!r}"
        )
    return path
