"""LSTM stack: LSTM layers and a linear head, run on many columns at once.

A column is whatever has an LSTM state of its own: a coordinate, or a convolution kernel.
"""

import keras
import tensorflow as tf

from l2l_tf import arguments
from l2l_tf.update_rules import base
from l2l_tf.update_rules.lstm import cells


class LSTMStack(base.UpdateRule):
    """What all LSTM rules share: the meta-parameters, and one step from features to outputs.

    Abstract: a subclass says what a column, its features and its outputs are.

    Args:
        layers: units of each LSTM layer, a sequence of positive ints.
        num_features: features of a column.
        num_outputs: outputs of a column.
        output_scale: factor on the outputs, which a subclass applies.
        zero_head: start from a head of zeros, so that the untrained rule makes no step, rather
            than a random one.
        seed: int, of the initial meta-parameters; None draws them anew each time.
    """

    def __init__(self, layers, num_features, num_outputs, output_scale, zero_head, seed, **kwargs):
        super().__init__(**kwargs)
        layers = tuple(layers) if isinstance(layers, (list, tuple)) else (layers,)
        if not layers:
            raise ValueError(
                "`layers` must give the units of each LSTM layer, such as (20, 20). "
                f"Received: layers={layers}"
            )
        self.layers = layers = tuple(arguments.integer("layers", units, 1) for units in layers)
        self.num_outputs = num_outputs
        arguments.real("output_scale", output_scale, above=0)
        self.output_scale = output_scale
        self.zero_head = arguments.boolean("zero_head", zero_head)
        self.seed = None if seed is None else arguments.integer("seed", seed)
        self._kernels, self._biases = [], []
        width = num_features
        for index, units in enumerate(layers):
            self._kernels.append(
                self.add_weight(
                    name=f"kernel_{index}",
                    shape=(4 * units, width + units),
                    initializer=keras.initializers.GlorotUniform(self._seed_for(index)),
                )
            )
            self._biases.append(
                self.add_weight(
                    name=f"bias_{index}", shape=(4 * units, 1), initializer=_unit_forget_bias
                )
            )
            width = units
        head = keras.initializers.RandomNormal(0.0, width**-0.5, seed=self._seed_for(len(layers)))
        self._head = self.add_weight(
            name="head", shape=(num_outputs, width), initializer="zeros" if zero_head else head
        )
        self._head_bias = self.add_weight(
            name="head_bias", shape=(num_outputs, 1), initializer="zeros"
        )

    def _seed_for(self, index):
        return None if self.seed is None else self.seed + 1000003 * index

    def initial_layers(self, num_columns):
        """For each layer ``(hidden, cell)``, each ``[units, num_columns]``: zeros."""
        return tuple(
            (
                tf.zeros([units, num_columns], self.dtype),
                tf.zeros([units, num_columns], self.dtype),
            )
            for units in self.layers
        )

    def run_layers(self, features, layers, share=None):
        """One step of all layers and the head.

        Args:
            features: ``[num_features, num_columns]``.
            layers: the state, as of ``initial_layers``.
            share: function of a layer's new hidden state, ``[units, num_columns]``, to what takes
                its place; None leaves it as it is.

        Returns:
            ``(outputs [num_outputs, num_columns], layers)``.
        """
        inputs, new_layers = features, []
        for kernel, bias, of_layer in zip(self._kernels, self._biases, layers):
            layer = cells.halved(kernel.value, bias.value)
            (hidden, cell), _ = cells.step(*layer, inputs, of_layer)
            inputs = hidden if share is None else share(hidden)
            new_layers.append((inputs, cell))
        return tf.matmul(self._head, inputs) + self._head_bias, tuple(new_layers)

    def get_config(self):
        return {
            **super().get_config(),
            "layers": list(self.layers),
            "output_scale": self.output_scale,
            "zero_head": self.zero_head,
            "seed": self.seed,
        }


def _unit_forget_bias(shape, dtype):
    """Zeros, and ones for the forget gate, as Keras' LSTMCell has them."""
    units = shape[0] // 4
    return tf.concat(
        [
            tf.zeros([units, 1], dtype),
            tf.ones([units, 1], dtype),
            tf.zeros([2 * units, 1], dtype),
        ],
        axis=0,
    )
