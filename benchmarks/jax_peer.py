"""The same rule and trainer in plain JAX, one program a segment: a peer for the benchmarks.

As one would write it there: ``jax.value_and_grad`` through ``jax.lax.scan`` over the steps of an
optimizee, the LSTM as matrix products over all coordinates, ``jax.checkpoint`` around a step of the
rule where that is the faster. The mathematics are those of ``textbook.TextbookTrainer``. JAX comes
by ``pip install jax``; nothing of the package needs it.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

DECAYS, EPSILON, META_LEARNING_RATE = (0.9, 0.999), 1e-7, 1e-4


def perceptron(parameters, images):
    x = images.reshape([len(images), -1]) / 255
    for kernel, bias in zip(parameters[:-2:2], parameters[1:-2:2]):
        x = jax.nn.sigmoid(x @ kernel + bias)
    return x @ parameters[-2] + parameters[-1]


def conv_net(parameters, images):
    x = images / 255
    for kernel, bias in zip(parameters[:-4:2], parameters[1:-4:2]):
        dimensions = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=dimensions)
        x = jax.nn.relu(x + bias)
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = jax.nn.relu(x.reshape([len(x), -1]) @ parameters[-4] + parameters[-3])
    return x @ parameters[-2] + parameters[-1]


class JaxTrainer:
    """Meta-trains a coordinatewise LSTM on a net of the benchmarks, a segment a call.

    Args:
        weights: of a ``CoordinatewiseLSTM``, a list of arrays, ``[gates, features + units]`` and so
            on.
        output_scale: of that rule.
        network: function of parameters and images that returns logits.
        parameters: list of arrays.
        recomputes: whether the backward pass computes a step of the rule again.
    """

    def __init__(self, weights, output_scale, network, parameters, recomputes):
        *cells, head, head_bias = [jnp.asarray(np.transpose(w)) for w in weights]
        self.weights = [list(zip(cells[::2], cells[1::2])), head, head_bias]
        self.parameters, self._shape_of = ravel_pytree([jnp.asarray(p) for p in parameters])
        shapes = [(len(self.parameters), bias.shape[-1] // 4) for _, bias in self.weights[0]]
        self.state = [(jnp.zeros(shape), jnp.zeros(shape)) for shape in shapes]
        zeros = jax.tree.map(jnp.zeros_like, self.weights)
        self.moments = zeros, zeros, 0
        self._network, self._output_scale = network, output_scale
        self._update = jax.checkpoint(self._run_rule) if recomputes else self._run_rule
        self._segment = jax.jit(self._train_segment, donate_argnums=3)

    def train_segment(self, images, labels):
        """`images`, `labels`: ``[T + 1, batch, ...]``. Returns the sum of the losses."""
        self.weights, self.moments, self.parameters, self.state, total = self._segment(
            self.weights, self.moments, self.parameters, self.state, images, labels
        )
        return total

    def _loss(self, parameters, batch):
        images, labels = batch
        log_probabilities = jax.nn.log_softmax(
            self._network(self._shape_of(parameters), images.astype(jnp.float32))
        )
        return -jnp.mean(jnp.take_along_axis(log_probabilities, labels[:, None], axis=1))

    def _run_rule(self, weights, gradients, state):
        cells, head, head_bias = weights
        magnitude = jnp.maximum(jnp.abs(gradients), math.exp(-10))
        sign = jnp.clip(gradients * math.exp(10), -1, 1)
        inputs = jnp.stack([jnp.log(magnitude) / 10, sign], axis=1)
        new_state = []
        for (kernel, bias), (hidden, cell) in zip(cells, state):
            gates = jnp.concatenate([inputs, hidden], axis=1) @ kernel + bias
            write, forget, candidate, read = jnp.split(gates, 4, axis=1)
            cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(write) * jnp.tanh(candidate)
            inputs = jax.nn.sigmoid(read) * jnp.tanh(cell)
            new_state.append((inputs, cell))
        return self._output_scale * (inputs @ head + head_bias)[:, 0], new_state

    def _unroll(self, weights, parameters, state, images, labels):
        def step(carry, batch):
            parameters, state, total = carry
            loss, gradients = jax.value_and_grad(self._loss)(parameters, batch)
            updates, state = self._update(weights, jax.lax.stop_gradient(gradients), state)
            return (parameters + updates, state, total + loss), loss

        (parameters, state, total), losses = jax.lax.scan(
            step, (parameters, state, 0.0), (images[:-1], labels[:-1])
        )
        last = self._loss(parameters, (images[-1], labels[-1]))
        return total - losses[0] + last, (parameters, state)

    def _train_segment(self, weights, moments, parameters, state, images, labels):
        (total, (parameters, state)), gradients = jax.value_and_grad(self._unroll, has_aux=True)(
            weights, parameters, state, images, labels
        )
        first, second, t = moments
        (beta_1, beta_2), t = DECAYS, t + 1
        first = jax.tree.map(lambda m, g: beta_1 * m + (1 - beta_1) * g, first, gradients)
        second = jax.tree.map(lambda v, g: beta_2 * v + (1 - beta_2) * g * g, second, gradients)
        rate = META_LEARNING_RATE * jnp.sqrt(1 - beta_2**t) / (1 - beta_1**t)
        weights = jax.tree.map(
            lambda w, m, v: w - rate * m / (jnp.sqrt(v) + EPSILON), weights, first, second
        )
        return weights, (first, second, t), parameters, state, total
