"""Cards: what a meta-training writes about its rules; and how JSON files of ours are read."""

import json
import os

from l2l_tf import rule_directory
from l2l_tf.atomic_files import exists, read_text, write_json

FORMAT_VERSION = 1  # of rule.json and of card.json
CARD_FILE = "card.json"


def read_card(directory):
    """The content of a directory's ``card.json``, or None if it has none."""
    return read_json(directory, CARD_FILE)


def write_card(directory, content):
    """Writes a directory's ``card.json``, atomically."""
    write_json(content, os.path.join(directory, CARD_FILE))


def add_to_card(directory, content):
    """Merges a dict into a directory's ``card.json``."""
    write_card(directory, {**read_card(directory), **content})


def best_rule(save_dir, content):
    """The path of the best rule that a meta-training's card names, of which `content` is."""
    best = content.get("best")
    path = rule_directory.named(save_dir, best)
    if path is None or not exists(path):
        raise damaged(
            os.path.join(save_dir, CARD_FILE),
            f"its best is {best!r}, which is no directory beside it with the name of a rule",
        )
    return path


def read_json(directory, name):
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


def damaged(path, what):
    """The error about a file of ours."""
    return ValueError(
        f"{os.path.basename(path)} in {os.path.dirname(path)!r} is damaged: {what}. Expected what "
        "l2l_tf.save or bin/meta_train wrote. Save it again, or restore the directory from a copy."
    )
