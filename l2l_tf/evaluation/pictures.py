"""Pictures: what the optimizees of a comparison look like in the end, if they are images."""

import textwrap

import numpy as np
import tensorflow as tf

from l2l_tf.update_rules import base

MAX_ROWS = 5
TITLE_WIDTH = 28  # letters that have room above a picture


def picture_rows(problem, batches, parameters, result):
    """The references and results of the first few different optimizees.

    Args:
        problem: a ``Problem`` with ``picture`` and ``reference_pictures``.
        batches: the batch of each of `num_seeds` episodes.
        parameters: dict of optimizer → the parameters of its last loss, ``[num_seeds, N]``.
        result: the ``Result``. Shown are its learned rules and the tuned baseline of the lowest
            mean loss at the last step.

    Returns:
        List of rows, `MAX_ROWS` at most, no two with the same references: each a list of
        ``(title, image, loss)``, image a uint8 array ``[height, width, 3]``, and loss None of
        references.
    """
    names = list(result.learned)
    if result.tuned:
        last = [result.optimizers[name]["loss"][:, -1].mean() for name in result.tuned]
        names.append(result.tuned[int(np.argmin(np.nan_to_num(last, nan=np.inf)))])
    rows, seen = [], set()
    for index, batch in enumerate(batches):
        references = problem.reference_pictures(batch)
        key = tuple(image.tobytes() for image in references.values())
        if key in seen or len(rows) == MAX_ROWS:
            continue
        seen.add(key)
        row = [(title, image, None) for title, image in references.items()]
        for name in names:
            theta = base.split(tf.constant(parameters[name][index]), problem.layout)
            loss = result.optimizers[name]["loss"][index, -1]
            row.append((f"{name}, {result.num_steps} steps", problem.picture(theta), loss))
        rows.append(row)
    return rows


def draw_pictures(rows, path):
    """Draws the rows of ``picture_rows`` into a PNG file: titles above, losses beneath."""
    # A figure of its own, without pyplot: no display is touched.
    from matplotlib.figure import Figure

    num_columns = max(map(len, rows))
    titles = [textwrap.fill(title, TITLE_WIDTH) for row in rows for title, *_ in row]
    # Room for the titles, and between them and the losses of the row above.
    height = 2.75 + 0.17 * max(1 + title.count("\n") for title in titles)
    figure = Figure(figsize=(2.4 * num_columns, height * len(rows)), layout="constrained")
    all_axes = figure.subplots(len(rows), num_columns, squeeze=False)
    for row, row_axes in zip(rows, all_axes):
        for (title, image, loss), axes in zip(row, row_axes):
            axes.imshow(image)
            axes.set_title(textwrap.fill(title, TITLE_WIDTH), fontsize=9)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_xlabel("" if loss is None else f"loss {loss:.4g}", fontsize=9)
    figure.savefig(path, dpi=130)
