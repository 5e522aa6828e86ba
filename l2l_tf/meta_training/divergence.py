"""Divergence: which optimizees of a meta-training diverged, said and counted."""

import warnings

MOST_SAID = 10  # a warning each; of more, the number alone


class Divergence:
    """The optimizees of a training that diverged, so far.

    Args:
        max_diverged: the share of an epoch's optimizees above which it ends the training.
    """

    def __init__(self, max_diverged):
        self.max_diverged = max_diverged
        self.found = []  # dicts of "problem", "episode", "step"; of a resumed one, the first few
        self.num_found = 0
        self._known = set()
        self._pending = []
        self._num_counted = self._num_left_out = 0

    def begin_epoch(self):
        self._num_counted = self._num_left_out = 0

    def add(self, problem, episodes, runs, left_out):
        """A window of a group, in tensors; nothing is read before ``look``.

        Args:
            problem: its name.
            episodes: ``[M]``.
            runs: ``Runs`` after the window.
            left_out: bool ``[M]``.
        """
        self._pending.append((problem, episodes, runs, left_out))

    def look(self):
        """Reads what was added: warns of each optimizee that diverged since."""
        pending, self._pending = self._pending, []
        for problem, episodes, runs, left_out in pending:
            columns = episodes.numpy(), runs.stopped_at.numpy(), left_out.numpy()
            for episode, stopped_at, is_left_out in zip(*columns):
                self._num_counted += 1
                if stopped_at < 0 and not is_left_out:
                    continue
                self._num_left_out += 1
                if (problem, int(episode)) in self._known:
                    continue
                self._known.add((problem, int(episode)))
                self._say(problem, int(episode), int(stopped_at))

    def check(self, any_process):
        """Ends the training if too many optimizees of this epoch diverged.

        Args:
            any_process: ``Replicas.any_process``: if it ends in one process, it does in all.

        Raises:
            FloatingPointError: more than `max_diverged` of them.
        """
        if not any_process(self.share > self.max_diverged):
            return
        last = _text(self.found[-1]) if self.found else "in another process"
        raise FloatingPointError(
            f"Meta-training stopped: {self.share:.0%} of this epoch's optimizees diverged, more "
            f"than max_diverged={self.max_diverged:.0%}. The last: {last}. The "
            "rule's weights are finite. If the problem itself is sound, try a smaller "
            "meta-learning rate or a smaller output scale of the rule. The objectives 'sqrt', "
            "'log' and 'relative' need losses that are never negative."
        )

    @property
    def share(self):
        """Of the optimizees of this epoch that ``look`` has seen."""
        return self._num_left_out / max(1, self._num_counted)

    def summary(self):
        """Of all so far, for a card: a dict of their number and the first few."""
        return {"count": self.num_found, "first": self.found[:MOST_SAID]}

    def state(self):
        """What ``restore`` takes, between episodes: of what JSON knows."""
        return {**self.summary(), "of_epoch": [self._num_counted, self._num_left_out]}

    def restore(self, state):
        self.num_found, self.found = state["count"], state["first"]
        self._num_counted, self._num_left_out = state["of_epoch"]

    def _say(self, problem, episode, step):
        self.found.append({"problem": problem, "episode": episode, "step": step})
        self.num_found += 1
        if self.num_found <= MOST_SAID:
            rest = " Of more, only the share is said." if self.num_found == MOST_SAID else ""
            warnings.warn(
                f"An optimizee diverged, {_text(self.found[-1])}. It is stopped there.{rest}",
                stacklevel=2,
            )


def _text(record):
    place = f"on '{record['problem']}' in episode {record['episode']}, at "
    if record["step"] >= 0:
        return f"{place}step {record['step']}: the loss or its gradient is not finite, or too large"
    return f"{place}its end: the losses are finite, but the objective or its meta-gradient is not"
