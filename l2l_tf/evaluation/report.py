"""Report: the table, ``results.json`` and ``curves.png`` of an evaluation."""

import dataclasses
import json
import os

import numpy as np

from l2l_tf import paths
from l2l_tf.evaluation.curves import draw_curves, standard_error
from l2l_tf.evaluation.learning_curves import loss_at
from l2l_tf.evaluation.pictures import draw_pictures
from l2l_tf.files import json_file

FILES = ("results.json", "curves.png", "pictures.png")


@dataclasses.dataclass
class Result:
    """What ``evaluate`` found.

    Attributes:
        problem: name.
        num_steps, num_seeds: ints.
        optimizers: dict of name → {"source", "learning_rate", "grid" (of "tuned" ones, else None),
            "loss" ``[num_seeds, num_steps]``, "seconds_per_step"}. The source is "learned" (an
            update rule), "tuned" (a baseline that was tuned here) or "given" (a Keras optimizer as
            it came, whose "learning_rate" is None if it is a schedule, or not one).
        pictures: rows of pictures, of ``picture_rows``; empty unless the optimizees are images.
        side: which data, "heldout" or "train".
        has_heldout: whether the problem has data of its own for the held-out side; otherwise that
            side is the training data.
    """

    problem: str
    num_steps: int
    num_seeds: int
    optimizers: dict
    pictures: list = dataclasses.field(default_factory=list)
    side: str = "heldout"
    has_heldout: bool = True

    @property
    def data(self):
        """What the optimizees were trained and measured on, in words."""
        if self.side == "train":
            return "training data"
        if self.has_heldout:
            return "held-out data"
        return "training data (the problem has no held-out data)"

    @property
    def learned(self):
        """Names of the optimizers that were not tuned here: learned and given ones."""
        return [name for name, o in self.optimizers.items() if o["source"] != "tuned"]

    @property
    def tuned(self):
        """Names of the tuned baselines."""
        return [name for name, o in self.optimizers.items() if o["source"] == "tuned"]

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
            cells = [name, _rate(optimizer)]
            cells.append(_mean_and_error(optimizer["loss"].sum(axis=1)))
            cells += [
                _mean_and_error(loss_at(optimizer["loss"], step)) for step in self.steps_to_show
            ]
            rows.append(cells + [f"{1e3 * optimizer['seconds_per_step']:.2f}"])
        lines = _align(rows)
        lines.insert(1, "-" * len(lines[0]))
        lines.append("")
        fresh = "one fresh optimizee"
        if self.num_seeds > 1:
            fresh = f"{self.num_seeds} fresh optimizees; ± is the standard error"
        tuned = " Baselines tuned for the loss sum on other seeds." if self.tuned else ""
        lines.append(f"'{self.problem}' on {self.data}, {fresh}.{tuned}")
        lines.append(
            "Each is trained on the very batches whose loss is reported, before the update."
        )
        if any(o["source"] == "given" for o in self.optimizers.values()):
            lines.append(
                "Given optimizers run as `fit` runs them; XLA compiles the step of the others."
            )
        for name in self.learned if self.tuned else []:
            # None of what diverged, or where a loss is not above 0.
            if np.isfinite(self.loss_sum(name)) and min(map(self.loss_sum, self.optimizers)) > 0:
                ratio = self.ratio(name)
                lines.append(f"{name}: loss sum {ratio:.2f} of the best tuned baseline's.")
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
            "side": self.side,
            "has_heldout": self.has_heldout,
            "optimizers": {
                name: {
                    "source": o["source"],
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
        """Writes ``results.json``, ``curves.png`` and, if there are any, ``pictures.png``.

        Args:
            directory: new or existing. Earlier results in it are replaced.

        Raises:
            FileExistsError: it has files of these names that no earlier ``save`` wrote; nothing
                is written.
        """
        directory = check_directory(directory)
        os.makedirs(directory, exist_ok=True)
        results, curves, pictures = (os.path.join(directory, file) for file in FILES)
        json_file.write(self.to_json(), results)
        self.plot(curves)
        if self.pictures:
            draw_pictures(self.pictures, pictures)

    def plot(self, path):
        """Draws the mean losses, against steps and seconds, into a PNG file: ``draw_curves``."""
        draw_curves(self, paths.from_user("path", path))


def check_directory(directory, name="directory"):
    """Whether ``Result.save`` may write there. Returns the path, its ``~`` expanded.

    Args:
        directory: new or existing.
        name: of the argument, for errors.

    Raises:
        TypeError: it is no path.
        FileExistsError: it is a file, or has other files of the names that would be written.
        PermissionError: it may not be written.
    """
    directory = paths.from_user(name, directory)
    above = directory
    while not os.path.lexists(above):
        above = os.path.dirname(above) or "."
    if not os.path.isdir(above):
        raise FileExistsError(
            f"{directory!r} cannot be a directory for results: {above!r} is none. Choose another."
        )
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(f"{above!r} may not be written. Choose another directory.")
    there = [file for file in FILES if os.path.lexists(os.path.join(directory, file))]
    written = [os.path.join(directory, file) for file in there]
    are_files = all(os.path.isfile(path) and not os.path.islink(path) for path in written)
    if there and not (are_files and _is_result(os.path.join(directory, "results.json"))):
        raise FileExistsError(
            f"{directory!r} has {', '.join(there)}, which no earlier result of l2l_tf wrote, or "
            "which are links; they are left as they are. Choose another directory."
        )
    return directory


def _is_result(path):
    """Whether a file is a ``results.json`` of ours."""
    try:
        with open(path) as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError):
        return False
    of_one = {"problem", "num_steps", "num_seeds", "optimizers"}
    of_suite = {"suite", "num_seeds", "rules", "problems"}
    is_ours = isinstance(content, dict) and (of_one <= set(content) or of_suite <= set(content))
    return is_ours


def _rate(optimizer):
    """The cell of a learning rate."""
    rate, source = optimizer["learning_rate"], optimizer["source"]
    if rate is None:
        return source
    return f"{rate:.3g}" + (" (given)" if source == "given" else "")


def _mean_and_error(values):
    if not np.all(np.isfinite(values)):
        return "diverged"
    mean = values.mean()
    digits = 2 if abs(mean) >= 10 else 4
    number = f".{digits}f" if mean == 0 or 1e-3 <= abs(mean) < 1e5 else ".1e"
    error = f" ± {standard_error(values):{number}}" if len(values) > 1 else ""
    return f"{mean:{number}}{error}"


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
