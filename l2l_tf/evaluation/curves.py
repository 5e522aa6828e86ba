"""Curves: the plot of a comparison, losses against steps and against time."""

import numpy as np

from l2l_tf.evaluation.learning_curves import SMOOTHING, loss_at

_LEGEND_WIDTH = 130  # letters that have room beside each other


def draw_curves(result, path):
    """Draws the losses of a ``Result`` into a PNG file, against steps and against time.

    The lines are what the table shows: the loss at a step, a running mean of five, averaged over
    seeds, with a band of its standard error. The mean of each single step, where one seed's spike
    hides the order of the rest, stands pale behind it.

    The axis of losses is logarithmic, unless a loss is negative. A loss of exactly 0 has no place
    on such an axis: it is drawn at the lower edge, and the axis says so.
    """
    # A figure of its own, without pyplot: no display is touched.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = result.learned + result.tuned
    curves = {name: Curve(result.optimizers[name]["loss"]) for name in names}
    scale = Scale(list(curves.values()))
    unit, per_second = time_unit(result)
    labels = [_label(name, result.optimizers[name], curves[name]) for name in names]
    num_columns = max(1, min(len(names), _LEGEND_WIDTH // (8 + max(map(len, labels), default=0))))
    num_rows = -(-len(names) // num_columns)

    figure = Figure(figsize=(11, 4.4 + 0.22 * num_rows), layout="constrained")
    by_step, by_time = figure.subplots(1, 2, sharey=True)
    for index, (name, label) in enumerate(zip(names, labels)):
        optimizer, curve = result.optimizers[name], curves[name]
        is_tuned = optimizer["source"] == "tuned"
        color, line = f"C{index % 10}", ("-", "--", ":")[index // 10 % 3]
        steps = np.arange(1, result.num_steps + 1)
        # The loss of a step is known before its update.
        times = (steps - 1) * optimizer["seconds_per_step"] * per_second
        for axes, x in ((by_step, steps), (by_time, times)):
            axes.plot(x, scale.clip(curve.each_step), color=color, alpha=0.3, linewidth=0.7)
            width, order = (1.2, 3) if is_tuned else (2.2, 4)
            mean = scale.clip(curve.mean)
            axes.plot(x, mean, line, label=label, color=color, linewidth=width, zorder=order)
            low, high = curve.mean - curve.error, curve.mean + curve.error
            band = {"color": color, "alpha": 0.2, "linewidth": 0}
            axes.fill_between(x, scale.clip(low), scale.clip(high), **band)
    scale.apply(by_step)
    by_step.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    margin = 0.03 * result.num_steps
    by_step.set_xlim(1 - margin, result.num_steps + margin)  # also where nothing can be drawn
    by_step.set_xlabel("step")
    by_time.set_xlabel(f"{unit}, of one optimizee")
    by_step.set_ylabel(_loss_label(result, scale), fontsize=9)
    for axes in (by_step, by_time):
        axes.grid(alpha=0.3, which="both")
    # Below the axes: within them it would hide curves.
    handles, _ = by_step.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=num_columns, fontsize=9)
    figure.suptitle(f"{result.problem}: fresh optimizees on {result.data}")
    figure.savefig(path, dpi=130)


class Curve:
    """The losses of an optimizer as they are drawn.

    Args:
        losses: ``[num_seeds, num_steps]``.

    Attributes:
        each_step: mean over seeds, ``[num_steps]``.
        mean, error: the same of the losses at the steps as the table has them, each a mean of
            five, and its standard error.
        diverged: whether any loss is not finite.
    """

    def __init__(self, losses):
        with np.errstate(invalid="ignore", over="ignore"):  # of what diverges
            self.each_step = losses.mean(axis=0)
            steps = range(1, losses.shape[1] + 1)
            smooth = np.stack([loss_at(losses, step) for step in steps], axis=1)
            self.mean, self.error = smooth.mean(axis=0), standard_error(smooth)
        self.diverged = not np.isfinite(losses).all()


class Scale:
    """The axis of losses: its kind and limits, for some curves.

    Attributes:
        is_log: whether it is logarithmic: unless a loss is negative, or none is positive.
        has_zero: whether it is, and a loss is 0.
        limits: ``(low, high)``; None leaves them to matplotlib.
    """

    def __init__(self, curves):
        values = np.concatenate([[*c.each_step, *c.mean] for c in curves] or [[]])
        values = values[np.isfinite(values)]
        self.is_log = bool(values.size) and values.min() >= 0 and values.max() > 0
        self.has_zero = self.is_log and values.min() == 0
        self.limits = None
        starts = np.array([c.each_step[0] for c in curves])
        starts = starts[np.isfinite(starts)]
        starts = starts[starts > 0] if self.is_log else starts
        # What diverges leaves the picture instead of flattening the rest.
        start = np.median(starts) if starts.size else np.inf
        if self.is_log:
            lowest = values[values > 0].min()
            low = lowest * (0.3 if self.has_zero else 0.8)
            self.limits = low, max(min(1.5 * values.max(), 5 * start), 2 * lowest)
        elif values.size and values.min() < values.max():
            low = values.min()
            high = min(values.max(), start + max(start - low, abs(start)))
            margin = 0.05 * (high - low)
            self.limits = (low - margin, high + margin) if margin > 0 else None

    def clip(self, losses):
        """Losses as they can be drawn."""
        return np.maximum(losses, self.limits[0]) if self.is_log else losses

    def apply(self, axes):
        if self.is_log:
            axes.set_yscale("log")
        if self.limits is not None:
            axes.set_ylim(*self.limits)


def standard_error(losses):
    """Standard error of the mean over seeds: ``[num_seeds, ...]`` → ``[...]``; 0 for one seed."""
    if len(losses) < 2:
        return np.zeros(losses.shape[1:])
    with np.errstate(invalid="ignore", over="ignore"):  # a diverged loss has no standard error
        return losses.std(axis=0, ddof=1) / np.sqrt(len(losses))


def time_unit(result):
    """The name of the unit in which the whole of a ``Result`` takes some, and how many a second."""
    whole = result.num_steps * max(
        (o["seconds_per_step"] for o in result.optimizers.values()), default=1.0
    )
    if whole >= 1:
        return "seconds", 1
    return ("milliseconds", 1e3) if whole >= 1e-3 else ("microseconds", 1e6)


def _label(name, optimizer, curve):
    rate, source = optimizer["learning_rate"], optimizer["source"]
    notes = [] if source == "learned" else [source if rate is None else f"{source}: {rate:.3g}"]
    notes += ["diverged"] if curve.diverged else []
    return f"{name} ({', '.join(notes)})" if notes else name


def _loss_label(result, scale):
    steps = f"a step: the mean of {SMOOTHING}"
    if result.num_seeds == 1:
        lines = [f"loss of one optimizee at {steps}", "(pale: each step)"]
    else:
        lines = [f"loss, mean of {result.num_seeds} optimizees, at {steps}"]
        lines += ["(band: ± standard error; pale: each step)"]
    return "\n".join(lines + (["0 is drawn at the lower edge"] if scale.has_zero else []))
