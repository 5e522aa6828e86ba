"""Own datasets: which data a MetaTrainer has made, so that it takes no others."""

import weakref

import tensorflow as tf

from l2l_tf import arguments, hooks
from l2l_tf.meta_training.mixture_data import MixtureData, ValidationOfMixture

KINDS = (tf.data.Dataset, MixtureData, ValidationOfMixture)


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
        arguments.instance(argument, dataset, KINDS, what, hint)
        if not self._is_own(dataset, method):
            raise ValueError(
                f"`{argument}` must be {what}, whole or part. Received: another dataset. {hint}"
            )

    def _is_own(self, dataset, method):
        """Whether `method` has made a dataset, or all that it is made from, of equal elements."""
        if self._methods.get(dataset) == method:
            return True
        inputs = hooks.inputs_of(dataset) if isinstance(dataset, tf.data.Dataset) else []
        return bool(inputs) and all(
            self._is_own(made_from, method) and made_from.element_spec == dataset.element_spec
            for made_from in inputs
        )
