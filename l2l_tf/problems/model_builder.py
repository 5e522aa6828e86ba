"""Model builder: a user's ``build_model``, called again and again, as a function of a seed."""

import contextlib
import random
import threading
import warnings

import keras
import numpy as np

from l2l_tf import hooks
from l2l_tf.arguments import few

# Building a model under a seed borrows the process' global generators: one at a time.
_global_generators = threading.Lock()


class ModelBuilder:
    """Calls `build_model` under a seed: new weights each time, the same ones for the same seed.

    Whatever draws them: Keras' initializers, which take their seeds from `random`;
    ``keras.random``; NumPy's global generator; ``tf.random``. These generators are as before
    afterwards. The settings of Keras that hold in a thread (dtype policy, custom objects, unsafe
    deserialization) are those of the thread that made this object, whichever thread builds.

    Args:
        build_model: function without arguments that returns a new ``keras.Model``.
        example: a batch ``(x, y)``, to build models that wait for their first input.
    """

    def __init__(self, build_model, example):
        self._build_model = build_model
        self._example = example
        self._settings = hooks.thread_settings()
        self._draws_by_tensorflow = False

    def build(self, seed):
        """A new model.

        Args:
            seed: two integers.
        """
        with _global_generators, hooks.settings_in_this_thread(self._settings):
            if not self._draws_by_tensorflow:
                with _seeded(seed):
                    position = hooks.tensorflow_draws()
                    model = self._build()
                    self._draws_by_tensorflow = hooks.tensorflow_draws() != position
            if self._draws_by_tensorflow:
                # TensorFlow keeps the state of an operation that draws, by its seeds: forget it,
                # or the same seed would go on where it was. That is slow, so only where needed.
                hooks.forget_tensorflow_draws()
                with _seeded(seed):
                    model = self._build()
        return model

    def first(self, name):
        """A model, after a look at whether the builder gives new weights by seed.

        Args:
            name: of the problem, for errors.

        Raises:
            ValueError: it returns one model again and again, or sets a seed, or its weights are
                not a function of the seeds.
        """
        # Where the generators end shows whether the builder has set them to seeds of its own.
        ends, models = [], []
        for seed in ((0, 1), (0, 2), (0, 1)):
            models.append(self.build(seed))
            ends.append(self._last_end)
        first, other, again = models
        shared = {id(v) for v in first.trainable_variables} & {
            id(v) for v in (*other.trainable_variables, *again.trainable_variables)
        }
        if shared:
            names = [v.path for v in first.trainable_variables if id(v) in shared]
            raise ValueError(
                f"`build_model` of problem '{name}' must return a new model each time, as each "
                f"episode starts from fresh weights. Received the same variables twice: "
                f"{few(names)}. Make the model, and its layers, inside of the function."
            )
        shapes = [[tuple(v.shape) for v in m.trainable_variables] for m in models]
        if shapes[1:] != shapes[:1] * 2:
            raise ValueError(
                f"`build_model` of problem '{name}' must return models of one architecture. "
                f"Received trainable variables of the shapes {shapes[0]}, then {shapes[1]}."
            )
        values = [[v.numpy() for v in model.trainable_variables] for model in models]
        changed = [
            v.path
            for v, a, b in zip(first.trainable_variables, values[0], values[2])
            if not np.array_equal(a, b)
        ]
        if changed:
            raise ValueError(
                f"`build_model` of problem '{name}' must draw its weights from generators that can "
                "be seeded: those of Keras, `random`, NumPy's global one, or tf.random. Received "
                f"other values for the same seed in {few(changed)}. Perhaps it uses a generator "
                "of its own without a seed, such as np.random.default_rng()."
            )
        if not values[0] or not all(np.array_equal(a, b) for a, b in zip(values[0], values[1])):
            return first
        if any(a is not None and a == b for a, b in zip(ends[0], ends[1])):
            raise ValueError(
                f"`build_model` of problem '{name}' sets a random seed, so each episode would "
                "start from the same weights. Leave the seed out: the weights are a function of "
                "the evaluation's or meta-training's own `seed`."
            )
        warnings.warn(
            f"`build_model` of problem '{name}' returns the same initial weights each time: its "
            "initializers are constants, or have seeds of their own, or weights are loaded. Its "
            "optimizees differ by their batches alone.",
            stacklevel=3,
        )
        return first

    def _build(self):
        model = self._build_model()
        if not isinstance(model, keras.Model):
            raise TypeError(
                "`build_model` must return a keras.Model. "
                f"Received: {model!r} of type {type(model).__name__}"
            )
        if not model.built:  # by shapes alone: a call would change what the model remembers
            x, *_ = keras.utils.unpack_x_y_sample_weight(self._example)
            model(keras.tree.map_structure(lambda t: keras.KerasTensor(t.shape, t.dtype.name), x))
        self._last_end = random.random(), np.random.random(), hooks.tensorflow_draws()
        return model


@contextlib.contextmanager
def _seeded(seed):
    """Within, the global generators are at `seed`; afterwards they are as before."""
    entropy = [int(s) % 2**32 for s in seed]
    of_random, of_numpy, of_tensorflow = map(
        int, np.random.SeedSequence(entropy).generate_state(3, np.uint64)
    )
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        random.seed(of_random)
        np.random.seed(of_numpy % 2**32)
        with hooks.seeded_tensorflow(of_tensorflow % 2**31), hooks.seed_generator(None):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
