"""Shipped rules: how they get into the package, and what they reach."""

import os
import shutil

import tensorflow as tf

from l2l_tf import problems, saving
from l2l_tf.evaluation.evaluate import evaluate

# What a shipped rule's card takes over from that of its meta-training.
KEPT = ("format_version", "command", "settings", "versions", "machine", "seconds")


def add(run_dir, name, known_limits):
    """Ships the best rule of a meta-training: copies it, and starts its card.

    Args:
        run_dir: save directory of a finished ``bin/meta_train``.
        name: to load it by.
        known_limits: text for the card.

    Raises:
        FileExistsError: there is a rule of this name.
    """
    rule = saving.load(run_dir)
    card = saving.read_card(run_dir)
    directory = saving.pretrained_path(name)
    saving.save(rule, directory)
    # Of a SavedModel, this file tells readers nothing that they need.
    shutil.rmtree(os.path.join(directory, "assets"), ignore_errors=True)
    tf.io.gfile.remove(os.path.join(directory, "fingerprint.pb"))
    kept = {key: card[key] for key in KEPT}
    saving.write_card(directory, {**kept, "known_limits": known_limits, "tables": {}})


def measure(name, data_dir=None, horizons=(20, 100, 200), num_seeds=20):
    """Compares a shipped rule with tuned baselines, on the held-out side of its problem.

    Args:
        name: of the rule.
        data_dir: as of ``l2l_tf.problems.get``.
        horizons: numbers of steps; baselines are tuned anew for each.
        num_seeds: optimizees, new ones: neither seen in meta-training nor in its own report.

    Returns:
        Dict of horizon → ``Result``.
    """
    card = saving.read_card(saving.pretrained_path(name))
    problem = problems.get(card["settings"]["problem"], data_dir=data_dir)
    seed = card["settings"]["seed"] + 1000
    return {
        num_steps: evaluate(
            problem, {name: name}, num_steps=num_steps, num_seeds=num_seeds, seed=seed
        )
        for num_steps in horizons
    }
