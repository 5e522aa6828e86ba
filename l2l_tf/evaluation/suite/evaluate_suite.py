"""evaluate_suite: rules on the general suite, against its baselines."""

import sys

import keras

from l2l_tf import arguments
from l2l_tf.evaluation.evaluate import named_optimizers
from l2l_tf.evaluation.suite.baselines import SEED, Baselines, check_same_start, from_json
from l2l_tf.evaluation.suite.contest import Contest
from l2l_tf.evaluation.suite.contestants import CONTESTANTS, NUM_SEEDS
from l2l_tf.evaluation.suite.report import Entry, SuiteResult
from l2l_tf.problems import suite

COMMAND = "bin/evaluate --suite=general --tune_suite_baselines --suite_baselines=DIRECTORY"


def evaluate_suite(
    optimizers, names=None, num_seeds=NUM_SEEDS, *, baselines=None, data_dir=None, verbose=False
):
    """Trains the suite's models with each rule, as it is, and compares with tuned baselines.

    Fair as ``evaluate`` is: the same seeds, initial weights and batches; baselines tuned on other
    seeds, for the final loss at each problem's own horizon. They are read from files.

    Args:
        optimizers: as of ``l2l_tf.evaluate``.
        names: of suite problems; None takes all, leaving out by name those that have no data here,
            or no baselines of these.
        num_seeds: optimizees of each problem, 3 at most: those that the baselines have.
        baselines: directory of the baselines; None takes those that come with the package.
        data_dir: directory of TensorFlow Datasets, for MNIST.
        verbose: whether to say on stderr what it is at.

    Returns:
        A ``SuiteResult``: ``print(result.table())``, ``result.save(directory)``.

    Raises:
        ValueError: an argument is wrong; a problem of `names` has no baselines, or they are of
            other data.
        FileNotFoundError: a problem of `names` has no data.
    """
    chosen = check_names(names)
    check_num_seeds(num_seeds)
    arguments.boolean("verbose", verbose)
    optimizers = named(optimizers)
    store = Baselines(baselines)
    entries, left_out = [], {}
    for name in chosen:
        missing = store.missing(name)
        if missing:
            why = f"no baselines of {', '.join(missing)} in {store.directory!r}"
            _leave_out(name, names, left_out, ValueError(f"{why}. To compute them: {COMMAND}"), why)
            continue
        contest = _contest(name, data_dir, names, left_out)
        if contest is None:
            continue
        records = store.read(name)
        try:
            check_same_start(name, records["adam"], contest.initial(num_seeds))
        except ValueError as error:
            _leave_out(name, names, left_out, error, str(error))
            continue
        entries.append(_entry(contest, optimizers, records, num_seeds, verbose))
    return SuiteResult(list(optimizers), num_seeds, entries, left_out)


def tune_baselines(names=None, *, baselines=None, data_dir=None, verbose=False):
    """Computes the baselines that are missing in a directory, problem by problem.

    Args:
        names, baselines, data_dir, verbose: as of ``evaluate_suite``.

    Returns:
        Dict of the problems that were left out, for want of data: name → reason.
    """
    chosen, store, left_out = check_names(names), Baselines(baselines), {}
    arguments.boolean("verbose", verbose)
    for name in chosen:
        contest = _contest(name, data_dir, names, left_out) if store.missing(name) else None
        if contest is not None:
            say = f"baselines of {name}: "
            store.complete(contest, lambda what, say=say: _say(verbose, say + what))
    return left_out


def named(optimizers):
    """Dict of name → optimizer, of what ``evaluate_suite`` takes; no baseline's name is in it."""
    return named_optimizers(optimizers, CONTESTANTS)


def check_num_seeds(num_seeds):
    """Refuses more optimizees of a problem than the baselines have."""
    arguments.integer("num_seeds", num_seeds, 1)
    if num_seeds > NUM_SEEDS:
        raise ValueError(
            f"`num_seeds` must be {NUM_SEEDS} at most, which is what the baselines of the suite "
            f"have. Received: num_seeds={num_seeds}"
        )


def check_names(names):
    """The suite's problems that are meant: all, of None."""
    if names is None:
        return list(suite.NAMES)
    arguments.instance("names", names, (list, tuple), "a list of names of suite problems, or None")
    for name in names:
        arguments.choice("names", name, suite.NAMES)
    return list(names)


def _contest(name, data_dir, names, left_out):
    try:
        return Contest(suite.get(name, data_dir), SEED)
    except FileNotFoundError as error:
        _leave_out(name, names, left_out, error, "its data are not there: see --data_dir")
        return None


def _leave_out(name, names, left_out, error, why):
    """Of all problems, one may be left out; of those that were asked for, none."""
    if names is not None:
        raise error
    left_out[name] = why


def _entry(contest, optimizers, records, num_seeds, verbose):
    name, runs = contest.suite_problem.name, {}
    for rule, optimizer in optimizers.items():
        _say(verbose, f"{name}: {rule}")
        runs[rule] = contest.run(contest.runner(optimizer), num_seeds)
    seconds = contest.seconds_per_step({"adam": keras.optimizers.Adam(), **optimizers})
    return Entry(
        name=name,
        num_steps=contest.num_steps,
        metric_name=contest.suite_problem.metric_name,
        higher_is_better=contest.suite_problem.higher_is_better,
        runs=runs,
        baselines={b: from_json(record, num_seeds) for b, record in records.items()},
        learning_rates={b: record["learning_rate"] for b, record in records.items()},
        seconds_per_step=seconds,
    )


def _say(verbose, what):
    if verbose:
        print(what, file=sys.stderr, flush=True)
