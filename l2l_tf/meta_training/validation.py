"""Validation: what a rule achieves in whole episodes, by problem and in the mean."""

import math

import tensorflow as tf

from l2l_tf.engine import unroll as unroll_lib
from l2l_tf.meta_training import objectives

LAST = 5  # losses, whose mean is the final one


class Validation:
    """Results of validation episodes, summed up since ``reset``.

    Args:
        rule: ``UpdateRule``.
        problems: list of ``Problem``.
        names: of these.
        estimator: whose objective and `max_loss_ratio` are used.
    """

    def __init__(self, rule, problems, names, estimator):
        self._rule = rule
        self._problems = problems
        self._names = names
        self._estimator = estimator
        self._functions = {}
        self.reset()

    def reset(self):
        self._results = [[] for _ in self._problems]

    def add(self, index, data, *, jit_compile, run_eagerly):
        """Runs the episodes of an element of ``episodes`` on a problem.

        Args:
            index: of the problem.
            data: the element.
            jit_compile, run_eagerly: how to run it, at the first call.
        """
        key = index, data["parameters"].shape[0]
        if key not in self._functions:
            function = self._on(self._problems[index])
            if not run_eagerly:
                compiled = tf.function(function, autograph=False, jit_compile=jit_compile)
                function = compiled.get_concrete_function(data)
            self._functions[key] = function
        self._results[index].append(self._functions[key](data))

    def by_problem(self):
        """Dict of name → dict of "loss", "final_loss", "objective", "diverged", floats."""
        found = {}
        for name, results in zip(self._names, self._results):
            if results:
                columns = [tf.concat(column, axis=0).numpy() for column in zip(*results)]
                loss, final_loss, objective, diverged = (float(c.mean()) for c in columns)
                found[name] = {
                    "loss": loss,
                    "final_loss": final_loss,
                    "objective": objective,
                    "diverged": diverged,
                }
        return found

    def logs(self):
        """The means over the problems; of several, also the worst problem's objective."""
        found = list(self.by_problem().values())
        names = ("loss", "final_loss", "objective", "diverged")
        logs = {name: sum(of[name] for of in found) / max(1, len(found)) for name in names}
        if len(found) > 1:
            logs["worst"] = self.worst()[1]["objective"]
        return logs

    def worst(self):
        """The name and results of the problem with the highest objective; one not finite is."""
        found = self.by_problem()
        if not found:
            return None, None

        def badness(name):
            objective = found[name]["objective"]
            return objective if math.isfinite(objective) else math.inf

        name = max(found, key=badness)
        return name, found[name]

    def _on(self, problem):
        def run(data):
            parameters = data["parameters"]
            batches = data["batches"]
            trajectory = unroll_lib.unroll(
                self._rule,
                problem,
                parameters,
                unroll_lib.initial_state(self._rule, problem.layout, parameters.shape[0]),
                batches,
                num_steps=tf.nest.flatten(batches)[0].shape[1] - 1,
                record=False,
                max_loss_ratio=self._estimator.max_loss_ratio,
            )
            losses = trajectory.losses
            objective = [
                objectives.of_optimizee(self._estimator.objective, *column)
                for column in zip(
                    tf.unstack(losses[1:], axis=1), tf.unstack(trajectory.runs.first_losses)
                )
            ]
            return (
                tf.reduce_mean(losses[1:], axis=0),
                tf.reduce_mean(losses[-LAST:], axis=0),
                tf.stack(objective),
                tf.cast(~trajectory.runs.running, losses.dtype),
            )

        return run
