"""Report: the table, ``results.json`` and ``curves.png`` of an evaluation."""

import dataclasses
import os

import numpy as np

from l2l_tf import paths, saving
from l2l_tf.evaluation.learning_curves import loss_at
from l2l_tf.evaluation.pictures import draw_pictures


@dataclasses.dataclass
class Result:
    """What ``evaluate`` found.

    Attributes:
        problem: name.
        num_steps, num_seeds: ints.
        optimizers: dict of name → {"learning_rate", "grid" (of baselines, else None),
            "loss" ``[num_seeds, num_steps]``, "seconds_per_step"}.
        pictures: rows of pictures, of ``picture_rows``; empty unless the optimizees are images.
    """

    problem: str
    num_steps: int
    num_seeds: int
    optimizers: dict
    pictures: list = dataclasses.field(default_factory=list)

    @property
    def learned(self):
        """Names of the optimizers that were not tuned here."""
        return [name for name, o in self.optimizers.items() if o["grid"] is None]

    @property
    def tuned(self):
        """Names of the tuned baselines."""
        return [name for name, o in self.optimizers.items() if o["grid"] is not None]

    def loss_sum(self, name):
        """The loss summed over the horizon, mean over seeds."""
        return float(self.optimizers[name]["loss"].sum(axis=1).mean())

    def loss_at(self, name, step):
        """The loss at a step (the mean of the five entries before it), mean over seeds."""
        return float(loss_at(self.optimizers[name]["loss"], step).mean())

    @property
    def steps_to_show(self):
        """A quarter of the horizon, half of it, and all of it."""
        return sorted({max(1, self.num_steps // 4), max(1, self.num_steps // 2), self.num_steps})

    def ratio(self, name):
        """`name`'s loss sum over the best tuned baseline's; below 1 is better."""
        return self.loss_sum(name) / np.nanmin([self.loss_sum(b) for b in self.tuned])

    def table(self):
        """The result as a text table, best loss sum first."""
        header = ["optimizer", "learning rate"]
        header += [f"loss sum ({self.num_steps} steps)"]
        header += [f"loss at {step}" for step in self.steps_to_show] + ["ms a step"]
        rows = [header]
        for name in sorted(
            self.optimizers, key=lambda n: np.nan_to_num(self.loss_sum(n), nan=np.inf)
        ):
            optimizer = self.optimizers[name]
            rate = optimizer["learning_rate"]
            cells = [name, "learned" if rate is None else f"{rate:.3g}"]
            cells.append(_mean_and_error(optimizer["loss"].sum(axis=1)))
            cells += [
                _mean_and_error(loss_at(optimizer["loss"], step)) for step in self.steps_to_show
            ]
            rows.append(cells + [f"{1e3 * optimizer['seconds_per_step']:.2f}"])
        lines = _align(rows)
        lines.insert(1, "-" * len(lines[0]))
        lines.append("")
        lines.append(
            f"'{self.problem}', {self.num_seeds} fresh optimizees; ± is the standard error. "
            "Baselines tuned for the loss sum on other seeds."
        )
        for name in self.learned if self.tuned else []:
            lines.append(f"{name}: loss sum {self.ratio(name):.2f} of the best tuned baseline's.")
        return "\n".join(lines)

    def summary(self):
        """For a card: each optimizer's learning rate, loss sum, losses; null where diverged."""

        def rounded(value):
            return float(f"{value:.4g}") if np.isfinite(value) else None

        return {
            name: {
                "learning_rate": o["learning_rate"],
                "loss_sum": rounded(self.loss_sum(name)),
                **{f"loss_at_{s}": rounded(self.loss_at(name, s)) for s in self.steps_to_show},
            }
            for name, o in self.optimizers.items()
        }

    def to_json(self):
        """The content of ``results.json``; a loss that is not finite becomes null."""
        return {
            "problem": self.problem,
            "num_steps": self.num_steps,
            "num_seeds": self.num_seeds,
            "optimizers": {
                name: {
                    "learning_rate": o["learning_rate"],
                    "grid": o["grid"],
                    "loss": _finite_or_none(o["loss"]),
                    "mean_loss": _finite_or_none(o["loss"].mean(axis=0)),
                    "stderr": _finite_or_none(standard_error(o["loss"])),
                    "seconds_per_step": o["seconds_per_step"],
                }
                for name, o in self.optimizers.items()
            },
        }

    def save(self, directory):
        """Writes ``results.json``, ``curves.png`` and, if there are any, ``pictures.png``."""
        directory = paths.from_user("directory", directory)
        os.makedirs(directory, exist_ok=True)
        saving.write_json(self.to_json(), os.path.join(directory, "results.json"))
        self.plot(os.path.join(directory, "curves.png"))
        if self.pictures:
            draw_pictures(self.pictures, os.path.join(directory, "pictures.png"))

    def plot(self, path):
        """Draws the mean loss with a band of the standard error, against steps and seconds."""
        path = paths.from_user("path", path)
        # A figure of its own, without pyplot: no display is touched.
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 4.2), layout="constrained")
        by_step, by_second = figure.subplots(1, 2, sharey=True)
        names = self.learned + self.tuned
        for index, name in enumerate(names):
            optimizer = self.optimizers[name]
            mean, error = optimizer["loss"].mean(axis=0), standard_error(optimizer["loss"])
            rate = optimizer["learning_rate"]
            label = name if rate is None else f"{name} (tuned: {rate:.3g})"
            style = {"color": f"C{index}", "linewidth": 2.2 if rate is None else 1.2}
            steps = np.arange(self.num_steps)
            for axes, x in (
                (by_step, steps),
                (by_second, steps * optimizer["seconds_per_step"]),
            ):
                axes.plot(x, mean, label=label, zorder=3 if rate is None else 2, **style)
                axes.fill_between(
                    x, mean - error, mean + error, color=f"C{index}", alpha=0.2, linewidth=0
                )
        means = np.concatenate([o["loss"].mean(axis=0) for o in self.optimizers.values()])
        finite = means[np.isfinite(means)]
        if finite.size and finite.min() > 0:
            by_step.set_yscale("log")
            # What diverges leaves the picture instead of flattening the rest.
            start = np.nanmedian([o["loss"][:, 0].mean() for o in self.optimizers.values()])
            by_step.set_ylim(0.8 * finite.min(), min(1.5 * finite.max(), 5 * start))
        by_step.set_xlabel("step")
        by_second.set_xlabel("seconds, of one optimizee")
        by_step.set_ylabel(f"loss, mean of {self.num_seeds} optimizees ± standard error")
        for axes in (by_step, by_second):
            axes.grid(alpha=0.3, which="both")
        by_step.legend(loc="best")
        figure.suptitle(f"{self.problem}: fresh optimizees on held-out data")
        figure.savefig(path, dpi=130)


def standard_error(losses):
    """Standard error of the mean over seeds: ``[num_seeds, ...]`` → ``[...]``; 0 for one seed."""
    if len(losses) < 2:
        return np.zeros(losses.shape[1:])
    with np.errstate(invalid="ignore"):  # inf - inf: a diverged loss has no standard error
        return losses.std(axis=0, ddof=1) / np.sqrt(len(losses))


def _mean_and_error(values):
    if not np.all(np.isfinite(values)):
        return "diverged"
    mean = values.mean()
    digits = 2 if mean >= 10 else 4
    number = f".{digits}f" if 1e-3 <= mean < 1e5 else ".1e"
    return f"{mean:{number}} ± {standard_error(values):{number}}"


def _align(rows):
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths))
        )
        for row in rows
    ]


def _finite_or_none(values):
    if values.ndim > 1:
        return [_finite_or_none(row) for row in values]
    return [float(f"{v:.7g}") if np.isfinite(v) else None for v in values]
