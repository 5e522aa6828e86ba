"""Estimators of the meta-gradient at the same compute: who gets further.

    python benchmarks/estimators.py [--seconds=10] [--seeds=0,1,2] [--problems=quadratic,digits]

For each problem, seed and estimator: meta-training for so many seconds of the processor's time
(that of all cores; what compiling took is not counted), all in one process. The rule that it ends
with is then validated on whole episodes, which no training sees and which are the same for all. A
table in Markdown on the standard output; "objective" is the mean of log(f(θ_t)/f(θ_0) + 0.03),
which is what meta-training minimizes too.
"""

import argparse
import functools
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import l2l_tf
from l2l_tf.meta_training.evolution import PersistentEvolution

STEPS = {"quadratic": 500, "digits": 200}
WINDOW = 20
RATE = 0.01  # of the meta-optimizer, Adam


def _estimators():
    persistent = functools.partial(PersistentEvolution, standard_deviation=0.1)
    narrow = functools.partial(PersistentEvolution, standard_deviation=0.01)
    return {
        "identity, credit=segment": {},
        "identity, credit=episode": {"credit": "episode"},
        "evolution, persistent, σ = 0.01": {"estimator": narrow},
        "evolution, persistent, σ = 0.1": {"estimator": persistent},
    }


def _rule(seed):
    return l2l_tf.update_rules.RNNprop((8,), seed=seed)


class Contest:
    """Meta-trainings of a problem with an estimator, seed after seed, compiled once."""

    def __init__(self, problem, options):
        self.trainer = l2l_tf.MetaTrainer(
            _rule(0),
            problem,
            WINDOW,
            STEPS[problem.name],
            meta_batch_size=2,
            objective="relative",
            clip_norm=1.0,
            max_loss_ratio=10.0,
            max_diverged=1.0,
            **options,
        )
        self.trainer.compile(optimizer=keras.optimizers.Adam(RATE))
        self.validation = self.trainer.validation_dataset(0, 8)
        self._episode(iter(self.trainer.dataset(0, 2)))
        self._validate()

    def run(self, seed, seconds):
        """Meta-steps in these seconds, and the logs of the validation after."""
        trainer = self.trainer
        fresh = _rule(seed)
        for variable, value in zip(trainer.rule.variables, fresh.variables):
            variable.assign(value)
        for variable in trainer.optimizer.variables:
            if variable is not trainer.optimizer.learning_rate:
                variable.assign(variable * 0)
        trainer.episode.assign(0)
        windows, count = iter(trainer.dataset(seed, 100_000)), 0
        start = time.process_time()
        while time.process_time() - start < seconds:
            self._episode(windows)
            count += trainer.num_windows
        return count, self._validate()

    def _episode(self, windows):
        for _ in range(self.trainer.num_windows):
            self.trainer.meta_step([next(windows)])
        return [weight.numpy() for weight in self.trainer.rule.weights]  # waits for it

    def _validate(self):
        return self.trainer.evaluate(self.validation, verbose=0, return_dict=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--problems", default="quadratic,digits")
    args = parser.parse_args()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    print("| problem | estimator | objective | mean | final loss | meta-steps |")
    print("|---|---|---|---|---|---|", flush=True)
    for name in args.problems.split(","):
        problem = l2l_tf.problems.get(name)
        for estimator, options in _estimators().items():
            contest = Contest(problem, options)
            results = [contest.run(seed, args.seconds) for seed in seeds]
            objectives = [logs["objective"] for _, logs in results]
            finals = [logs["final_loss"] for _, logs in results]
            print(
                f"| {name}, {STEPS[name]} steps | {estimator} "
                f"| {', '.join(f'{value:.2f}' for value in objectives)} "
                f"| {np.mean(objectives):.2f} "
                f"| {', '.join(f'{value:.2g}' for value in finals)} "
                f"| {', '.join(str(count) for count, _ in results)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
