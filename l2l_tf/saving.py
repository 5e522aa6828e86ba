"""Saving and loading: an update rule as a SavedModel directory.

A directory holds TensorFlow's SavedModel, which TensorFlow alone can use, and the rule's file: its
class, config and weights, from which ``load`` makes it again for further meta-training.
"""

import inspect
import os

import keras
import tensorflow as tf

from l2l_tf import arguments, catalog
from l2l_tf.catalog import pretrained_names
from l2l_tf.files import atomic, export, rule_directory, rule_file
from l2l_tf.files.rule_file import fingerprint
from l2l_tf.update_rules import base

__all__ = ["fingerprint", "load", "pretrained_names", "save"]


def save(rule, path, overwrite=False):
    """Saves an update rule, or a ``LearnedOptimizer``'s rule, as a SavedModel directory.

    TensorFlow alone can use it, for any number of coordinates::

        m = tf.saved_model.load(path)
        state = m.initial_state(num_coordinates)
        updates, state = m.update(gradients, state)

    If the rule has the coupling "tensor", for one tensor, whose shape is an int32 vector::

        state = m.initial_state(tf.shape(gradient))
        update, state = m.update(gradient, state)

    A rule that sees parameters takes these after the gradients: ``m.update(gradients, parameters,
    state)``. One with a control runs on all tensors of a model, one after another in one vector,
    whose shapes it takes last::

        shapes = tf.ragged.constant([[784, 20], [20]])
        state = m.initial_state(shapes)
        updates, state = m.update(gradients, state, shapes)

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
    arguments.instance(
        "rule", rule, base.UpdateRule, "an UpdateRule or a LearnedOptimizer", _hint_of_save(rule)
    )
    content = rule_file.to_bytes(rule)
    arguments.boolean("overwrite", overwrite)
    path = catalog.path_to_write("path", path)
    with atomic.file_errors("write", path):
        rule_directory.check_may_be_written(path, overwrite)
        with atomic.new_directory(path, rule_directory.remove) as directory:
            tf.saved_model.save(export.module(rule), directory)
            with tf.io.gfile.GFile(os.path.join(directory, rule_file.RULE_FILE), "wb") as file:
                file.write(content)


def load(name_or_path):
    """Loads an update rule: a shipped one by name, or a directory.

    Runs no code from the directory: the rule's class must be one of l2l_tf's, or be registered
    with ``keras.saving.register_keras_serializable`` by an import. Reads the rule's file alone: a
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
    path = catalog.directory(name_or_path)
    with atomic.file_errors("read", path):
        rule = rule_file.read(path)
        if rule is None:
            path = catalog.best(path)
            rule = rule_file.read(path)
    if rule is None:
        raise ValueError(
            f"{path!r} is not a saved rule: it has no {' or '.join(rule_file.RULE_FILES)}. "
            "Expected a directory that l2l_tf.save or bin/meta_train wrote; "
            "tf.saved_model.load reads other SavedModels."
        )
    return rule


def _rule_of(value):
    """The rule of a LearnedOptimizer; anything else as it is."""
    rule = None if isinstance(value, base.UpdateRule) else getattr(value, "rule", None)
    return rule if isinstance(rule, base.UpdateRule) else value


def _hint_of_save(value):
    if isinstance(value, keras.Model):
        return "Of a model that was compiled with a LearnedOptimizer, pass model.optimizer."
    if isinstance(value, keras.optimizers.Optimizer):
        return "Keras' own optimizers are saved with their model."
    if isinstance(value, (str, os.PathLike)):
        return "The rule comes first: save(rule, path)."
    return "That is the class: make an instance." if inspect.isclass(value) else ""
