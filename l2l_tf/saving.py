"""Saving and loading: an update rule as a SavedModel directory.

A directory holds TensorFlow's SavedModel, which TensorFlow alone can use, and ``rule.json``: the
rule's class and config, φ included, from which ``load`` rebuilds it for further meta-training.
A directory that ``bin/meta_train`` wrote holds several of them, and a ``card.json`` that names the
best.
"""

import hashlib
import json
import os
import pathlib
import textwrap

import numpy as np
import tensorflow as tf

from l2l_tf import saved_model
from l2l_tf.atomic_files import exists, file_errors, new_directory, put_back, read_text, write_json
from l2l_tf.update_rules import GroupedRule, base, serialization

FORMAT_VERSION = 1  # of rule.json and of card.json
RULE_FILE = "rule.json"
CARD_FILE = "card.json"
_PRETRAINED = pathlib.Path(__file__).parent / "pretrained"


def save(rule, path, overwrite=False):
    """Saves an update rule, or a ``LearnedOptimizer``'s rule, as a SavedModel directory.

    TensorFlow alone can use it, for any number of coordinates::

        m = tf.saved_model.load(path)
        state = m.initial_state(num_coordinates)
        updates, state = m.update(gradients, state)

    If the rule has the coupling "tensor", for one tensor, whose shape is an int32 vector::

        state = m.initial_state(tf.shape(gradient))
        update, state = m.update(gradient, state)

    Of a ``GroupedRule``, ``m.rules`` is the list of such modules, and ``m.patterns.numpy()`` has
    their patterns, if all are regular expressions.

    A crash leaves the old rule or the new one: the directory is written beside `path`, then
    renamed. For an instant between two renames the old one has another name; ``load`` finds it
    there, and the next ``save`` puts it back.

    Args:
        rule: an ``UpdateRule`` with coupling "coordinate" or "tensor", or an optimizer around one.
        path: directory to write, local or any that ``tf.io.gfile`` writes.
        overwrite: whether an existing rule at `path` may be replaced.

    Raises:
        TypeError, ValueError: `rule` is none that could be loaded again.
        FileExistsError: `path` exists, and `overwrite` is False or it is not a saved rule.
        OSError: `path` cannot be written.

    >>> import tempfile, l2l_tf
    >>> path = os.path.join(tempfile.mkdtemp(), "sgd")
    >>> save(l2l_tf.update_rules.SGD(learning_rate=0.5), path)
    >>> float(load(path).learning_rate)
    0.5
    """
    rule = getattr(rule, "rule", rule)
    _check_can_be_saved(rule)
    path = os.fspath(path)
    path = path.rstrip("/") or path
    with file_errors("write", path):
        _check_may_be_written(path, overwrite)
        with new_directory(path) as directory:
            tf.saved_model.save(saved_model.module(rule), directory)
            with tf.io.gfile.GFile(os.path.join(directory, RULE_FILE), "w") as file:
                json.dump(
                    {"format_version": FORMAT_VERSION, "rule": serialization.serialize(rule)}, file
                )


def load(name_or_path):
    """Loads an update rule: a shipped one by name, or a directory.

    Runs no code from the directory: the rule's class must be one of l2l_tf's, or be registered
    with ``keras.saving.register_keras_serializable`` by an import. Reads ``rule.json`` alone: a
    rule whose SavedModel part is damaged loads, and can be saved again.

    Args:
        name_or_path: one of ``pretrained_names()``; or a directory that ``save`` or
            ``bin/meta_train`` wrote (of the latter, its best rule is taken), local or any that
            ``tf.io.gfile`` reads. What has a "/" or exists is a path.

    Returns:
        The ``UpdateRule``.

    Raises:
        ValueError: no such name, or the directory is not a saved rule, or a damaged one.
        FileNotFoundError: no such directory.
        OSError: the directory cannot be read.
    """
    path = os.fspath(name_or_path)
    path = path.rstrip("/") or path
    with file_errors("read", path):
        if "/" not in os.fspath(name_or_path) and not exists(path):
            if path not in pretrained_names():
                raise ValueError(
                    f"Unknown rule {path!r}. Expected one of the shipped rules "
                    f"({', '.join(pretrained_names()) or 'none yet'}) or a directory, with a '/' "
                    "in its path or an existing one."
                )
            path = pretrained_path(path)
        content = _read_json(path, RULE_FILE)
        if content is None:
            path = _best(path)
            content = _read_json(path, RULE_FILE)
        if content is None:
            raise ValueError(
                f"{path!r} is not a saved rule: it has no {RULE_FILE}. Expected a directory that "
                "l2l_tf.save or bin/meta_train wrote; tf.saved_model.load reads other SavedModels."
            )
        return _rebuild(content, path)


def pretrained_names():
    """Names of the shipped rules, for ``load`` and ``LearnedOptimizer``."""
    if not _PRETRAINED.is_dir():
        return []
    return sorted(p.name for p in _PRETRAINED.iterdir() if (p / RULE_FILE).exists())


def pretrained_path(name):
    """The directory of a shipped rule, or of one to ship."""
    return str(_PRETRAINED / name)


def fingerprint(rule):
    """Eight hex digits of a rule's class, config and φ; not of its Keras name."""
    content = serialization.serialize(rule)
    for of_rule in [content, *(group["rule"] for group in content["config"].get("groups", []))]:
        of_rule["config"].pop("name", None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def read_card(directory):
    """The content of a directory's ``card.json``, or None if it has none."""
    return _read_json(directory, CARD_FILE)


def write_card(directory, card):
    """Writes a directory's ``card.json``, atomically."""
    write_json(card, os.path.join(directory, CARD_FILE))


def add_to_card(directory, content):
    """Merges a dict into a directory's ``card.json``."""
    write_card(directory, {**read_card(directory), **content})


def damaged(path, what):
    """The error about a file of ours."""
    return ValueError(
        f"{os.path.basename(path)} in {os.path.dirname(path)!r} is damaged: {what}. Expected what "
        "l2l_tf.save or bin/meta_train wrote. Save it again, or restore the directory from a copy."
    )


def _read_json(directory, name):
    """The content of a file of ours, a dict; or None if there is no such file."""
    directory = os.fspath(directory)
    path = os.path.join(directory, name)
    try:
        text = read_text(directory, name)
        if text is None:
            return None
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"it is cut or no JSON ({error})") from error
    if not isinstance(content, dict):
        raise damaged(path, f"it holds a {type(content).__name__}, not an object")
    version = content.get("format_version")
    if not isinstance(version, int) or version < FORMAT_VERSION:
        raise damaged(path, f"its format_version is {version!r}")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{path!r} has format version {version}; this l2l_tf reads {FORMAT_VERSION}. "
            "Update l2l_tf, or save the rule again with this version."
        )
    return content


def _best(path):
    """The directory of the best rule, by the card of a meta-training; `path` if it has none."""
    if not tf.io.gfile.isdir(path):
        raise FileNotFoundError(
            f"No directory {path!r}. Expected one that l2l_tf.save or bin/meta_train wrote."
        )
    card = read_card(path)
    if card is None:
        return path
    best = card.get("best")
    if best is None:
        raise ValueError(
            f"{path!r} has no rule yet: its meta-training was stopped before the first "
            "validation. Resume it with the same bin/meta_train command."
        )
    is_name = (
        isinstance(best, str) and best not in ("", ".", "..") and os.path.basename(best) == best
    )
    if not is_name or not exists(os.path.join(path, best)):
        raise damaged(
            os.path.join(path, CARD_FILE), f"its best is {best!r}, which is no directory beside it"
        )
    return os.path.join(path, best)


def _check_may_be_written(path, overwrite):
    put_back(path, RULE_FILE)
    if not tf.io.gfile.exists(path):
        return
    if not overwrite:
        raise FileExistsError(f"{path!r} exists. Choose another path, or pass overwrite=True.")
    if not tf.io.gfile.exists(os.path.join(path, RULE_FILE)):
        raise FileExistsError(
            f"{path!r} exists and is not a saved rule (it has no {RULE_FILE}), so it is left as "
            "it is. Choose another path."
        )


def _check_can_be_saved(rule):
    if not isinstance(rule, base.UpdateRule):
        raise TypeError(f"`rule` must be an UpdateRule or a LearnedOptimizer. Received: {rule!r}")
    if rule.coupling == "global":
        raise ValueError(
            "Only rules with coupling 'coordinate' or 'tensor' can be saved. "
            f"Received: {type(rule).__name__} with coupling 'global'"
        )
    serialization.serialize(rule)
    _check_finite(rule)


def _check_finite(rule):
    bad = [w.name for w in rule.weights if not np.isfinite(w.numpy()).all()]
    if bad:
        raise ValueError(f"Weights must be finite. Received: NaN or infinity in {', '.join(bad)}")


def _rebuild(content, path):
    path = os.path.join(path, RULE_FILE)
    match content:
        case {"rule": {"class": str(name), "config": dict(config)}}:
            cls = serialization.rule_class(name)
        case _:
            raise damaged(path, "it lacks 'rule' with 'class' and 'config'")
    if cls is None:
        raise ValueError(
            f"{path!r} is of a rule of class {name!r}, which is not a registered UpdateRule. "
            "Import the module that defines it first."
        )
    try:
        rule = serialization.deserialize({"class": name, "config": config})
        _check_finite(rule)
        _try(rule)  # Are the numbers numbers?
    except Exception as error:  # Of such configs, Keras and TensorFlow raise anything.
        reason = textwrap.shorten(str(error), 300)  # it may quote all of φ
        raise damaged(path, f"no {cls.__name__} can be made of it ({reason})") from error
    return rule


def _try(rule):
    """One step of the rule, for the least that it takes."""
    for each in rule.rules if isinstance(rule, GroupedRule) else [rule]:
        if each.coupling == "coordinate":
            each.update(tf.zeros([1], each.dtype), each.initial_state(1))
            continue
        shape = tuple(size or 1 for size in each.tensor_shape or (1,))
        state = each.initial_state([("tensor", shape)])
        each.update([tf.zeros(shape, each.dtype)], state)
