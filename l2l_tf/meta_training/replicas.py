"""Replicas: one meta-step on several devices, by ``tf.distribute``.

Each replica has optimizees of its own, an equal share of each group. What travels are sums of
meta-gradients, as many numbers as the rule has weights.
"""

import tensorflow as tf


def new_strategy(name):
    """The ``tf.distribute.Strategy`` "mirrored", "multi_worker" or "tpu"; None of "none".

    To be called before anything else is done with TensorFlow. "multi_worker" reads who works where
    from TF_CONFIG in the environment, as ``tf.distribute`` has it.
    """
    if name == "mirrored":
        return tf.distribute.MirroredStrategy()
    if name == "multi_worker":
        return tf.distribute.MultiWorkerMirroredStrategy()
    if name == "tpu":
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
        return tf.distribute.TPUStrategy(resolver)
    return None


class Replicas:
    """The replicas of a ``tf.distribute.Strategy``, and which of them are in this process.

    Args:
        strategy: the strategy; None takes the one in whose scope this is called.
    """

    def __init__(self, strategy=None):
        self.strategy = strategy or tf.distribute.get_strategy()
        self.num_replicas = self.strategy.num_replicas_in_sync
        self._local = []
        if self.num_replicas > 1:
            self._each(lambda replica: self._local.append(replica) or replica)
        self._local = self._local or [0]
        self.num_local = len(self._local)

    @property
    def is_first(self):
        """Whether this process has the first replica: it is the one that writes files."""
        return self._local[0] == 0

    @property
    def is_alone(self):
        """Whether all replicas are in this process."""
        return self.num_replicas == self.num_local

    def any_process(self, flag):
        """Whether a flag, a bool, is set in any process. All have to call it, at the same place."""
        if self.is_alone:
            return flag
        return float(self._sum_of_processes(tf.constant(float(flag)))) > 0

    def share(self, num_optimizees):
        """Which optimizees of a group are this process', as a range."""
        of_each = num_optimizees // self.num_replicas
        return range(self._local[0] * of_each, (self._local[-1] + 1) * of_each)

    def split(self, values):
        """A structure with leading axes of this process' optimizees, for ``run``."""
        if self.num_local == 1:
            return values
        return tf.nest.map_structure(self._split, values)

    def run(self, function, *values):
        """``function(*values)`` on each of this process' replicas."""
        if self.num_local == 1:
            return function(*values)
        return self.strategy.run(function, args=values)

    def local(self, value):
        """The values of this process' replicas, a list."""
        return list(self.strategy.experimental_local_results(value))

    def mean(self, values):
        """The mean over all replicas, of all processes, of a structure of tensors."""
        if self.num_replicas == 1:
            return values
        leaves = tf.nest.flatten(values)
        sums = [self.strategy.reduce("SUM", leaf, axis=None) for leaf in leaves]
        return tf.nest.pack_sequence_as(values, [leaf / self.num_replicas for leaf in sums])

    def take_from_first(self, variables):
        """Gives the variables of all processes the values of the first."""
        if self.is_alone:
            return
        for variable in variables:
            value = tf.cast(variable, tf.float64)  # exact, also for integers below 2^53
            value = value if self.is_first else tf.zeros_like(value)
            variable.assign(tf.cast(self._sum_of_processes(value), variable.dtype))

    def _sum_of_processes(self, value):
        values = self._each(lambda replica: value if replica == self._local[0] else value * 0)
        return self.strategy.reduce("SUM", values, axis=None)

    def _split(self, value):
        pieces = dict(zip(self._local, tf.split(value, self.num_local)))
        return self._each(lambda replica: pieces[replica])

    def _each(self, function):
        """The value of a function of its number, for each replica of this process."""
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: function(context.replica_id_in_sync_group)
        )
