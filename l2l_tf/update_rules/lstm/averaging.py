"""Global averaging cells: LSTM cells that see all coordinates of a tensor."""

import keras
import tensorflow as tf

from l2l_tf import arguments, preprocessing
from l2l_tf.update_rules import base
from l2l_tf.update_rules.lstm.stack import LSTMStack


@keras.saving.register_keras_serializable("l2l_tf")
class GlobalAveragingLSTM(LSTMStack):
    """The paper's LSTM with global averaging cells, by which coordinates share information.

    Andrychowicz et al. 2016, appendix "Information sharing between coordinates": in each layer some
    cells are designated; their outgoing activations are averaged at each step across coordinates,
    and every coordinate, this one's layer and the next, gets the mean. That is enough to clip by
    the gradient's norm, for example. Otherwise as ``CoordinatewiseLSTM``.

    Deviation: the mean is over the coordinates of each tensor, not of the whole optimizee, so that
    tensors stay independent of each other.

    Args:
        layers: units of each LSTM layer.
        num_averaging: how many of each layer's units, the first ones, are averaged.
        p, output_scale, zero_head, seed, dtype, name: as of ``CoordinatewiseLSTM``.

    State: for each tensor, for each layer ``(hidden, cell)``, each ``[units, N]``.

    Example:

    >>> rule = GlobalAveragingLSTM(layers=(8,), num_averaging=2, zero_head=False, seed=0)
    >>> state = rule.initial_state([("kernel", (2, 3))])
    >>> (updates,), state = rule.update([tf.ones([2, 3])], state)
    >>> updates.shape
    TensorShape([2, 3])
    """

    coupling = "tensor"

    def __init__(
        self,
        layers=(20, 20),
        num_averaging=5,
        p=10.0,
        output_scale=0.1,
        zero_head=True,
        seed=None,
        dtype="float32",
        name=None,
    ):
        super().__init__(layers, 2, 1, output_scale, zero_head, seed, dtype=dtype, name=name)
        self.num_averaging = arguments.integer("num_averaging", num_averaging, 1)
        if num_averaging > min(self.layers):
            raise ValueError(
                "`num_averaging` must be at most the units of each layer. "
                f"Received: num_averaging={num_averaging}, layers={self.layers}"
            )
        preprocessing.check_p(p, self.dtype)
        self.p = p

    def initial_state(self, layout):
        return [self.initial_layers(base.num_coordinates([tensor])) for tensor in layout]

    def update(self, gradients, state):
        steps = [self._update_tensor(*tensor) for tensor in zip(gradients, state)]
        return [update for update, _ in steps], [layers for _, layers in steps]

    def _update_tensor(self, gradient, layers):
        features = preprocessing.log_and_sign(tf.reshape(gradient, [-1]), self.p)  # [2, N]
        outputs, layers = self.run_layers(features, layers, share=self._average)  # [1, N]
        return tf.reshape(self.output_scale * outputs[0], tf.shape(gradient)), layers

    def _average(self, hidden):
        averaging = hidden[: self.num_averaging]
        means = tf.reduce_mean(averaging, axis=1, keepdims=True)
        return tf.concat(
            [tf.broadcast_to(means, tf.shape(averaging)), hidden[self.num_averaging :]], axis=0
        )

    def get_config(self):
        return {
            **super().get_config(),
            "num_averaging": self.num_averaging,
            "p": self.p,
        }
