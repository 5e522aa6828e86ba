"""Saving and loading: an update rule as a SavedModel directory.

A directory holds TensorFlow's SavedModel, which TensorFlow alone can use, and ``rule.json``: the
rule's class and config, φ included, from which ``load`` rebuilds it for further meta-training.
A directory that ``bin/meta_train`` wrote holds several of them, and a ``card.json`` that names the
best.
"""

import hashlib
import inspect
import json
import numbers
import os
import textwrap

import keras
import numpy as np
import tensorflow as tf

from l2l_tf import arguments, paths, rule_directory, saved_model
from l2l_tf.atomic_files import exists, file_errors, new_directory
from l2l_tf.cards import CARD_FILE, FORMAT_VERSION, best_rule, damaged, read_card, read_json
from l2l_tf.rule_directory import RULE_FILE
from l2l_tf.shipped_rules import did_you_mean, path_to_write, pretrained_names, pretrained_path
from l2l_tf.update_rules import base, levels, serialization


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
        path: directory to write, local or any that ``tf.io.gfile`` writes; ``~`` is expanded.
        overwrite: whether an existing rule at `path` may be replaced. Nothing else ever is: if
            there is a file beside those that ``save`` writes, it is refused.

    Raises:
        TypeError, ValueError: `rule` is none that could be loaded again, or `path` is the name of
            a shipped rule, which ``load`` would take for that one.
        FileExistsError: `path` exists, and `overwrite` is False, or it is not a saved rule and
            nothing else, or a symbolic link.
        OSError: `path` cannot be written.

    >>> import tempfile, l2l_tf
    >>> path = os.path.join(tempfile.mkdtemp(), "sgd")
    >>> save(l2l_tf.update_rules.SGD(learning_rate=0.5), path)
    >>> float(load(path).learning_rate)
    0.5
    """
    rule = _rule_of(rule)
    _check_can_be_saved(rule)
    arguments.boolean("overwrite", overwrite)
    path = path_to_write("path", path)
    with file_errors("write", path):
        rule_directory.check_may_be_written(path, overwrite)
        with new_directory(path, rule_directory.remove) as directory:
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
        name_or_path: one of ``pretrained_names()``, which means the shipped rule whatever lies in
            the working directory; or a directory that ``save`` or ``bin/meta_train`` wrote (of the
            latter, its best rule is taken), local or any that ``tf.io.gfile`` reads. A directory
            with a shipped rule's name is "./name", or a ``pathlib.Path``. ``~`` is expanded.

    Returns:
        The ``UpdateRule``.

    Raises:
        TypeError: it is neither a string nor a path.
        ValueError: no such name, or the directory is not a saved rule, or a damaged one.
        FileNotFoundError: no such directory.
        OSError: the directory cannot be read.
    """
    path = _directory(name_or_path)
    with file_errors("read", path):
        content = read_json(path, RULE_FILE)
        if content is None:
            path = _best(path)
            content = read_json(path, RULE_FILE)
        if content is None:
            raise ValueError(
                f"{path!r} is not a saved rule: it has no {RULE_FILE}. Expected a directory that "
                "l2l_tf.save or bin/meta_train wrote; tf.saved_model.load reads other SavedModels."
            )
        return _rebuild(content, path)


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
    path = _directory(name_or_path)
    with file_errors("read", path):
        content = read_card(path)
        if content is not None:
            return content
        _check_is_directory(path)
        save_dir, name = os.path.split(path)
        content = read_card(save_dir)
        if content is not None and content.get("best") == name:
            return content
    raise ValueError(
        f"{path!r} has no {CARD_FILE}. Expected a shipped rule's name "
        f"({', '.join(pretrained_names())}), or a directory that bin/meta_train wrote: a rule that "
        "l2l_tf.save wrote has no card."
    )


def fingerprint(rule):
    """Eight hex digits of a rule's class, config and φ; not of its Keras name."""
    content = serialization.serialize(rule)
    _leave_out_names(content)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def _leave_out_names(of_rule):
    of_rule["config"].pop("name", None)
    for group in of_rule["config"].get("groups", []):
        _leave_out_names(group["rule"])


def _directory(name_or_path):
    """The directory of a shipped rule's name, or a path."""
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
    with file_errors("read", path):
        is_there = exists(path)
    if not is_there:
        raise ValueError(
            f"Unknown rule {path!r}.{did_you_mean(path)} Expected {expected}, with a '/' in its "
            "path or an existing one."
        )
    return path


def _hint_of_load(value):
    if isinstance(value, base.UpdateRule) or inspect.isclass(value):
        return "There is nothing to load: an update rule is used as it is."
    if isinstance(value, numbers.Number):
        return "A learning rate goes to LearnedOptimizer(rule, learning_rate=...)."
    return ""


def _hint_of_save(value):
    if isinstance(value, keras.Model):
        return "Of a model that was compiled with a LearnedOptimizer, pass model.optimizer."
    if isinstance(value, keras.optimizers.Optimizer):
        return "Keras' own optimizers are saved with their model."
    if isinstance(value, (str, os.PathLike)):
        return "The rule comes first: save(rule, path)."
    return "That is the class: make an instance." if inspect.isclass(value) else ""


def _best(path):
    """The directory of the best rule, by the card of a meta-training; `path` if it has none."""
    _check_is_directory(path)
    content = read_card(path)
    if content is None:
        return path
    if content.get("best") is None:
        raise ValueError(
            f"{path!r} has no rule yet: its meta-training was stopped before the first "
            "validation. Resume it with the same bin/meta_train command."
        )
    return best_rule(path, content)


def _check_is_directory(path):
    if not tf.io.gfile.isdir(path):
        raise FileNotFoundError(
            f"No directory {path!r}. Expected one that l2l_tf.save or bin/meta_train wrote."
        )


def _rule_of(value):
    """The rule of a LearnedOptimizer; anything else as it is."""
    rule = None if isinstance(value, base.UpdateRule) else getattr(value, "rule", None)
    return rule if isinstance(rule, base.UpdateRule) else value


def _check_can_be_saved(rule):
    arguments.instance(
        "rule", rule, base.UpdateRule, "an UpdateRule or a LearnedOptimizer", _hint_of_save(rule)
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
    for each in base.made_of(rule):
        shape = tuple(size or 1 for size in each.tensor_shape or (1,))
        levels.trial(each, ("tensor", shape), 0.0)
