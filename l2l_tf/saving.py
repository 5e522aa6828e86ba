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

import keras
import numpy as np
import tensorflow as tf

from l2l_tf.atomic_files import exists, file_errors, new_directory, put_back, read_text, write_json
from l2l_tf.update_rules import base

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

    A crash leaves the old rule or the new one: the directory is written beside `path`, then
    renamed. For an instant between two renames the old one has another name; ``load`` finds it
    there, and the next ``save`` puts it back.

    Args:
        rule: an ``UpdateRule`` with coupling "coordinate", or an optimizer around one.
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
            tf.saved_model.save(_export(rule), directory)
            with tf.io.gfile.GFile(os.path.join(directory, RULE_FILE), "w") as file:
                json.dump({"format_version": FORMAT_VERSION, "rule": _serialize(rule)}, file)


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
    content = _serialize(rule)
    content["config"].pop("name", None)
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


def _export(rule):
    """A ``tf.Module`` with the functions of a SavedModel, for any number of coordinates."""
    module = tf.Module()
    module.meta_parameters = [v.value for v in rule.weights]
    module.initial_state = tf.function(
        rule.initial_state, input_signature=[tf.TensorSpec([], tf.int32)]
    )
    state_signature = tf.nest.map_structure(
        lambda leaf: tf.TensorSpec([*leaf.shape[:-1], None], leaf.dtype), rule.initial_state(1)
    )
    module.update = tf.function(
        rule.update,
        input_signature=[tf.TensorSpec([None], rule.dtype), state_signature],
    )
    return module


def _serialize(rule):
    name = keras.saving.get_registered_name(type(rule))
    return {"class": name, "config": rule.get_config()}


def _check_can_be_saved(rule):
    if not isinstance(rule, base.UpdateRule):
        raise TypeError(f"`rule` must be an UpdateRule or a LearnedOptimizer. Received: {rule!r}")
    if rule.coupling != "coordinate":
        raise ValueError(
            "Only rules with coupling 'coordinate' can be saved. "
            f"Received: {type(rule).__name__} with coupling {rule.coupling!r}"
        )
    name = keras.saving.get_registered_name(type(rule))
    if keras.saving.get_registered_object(name) is not type(rule):
        raise ValueError(
            f"{type(rule).__name__} is not registered, so it could not be loaded again. Decorate "
            "the class with @keras.saving.register_keras_serializable()."
        )
    _check_finite(rule)


def _check_finite(rule):
    bad = [w.name for w in rule.weights if not np.isfinite(w.numpy()).all()]
    if bad:
        raise ValueError(f"Weights must be finite. Received: NaN or infinity in {', '.join(bad)}")


def _rebuild(content, path):
    path = os.path.join(path, RULE_FILE)
    match content:
        case {"rule": {"class": str(name), "config": dict(config)}}:
            cls = keras.saving.get_registered_object(name)
        case _:
            raise damaged(path, "it lacks 'rule' with 'class' and 'config'")
    if not (isinstance(cls, type) and issubclass(cls, base.UpdateRule)):
        raise ValueError(
            f"{path!r} is of a rule of class {name!r}, which is not a registered UpdateRule. "
            "Import the module that defines it first."
        )
    try:
        rule = cls.from_config(config)
        if rule.trainable_variables and config.get("weights") is None:
            raise ValueError("its config lacks 'weights'")
        _check_finite(rule)
        rule.update(tf.zeros([1], rule.dtype), rule.initial_state(1))  # Are the numbers numbers?
    except Exception as error:  # Of such configs, Keras and TensorFlow raise anything.
        reason = textwrap.shorten(str(error), 300)  # it may quote all of φ
        raise damaged(path, f"no {cls.__name__} can be made of it ({reason})") from error
    return rule
