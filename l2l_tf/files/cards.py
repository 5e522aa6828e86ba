"""Cards: what a meta-training writes about its rules."""

import os

from l2l_tf.files import atomic, json_file, rule_directory

FORMAT_VERSION = 1
CARD_FILE = "card.json"


def read_card(directory):
    """The content of a directory's ``card.json``, or None if it has none."""
    directory = os.fspath(directory)
    _, data = atomic.read(directory, [CARD_FILE])
    path = os.path.join(directory, CARD_FILE)
    return None if data is None else json_file.parse(data, path, FORMAT_VERSION)


def write_card(directory, content):
    """Writes a directory's ``card.json``, atomically."""
    json_file.write(content, os.path.join(directory, CARD_FILE))


def add_to_card(directory, content):
    """Merges a dict into a directory's ``card.json``."""
    write_card(directory, {**read_card(directory), **content})


def best_rule(save_dir, content):
    """The path of the best rule that a meta-training's card names, of which `content` is."""
    best = content.get("best")
    path = rule_directory.named(save_dir, best)
    if path is None or not atomic.exists(path):
        raise json_file.damaged(
            os.path.join(save_dir, CARD_FILE),
            f"its best is {best!r}, which is no directory beside it with the name of a rule",
        )
    return path
