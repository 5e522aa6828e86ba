"""A whole meta-training in a directory: validated, checkpointed, resumable."""

import os

import keras
import tensorflow as tf

from l2l_tf import arguments
from l2l_tf.files import atomic
from l2l_tf.meta_training import save_directory
from l2l_tf.meta_training.callbacks import KeepBestRule, SaveCheckpoint
from l2l_tf.meta_training.trainer import MetaTrainer


def meta_train(
    trainer,
    save_dir,
    *,
    num_episodes,
    meta_learning_rate,
    validate_every,
    num_validation_episodes=8,
    validation_steps=None,
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
        meta_learning_rate: Adam's initial rate; or a schedule of Keras', in place of the cosine.
        validate_every: episodes from one validation and checkpoint to the next; divides
            `num_episodes`.
        num_validation_episodes: optimizees to validate on, of a mixture on each problem.
        validation_steps: of a validation episode; None takes the trainer's `num_steps`.
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
    save_dir = save_directory.check(save_dir)
    _check_numbers_of_episodes(num_episodes, validate_every, trainer.num_episodes_at_once)
    schedule = meta_learning_rate
    if not isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
        initial = arguments.real("meta_learning_rate", meta_learning_rate, above=0)
        num_updates = num_episodes // trainer.num_episodes_at_once * trainer.num_windows
        schedule = keras.optimizers.schedules.CosineDecay(initial, num_updates)
    arguments.integer("num_validation_episodes", num_validation_episodes, minimum=1)
    arguments.integer("seed", seed)
    if command is not None:
        arguments.text("command", command)
    if jit_compile != "auto":
        arguments.boolean("jit_compile", jit_compile)
    if verbose != "auto" and not isinstance(verbose, bool):
        arguments.integer("verbose", verbose, minimum=0)
    settings = save_directory.as_read(trainer.problem, settings)
    dataset = trainer.dataset(seed, validate_every)
    validation_data = trainer.validation_dataset(seed, num_validation_episodes, validation_steps)
    with atomic.file_errors("write", save_dir):
        card = save_directory.open_directory(save_dir, settings, command)
    optimizer = keras.optimizers.Adam(schedule, global_clipnorm=1.0)
    optimizer.build(trainer.rule.trainable_variables)
    trainer.compile(optimizer=optimizer, jit_compile=jit_compile)

    checkpoint = tf.train.Checkpoint(
        rule=trainer.rule, optimizer=optimizer, episode=trainer.episode
    )
    manager = save_directory.checkpoint_manager(checkpoint, os.path.join(save_dir, "checkpoints"))
    _restore(checkpoint, manager)
    trainer.fit(
        dataset,
        initial_epoch=int(trainer.episode.numpy()) // validate_every,
        epochs=num_episodes // validate_every,
        validation_data=validation_data,
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


def _check_numbers_of_episodes(num_episodes, validate_every, at_once):
    arguments.integer("num_episodes", num_episodes, minimum=1)
    arguments.integer("validate_every", validate_every, minimum=1)
    if num_episodes % validate_every:
        raise ValueError(
            "`num_episodes` must be a positive multiple of `validate_every`. "
            f"Received: num_episodes={num_episodes}, validate_every={validate_every}"
        )
    if validate_every % at_once:
        raise ValueError(
            "`validate_every` must be a multiple of the trainer's `meta_batch_size` times "
            f"`num_groups`. Received: validate_every={validate_every}, {at_once} episodes a "
            "meta-step"
        )


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
