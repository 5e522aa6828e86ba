"""The state of a LearnedOptimizer: pieces in memory; by variable and leaf wherever it is seen.

How coordinates are cut into pieces depends on the machine, so no file says anything of it.
"""

import keras
import numpy as np
import tensorflow as tf


class OptimizerState(tf.__internal__.tracking.Trackable):
    """A rule's state for a model's variables, as variables.

    Args:
        step: a ``ModelStep``.
        dtype: of the state; of what adds up small steps, float32 at least.
        names: of the model's variables.
        given: values for `leaves`; None for the rule's initial state.

    Attributes:
        pieces: ``tf.Variable`` in the structure that the step takes.
        leaves: list of ``StateLeaf``, those of one variable of the model after another's.
    """

    def __init__(self, step, dtype, names, given=None):
        self.step = step
        self._pieces = []
        if given is not None:
            with tf.init_scope():
                given = tf.nest.flatten(step.of_tensors(given))

        def make(shape, initializer, name, adds_up):
            # A value comes from an initializer: where a graph is traced, an assignment is lost.
            if given is not None:
                initializer = keras.initializers.Constant(given[len(self._pieces)])
            variable = keras.Variable(
                initializer,
                shape=shape,
                dtype="float32" if adds_up and dtype == "bfloat16" else dtype,
                trainable=False,
                name=name,
            )
            self._pieces.append(variable)
            return variable.value

        self.pieces = step.initial_state(make)
        self.leaves = [
            StateLeaf(f"{name}/state_{index}", slices)
            for name, of_variable in zip(names, step.slices(self.pieces))
            for index, slices in enumerate(of_variable)
        ]

    def trackable_pieces(self):
        """What a SavedModel has in its place: a function in it may refer to the pieces."""
        return {f"state_{index}": variable.value for index, variable in enumerate(self._pieces)}

    # TensorFlow's names, for each object that a ``tf.train.Checkpoint`` saves.

    def _serialize_to_tensors(self):
        return {f"leaf_{index}": leaf.value for index, leaf in enumerate(self.leaves)}

    def _restore_from_tensors(self, restored):
        for index, leaf in enumerate(self.leaves):
            leaf.assign(restored[f"leaf_{index}"])


class StateLeaf:
    """One leaf of the state for one variable of the model, ``[..., N]``, whole.

    To whoever lists, saves and restores an optimizer's variables it is one of them.

    Args:
        path: a name.
        slices: list of ``(variable, start, size)`` along the last axis; a start of None is all of
            a variable of any shape.
    """

    trainable = False

    def __init__(self, path, slices):
        self.path = self.name = path
        self._slices = slices
        first, start, _ = slices[0]
        self.dtype = first.dtype.name
        self.shape = tuple(first.shape)
        if start is not None:
            self.shape = (*self.shape[:-1], sum(size for *_, size in slices))

    @property
    def value(self):
        """A tensor."""
        parts = [
            tf.convert_to_tensor(variable if start is None else variable[..., start : start + size])
            for variable, start, size in self._slices
        ]
        return parts[0] if len(parts) == 1 else tf.concat(parts, axis=-1)

    def numpy(self):
        return self.value.numpy()

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.numpy(), dtype)

    def assign(self, value):
        """Takes over a value of its shape.

        Raises:
            ValueError: it has another.
        """
        value = tf.cast(tf.convert_to_tensor(value), self.dtype)
        if value.shape != self.shape:
            raise ValueError(
                f"The state {self.path!r} must be of shape {self.shape}. Received: shape "
                f"{tuple(value.shape)}"
            )
        done = 0
        for variable, start, size in self._slices:
            if start is not None:
                before, after = variable[..., :start], variable[..., start + size :]
                new = tf.concat([before, value[..., done : done + size], after], axis=-1)
                done += size
            variable.assign(value if start is None else new)
