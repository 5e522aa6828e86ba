"""The catalogue: which rule a name, or the directory of a meta-training, means.

A directory that ``bin/meta_train`` wrote holds several rules, and a ``card.json`` that names the
best. A shipped rule is a directory of the package, with a card of its own.
"""

import difflib
import inspect
import numbers
import os
import pathlib

import tensorflow as tf

from l2l_tf import arguments, paths
from l2l_tf.files import atomic, cards, rule_directory
from l2l_tf.update_rules import base

_DIRECTORY = pathlib.Path(__file__).parent / "pretrained"


def pretrained_names():
    """Names of the shipped rules, for ``load`` and ``LearnedOptimizer``."""
    directories = _DIRECTORY.iterdir() if _DIRECTORY.is_dir() else []
    return sorted(p.name for p in directories if rule_directory.has_rule(p))


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


def directory(name_or_path):
    """The directory of a shipped rule's name; or the path, at which there may be nothing."""
    names = ", ".join(pretrained_names()) or "none yet"
    expected = f"one of the shipped rules ({names}) or a directory"
    arguments.instance(
        "name_or_path", name_or_path, (str, os.PathLike), expected, _hint_of_load(name_or_path)
    )
    path = paths.from_user("name_or_path", name_or_path)
    if not isinstance(name_or_path, str) or "/" in name_or_path:
        return path
    if name_or_path in pretrained_names():
        return pretrained_path(name_or_path)
    with atomic.file_errors("read", path):
        is_there = atomic.exists(path)
    if not is_there:
        raise ValueError(
            f"Unknown rule {path!r}.{did_you_mean(path)} Expected {expected}, with a '/' in its "
            "path or an existing one."
        )
    return path


def best(path):
    """The directory of the best rule, by the card of a meta-training; `path` if it has none."""
    _check_is_directory(path)
    content = cards.read_card(path)
    if content is None:
        return path
    if content.get("best") is None:
        raise ValueError(
            f"{path!r} has no rule yet: its meta-training was stopped before the first "
            "validation. Resume it with the same bin/meta_train command."
        )
    return cards.best_rule(path, content)


def card(name_or_path):
    """The card of a rule: what it was meta-trained on, and how.

    Of a shipped rule also what it reaches in comparison with tuned baselines (``tables``), and
    what it is not for (``known_limits``).

    Args:
        name_or_path: as of ``load``: a shipped rule's name; or the save directory of a
            ``bin/meta_train``, or its best rule's own.

    Returns:
        Dict, the content of ``card.json``.

    Raises:
        TypeError: it is neither a string nor a path.
        ValueError: no such name, or there is no card, or a damaged one.
        FileNotFoundError: no such directory.
        OSError: the directory cannot be read.

    >>> card("quadratic")["settings"]["problem"]
    'quadratic'
    >>> card("quadratic")["known_limits"]
    'Trained on random 10-dimensional quadratics alone, for 100 steps, without noise.'
    """
    path = directory(name_or_path)
    with atomic.file_errors("read", path):
        content = cards.read_card(path)
        if content is not None:
            return content
        _check_is_directory(path)
        save_dir, name = os.path.split(path)
        content = cards.read_card(save_dir)
        if content is not None and content.get("best") == name:
            return content
    raise ValueError(
        f"{path!r} has no {cards.CARD_FILE}. Expected a shipped rule's name "
        f"({', '.join(pretrained_names())}), or a directory that bin/meta_train wrote: a rule that "
        "l2l_tf.save wrote has no card."
    )


def _hint_of_load(value):
    if isinstance(value, base.UpdateRule) or inspect.isclass(value):
        return "There is nothing to load: an update rule is used as it is."
    if isinstance(value, numbers.Number):
        return "A learning rate goes to LearnedOptimizer(rule, learning_rate=...)."
    return ""


def _check_is_directory(path):
    if not tf.io.gfile.isdir(path):
        raise FileNotFoundError(
            f"No directory {path!r}. Expected one that l2l_tf.save or bin/meta_train wrote."
        )
