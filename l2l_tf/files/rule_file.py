"""A rule's file: its class, its config and its weights, from which it is made again.

An npz file: the arrays, and the rest as JSON, in which a rule's "weights" name its arrays. Of
format version 1, which is still read, is a JSON file whose "weights" are lists, of the trainable
ones alone.
"""

import hashlib
import json
import os
import textwrap

import numpy as np

from l2l_tf.files import atomic, json_file
from l2l_tf.update_rules import arrays, base, levels, serialization

RULE_FILE = "rule.npz"
FORMAT_VERSIONS = {RULE_FILE: 2, "rule.json": 1}
RULE_FILES = tuple(FORMAT_VERSIONS)
_JSON = "rule_json"  # the array of the file that holds JSON, as bytes


def to_bytes(rule):
    """The content of a rule's file.

    Raises:
        ValueError: the rule could not be loaded again.
    """
    content = {"format_version": FORMAT_VERSIONS[RULE_FILE], "rule": serialization.serialize(rule)}
    _check_finite(rule)
    members = {}
    for number, config in enumerate(arrays.texts_within(content)):
        weights = arrays.from_text(config["weights"])
        members |= {f"{number}/{name}": value for name, value in weights.items()}
        config["weights"] = f"{arrays.PREFIX}{number}/"
    text = np.frombuffer(json.dumps(content).encode(), np.uint8)
    return arrays.to_bytes({_JSON: text, **members})


def read(directory):
    """The rule of a directory; None if it has no rule's file. Runs no code from there.

    Raises:
        ValueError: the file is damaged, of a newer version, or of a class that is not registered.
    """
    name, data = atomic.read(directory, RULE_FILES)
    if data is None:
        return None
    path, members = os.path.join(directory, name), {}
    if name == RULE_FILE:
        try:
            members = arrays.from_bytes(data)
            data = members.pop(_JSON).tobytes()
        except Exception as error:  # Of such files, zipfile and NumPy raise anything.
            what = f"it is cut or no npz file of a rule ({type(error).__name__})"
            raise json_file.damaged(path, what) from error
    content = json_file.parse(data, path, FORMAT_VERSIONS[name])
    for config in arrays.texts_within(content):
        prefix = config["weights"].removeprefix(arrays.PREFIX)
        config["weights"] = {k: v for k, v in members.items() if k.startswith(prefix)}
    return _rebuild(content, path)


def fingerprint(rule):
    """Eight hex digits of a rule's class, config and weights; not of its Keras name."""
    content = serialization.serialize(rule)
    _leave_out_names(content)
    for config in arrays.texts_within(content):  # as in version 1: cards hold fingerprints
        config["weights"] = [v.tolist() for v in arrays.from_text(config["weights"]).values()]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def _leave_out_names(of_rule):
    of_rule["config"].pop("name", None)
    for group in of_rule["config"].get("groups", []):
        _leave_out_names(group["rule"])


def _check_finite(rule):
    bad = [w.name for w in rule.weights if not np.isfinite(w.numpy()).all()]
    if bad:
        raise ValueError(f"Weights must be finite. Received: NaN or infinity in {', '.join(bad)}")


def _rebuild(content, path):
    match content:
        case {"rule": {"class": str(name), "config": dict(config)}}:
            cls = serialization.rule_class(name)
        case _:
            raise json_file.damaged(path, "it lacks 'rule' with 'class' and 'config'")
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
        raise json_file.damaged(path, f"no {cls.__name__} can be made of it ({reason})") from error
    return rule


def _try(rule):
    """One step of the rule, for the least that it takes."""
    for each in base.made_of(rule):
        shape = tuple(size or 1 for size in each.tensor_shape or (1,))
        levels.trial(each, ("tensor", shape), 0.0)
