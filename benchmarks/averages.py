"""Benchmark of averaged iterates: what they give `Hierarchical` before anything is learned.

  python benchmarks/averages.py [--suite_problems=wine_hinge,burgers]

No net and no control: one step size, relative to each tensor's, for all tensors, with a warm-up
over 50 steps, tuned for each variant and problem on the suite's seeds for that, by factors of 2
until the best has neighbours on both sides; final losses on a seed to report on, over tuned Adam's.
They are those of the average, which training ends with, but where it says "not handed out".
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
import tensorflow as tf
from absl import app, flags

from l2l_tf.evaluation.rate_search import coarse_to_fine
from l2l_tf.evaluation.suite.baselines import Baselines, from_json
from l2l_tf.evaluation.suite.contest import Contest
from l2l_tf.problems import suite
from l2l_tf.update_rules import Hierarchical

_PROBLEMS = flags.DEFINE_list(
    "suite_problems",
    [
        "burgers",
        "categories",
        "deep_narrow",
        "diabetes_quantiles",
        "factorization",
        "image_contrastive",
        "mixture_density",
        "point_sets",
        "text_topics",
        "wine_hinge",
    ],
    "Names of the suite.",
)

VARIANTS = {
    "momentum 0.9": {"averaging": 0.0},
    "average, r = 0": {"averaging": 0.9},
    "average, r = 2": {"averaging": 0.9, "averaging_power": 2.0},
    "average with β = 0.95, r = 4": {"averaging": 0.95, "averaging_power": 4.0},
    "the same, not handed out": {
        "averaging": 0.95,
        "averaging_power": 4.0,
        "hands_out": False,
    },
}


class Tuned(Hierarchical):
    """With steps that are a factor of the untrained ones."""

    def __init__(self, hands_out=True, **kwargs):
        super().__init__(coordinate_units=0, warm_up=50, seed=0, **kwargs)
        self.hands_out = hands_out
        self.factor = self.add_weight(shape=[], initializer="ones", trainable=False)

    def final_shift(self, state):
        return super().final_shift(state) if self.hands_out else None

    def control(self, summaries, state, tensors):
        controls, state = super().control(summaries, state, tensors)
        return tf.concat([self.factor * controls[:1], controls[1:]], axis=0), state


def main(_):
    print("| problem | " + " | ".join(VARIANTS) + " |")
    print("|---" * (1 + len(VARIANTS)) + "|", flush=True)
    ratios = []
    for name in _PROBLEMS.value:
        contest = Contest(suite.get(name))
        adam = from_json(Baselines().read(name)["adam"], 1).final[0]
        row = []
        for options in VARIANTS.values():
            rule = Tuned(**options)
            runner = contest.runner(rule)

            def score(exponent, rule=rule, runner=runner, contest=contest):
                rule.factor.assign(2.0**exponent)
                return contest.tuning_loss(runner, 2)

            best, _ = coarse_to_fine(score, [0, 2, 4], 2, 12)
            rule.factor.assign(2.0**best)
            row.append(contest.run(runner, 1).final[0] / adam)
        ratios.append(row)
        print(f"| {name} | " + " | ".join(f"{r:.2f}" for r in row) + " |", flush=True)
    means = np.exp(np.mean(np.log(ratios), axis=0))
    print("| geometric mean | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")


if __name__ == "__main__":
    app.run(main)
