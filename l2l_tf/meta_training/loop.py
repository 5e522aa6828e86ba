"""The loop of meta-training: epochs of meta-steps and validations, with Keras' callbacks.

Keras' own ``fit`` takes data of one kind, and a mixture's problems have a layout each. Nothing
waits for the device but what is shown: metrics and divergence are read from time to time.
"""

import time

import keras

from l2l_tf import hooks

SECONDS_TO_LOOK = 0.1


def fit(
    trainer,
    dataset,
    *,
    callbacks,
    epochs,
    initial_epoch,
    steps,
    is_cut,
    validate,
    initial_step=0,
):
    """Epochs of meta-training; see ``MetaTrainer.fit``.

    Args:
        trainer: ``MetaTrainer``.
        dataset: an iterable of windows, or of pairs of a problem's index and one.
        callbacks: ``keras.callbacks.CallbackList``.
        epochs, initial_epoch: as of ``keras.Model.fit``.
        steps: meta-steps of an epoch.
        is_cut: whether epochs end by `steps`, and the data go on; else they end with the data.
        validate: function of an epoch's number to its logs.
        initial_step: meta-steps of the first epoch that are done already, and that the metrics are
            of.
    """
    trainer.stop_training = False
    groups = _endless(dataset) if is_cut else None
    callbacks.on_train_begin()
    logs = {}
    for epoch in range(hooks.resumed_epoch(trainer) or initial_epoch, epochs):
        if initial_step == 0:
            trainer.reset_metrics()
            trainer.divergence.begin_epoch()
        callbacks.on_epoch_begin(epoch)
        logs = _epoch(trainer, groups or iter(dataset), initial_step, steps, callbacks)
        initial_step = 0
        logs |= validate(epoch)
        callbacks.on_epoch_end(epoch, logs)
        if trainer.stop_training:
            break
    if epochs > 0:
        trainer.optimizer.finalize_variable_values(trainer.trainable_weights)
    callbacks.on_train_end(logs)


def _epoch(trainer, groups, step, steps, callbacks):
    logs, looked = trainer.train_logs(), 0.0
    while step < steps and not trainer.stop_training:
        callbacks.on_train_batch_begin(step)
        for _ in range(min(trainer.steps_per_execution, steps - step)):
            trainer.meta_step([next(groups) for _ in range(trainer.num_groups)])
            step += 1
        if time.monotonic() - looked > SECONDS_TO_LOOK or step == steps:
            trainer.divergence.look()
            logs |= trainer.train_logs()
            looked = time.monotonic()
        callbacks.on_train_batch_end(step - 1, logs)
    trainer.divergence.look()
    trainer.divergence.check(trainer.replicas.any_process)
    return logs


def validating(trainer, dataset, callbacks, frequency, steps):
    """The `validate` of ``fit``: a validation after some epochs, as ``keras.Model.fit`` has it."""

    def validate(epoch):
        number = epoch + 1
        is_due = number % frequency == 0 if isinstance(frequency, int) else number in frequency
        if dataset is None or not is_due:
            return {}
        logs = evaluate(trainer, dataset, callbacks=callbacks, steps=steps)
        return {f"val_{name}": value for name, value in logs.items()}

    return validate


def evaluate(trainer, dataset, *, callbacks, steps):
    """The logs of a validation; see ``MetaTrainer.evaluate``."""
    trainer.validation.reset()
    callbacks.on_test_begin()
    for step, window in enumerate(dataset):
        if steps is not None and step >= steps:
            break
        callbacks.on_test_batch_begin(step)
        trainer.validate(window)
        callbacks.on_test_batch_end(step)
    logs = trainer.validation.logs()
    callbacks.on_test_end(logs)
    return logs


def callback_list(trainer, callbacks, *, verbose, add_history=False, **params):
    """A ``keras.callbacks.CallbackList``, with Keras' progress bar if `verbose`."""
    verbose = 1 if verbose == "auto" else verbose
    return keras.callbacks.CallbackList(
        callbacks,
        add_history=add_history,
        add_progbar=verbose != 0,
        verbose=verbose,
        model=trainer,
        **params,
    )


def _endless(dataset):
    while True:
        yield from dataset
