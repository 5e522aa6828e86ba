"""Parts of an optimizee: the coordinates that each part of a rule takes, and back.

Nothing is copied for a rule that is one part.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from l2l_tf.update_rules import base


class Part(NamedTuple):
    """A part of a rule on an optimizee."""

    rule: Any  # an UpdateRule
    layout: list  # its tensors
    runs: list  # (start, size) of their coordinates among all, adjacent ones joined
    is_all: bool  # whether these are all of the optimizee's


def parts_of(rule, layout):
    """The list of ``Part`` of a rule on a layout.

    Raises:
        ValueError: the rule's ``parts`` do not take each of the layout's tensors once.
    """
    starts = [base.num_coordinates(layout[:index]) for index in range(len(layout) + 1)]
    parts = []
    for rule_of_part, indices in base.parts_of(rule, layout):
        runs = []
        for index in indices:
            start, size = starts[index], starts[index + 1] - starts[index]
            if runs and sum(runs[-1]) == start:
                runs[-1] = (runs[-1][0], runs[-1][1] + size)
            else:
                runs.append((start, size))
        parts.append(
            Part(rule_of_part, [layout[i] for i in indices], runs, runs == [(0, starts[-1])])
        )
    return parts


def take(vectors, part):
    """Of ``[..., N]``, the coordinates of a part."""
    if part.is_all:
        return vectors
    return tf.concat([vectors[..., start : start + size] for start, size in part.runs], axis=-1)


def put_together(of_parts, parts):
    """The inverse of ``take``, of all parts: ``[..., N]``."""
    if parts[0].is_all:
        return of_parts[0]
    pieces = {}
    for vectors, part in zip(of_parts, parts):
        sizes = [size for _, size in part.runs]
        pieces.update(zip(part.runs, tf.split(vectors, sizes, axis=-1)))
    return tf.concat([pieces[run] for run in sorted(pieces)], axis=-1)


def state_by_part(rule, parts, state):
    """The list of the parts' states. That of a rule that is one part, itself, is not in a list."""
    return [state] if parts[0].rule is rule else state


def state_of_rule(rule, parts, states):
    """The inverse of ``state_by_part``."""
    return states[0] if parts[0].rule is rule else states


def has_coordinatewise_part(rule, layout):
    """Whether some of the coordinates can be drawn for a meta-gradient by themselves."""
    return any(part.rule.coupling == "coordinate" for part in parts_of(rule, layout))
