"""Standing: how the suite's baselines compare with each other, from their files alone."""

from l2l_tf.evaluation.suite import summary
from l2l_tf.evaluation.suite.baselines import from_json
from l2l_tf.evaluation.suite.contestants import CONTESTANTS
from l2l_tf.evaluation.suite.report import markdown, number

REFERENCE = "adam"


def standing(store, names):
    """Final losses of the baselines as ratios to tuned Adam's, in markdown; nothing is run.

    Args:
        store: ``Baselines``.
        names: of suite problems. Those without all baselines are named and left out.
    """
    complete = [name for name in names if not store.missing(name)]
    if not complete:
        return "No problem has all baselines."
    contents = {name: store.content(name) for name in complete}
    runs = {
        name: {c: from_json(record) for c, record in content["contestants"].items()}
        for name, content in contents.items()
    }
    others = [contestant for contestant in CONTESTANTS if contestant != REFERENCE]
    compared = {
        c: {name: summary.compare(runs[name][c], runs[name][REFERENCE]) for name in complete}
        for c in others
    }
    rows = [["problem", "weights", "steps", "batch", "tuned Adam", "held out", *others]]
    for name in complete:
        content, run = contents[name], runs[name][REFERENCE]
        rate = content["contestants"][REFERENCE]["learning_rate"]
        rows.append(
            [
                name,
                f"{content['num_weights']:,}",
                f"{content['num_steps']:,}",
                str(content["batch_size"]),
                f"{number(run.final.mean())} ({rate:.3g})",
                f"{content['metric']} {number(run.heldout.mean())}",
                *[_ratio(compared[c][name].final, runs[name][c]) for c in others],
            ]
        )
    overall = [["contestant", "wins", "ties", "losses", "geometric mean", "median", "worst"]]
    for c in others:
        s = summary.summarize(compared[c])
        cells = [str(s.wins), str(s.ties), str(s.losses), number(s.geometric_mean)]
        name, ratio = s.worst
        cells += [number(s.median), f"{number(ratio)} ({name})"]
        overall.append([CONTESTANTS[c].what, *cells])
    parts = [markdown(rows), markdown(overall)]
    left_out = [name for name in names if name not in complete]
    parts.append(
        "Ratios of final losses to tuned Adam's (its rate): below 1 is better; *: diverged on a "
        "seed."
    )
    return "\n\n".join(parts + ([f"Without baselines: {', '.join(left_out)}."] if left_out else []))


def _ratio(ratio, run):
    return number(ratio) + ("*" if summary.diverged(run).any() else "")
