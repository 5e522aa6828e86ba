"""A whole meta-training in a directory: validated, checkpointed, resumable."""

import contextlib
import os

import keras
import tensorflow as tf

from l2l_tf import arguments
from l2l_tf.meta_training import save_directory
from l2l_tf.meta_training.callbacks import KeepBestRule, Logs, SaveCheckpoint
from l2l_tf.meta_training.progress import Progress, position
from l2l_tf.meta_training.stop import Stop
from l2l_tf.meta_training.trainer import MetaTrainer
from l2l_tf.problems.mixture import Mixture


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
    checkpoint_seconds=600.0,
    verbose="auto",
):
    """Meta-trains with Adam, a cosine decay of its rate, and meta-gradients clipped at norm 1.

    The same call on the same `save_dir` resumes after an interruption, and ends with the same
    weights as without one. Nothing in it is removed but what meta-training wrote there.

    SIGTERM and Ctrl-C end it at the next episode's end, or after 20 seconds, with a checkpoint. A
    kill loses what was since the last one.

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
        checkpoint_seconds: from one checkpoint to the next within an epoch, at an episode's end.
        jit_compile, verbose: as of ``keras.Model.compile`` and ``fit``.

    Returns:
        The card, a dict; ``l2l_tf.load(save_dir)`` gives the best rule. None in a process that has
        not the first of several replicas, and so writes nothing.

    Raises:
        FileExistsError: `save_dir` holds something else, or is a symbolic link.
        BlockingIOError: another process meta-trains in it.
        OSError: `save_dir` cannot be written, or the disk is full: nothing that was there before
            is lost.
        TypeError, ValueError: an argument is not as above; `save_dir` is of a meta-training with
            other settings, or its card is damaged; the numbers of episodes do not divide.
        FloatingPointError: too many optimizees diverged; see ``MetaTrainer``.
        KeyboardInterrupt: Ctrl-C.
        SystemExit: SIGTERM, with the code 75.
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
    checkpoint_seconds = arguments.real("checkpoint_seconds", checkpoint_seconds, minimum=0)
    is_first = trainer.replicas.is_first
    opened = save_directory.held(save_dir, settings, command)
    with opened if is_first else contextlib.nullcontext() as card:
        optimizer = keras.optimizers.Adam(schedule, global_clipnorm=1.0)
        optimizer.build(trainer.rule.trainable_variables)
        trainer.compile(optimizer=optimizer, jit_compile=jit_compile)
        manager = _restored(trainer, save_dir) if is_first else None
        stop = Stop()
        callbacks = [SaveCheckpoint(manager, checkpoint_seconds, stop)]
        if is_first:
            is_mixture = isinstance(trainer.problem, Mixture)
            best = KeepBestRule(save_dir, card, is_mixture, verbose=verbose != 0)
            logs = Logs(os.path.join(save_dir, "logs"), write_graph=False)
            callbacks = [best, *callbacks, logs]
        try:
            epoch, step = _position(trainer, card, validate_every, dataset)
            trainer.fit(
                dataset,
                initial_epoch=epoch,
                initial_step=step,
                epochs=num_episodes // validate_every,
                validation_data=validation_data,
                callbacks=callbacks,
                verbose=verbose if is_first else 0,
            )
        except (FloatingPointError, KeyboardInterrupt, SystemExit):
            if is_first:
                best.note_the_end()
            raise
        finally:
            stop.give_back()
    if is_first and card["best"] is None:
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


def _restored(trainer, save_dir):
    """The manager of the checkpoints, the last of which is restored."""
    checkpoint = tf.train.Checkpoint(
        rule=trainer.rule,
        optimizer=trainer.optimizer,
        episode=trainer.episode,
        progress=Progress(trainer),
    )
    manager = save_directory.checkpoint_manager(checkpoint, os.path.join(save_dir, "checkpoints"))
    latest = manager.latest_checkpoint
    if latest is None:
        return manager
    try:
        status = checkpoint.restore(latest)
        if any(name.startswith("progress/") for name, _ in tf.train.list_variables(latest)):
            status.assert_consumed()  # There was a time without it.
    except Exception as error:  # Of what is damaged, TensorFlow raises anything.
        raise ValueError(
            f"The checkpoint {latest!r} cannot be read ({type(error).__name__}). Expected one that "
            "this meta-training wrote. The best rule so far is untouched; remove the checkpoints "
            "directory to meta-train from the start."
        ) from error
    return manager


def _position(trainer, card, validate_every, dataset):
    """Epoch and step to go on from; the first process tells the others."""
    place = tf.Variable([0, 0], dtype=tf.int64)
    if card is not None:
        episode = int(trainer.episode.numpy())
        is_validated = any(record["episodes"] == episode for record in card["validation"])
        steps = len(dataset) // trainer.num_groups
        place.assign(position(episode, validate_every, steps, is_validated))
    trainer.replicas.take_from_first([place])
    return place.numpy().tolist()
