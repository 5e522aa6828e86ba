"""Report of a suite: markdown, ``results.json`` and ``curves.png``."""

import dataclasses
import math
import os

import numpy as np

from l2l_tf.evaluation import report
from l2l_tf.evaluation.suite import summary
from l2l_tf.evaluation.suite.baselines import to_json
from l2l_tf.evaluation.suite.contest import NUM_POINTS, thinned
from l2l_tf.evaluation.suite.contestants import CONTESTANTS
from l2l_tf.files import json_file

# Column → contestant, of the final losses that the table relates a rule's to.
COLUMNS = {
    "tuned Adam": "adam",
    "tuned Adam + cosine": "adam_cosine",
    "default Adam": "adam_default",
    "Prodigy": "prodigy",
    "Schedule-Free": "schedule_free",
}
DRAWN = ("adam", "adam_cosine", "adam_default", "prodigy", "schedule_free")


@dataclasses.dataclass
class Entry:
    """A problem of the suite, with what the rules and the baselines did on it.

    Attributes:
        name, num_steps, metric_name, higher_is_better: of the problem.
        runs: dict of rule → ``Run``.
        baselines: dict of contestant → ``Run`` with a thinned curve.
        learning_rates: of the contestants.
        seconds_per_step: of the rules, and of "adam", on this machine.
    """

    name: str
    num_steps: int
    metric_name: str
    higher_is_better: bool
    runs: dict
    baselines: dict
    learning_rates: dict
    seconds_per_step: dict

    def comparison(self, rule, contestant):
        """``summary.Comparison`` of a rule with a contestant."""
        return summary.compare(self.runs[rule], self.baselines[contestant])

    def heldout(self, rule):
        """Of a rule's held-out metric against tuned Adam's: "better", "worse", "alike"."""
        pair = self.runs[rule], self.baselines["adam"]
        return summary.compare_heldout(*pair, self.higher_is_better)

    def steps_to_adam(self, rule):
        """The step by which a rule has the minibatch loss that tuned Adam ends with, or None."""
        return summary.steps_to(self.runs[rule], self.baselines["adam"].curve.mean(axis=0)[-1])

    def shares_to_adam(self, rule):
        """``(of the horizon's steps, of the time that Keras' Adam takes for it)``, or None."""
        steps = self.steps_to_adam(rule)
        if steps is None:
            return None
        share = steps / self.num_steps
        return share, share * self.seconds_per_step[rule] / self.seconds_per_step["adam"]


@dataclasses.dataclass
class SuiteResult:
    """What ``evaluate_suite`` found.

    Attributes:
        rules: names.
        num_seeds: optimizees of each problem.
        entries: list of ``Entry``.
        left_out: dict of problem → why it was not run.
    """

    rules: list
    num_seeds: int
    entries: list
    left_out: dict

    def comparisons(self, rule, contestant):
        """Dict of problem → ``Comparison``."""
        return {entry.name: entry.comparison(rule, contestant) for entry in self.entries}

    def summary(self, rule, contestant):
        """The ``summary.Summary`` of a rule against a contestant."""
        return summary.summarize(self.comparisons(rule, contestant))

    def diverged(self, rule):
        """Dict of problem → how many of its optimizees diverged, where some did."""
        counts = {e.name: int(summary.diverged(e.runs[rule]).sum()) for e in self.entries}
        return {name: count for name, count in counts.items() if count}

    def heldout(self, rule):
        """Dict of "better", "worse", "alike" → problems, of the metric against tuned Adam's."""
        found = {"better": [], "worse": [], "alike": []}
        for entry in self.entries:
            found[entry.heldout(rule)].append(entry.name)
        return found

    def ahead_of_adam(self, rule):
        """Problems where a rule gets to tuned Adam's last loss before it, by steps, by the clock.

        Dict of "steps", "time" → names.
        """
        shares = {entry.name: entry.shares_to_adam(rule) for entry in self.entries}
        return {
            kind: [name for name, of in shares.items() if of is not None and of[index] < 1]
            for index, kind in enumerate(("steps", "time"))
        }

    def overfitted(self, rule):
        """Problems where the final loss is below tuned Adam's, but the held-out metric worse."""
        worse = self.heldout(rule)["worse"]
        wins = self.comparisons(rule, "adam")
        return [name for name in worse if wins[name].outcome == "win"]

    def table(self):
        """The result as markdown."""
        parts = [self._of_rule(rule) for rule in self.rules if self.entries]
        if self.left_out:
            reasons = [f"- {name}: {why}" for name, why in self.left_out.items()]
            parts.append("\n".join(["**Not run:**", "", *reasons]))
        parts.append(_NOTES)
        return "\n\n".join(parts)

    def save(self, directory):
        """Writes ``results.json`` and ``curves.png``; earlier results there are replaced.

        Raises:
            FileExistsError: there are files of these names that no earlier result wrote.
        """
        directory = report.check_directory(directory)
        os.makedirs(directory, exist_ok=True)
        json_file.write(self.to_json(), os.path.join(directory, "results.json"))
        if self.entries:
            self.plot(os.path.join(directory, "curves.png"))

    def to_json(self):
        """The content of ``results.json``."""
        return {
            "suite": "general",
            "num_seeds": self.num_seeds,
            "left_out": self.left_out,
            "rules": {
                rule: {
                    "against": {c: _of_summary(self.summary(rule, c)) for c in CONTESTANTS},
                    "diverged": self.diverged(rule),
                    "heldout": self.heldout(rule),
                    "ahead_of_adam": self.ahead_of_adam(rule),
                    "overfitted": self.overfitted(rule),
                }
                for rule in (self.rules if self.entries else [])
            },
            "problems": {entry.name: self._entry_json(entry) for entry in self.entries},
        }

    def _entry_json(self, entry):
        return {
            "num_steps": entry.num_steps,
            "metric": entry.metric_name,
            "seconds_per_step": entry.seconds_per_step,
            "rules": {
                rule: {
                    **to_json(run),
                    "steps_to_adam": entry.steps_to_adam(rule),
                    "against": {c: entry.comparison(rule, c)._asdict() for c in CONTESTANTS},
                }
                for rule, run in entry.runs.items()
            },
            "baselines": {
                name: {
                    "learning_rate": entry.learning_rates[name],
                    "final": to_json(run)["final"],
                    "heldout": to_json(run)["heldout"],
                }
                for name, run in entry.baselines.items()
            },
        }

    def _of_rule(self, rule):
        header = ["problem", "steps", "final loss", *COLUMNS, "mean, tuned Adam"]
        header += ["held out (tuned Adam)", "steps to tuned Adam", "time to it", "diverged"]
        rows = [header]
        rows += [self._row(entry, rule) for entry in self.entries]
        head = ["against", "wins", "ties", "losses", "geometric mean", "median", "worst"]
        head += ["at or below"]
        overall = [head]
        for contestant, (_, _, what) in CONTESTANTS.items():
            s = self.summary(rule, contestant)
            name, ratio = s.worst
            cells = [s.wins, s.ties, s.losses, number(s.geometric_mean), number(s.median)]
            cells += [f"{number(ratio)} ({name})", f"{s.share_at_or_below:.0%}"]
            overall.append([what, *map(str, cells)])
        lines = [f"## {rule}", "", markdown(rows), "", markdown(overall), ""]
        diverged = [f"{name} ({n} of {self.num_seeds})" for name, n in self.diverged(rule).items()]
        lines.append(f"Diverged: {', '.join(diverged) or 'none'}.")
        ahead = {kind: len(names) for kind, names in self.ahead_of_adam(rule).items()}
        lines.append(
            f"To tuned Adam's last loss before it: in fewer steps on {ahead['steps']}, in less "
            f"time on {ahead['time']} of {len(self.entries)}."
        )
        heldout = self.heldout(rule)
        counts = [f"{kind} on {len(names)}" for kind, names in heldout.items()]
        lines.append(f"Held out, against tuned Adam: {', '.join(counts)}.")
        overfitted = ", ".join(self.overfitted(rule)) or "none"
        lines.append(f"Lower final loss than tuned Adam, but worse held out: {overfitted}.")
        return "\n".join(lines)

    def _row(self, entry, rule):
        run = entry.runs[rule]
        ratios = [entry.comparison(rule, c) for c in COLUMNS.values()]
        cells = [entry.name, str(entry.num_steps), number(run.final.mean())]
        cells += [number(ratio.final) for ratio in ratios]
        cells.append(number(ratios[0].mean))
        theirs = entry.baselines["adam"].heldout.mean()
        metric = f"{entry.metric_name} {number(run.heldout.mean())} ({number(theirs)})"
        cells.append(metric + (" **worse**" if entry.heldout(rule) == "worse" else ""))
        shares = entry.shares_to_adam(rule)
        cells += 2 * ["not reached"] if shares is None else [f"{share:.0%}" for share in shares]
        count = int(summary.diverged(run).sum())
        return [*cells, f"**{count} of {self.num_seeds}**" if count else "0"]

    def plot(self, path):
        """Draws the curves of all problems, small, into a PNG file."""
        from matplotlib.figure import Figure

        columns = min(5, len(self.entries))
        rows = math.ceil(len(self.entries) / columns)
        figure = Figure(figsize=(3.1 * columns, 2.4 * rows + 0.5), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).flat
        for entry, axes in zip(self.entries, grid):  # in this order, which takes no axes too many
            curves = {name: entry.baselines[name].curve.mean(axis=0) for name in DRAWN}
            curves |= {rule: thinned(run.curve.mean(axis=0)) for rule, run in entry.runs.items()}
            for index, (name, curve) in enumerate(curves.items()):
                steps = (np.arange(len(curve)) + 0.5) * entry.num_steps / len(curve)
                is_rule = name in entry.runs
                style = {"color": f"C{index % 10}", "label": name}
                axes.plot(steps, curve, "-" if is_rule else "--", **style, lw=1.8 if is_rule else 1)
            axes.set_yscale("log")
            axes.set_title(entry.name, fontsize=9)
            axes.tick_params(labelsize=7)
            first = np.nanmax([run.initial.mean() for run in entry.runs.values()])
            axes.set_ylim(top=3 * first)  # what diverges leaves the picture
        for axes in list(grid):
            axes.set_visible(False)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
        figure.savefig(path, dpi=110)


_NOTES = (
    "Ratios of final losses, a rule's to a baseline's (and of means over the curve): below 1 is "
    "better. Geometric means over seeds, of the loss of one sample of the training data, at the "
    "parameters that are handed out; "
    f"each is at least {summary.FLOOR} of the initial loss, and of what diverged it is the initial "
    "loss. A tie is within 2 %; a rule that diverges on a seed has lost. Steps and time to the "
    "minibatch loss that tuned Adam ends with, of its steps and time; losses as running means over "
    f"1/{NUM_POINTS} of the horizon."
)


def _of_summary(of):
    name, ratio = of.worst
    return {**of._asdict(), "worst": {"problem": name, "ratio": ratio}}


def number(value):
    """Three digits, or what is to be said of a number that is not finite."""
    if not np.isfinite(value):
        return "not finite"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.1e}"


def markdown(rows):
    """A table of lists of cells, the first of which are the header."""
    rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
