"""A curriculum of horizons against its last horizon alone, by as many inner steps of meta-training.

  python benchmarks/curriculum.py     # two problems, two seeds; some twenty minutes of one core

What counts is the loss on held-out episodes, at the last horizon and at four times that.
"""

import os
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
from absl import app, flags

import l2l_tf
from l2l_tf.meta_training import curriculum

_PROBLEMS = flags.DEFINE_list("problems", ["digits", "quadratic"], "Problems.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1"], "Seeds of the rule and of the episodes.")

# (horizons, episodes of each): 40,000 inner steps either way.
WAYS = {"20, then 50, then 200": ([20, 50, 200], [500, 200, 100]), "200 alone": ([200], [200])}


def trained(name, way, seed):
    horizons, budgets = WAYS[way]
    problem = l2l_tf.problems.get(name)

    def make_trainer(rule, num_steps):
        return l2l_tf.MetaTrainer(
            rule, problem, 10, num_steps, credit="episode", objective="relative", clip_norm=1.0
        )

    with tempfile.TemporaryDirectory() as directory:
        curriculum.run(
            make_trainer,
            l2l_tf.update_rules.RNNprop((20,), seed=seed),
            os.path.join(directory, "run"),
            curriculum.stages(horizons, budgets),
            meta_learning_rate=0.01,
            validate_every=[budget // 5 for budget in budgets],
            settings={"way": way},
            seed=seed,
            verbose=0,
        )
        return problem, l2l_tf.load(os.path.join(directory, "run"))


def main(_):
    print(
        "| problem | meta-training | loss at step 200, by seed | at step 800 |\n|---|---|---|---|"
    )
    for name in _PROBLEMS.value:
        for way in WAYS:
            finals = []
            for seed in map(int, _SEEDS.value):
                problem, rule = trained(name, way, seed)
                result = l2l_tf.evaluate(problem, {"rule": rule}, [], num_steps=800, num_seeds=4)
                curve = np.mean(result.optimizers["rule"]["loss"], axis=0)
                finals.append((curve[199], curve[-1]))
            columns = [", ".join(f"{value:.2g}" for value in column) for column in zip(*finals)]
            print(f"| {name} | {way} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    app.run(main)
