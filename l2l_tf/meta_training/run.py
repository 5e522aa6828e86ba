"""A whole meta-training in a directory: validated, checkpointed, resumable."""

import os
import sys

import keras
import numpy as np
import tensorflow as tf

from l2l_tf import saving
from l2l_tf.meta_training.callbacks import KeepBestRule, SaveCheckpoint
from l2l_tf.version import __version__


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
    weights as without one.

    Args:
        trainer: ``MetaTrainer``, not compiled.
        save_dir: directory for the best rule (``rule-<episodes>/``), ``card.json``, checkpoints and
            TensorBoard logs: new, or of an earlier call with the same `settings`.
        num_episodes: optimizees to train on.
        meta_learning_rate: Adam's initial rate.
        validate_every: episodes from one validation and checkpoint to the next; divides
            `num_episodes`.
        num_validation_episodes: optimizees to validate on.
        seed: int, of the episodes.
        settings: dict of what determines the result beside the problem's own, for the card.
        command: the command line that does the same, for the card.
        jit_compile, verbose: as of ``keras.Model.compile`` and ``fit``.

    Returns:
        The card, a dict; ``l2l_tf.load(save_dir)`` gives the best rule.

    Raises:
        FileExistsError: `save_dir` holds something else.
        OSError: `save_dir` cannot be written.
        ValueError: `save_dir` is of a meta-training with other settings, or its card is damaged,
            or the numbers of episodes do not divide.
        FloatingPointError: a loss is not finite.
    """
    if num_episodes < 1 or validate_every < 1 or num_episodes % validate_every:
        raise ValueError(
            "`num_episodes` must be a positive multiple of `validate_every`. "
            f"Received: num_episodes={num_episodes}, validate_every={validate_every}"
        )
    dataset = trainer.dataset(seed, validate_every)
    with saving.file_errors("write", save_dir):
        card = open_directory(
            save_dir,
            {"problem": trainer.problem.name, **trainer.problem.settings, **(settings or {})},
            command,
        )
    num_updates = num_episodes // trainer.meta_batch_size * trainer.num_windows
    schedule = keras.optimizers.schedules.CosineDecay(meta_learning_rate, num_updates)
    optimizer = keras.optimizers.Adam(schedule, global_clipnorm=1.0)
    optimizer.build(trainer.rule.trainable_variables)
    trainer.compile(optimizer=optimizer, jit_compile=jit_compile)

    checkpoint = tf.train.Checkpoint(
        rule=trainer.rule, optimizer=optimizer, episode=trainer.episode
    )
    directory = os.path.join(save_dir, "checkpoints")
    manager = tf.train.CheckpointManager(checkpoint, directory, max_to_keep=2)
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
    match card:
        case {
            "best": str() | None,
            "best_validation_loss": int() | float() | None,
            "settings": dict(old),
            "validation": list(),
            "seconds": int() | float(),
        }:
            pass
        case _:
            raise saving.damaged(
                os.path.join(save_dir, saving.CARD_FILE), "it is not the card of a meta-training"
            )
    if card["best"]:  # Now, before what lies beside the best rule is cleared away.
        saving.put_back(os.path.join(save_dir, card["best"]), saving.RULE_FILE)
    changed = [key for key in {**old, **settings} if old.get(key) != settings.get(key)]
    if changed:
        raise ValueError(
            f"save_dir={save_dir!r} holds a meta-training with other settings: "
            + ", ".join(f"{k}={old.get(k)!r} there, {settings.get(k)!r} now" for k in changed)
            + ". Repeat the old ones to resume it, or choose another save_dir."
        )
    return card


def _machine():
    accelerators = [
        tf.config.experimental.get_device_details(device).get("device_name", device.device_type)
        for device in tf.config.list_physical_devices()
        if device.device_type != "CPU"
    ]
    return ", ".join([f"{os.cpu_count()} CPU cores", *accelerators])


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
