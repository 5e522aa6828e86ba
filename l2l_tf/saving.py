"""Saving and loading: an update rule as a SavedModel directory.

A directory holds TensorFlow's SavedModel, which TensorFlow alone can use, and ``rule.json``: the
rule's class and config, φ included, from which ``load`` rebuilds it for further meta-training.
A directory that ``bin/meta_train`` wrote holds several of them, and a ``card.json`` that names the
best.
"""

import json
import os
import pathlib
import uuid

import keras
import tensorflow as tf

from l2l_tf.update_rules import base

FORMAT_VERSION = 1
RULE_FILE = "rule.json"
CARD_FILE = "card.json"
_PRETRAINED = pathlib.Path(__file__).parent / "pretrained"


def save(rule, path, overwrite=False):
    """Saves an update rule, or a ``LearnedOptimizer``'s rule, as a SavedModel directory.

    TensorFlow alone can use it, for any number of coordinates::

        m = tf.saved_model.load(path)
        state = m.initial_state(num_coordinates)
        updates, state = m.update(gradients, state)

    The directory is written beside `path` and then renamed: a crash leaves the old one or the new.

    Args:
        rule: an ``UpdateRule`` with coupling "coordinate", or an optimizer around one.
        path: directory to write, local or any that ``tf.io.gfile`` writes.
        overwrite: whether an existing rule at `path` may be replaced.

    Raises:
        FileExistsError: `path` exists, and `overwrite` is False or it is not a saved rule.

    >>> import tempfile, l2l_tf
    >>> path = os.path.join(tempfile.mkdtemp(), "sgd")
    >>> save(l2l_tf.update_rules.SGD(learning_rate=0.5), path)
    >>> float(load(path).learning_rate)
    0.5
    """
    rule = getattr(rule, "rule", rule)
    if not isinstance(rule, base.UpdateRule):
        raise TypeError(f"`rule` must be an UpdateRule or a LearnedOptimizer. Received: {rule!r}")
    if rule.coupling != "coordinate":
        raise ValueError(
            "Only rules with coupling 'coordinate' can be saved. "
            f"Received: {type(rule).__name__} with coupling {rule.coupling!r}"
        )
    _check_rebuilds(rule)
    path = os.fspath(path).rstrip("/")
    exists = tf.io.gfile.exists(path)
    if exists and not overwrite:
        raise FileExistsError(f"{path!r} exists. Choose another path, or pass overwrite=True.")
    if exists and not tf.io.gfile.exists(os.path.join(path, RULE_FILE)):
        raise FileExistsError(
            f"{path!r} exists and is not a saved rule (it has no {RULE_FILE}), so it is left as "
            "it is. Choose another path."
        )
    beside = f"{path}.{uuid.uuid4().hex[:8]}"
    tf.io.gfile.makedirs(beside)
    tf.saved_model.save(_export(rule), beside)
    content = {"format_version": FORMAT_VERSION, "rule": _serialize(rule)}
    with tf.io.gfile.GFile(os.path.join(beside, RULE_FILE), "w") as file:
        json.dump(content, file)
    if exists:
        replaced = f"{beside}.replaced"
        tf.io.gfile.rename(path, replaced)
        tf.io.gfile.rename(beside, path)
        tf.io.gfile.rmtree(replaced)
    else:
        tf.io.gfile.rename(beside, path)


def load(name_or_path):
    """Loads an update rule: a shipped one by name, or a directory.

    Runs no code from the directory: the rule's class must be one of l2l_tf's, or be registered
    with ``keras.saving.register_keras_serializable`` by an import.

    Args:
        name_or_path: one of ``pretrained_names()``; or a directory that ``save`` or
            ``bin/meta_train`` wrote (of the latter, its best rule is taken). What has a "/" or
            exists is a path.

    Returns:
        The ``UpdateRule``.

    Raises:
        ValueError: no such name, or the directory is not a saved rule, or a damaged one.
        FileNotFoundError: no such directory.
    """
    path = os.fspath(name_or_path)
    if "/" not in path and not tf.io.gfile.exists(path):
        if path not in pretrained_names():
            raise ValueError(
                f"Unknown rule {path!r}. Expected one of the shipped rules "
                f"({', '.join(pretrained_names()) or 'none yet'}) or a directory, with a '/' in "
                "its path or an existing one."
            )
        path = str(_PRETRAINED / path)
    if not tf.io.gfile.isdir(path):
        raise FileNotFoundError(f"No directory {path!r}. Expected one that l2l_tf.save wrote.")
    card = read_card(path)
    if card is not None:
        if not card.get("best"):
            raise ValueError(
                f"{path!r} has no rule yet: its meta-training was stopped before the first "
                "validation. Resume it with the same bin/meta_train command."
            )
        path = os.path.join(path, card["best"])
    return _deserialize(_read_json(os.path.join(path, RULE_FILE), "a saved rule"), path)


def pretrained_names():
    """Names of the shipped rules, for ``load`` and ``LearnedOptimizer``."""
    if not _PRETRAINED.is_dir():
        return []
    return sorted(p.name for p in _PRETRAINED.iterdir() if (p / RULE_FILE).exists())


def read_card(directory):
    """The content of a directory's ``card.json``, or None if it has none."""
    path = os.path.join(directory, CARD_FILE)
    return _read_json(path, "a card") if tf.io.gfile.exists(path) else None


def add_to_card(directory, content):
    """Merges a dict into a directory's ``card.json``."""
    write_json({**read_card(directory), **content}, os.path.join(directory, CARD_FILE))


def write_json(content, path):
    """Writes a JSON file atomically."""
    beside = f"{path}.{uuid.uuid4().hex[:8]}"
    with tf.io.gfile.GFile(beside, "w") as file:
        file.write(json.dumps(content, indent=1, allow_nan=False) + "\n")
    tf.io.gfile.rename(beside, path, overwrite=True)


def _read_json(path, what):
    try:
        with tf.io.gfile.GFile(path) as file:
            return json.loads(file.read())
    except (tf.errors.NotFoundError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{os.path.dirname(path)!r} is not {what}, or a damaged one: {os.path.basename(path)} "
            f"is missing or unreadable ({type(error).__name__}). Expected a directory that "
            "l2l_tf.save or bin/meta_train wrote."
        ) from error


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
    return {
        "class": keras.saving.get_registered_name(type(rule)),
        "config": rule.get_config(),
    }


def _check_rebuilds(rule):
    name = keras.saving.get_registered_name(type(rule))
    if keras.saving.get_registered_object(name) is not type(rule):
        raise ValueError(
            f"{type(rule).__name__} is not registered, so it could not be loaded again. Decorate "
            "the class with @keras.saving.register_keras_serializable()."
        )


def _deserialize(content, path):
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path!r} has format version {version!r}; this l2l_tf reads {FORMAT_VERSION}. "
            "Update l2l_tf, or save the rule again with this version."
        )
    name = content["rule"]["class"]
    cls = keras.saving.get_registered_object(name)
    if not (isinstance(cls, type) and issubclass(cls, base.UpdateRule)):
        raise ValueError(
            f"{path!r} holds a rule of class {name!r}, which is not a registered UpdateRule. "
            "Import the module that defines it first."
        )
    return cls.from_config(content["rule"]["config"])
