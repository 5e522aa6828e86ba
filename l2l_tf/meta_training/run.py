"""A whole meta-training in a directory: validated, checkpointed, resumable."""

import json
import os
import re
import sys

import keras
import numpy as np
import tensorflow as tf

from l2l_tf import arguments, atomic_files, paths, rule_directory, saving
from l2l_tf.meta_training.callbacks import KeepBestRule, SaveCheckpoint
from l2l_tf.meta_training.trainer import MetaTrainer
from l2l_tf.version import __version__

# Signs of a pattern. TensorFlow takes a checkpoint's name for one where it looks for its files.
_PATTERN_SIGNS = "*?[" + ("\\" if os.sep == "/" else "")


def meta_train(
    trainer,
    save_dir,
    *,
    num_episodes,
    meta_learning_rate,
    validate_every,
    num_validation_episodes=8,
    seed=0,
    settings=None,
    command=None,
    jit_compile=False,
    verbose="auto",
):
    """Meta-trains with Adam, a cosine decay of its rate, and meta-gradients clipped at norm 1.

    The same call on the same `save_dir` resumes after an interruption, and ends with the same
    weights as without one. Nothing in it is removed but what meta-training wrote there.

    Args:
        trainer: ``MetaTrainer``, not compiled.
        save_dir: directory for the best rule (``rule-<episodes>/``), ``card.json``, checkpoints and
            TensorBoard logs: new, or of an earlier call with the same `settings`. ``~`` is
            expanded. TensorFlow reads ``* ? [ \\`` in it as a pattern, so it has none of them.
        num_episodes: optimizees to train on.
        meta_learning_rate: Adam's initial rate.
        validate_every: episodes from one validation and checkpoint to the next; divides
            `num_episodes`.
        num_validation_episodes: optimizees to validate on.
        seed: int, of the episodes.
        settings: dict of what determines the result beside the problem's own, for the card; of
            what JSON knows.
        command: the command line that does the same, for the card.
        jit_compile, verbose: as of ``keras.Model.compile`` and ``fit``.

    Returns:
        The card, a dict; ``l2l_tf.load(save_dir)`` gives the best rule.

    Raises:
        FileExistsError: `save_dir` holds something else, or is a symbolic link.
        OSError: `save_dir` cannot be written.
        TypeError, ValueError: an argument is not as above; `save_dir` is of a meta-training with
            other settings, or its card is damaged; the numbers of episodes do not divide.
        FloatingPointError: a loss is not finite.
    """
    arguments.instance("trainer", trainer, MetaTrainer, "an l2l_tf.MetaTrainer")
    save_dir = _check_save_dir(save_dir)
    _check_numbers_of_episodes(num_episodes, validate_every, trainer.meta_batch_size)
    meta_learning_rate = arguments.real("meta_learning_rate", meta_learning_rate, above=0)
    arguments.integer("num_validation_episodes", num_validation_episodes, minimum=1)
    arguments.integer("seed", seed)
    if command is not None:
        arguments.text("command", command)
    if jit_compile != "auto":
        arguments.boolean("jit_compile", jit_compile)
    if verbose != "auto" and not isinstance(verbose, bool):
        arguments.integer("verbose", verbose, minimum=0)
    settings = _as_read(trainer.problem, settings)
    dataset = trainer.dataset(seed, validate_every)
    with saving.file_errors("write", save_dir):
        card = open_directory(save_dir, settings, command)
    num_updates = num_episodes // trainer.meta_batch_size * trainer.num_windows
    schedule = keras.optimizers.schedules.CosineDecay(meta_learning_rate, num_updates)
    optimizer = keras.optimizers.Adam(schedule, global_clipnorm=1.0)
    optimizer.build(trainer.rule.trainable_variables)
    trainer.compile(optimizer=optimizer, jit_compile=jit_compile)

    checkpoint = tf.train.Checkpoint(
        rule=trainer.rule, optimizer=optimizer, episode=trainer.episode
    )
    manager = _checkpoint_manager(checkpoint, os.path.join(save_dir, "checkpoints"))
    _restore(checkpoint, manager)
    trainer.fit(
        dataset,
        initial_epoch=int(trainer.episode.numpy()) // validate_every,
        epochs=num_episodes // validate_every,
        validation_data=trainer.validation_dataset(seed, num_validation_episodes),
        callbacks=[
            KeepBestRule(save_dir, card),
            SaveCheckpoint(manager),
            keras.callbacks.TensorBoard(os.path.join(save_dir, "logs"), write_graph=False),
        ],
        verbose=verbose,
    )
    if card["best"] is None:
        raise FloatingPointError(
            f"No validation on '{trainer.problem.name}' gave a finite loss, so there is no best "
            "rule. Try a smaller meta-learning rate or a smaller output scale of the rule."
        )
    return card


def _check_save_dir(save_dir):
    save_dir = saving.path_to_write("save_dir", save_dir)
    signs = [sign for sign in _PATTERN_SIGNS if sign in save_dir]
    if signs:
        raise ValueError(
            f"`save_dir` must be a path without any of {' '.join(_PATTERN_SIGNS)}: TensorFlow "
            "takes names of checkpoints for patterns, and would read or remove those of other "
            f"directories. Received: save_dir={save_dir!r}"
        )
    paths.check_is_no_link(save_dir)
    return save_dir


def _check_numbers_of_episodes(num_episodes, validate_every, meta_batch_size):
    arguments.integer("num_episodes", num_episodes, minimum=1)
    arguments.integer("validate_every", validate_every, minimum=1)
    if num_episodes % validate_every:
        raise ValueError(
            "`num_episodes` must be a positive multiple of `validate_every`. "
            f"Received: num_episodes={num_episodes}, validate_every={validate_every}"
        )
    if validate_every % meta_batch_size:
        raise ValueError(
            "`validate_every` must be a multiple of the trainer's `meta_batch_size`. "
            f"Received: validate_every={validate_every}, meta_batch_size={meta_batch_size}"
        )


def _as_read(problem, settings):
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


def open_directory(save_dir, settings, command=None):
    """The card of a meta-training: a new one, or that of `save_dir` if its settings are equal."""
    card = saving.read_card(save_dir) if tf.io.gfile.isdir(save_dir) else None
    if card is None:
        if tf.io.gfile.exists(save_dir) and (
            not tf.io.gfile.isdir(save_dir) or tf.io.gfile.listdir(save_dir)
        ):
            raise FileExistsError(
                f"save_dir={save_dir!r} holds something else, which is left as it is. Expected a "
                "new or an empty directory, or one of an earlier meta-training."
            )
        card = {
            "format_version": saving.FORMAT_VERSION,
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
        saving.write_card(save_dir, card)
        return card
    _check_card(save_dir, card)
    if card["best"] is not None:  # Now, before what is superseded is cleared away.
        best = saving.best_rule(save_dir, card)
        atomic_files.put_back(best, rule_directory.RULE_FILE)
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
    raise saving.damaged(
        os.path.join(save_dir, saving.CARD_FILE), "it is not the card of a meta-training"
    )


def _machine():
    accelerators = [
        tf.config.experimental.get_device_details(device).get("device_name", device.device_type)
        for device in tf.config.list_physical_devices()
        if device.device_type != "CPU"
    ]
    return ", ".join([f"{os.cpu_count()} CPU cores", *accelerators])


def _checkpoint_manager(checkpoint, directory):
    """A manager that knows, and so removes, nothing but what another one wrote here."""
    paths.check_is_no_link(directory)
    manager = tf.train.CheckpointManager(checkpoint, directory, max_to_keep=2)
    # They are read from a file.
    for path in {*manager.checkpoints, manager.latest_checkpoint or ""} - {""}:
        where, name = os.path.split(path)
        if where != directory or not re.fullmatch("ckpt-[0-9]+", name):
            raise saving.damaged(
                os.path.join(directory, "checkpoint"), f"it names {path!r}, which is not its own"
            )
    return manager


def _restore(checkpoint, manager):
    if manager.latest_checkpoint is None:
        return
    try:
        checkpoint.restore(manager.latest_checkpoint).assert_consumed()
    except Exception as error:  # Of what is damaged, TensorFlow raises anything.
        raise ValueError(
            f"The checkpoint {manager.latest_checkpoint!r} cannot be read "
            f"({type(error).__name__}). Expected one that this meta-training wrote. The best rule "
            "so far is untouched; remove the checkpoints directory to meta-train from the start."
        ) from error
