"""The directory of a meta-training: where it may be, its card, its checkpoints."""

import contextlib
import json
import os
import re
import sys

import keras
import numpy as np
import tensorflow as tf

from l2l_tf import arguments, catalog, paths
from l2l_tf.files import atomic, cards, json_file, lock, rule_directory
from l2l_tf.version import __version__

# Signs of a pattern. TensorFlow takes a checkpoint's name for one where it looks for its files.
_PATTERN_SIGNS = "*?[" + ("\\" if os.sep == "/" else "")


def check(save_dir):
    """The path of a directory to meta-train in, from the argument; there may be nothing yet."""
    save_dir = catalog.path_to_write("save_dir", save_dir)
    signs = [sign for sign in _PATTERN_SIGNS if sign in save_dir]
    if signs:
        raise ValueError(
            f"`save_dir` must be a path without any of {' '.join(_PATTERN_SIGNS)}: TensorFlow "
            "takes names of checkpoints for patterns, and would read or remove those of other "
            f"directories. Received: save_dir={save_dir!r}"
        )
    paths.check_is_no_link(save_dir)
    return save_dir


def as_read(problem, settings):
    """All settings, as they are in a card that is read again: a tuple has become a list."""
    if settings is not None:
        arguments.instance("settings", settings, dict, "a dict or None")
    settings = {"problem": problem.name, **problem.settings, **(settings or {})}
    try:
        return json.loads(json.dumps(settings, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(
            "`settings`, of the call and of the problem, must be of what JSON knows: strings, "
            f"finite numbers, True, False, None, lists and dicts. {error}. "
            f"Received: {settings!r:.500}"
        ) from error


@contextlib.contextmanager
def held(save_dir, settings, command=None):
    """Opens a directory, which no other process does meanwhile; yields its card.

    Raises:
        BlockingIOError: another one has.
    """
    with atomic.file_errors("write", save_dir):
        _card_of(save_dir)  # in what is not ours, no lock is made
        tf.io.gfile.makedirs(save_dir)
    with lock.held(save_dir):
        with atomic.file_errors("write", save_dir):
            card = open_directory(save_dir, settings, command)
        yield card


def open_directory(save_dir, settings, command=None):
    """The card of a meta-training: a new one, or that of `save_dir` if its settings are equal."""
    card = _card_of(save_dir)
    if card is None:
        card = {
            "format_version": cards.FORMAT_VERSION,
            "best": None,
            "best_validation_loss": None,
            "superseded": [],
            "command": command,
            "settings": settings,
            "versions": {
                "l2l_tf": __version__,
                "tensorflow": tf.__version__,
                "keras": keras.__version__,
                "numpy": np.__version__,
                "python": sys.version.split()[0],
            },
            "machine": _machine(),
            "seconds": 0.0,
            "validation": [],
        }
        tf.io.gfile.makedirs(save_dir)
        cards.write_card(save_dir, card)
        return card
    _check_card(save_dir, card)
    if card["best"] is not None:  # Now, before what is superseded is cleared away.
        best = cards.best_rule(save_dir, card)
        atomic.put_back(best, rule_directory.has_rule)
    old = card["settings"]
    changed = [key for key in {**old, **settings} if old.get(key) != settings.get(key)]
    if changed:
        go_on = (
            " To go on from its best rule with others, choose a new save_dir and "
            f"--init_from={save_dir} (in Python, a trainer of l2l_tf.load({save_dir!r}))."
        )
        raise ValueError(
            f"save_dir={save_dir!r} holds a meta-training with other settings: "
            + ", ".join(f"{k}={old.get(k)!r} there, {settings.get(k)!r} now" for k in changed)
            + ". Repeat the old ones to resume it, or choose another save_dir."
            + (go_on if card["best"] is not None else "")
        )
    return card


def _card_of(save_dir):
    """The card of a directory; None if there is nothing there yet."""
    card = cards.read_card(save_dir) if tf.io.gfile.isdir(save_dir) else None
    if card is None and tf.io.gfile.exists(save_dir):
        if not tf.io.gfile.isdir(save_dir) or set(tf.io.gfile.listdir(save_dir)) - {lock.LOCK_FILE}:
            raise FileExistsError(
                f"save_dir={save_dir!r} holds something else, which is left as it is. Expected a "
                "new or an empty directory, or one of an earlier meta-training."
            )
    return card


def _check_card(save_dir, card):
    match card:
        case {
            "best": str() | None,
            "best_validation_loss": int() | float() | None,
            "settings": dict(),
            "validation": list(),
            "seconds": int() | float(),
        }:
            superseded = card.get("superseded", [])  # there was a time without it
            if isinstance(superseded, list) and all(map(rule_directory.is_name, superseded)):
                return
    raise json_file.damaged(
        os.path.join(save_dir, cards.CARD_FILE), "it is not the card of a meta-training"
    )


def _machine():
    accelerators = [
        tf.config.experimental.get_device_details(device).get("device_name", device.device_type)
        for device in tf.config.list_physical_devices()
        if device.device_type != "CPU"
    ]
    return ", ".join([f"{os.cpu_count()} CPU cores", *accelerators])


def checkpoint_manager(checkpoint, directory):
    """A manager that knows, and so removes, nothing but what another one wrote here."""
    paths.check_is_no_link(directory)
    manager = tf.train.CheckpointManager(checkpoint, directory, max_to_keep=2)
    # They are read from a file.
    for path in {*manager.checkpoints, manager.latest_checkpoint or ""} - {""}:
        where, name = os.path.split(path)
        if where != directory or not re.fullmatch("ckpt-[0-9]+", name):
            raise json_file.damaged(
                os.path.join(directory, "checkpoint"), f"it names {path!r}, which is not its own"
            )
    return manager
