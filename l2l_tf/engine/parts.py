"""Parts of a rule on a layout: the coordinates that each takes, and back.

Nothing is copied for a rule that is one part.
"""

import tensorflow as tf

from l2l_tf.update_rules import base


class Parts:
    """The parts of a rule on a layout, and their coordinates among all.

    Raises:
        ValueError: the rule's ``parts`` do not take each of the layout's tensors once.
    """

    def __init__(self, rule, layout):
        self.parts = base.parts_of(rule, layout)
        self.layouts = [[layout[i] for i in part.indices] for part in self.parts]
        self._is_rule = len(self.parts) == 1 and self.parts[0].rule is rule
        starts = [base.num_coordinates(layout[:index]) for index in range(len(layout) + 1)]
        # For each part, (start, size) of its coordinates among all, adjacent ones joined.
        self._runs = [_joined(starts, part.indices) for part in self.parts]

    def __iter__(self):
        """Pairs of a ``base.Part``'s rule and the layout of its tensors."""
        return zip([part.rule for part in self.parts], self.layouts)

    def has_coordinatewise(self):
        """Whether some of the coordinates can be drawn for a meta-gradient by themselves."""
        return any(part.rule.coupling == "coordinate" for part in self.parts)

    def take(self, vectors):
        """For each part its coordinates, of ``[..., N]``."""
        if len(self.parts) == 1:
            return [vectors]
        return [
            tf.concat([vectors[..., start : start + size] for start, size in runs], axis=-1)
            for runs in self._runs
        ]

    def put_together(self, of_parts):
        """The inverse of ``take``: ``[..., N]``."""
        if len(self.parts) == 1:
            return of_parts[0]
        pieces = {}
        for vectors, runs in zip(of_parts, self._runs):
            pieces.update(zip(runs, tf.split(vectors, [size for _, size in runs], axis=-1)))
        return tf.concat([pieces[run] for run in sorted(pieces)], axis=-1)

    def states(self, state):
        """The list of the parts' states. That of a rule that is one part is in no list."""
        return [state] if self._is_rule else state

    def state_of_rule(self, states):
        """The inverse of ``states``."""
        return states[0] if self._is_rule else states


def _joined(starts, indices):
    runs = []
    for index in indices:
        start, size = starts[index], starts[index + 1] - starts[index]
        if runs and sum(runs[-1]) == start:
            runs[-1] = (runs[-1][0], runs[-1][1] + size)
        else:
            runs.append((start, size))
    return runs
