"""Learning curves: the losses of a rule on fresh optimizees, and the time of a step."""

import time

import numpy as np
import tensorflow as tf

from l2l_tf.engine import episodes as episodes_lib
from l2l_tf.evaluation import runners

# The length of the mean that smooths "the loss at a step".
SMOOTHING = 5


class Arena:
    """A problem's episodes, the same for every optimizer that enters.

    Every optimizer gets the same initial parameters and the same batches in the same order, and its
    loss is measured at the same point, before each update.

    Args:
        problem: a ``Problem``.
        side: which data, "heldout" or "train". The optimizee is trained on its batches and those
            batches' losses are reported.
        num_steps: steps of an episode.
        seed: int.
    """

    def __init__(self, problem, num_steps, side="heldout", seed=0):
        self.problem = problem
        self.num_steps = num_steps
        self._side = side
        self._seed = seed
        self._datasets = {}

    def runner(self, optimizer):
        """A runner of an ``UpdateRule`` or a Keras optimizer; see ``runners.runner``."""
        return runners.runner(optimizer, self.problem)

    def losses(self, runner, purpose, num_seeds):
        """Learning curves of a ``runner(optimizer)``, ``[num_seeds, num_steps]``.

        Entry t is f(θ_t), before the t-th update.
        """
        return self.losses_and_parameters(runner, purpose, num_seeds)[0]

    def losses_and_parameters(self, runner, purpose, num_seeds):
        """As of ``losses``; and the parameters of the last loss, ``[num_seeds, N]``."""
        runs = []
        for episode in self._episodes(purpose, num_seeds):
            runner.prepare(episode)
            runs.append(runner.run(episode))
        losses, parameters = map(np.concatenate, zip(*runs))
        return losses.astype("float64"), parameters

    def initial_parameters(self, purpose, num_seeds):
        """What each episode starts from, ``[num_seeds, N]``."""
        episodes = self._episodes(purpose, num_seeds)
        return np.concatenate([episode["parameters"].numpy() for episode in episodes])

    def first_batches(self, purpose, num_seeds):
        """The batch of the first step of each episode."""
        batches = []
        for e in self._episodes(purpose, num_seeds):
            for m in range(e["parameters"].shape[0]):
                batches.append(tf.nest.map_structure(lambda x, m=m: x[m, 0], e["batches"]))
        return batches

    def seconds_per_step(self, runners, purpose="report", num_rounds=5):
        """Median seconds a step of one optimizee, for each of several runners.

        The optimizers take turns, so that what else the machine does falls on all of them.
        """
        episode = next(iter(self._episodes(purpose, 1)))
        one = tf.nest.map_structure(lambda leaf: leaf[:1], episode)
        times = {name: [] for name in runners}
        for is_warm in [False] + [True] * num_rounds:
            for name, runner in runners.items():
                runner.prepare(one)
                start = time.perf_counter()
                runner.run(one)
                if is_warm:
                    times[name].append((time.perf_counter() - start) / self.num_steps)
        return {name: float(np.median(t)) for name, t in times.items()}

    def _episodes(self, purpose, num_seeds):
        key = purpose, num_seeds
        if key not in self._datasets:
            dataset = episodes_lib.episodes(
                self.problem,
                self._side,
                self._seed,
                purpose,
                lambda: tf.constant(0, tf.int64),
                num_seeds,
                num_windows=1,
                window_length=self.num_steps - 1,
                num_parallel=num_seeds if self.problem.vectorized else 1,
            )
            self._datasets[key] = list(dataset)
        return self._datasets[key]


def loss_at(losses, step):
    """The loss at a step: the mean of the five entries that end at index ``step - 1``.

    Args:
        losses: ``[..., num_steps]``.
        step: int, from 1 to num_steps.
    """
    losses = np.asarray(losses, dtype="float64")
    return losses[..., max(0, step - SMOOTHING) : step].mean(axis=-1)
