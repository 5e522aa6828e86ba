"""The textbook way to meta-train: a tape over a segment that is unrolled in Python.

The reference of the benchmarks. The mathematics are those of ``l2l_tf.MetaTrainer`` (first order,
credit to the segment's end, sum of losses); the rule's LSTM in the usual layout,
``[coordinates, units]``; all `unroll_length` steps in one traced graph under one tape.
"""

import keras
import tensorflow as tf

from l2l_tf import preprocessing
from l2l_tf.update_rules import base


def descend(problem, num_steps):
    """A function that makes gradient steps in parameters: what any trainer pays for the optimizee.

    Args:
        problem: ``KerasProblem``.

    Returns:
        Function of parameters ``[N]`` and batches, leaves ``[num_steps + 1, ...]``, as
        ``TextbookTrainer.train_segment`` has them; returns ``(parameters, sum of losses)``.
    """

    @tf.function
    def train(parameters, batches):
        total = 0.0
        for t in range(num_steps + 1):
            batch = tf.nest.map_structure(lambda leaf, t=t: leaf[t], batches)
            loss, gradients = problem.loss_and_gradients(
                base.split(parameters, problem.layout), batch
            )
            total += loss if t else 0.0
            # The last gradient too: every trainer needs it.
            parameters -= 1e-4 * base.flatten(gradients)
        return parameters, total

    return train


class TextbookTrainer:
    """Meta-trains a ``CoordinatewiseLSTM`` on a ``KerasProblem``, a segment a call.

    Args:
        rule: ``CoordinatewiseLSTM``, for the initial meta-parameters.
        problem: ``KerasProblem``.
    """

    def __init__(self, rule, problem):
        self.layers, self.problem, self.output_scale = rule.layers, problem, rule.output_scale
        # Transposed: kernels [features + units, 4 * units], biases [4 * units].
        *cells, head, head_bias = [tf.Variable(tf.transpose(v.value)) for v in rule.weights]
        self.cells = list(zip(cells[::2], cells[1::2]))
        self.head, self.head_bias = head, head_bias
        self.variables = [*cells, head, head_bias]
        self.optimizer = keras.optimizers.Adam(1e-4)
        self.optimizer.build(self.variables)

    def initial_state(self):
        n = base.num_coordinates(self.problem.layout)
        return [(tf.zeros([n, units]), tf.zeros([n, units])) for units in self.layers]

    def update(self, gradients, state):
        inputs = tf.transpose(preprocessing.log_and_sign(gradients))  # [N, 2]
        new_state = []
        for (kernel, bias), (hidden, cell) in zip(self.cells, state):
            gates = tf.matmul(tf.concat([inputs, hidden], axis=1), kernel) + bias
            write, forget, candidate, read = tf.split(gates, 4, axis=1)
            cell = tf.sigmoid(forget) * cell + tf.sigmoid(write) * tf.tanh(candidate)
            inputs = tf.sigmoid(read) * tf.tanh(cell)
            new_state.append((inputs, cell))
        outputs = tf.matmul(inputs, self.head) + self.head_bias
        return self.output_scale * outputs[:, 0], new_state

    @tf.function
    def train_segment(self, parameters, state, batches):
        """`batches`: leaves ``[T + 1, ...]``. Returns ``(parameters, state, sum of losses)``."""
        num_steps = tf.nest.flatten(batches)[0].shape[0] - 1
        total = 0.0
        with tf.GradientTape() as tape:
            for t in range(num_steps + 1):
                batch = tf.nest.map_structure(lambda leaf, t=t: leaf[t], batches)
                loss, gradients = self.problem.loss_and_gradients(
                    base.split(parameters, self.problem.layout), batch
                )
                total += loss if t else 0.0
                if t < num_steps:
                    gradients = tf.stop_gradient(base.flatten(gradients))
                    updates, state = self.update(gradients, state)
                    parameters += updates
        meta_gradient = tape.gradient(total, self.variables)
        self.optimizer.apply_gradients(zip(meta_gradient, self.variables))
        return parameters, state, total
