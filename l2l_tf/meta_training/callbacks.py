"""Callbacks of meta-training: speed, the best rule, checkpoints, logs."""

import math
import os
import time

import keras
import tensorflow as tf

from l2l_tf import saving
from l2l_tf.files import atomic, cards, rule_directory

LONG_EPISODE = 5.0  # seconds, after which a checkpoint is worth its time


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

    Of a mixture, it is the mean of its problems' objectives, and the records have each problem's.

    Only rules that this meta-training wrote are replaced or removed: the card's "best", and those
    of its "superseded". A new rule is on that list from before it is written until the card names
    it as the best, and the best before it from then on until it is gone. So a kill at any moment
    leaves no rule that the card does not know.

    Args:
        save_dir: directory for ``rule-<episodes>/`` and ``card.json``.
        card: dict, the content of ``card.json``, which goes on being written.
        of_mixture: whether it is a mixture.
        verbose: whether to print the worst of its problems.
    """

    def __init__(self, save_dir, card, of_mixture=False, verbose=False):
        super().__init__()
        self._save_dir = save_dir
        self._card = card
        self._of_mixture = of_mixture
        self._verbose = verbose
        self._start = time.monotonic()

    def on_train_begin(self, logs=None):
        self._start = time.monotonic()
        self._remove_superseded()

    def on_epoch_end(self, epoch, logs=None):
        episodes = int(self.model.episode.numpy())
        names = ["loss", "val_loss", "val_final_loss"] + ["val_objective"] * self._of_mixture
        record = {"episodes": episodes, **_rounded({name: logs[name] for name in names})}
        if self._of_mixture:
            record |= self._by_problem(record)
        what = "objective" if self._of_mixture else "loss"
        value, best = record[f"val_{what}"], self._card.get(f"best_validation_{what}")
        if value is not None and (best is None or value < best):
            self._save_best(f"rule-{episodes}", {f"best_validation_{what}": value})
        # Only now, when the best is known: what is recorded is not validated again. An epoch that
        # is run again after an interruption replaces its record.
        history = [r for r in self._card["validation"] if r["episodes"] < episodes]
        self._card["validation"] = [*history, record]
        self._card |= self._so_far()
        cards.write_card(self._save_dir, self._card)
        self._remove_superseded()

    def note_the_end(self):
        """Adds to the card on the disk what was since the last validation: time, divergence."""
        cards.add_to_card(self._save_dir, self._so_far())

    def _so_far(self):
        start, self._start = self._start, time.monotonic()
        seconds = round(self._card["seconds"] + self._start - start, 1)
        divergence = getattr(self.model, "divergence", None)
        return {"seconds": seconds} | ({"diverged": divergence.summary()} if divergence else {})

    def _by_problem(self, record):
        validation = self.model.validation
        name, of_worst = validation.worst()
        worst = {"problem": name, **_rounded({"objective": of_worst["objective"]})}
        if self._verbose:
            print(
                f"\nAfter {record['episodes']} episodes: objective {record['val_objective']}, "
                f"worst on {name}: {worst['objective']}",
                flush=True,
            )
        by_problem = {name: _rounded(of) for name, of in validation.by_problem().items()}
        return {"worst": worst, "by_problem": by_problem}

    def _save_best(self, name, value):
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
            **value,
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
    """Saves checkpoints, which are where an interrupted meta-training resumes.

    One after each epoch; within it at an episode's end, if some time has passed, or if that one
    took long. At a wish to stop, it saves one at the next episode's end, and stops there.

    Args:
        manager: ``tf.train.CheckpointManager``; None in a process that writes nothing.
        seconds: from one to the next, at most, but for the rest of an episode.
        stop: ``Stop``, which takes the signals over once there is something to lose.
    """

    def __init__(self, manager, seconds, stop):
        super().__init__()
        self._manager = manager
        self._seconds = seconds
        self._stop = stop
        self._saved = self._last_end = time.monotonic()

    def on_epoch_begin(self, epoch, logs=None):
        self._last_end = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        if not self.model.is_between_episodes:
            return
        self._stop.take_over()
        self._stop_if_asked()
        now = time.monotonic()
        if now - self._last_end > LONG_EPISODE or now - self._saved > self._seconds:
            self._save()
        self._last_end = time.monotonic()

    def on_test_batch_end(self, batch, logs=None):
        if self.model.replicas.is_alone:  # The others are elsewhere in theirs.
            self._stop_if_asked()

    def on_epoch_end(self, epoch, logs=None):
        self._save()
        self._stop_if_asked()

    def _stop_if_asked(self):
        if self.model.replicas.any_process(self._stop.signal is not None):
            self._save()
            self._stop.end(int(self.model.episode.numpy()))

    def _save(self):
        if self._manager is not None:
            self.model.divergence.look()
            with atomic.file_errors("write", self._manager.directory):
                self._manager.save()
        self._saved = time.monotonic()


class Logs(keras.callbacks.TensorBoard):
    """TensorBoard's logs; an error names their directory."""

    def set_model(self, model):
        with atomic.file_errors("write", self.log_dir):
            super().set_model(model)

    def on_epoch_end(self, epoch, logs=None):
        with atomic.file_errors("write", self.log_dir):
            super().on_epoch_end(epoch, logs)

    def on_test_end(self, logs=None):
        with atomic.file_errors("write", self.log_dir):
            super().on_test_end(logs)

    def on_train_end(self, logs=None):
        with atomic.file_errors("write", self.log_dir):
            super().on_train_end(logs)


def _rounded(values):
    """As a card has numbers: six digits; None for what is not finite."""
    return {k: float(f"{v:.6g}") if math.isfinite(v) else None for k, v in values.items()}
