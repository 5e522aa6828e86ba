"""Contest: a suite problem, on which every optimizer is run and measured in the same way."""

import functools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from l2l_tf.evaluation.learning_curves import Arena
from l2l_tf.optimizer import LearnedOptimizer
from l2l_tf.update_rules import base

NUM_POINTS = 50  # of a curve that is kept
MOST_EXAMPLES = 2048  # of the sample that the final loss is measured on
TIMED_STEPS = 200


class Run(NamedTuple):
    """What an optimizer did on S optimizees, over T steps. Not finite where it diverged."""

    initial: np.ndarray  # [S], the loss of the sample at θ_0
    final: np.ndarray  # [S], at the parameters that the optimizer hands out after step T
    mean: np.ndarray  # [S], of the losses of the minibatches, each before its step
    heldout: np.ndarray  # [S], the held-out metric at the end
    curve: np.ndarray  # [S, T], the losses of the minibatches


class Contest:
    """A suite problem, with episodes that are the same for every optimizer.

    An episode's batches and losses are of the training data. The final loss is that of one sample
    of these, up to 2,048 examples, the same for all, in batches of the problem's size, in training
    mode with fixed seeds of Dropout. The held-out metric is in inference mode.

    Args:
        suite_problem: ``SuiteProblem``.
        seed: int.
    """

    def __init__(self, suite_problem, seed=0):
        self.suite_problem = suite_problem
        self.problem = suite_problem.keras_problem()
        self.num_steps = suite_problem.num_steps
        self._seed = seed
        self._arena = Arena(self.problem, self.num_steps + 1, "train", seed)
        num_examples = len(tf.nest.flatten(suite_problem.train)[0])
        num_batches = max(1, min(MOST_EXAMPLES, num_examples) // suite_problem.batch_size)
        of_sample = tf.constant([seed, -1], tf.int64)  # no episode's
        self._sample = list(self.problem.batches("train", of_sample, num_batches))
        self._loss_of_batch = tf.function(self._batch_loss, autograph=False)
        self._initial = {}  # by the number of optimizees

    def runner(self, optimizer):
        """A runner of an ``UpdateRule`` or a Keras optimizer; see ``runners.runner``."""
        if isinstance(optimizer, base.UpdateRule):
            base.parts_of(optimizer, self.problem.layout)  # refuses a layout that it cannot take
        return self._arena.runner(optimizer)

    def run(self, runner, num_seeds):
        """The ``Run`` of a runner on the first optimizees to report on."""
        losses, parameters = self._arena.losses_and_parameters(runner, "report", num_seeds)
        curve = losses[:, :-1]  # the last is of the batch after step T
        final = np.array([self.loss(theta) for theta in parameters])
        heldout = [self.heldout(t) if np.isfinite(f) else np.nan for t, f in zip(parameters, final)]
        with np.errstate(over="ignore", invalid="ignore"):  # of what diverges
            mean = curve.mean(axis=1)
        return Run(self.initial(num_seeds), final, mean, np.array(heldout), curve)

    def tuning_loss(self, runner, num_seeds):
        """The final loss of a runner, mean over the first optimizees to tune on."""
        _, parameters = self._arena.losses_and_parameters(runner, "tune", num_seeds)
        return float(np.mean([self.loss(theta) for theta in parameters]))

    def initial(self, num_seeds):
        """The loss of the sample at the start of each optimizee ``[S]``."""
        if num_seeds not in self._initial:
            starts = self._arena.initial_parameters("report", num_seeds)
            self._initial[num_seeds] = np.array([self.loss(theta) for theta in starts])
        return self._initial[num_seeds]

    def loss(self, parameters):
        """The loss of the sample at parameters ``[N]``."""
        parameters = tf.constant(parameters)
        return float(np.mean([self._loss_of_batch(parameters, batch) for batch in self._sample]))

    def heldout(self, parameters):
        """The held-out metric at parameters ``[N]``."""
        outputs = self._outputs(tf.constant(parameters))
        return float(self.suite_problem.metric(outputs.numpy(), self.suite_problem.heldout[1]))

    def seconds_per_step(self, optimizers):
        """Median seconds of a step, of a dict of name → optimizer, which take turns.

        All are Keras optimizers here, update rules a ``LearnedOptimizer``: the steps are those of
        ``fit``.
        """
        arena = Arena(self.problem, min(TIMED_STEPS, self.num_steps), "train", self._seed)
        runners = {}
        for name, optimizer in optimizers.items():
            if isinstance(optimizer, base.UpdateRule):
                optimizer = LearnedOptimizer(optimizer)
            runners[name] = arena.runner(optimizer)
        return arena.seconds_per_step(runners, num_rounds=5)

    @functools.cached_property
    def _outputs(self):
        """A function of parameters ``[N]``: the outputs for the held-out examples."""
        problem, (x, _) = self.problem, self.suite_problem.heldout
        seen = [batch[0][0] for batch in self._sample]
        seen = tf.nest.map_structure(lambda *leaves: tf.concat(leaves, axis=0), *seen)

        def outputs(parameters):
            return problem.outputs(base.split(parameters, problem.layout), x, seen)

        spec = tf.TensorSpec([base.num_coordinates(problem.layout)], problem.dtype)
        return tf.function(outputs, autograph=False).get_concrete_function(spec)

    def _batch_loss(self, parameters, batch):
        parameters = base.split(parameters, self.problem.layout)
        return self.problem.loss_and_gradients(parameters, batch)[0]


def thinned(curve):
    """A curve ``[T]`` as the means of 50 stretches of the same length, or of its points."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.array(
            [part.mean() for part in np.array_split(curve, min(NUM_POINTS, len(curve)))]
        )
