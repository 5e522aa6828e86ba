"""Benchmark of `Hierarchical`'s constants, before anything is learned, on its training problems.

  python benchmarks/constants.py --data_dir=DIR --options='{"averaging": 0.9}' --options=…

For each set of options that are put in place of those of the shipped `general` a row: mean of the
logarithm of the final losses less that of the first row, which is without changes; its standard
error; the same over Adam's, with a rate tuned for each problem on the very episode that is
reported, of eleven from 3e-4 to 0.1; and the share of the problems that are not above it by a
hundredth. A final loss is the mean over the last 32 batches, at the parameters that training ends
with. Half an hour on two cores for the first row, which is mostly Adam's and compilation; ten
minutes a row beyond.
"""

import functools
import json
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
import tensorflow as tf
from absl import app, flags

import l2l_tf
from l2l_tf.engine import episodes as episodes_lib
from l2l_tf.engine import unroll as unroll_lib
from l2l_tf.engine import whole_episode
from l2l_tf.problems.general_problems.mixture import general
from l2l_tf.update_rules import Adam, Hierarchical, base

_DATA_DIR = flags.DEFINE_string("data_dir", None, "As for tfds.load.")
_OPTIONS = flags.DEFINE_multi_string("options", [], "JSON: arguments of Hierarchical to change.")
_PROBLEMS = flags.DEFINE_list("problems", None, "Names, as deep-1; all that XLA can take if empty.")
_NUM_STEPS = flags.DEFINE_integer("num_steps", 1000, "Of an episode.", 32)
_NUM_SEEDS = flags.DEFINE_integer("num_seeds", 1, "Episodes of each problem.", 1)

SEED, LAST = 7, 32
RATES = np.geomspace(3e-4, 0.1, 11)
FLOOR = 1e-3  # of a final loss over the first one
DIVERGED = 100.0  # the same, of what diverged


class AdamOfAnyRate(Adam):
    """Whose rate is a variable: compiled once for all."""

    def __init__(self):
        super().__init__(learning_rate=1.0)
        self.rate = self.add_weight(shape=[], initializer="zeros", trainable=False)

    def update(self, gradients, state):
        updates, state = super().update(gradients, state)
        return self.rate * updates, state


def measure(rule, problem):
    """A function of an episode: the logarithm of the final loss over the first one."""
    layout, num_steps = problem.layout, _NUM_STEPS.value

    @functools.partial(tf.function, jit_compile=True, autograph=False)
    def ratio(parameters, batches):
        trajectory = unroll_lib.unroll(
            rule,
            problem,
            parameters,
            unroll_lib.initial_state(rule, layout, 1),
            batches,
            num_steps=num_steps,
            record=False,
            max_loss_ratio=DIVERGED,
        )
        final = unroll_lib.final_parameters(rule, layout, trajectory)[0]

        def loss(step):
            batch = tf.nest.map_structure(lambda leaf: leaf[0, step], batches)
            return problem.loss_and_gradients(base.split(final, layout), batch)[0]

        last = tf.map_fn(
            loss, tf.range(num_steps - LAST, num_steps), fn_output_signature=tf.float32
        )
        return tf.reduce_mean(last) / trajectory.losses[0, 0]

    def log_ratio(episode):
        value = float(ratio(episode["parameters"], episode["batches"]))
        return np.log(FLOOR + (min(value, DIVERGED) if np.isfinite(value) else DIVERGED))

    return log_ratio


def scores(problem, rules):
    """``(Adam's, of each rule)``, means over the seeds."""
    episodes = list(
        episodes_lib.episodes(
            problem,
            "train",
            SEED,
            "tune",
            lambda: tf.constant(0, tf.int64),
            _NUM_SEEDS.value,
            num_windows=1,
            window_length=_NUM_STEPS.value,
            num_parallel=1,
        )
    )
    adam = AdamOfAnyRate()
    of_adam = measure(adam, problem)
    tuned = []
    for episode in episodes:
        by_rate = []
        for rate in RATES:
            adam.rate.assign(rate)
            by_rate.append(of_adam(episode))
        tuned.append(min(by_rate))
    of_rules = [np.mean([*map(measure(rule, problem), episodes)]) for rule in rules]
    return np.mean(tuned), of_rules


def main(_):
    config = {k: v for k, v in l2l_tf.load("general").get_config().items() if k != "name"}
    rules = [
        Hierarchical(**{**config, **json.loads(options)}) for options in ["{}", *_OPTIONS.value]
    ]
    adam, of_rules = [], []
    for problem in general(_DATA_DIR.value).problems:
        name = problem.name.split("~")[0]  # which what is around it adds to
        if _PROBLEMS.value and name not in _PROBLEMS.value:
            continue
        if not whole_episode.is_one_program(rules[0], problem, 1):
            continue
        of_adam, of_problem = scores(problem, rules)
        adam.append(of_adam)
        of_rules.append(of_problem)
        over = " ".join(f"{score - of_adam:+.2f}" for score in of_problem)
        print(f"{name}: Adam {of_adam:.2f}; over it {over}", flush=True)
    over_adam = np.array(of_rules) - np.array(adam)[:, None]
    print(f"\n| {len(adam)} problems | difference | error | over tuned Adam | at or below |")
    print("|---|---|---|---|---|")
    for options, column in zip(["as it is", *_OPTIONS.value], over_adam.T):
        difference = column - over_adam[:, 0]
        error = np.std(difference) / np.sqrt(len(difference))
        share = np.mean(column <= 0.01)
        print(
            f"| {options} | {np.mean(difference):+.3f} | {error:.3f} | {np.mean(column):+.3f} "
            f"| {share:.0%} |"
        )


if __name__ == "__main__":
    app.run(main)
