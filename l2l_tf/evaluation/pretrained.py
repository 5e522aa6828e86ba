"""Shipped rules: how they get into the package, and what they reach."""

import os
import re

from l2l_tf import arguments, catalog, paths, problems, saving
from l2l_tf.evaluation.evaluate import evaluate
from l2l_tf.evaluation.suite import evaluate_suite as suite_lib
from l2l_tf.files import cards

HORIZONS = (20, 100, 200)
ANY_MODEL = "general"  # the problem of a meta-training whose rules are measured on the suite

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
        TypeError, ValueError: `run_dir` is none of ``bin/meta_train``, or `name` no plain name.
    """
    run_dir = paths.from_user("run_dir", run_dir)
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", arguments.text("name", name)):
        raise ValueError(
            "`name` must be a name of letters, digits, '-' and '_', not a path. "
            f"Received: name={name!r}"
        )
    arguments.instance("known_limits", known_limits, str, "a string")
    rule = saving.load(os.path.join(run_dir, ""))  # with a "/": a directory, whatever its name
    card = cards.read_card(run_dir) or {}
    missing = [key for key in KEPT if key not in card]
    if missing:
        raise ValueError(
            f"The card of {run_dir!r} lacks {', '.join(missing)}. Expected the save directory of a "
            "bin/meta_train."
        )
    directory = catalog.pretrained_path(name)
    saving.save(rule, directory)
    kept = {key: card[key] for key in KEPT}
    cards.write_card(directory, {**kept, "known_limits": known_limits, "tables": {}})


def card_of(name):
    """The card of a shipped rule, a dict."""
    if arguments.text("name", name) not in catalog.pretrained_names():
        names = ", ".join(catalog.pretrained_names())
        near = catalog.did_you_mean(name)
        raise ValueError(f"Unknown shipped rule {name!r}.{near} Expected one of {names}.")
    return cards.read_card(catalog.pretrained_path(name))


def measure(name, data_dir=None, horizons=None, num_seeds=None, *, verbose=False, **options):
    """Compares a shipped rule with tuned baselines, on the held-out side of its problem.

    Args:
        name: of the rule.
        data_dir, options: as of ``l2l_tf.problems.get``.
        horizons: numbers of steps; baselines are tuned anew for each. None takes those of the
            rule's card, or 20, 100 and 200.
        num_seeds: optimizees, new ones: neither seen in meta-training nor in its own report. None
            takes as many as the card, or 20, or 256 of random functions, which differ more.
        verbose: as of ``evaluate``.

    Returns:
        Dict of horizon → ``Result``.

    Raises:
        TypeError, ValueError: there is no such rule, or an argument is not as above.
    """
    card = card_of(name)
    if data_dir is not None:
        data_dir = paths.from_user("data_dir", data_dir)
    if horizons is not None:
        arguments.instance("horizons", horizons, (list, tuple), "a list of integers")
        horizons = [arguments.integer("horizons", horizon, minimum=2) for horizon in horizons]
    if num_seeds is not None:
        arguments.integer("num_seeds", num_seeds, minimum=1)
    problem = problems.get(card["settings"]["problem"], data_dir, **options)
    horizons = horizons or [int(key.split()[0]) for key in card["tables"]] or HORIZONS
    num_seeds = num_seeds or card.get("num_seeds") or (256 if problem.vectorized else 20)
    seed = card["settings"]["seed"] + 1000
    return {
        num_steps: evaluate(
            problem,
            {name: name},
            num_steps=num_steps,
            num_seeds=num_seeds,
            seed=seed,
            verbose=verbose,
        )
        for num_steps in horizons
    }


def measure_on_suite(name, data_dir=None, num_seeds=suite_lib.NUM_SEEDS, *, verbose=False):
    """Compares a shipped rule for any model with the baselines of the general suite.

    Args:
        name: of the rule.
        data_dir, num_seeds, verbose: as of ``evaluate_suite``.

    Returns:
        A ``SuiteResult``.
    """
    card_of(name)
    return suite_lib.evaluate_suite(
        {name: name}, num_seeds=num_seeds, data_dir=data_dir, verbose=verbose
    )


def tables_of_suite(name, result):
    """What a card keeps of a ``SuiteResult``: a row for each of the suite's baselines."""
    of_rule = result.to_json()["rules"][name]
    ratios = {problem: of.final for problem, of in result.comparisons(name, "adam").items()}
    return {
        "general suite": {
            "against": of_rule["against"],
            "diverged": of_rule["diverged"],
            "overfitted": of_rule["overfitted"],
            "final loss over tuned Adam's": ratios,
            "left out": sorted(result.left_out),
        }
    }
