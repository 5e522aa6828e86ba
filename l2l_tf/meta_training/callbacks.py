"""Callbacks of meta-training: speed, divergence, the best rule, checkpoints."""

import math
import os
import time

import keras
import tensorflow as tf

from l2l_tf import saving
from l2l_tf.files import cards, rule_directory


class InnerStepsPerSecond(keras.callbacks.Callback):
    """Adds ``inner_steps_per_second`` to the logs: optimizee steps, all optimizees together.

    Each epoch is measured from the end of its first train step, which may include compilation.
    (With ``steps_per_execution``, of those that are run first.)
    """

    def on_epoch_begin(self, epoch, logs=None):
        self._start = None
        self._num_train_steps = 0

    def on_train_batch_end(self, batch, logs=None):
        if self._start is None:
            self._start, self._first_batch = time.perf_counter(), batch
            return
        self._num_train_steps = batch - self._first_batch
        if logs is not None:
            logs["inner_steps_per_second"] = self._rate()

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None and self._num_train_steps:
            logs["inner_steps_per_second"] = self._last_rate

    def _rate(self):
        steps = self._num_train_steps * self.model.window_length * self.model.num_episodes_at_once
        self._last_rate = steps / (time.perf_counter() - self._start)
        return self._last_rate


class KeepBestRule(keras.callbacks.Callback):
    """After each epoch, saves the rule if its validation loss is the lowest so far.

    Only rules that this meta-training wrote are replaced or removed: the card's "best", and those
    of its "superseded". A new rule is on that list from before it is written until the card names
    it as the best, and the best before it from then on until it is gone. So a kill at any moment
    leaves no rule that the card does not know.

    Args:
        save_dir: directory for ``rule-<episodes>/`` and ``card.json``.
        card: dict, the content of ``card.json``, which goes on being written.
    """

    def __init__(self, save_dir, card):
        super().__init__()
        self._save_dir = save_dir
        self._card = card

    def on_train_begin(self, logs=None):
        self._start = time.monotonic()
        self._remove_superseded()

    def on_epoch_end(self, epoch, logs=None):
        episodes = int(self.model.episode.numpy())
        losses = {key: logs[key] for key in ("loss", "val_loss", "val_final_loss")}
        record = {"episodes": episodes}
        record |= {k: float(f"{v:.6g}") if math.isfinite(v) else None for k, v in losses.items()}
        # An epoch that is run again after an interruption replaces its record.
        history = [r for r in self._card["validation"] if r["episodes"] < episodes]
        now = time.monotonic()
        self._card["seconds"] = round(self._card["seconds"] + now - self._start, 1)
        self._start = now
        self._card["validation"] = [*history, record]
        best = self._card["best_validation_loss"]
        if record["val_loss"] is not None and (best is None or record["val_loss"] < best):
            self._save_best(f"rule-{episodes}", record["val_loss"])
        cards.write_card(self._save_dir, self._card)
        self._remove_superseded()

    def _save_best(self, name, validation_loss):
        """Saves the rule; in the card, which is not written here, it becomes the best."""
        path = os.path.join(self._save_dir, name)
        known = [self._card["best"], *self._card.get("superseded", [])]
        # In cards of before there was the list, a kill could leave out a rule.
        if name not in known and "superseded" in self._card and tf.io.gfile.exists(path):
            raise FileExistsError(
                f"{path!r} is not of this meta-training, so it is left as it is. Move it away, and "
                "repeat the same call: it goes on from the last checkpoint."
            )
        if name != self._card["best"]:
            self._card["superseded"] = sorted({*known[1:], name})
            cards.write_card(self._save_dir, self._card)
        saving.save(self.model.rule, path, overwrite=True)
        self._card |= {
            "best": name,
            "best_validation_loss": validation_loss,
            "superseded": sorted({*known} - {name, None}),
        }

    def _remove_superseded(self):
        names = self._card.get("superseded")
        if not names:
            return
        for name in names:
            path = rule_directory.named(self._save_dir, name)
            if path is not None and name != self._card["best"]:
                rule_directory.remove(path)
        self._card["superseded"] = []
        cards.write_card(self._save_dir, self._card)


class SaveCheckpoint(keras.callbacks.Callback):
    """Saves a checkpoint after each epoch, which is where an interrupted meta-training resumes.

    Args:
        manager: ``tf.train.CheckpointManager``.
    """

    def __init__(self, manager):
        super().__init__()
        self._manager = manager

    def on_epoch_end(self, epoch, logs=None):
        self._manager.save()
