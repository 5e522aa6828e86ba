"""Own datasets: which data a MetaTrainer has made, so that it takes no others."""

import weakref

import tensorflow as tf

from l2l_tf import arguments


class OwnDatasets:
    """The datasets of one trainer that are in use.

    Other data may have the same shapes, and be of other episodes or of another `num_steps`: the
    trainer would train on them, and on something else than it says.
    """

    def __init__(self):
        self._methods = weakref.WeakKeyDictionary()  # dataset → name of the method that made it

    def add(self, dataset, method):
        """Notes that the trainer's `method` has made `dataset`, which is returned."""
        self._methods[dataset] = method
        return dataset

    def check(self, argument, dataset, method):
        """Refuses what `method` has not made, whole or as a part (``take``, ``prefetch``, …).

        Raises:
            TypeError: not a dataset.
            ValueError: another dataset.
        """
        what = f"what {method}(...) of this MetaTrainer returns"
        hint = f"Make one by {method}(seed, num_episodes) of this MetaTrainer."
        arguments.instance(argument, dataset, tf.data.Dataset, what, hint)
        own = [d for d in _with_inputs(dataset) if self._methods.get(d) == method]
        if all(dataset.element_spec != made.element_spec for made in own):
            raise ValueError(
                f"`{argument}` must be {what}, whole or part. Received: another dataset. {hint}"
            )


def _with_inputs(dataset):
    """A dataset, and those that it was made from."""
    yield dataset
    # TensorFlow has no public way to ask. Without this one, only whole datasets would be taken.
    for input_dataset in getattr(dataset, "_inputs", list)():
        yield from _with_inputs(input_dataset)
