"""Meta-step: estimates of the meta-gradient by several groups, averaged and applied.

A *group* is M optimizees of one problem, side by side in one program. Groups run at the same time,
in threads; they meet where their meta-gradients are averaged.
"""

import concurrent.futures
import threading

import tensorflow as tf

from l2l_tf.engine import pieces
from l2l_tf.update_rules import base


class MetaStep:
    """What a trainer does with a window of each of its groups.

    Args:
        trainer: ``MetaTrainer``, compiled.
        problems: its problems.
        jit_compile: for each problem, whether XLA compiles the estimate as a whole.
    """

    def __init__(self, trainer, problems, jit_compile):
        self._trainer = trainer
        self._problems = problems
        self._jit_compile = jit_compile
        self._is_eager = trainer.run_eagerly
        self._functions = {}
        self._tracing = threading.Lock()
        self._threads = None
        # Strategies of several devices in one process have threads of their own.
        at_once = min(trainer.num_groups, pieces.policy().side_by_side)
        if at_once > 1 and trainer.replicas.num_local == 1 and not self._is_eager:
            self._threads = concurrent.futures.ThreadPoolExecutor(at_once)
        self._apply = self._apply_mean
        if not self._is_eager:
            self._apply = tf.function(self._apply_mean, autograph=False)

    def __call__(self, groups, carries):
        """One meta-step.

        Args:
            groups: pairs ``(index, element)``: of which problem, and a window.
            carries: of each group, from its window before; ignored in the first of an episode.

        Returns:
            ``(carries, runs, left out)``, lists with those of each group, on each local replica.
        """
        map_ = self._threads.map if self._threads else map
        estimates = list(map_(self._estimate, groups, carries))
        vectors, carries, left_out = zip(*estimates)
        is_good = self._apply(list(vectors))
        local = self._trainer.replicas.local
        runs = [[of.runs for of in _local_structures(local, carry)] for carry in carries]
        left_out = [[~is_good[g] | of for of in local(left_out[g])] for g in range(len(groups))]
        return list(carries), runs, left_out

    def _estimate(self, group, carry):
        index, element = group
        is_first = int(element["window"][0]) == 0
        data = self._trainer.replicas.split(element)
        arguments = [data] if is_first else [data, carry]
        key = index, is_first
        with self._tracing:  # Keras' state while a model is traced is not for two threads
            if key not in self._functions:
                self._functions[key] = self._function(*key, arguments)
        return self._functions[key](*arguments)

    def _function(self, index, is_first, arguments):
        problem, replicas = self._problems[index], self._trainer.replicas
        function = self._start(problem) if is_first else self._go_on(problem)
        if self._is_eager:
            return lambda *args: replicas.run(function, *args)
        if self._jit_compile[index]:
            function = tf.function(function, autograph=False, jit_compile=True)
        whole = tf.function(lambda *args: replicas.run(function, *args), autograph=False)
        return whole.get_concrete_function(*arguments)

    def _start(self, problem):
        trainer = self._trainer

        def start(data):
            carry = trainer.estimator.start(trainer.rule, problem, data["parameters"])
            return self._packed(trainer.estimator(trainer.rule, problem, carry, data))

        return start

    def _go_on(self, problem):
        trainer = self._trainer
        return lambda data, carry: self._packed(
            trainer.estimator(trainer.rule, problem, carry, data)
        )

    def _packed(self, estimate):
        """What the average takes as one vector: gradients; loss, objective, how many they are of.

        (So that what travels between devices travels at once.)
        """
        dtype = estimate.losses.dtype
        counted = tf.cast(~estimate.left_out, dtype)
        means = tf.reduce_mean(estimate.losses[1:], axis=0), estimate.values
        sums = [
            tf.reduce_sum(tf.where(estimate.left_out, tf.zeros_like(mean), mean)) for mean in means
        ]
        sums = tf.stack([*sums, tf.reduce_sum(counted)])
        vector = base.flatten([*estimate.gradients, sums])
        return vector, estimate.carry, estimate.left_out

    def _apply_mean(self, vectors):
        """Takes a step along the mean of the groups' meta-gradients; returns which are finite."""
        trainer = self._trainer
        # All groups' at once: one message between devices.
        together = trainer.replicas.run(lambda *of_groups: tf.stack(of_groups), *vectors)
        vectors = tf.unstack(trainer.replicas.mean(together))
        is_good, total = [], 0
        for vector in vectors:
            gradient, sums = vector[:-3], vector[-3:]
            norm = tf.norm(gradient)
            is_finite = tf.math.is_finite(norm)
            if trainer.clip_norm is not None:
                gradient *= trainer.clip_norm / tf.maximum(norm, trainer.clip_norm)
            total += tf.where(is_finite, gradient, 0)
            is_good.append(is_finite)
            weight = tf.where(is_finite, sums[2], 0)
            trainer.mean_loss.update_state(tf.math.divide_no_nan(sums[0], sums[2]), weight)
            trainer.mean_objective.update_state(tf.math.divide_no_nan(sums[1], sums[2]), weight)
        is_good = tf.stack(is_good)
        counts = tf.stack([vector[-1] for vector in vectors])
        variables = trainer.rule.trainable_variables
        gradients = base.split(total / len(vectors), [(v.path, tuple(v.shape)) for v in variables])

        def apply():
            trainer.optimizer.apply(gradients, variables)
            return True

        tf.cond(tf.reduce_any(is_good & (counts > 0)), apply, lambda: False)
        return is_good


def _local_structures(local, structure):
    """A structure of values of all local replicas as a list of structures."""
    leaves = zip(*[local(leaf) for leaf in tf.nest.flatten(structure)])
    return [tf.nest.pack_sequence_as(structure, of_replica) for of_replica in leaves]
