"""RNNprop: the LSTM on moment inputs, with a bounded output."""

import keras
import tensorflow as tf

from l2l_tf import preprocessing
from l2l_tf.update_rules.lstm.coordinatewise import LSTMRule


@keras.saving.register_keras_serializable("l2l_tf")
class RNNprop(LSTMRule):
    """An LSTM that sees gradient and momentum relative to the gradient's running scale.

    Lv, Jiang and Li 2017, "Learning gradient descent: better generalization and longer horizons",
    section 4: inputs (g/√v̂, m̂/√v̂), output 0.1·tanh. It holds up better than the paper's
    rule on optimizees and horizons it was not trained on. Deviation: the paper's fully connected
    layer before the LSTM is left out.

    Args:
        layers: units of each LSTM layer.
        beta_1, beta_2: decay rates of the moments.
        output_scale: bound of the update.
        zero_head, seed, dtype, name: as of ``CoordinatewiseLSTM``.

    State: ``(layers, moments)``; layers as of ``CoordinatewiseLSTM``; moments
    ``(m, v, c1, c2)``, each ``[N]``; see ``l2l_tf.preprocessing.moment_ratios``.

    Example:

    >>> rule = RNNprop(layers=(8,), zero_head=False, seed=0)
    >>> updates, state = rule.update(tf.ones([5]), rule.initial_state(5))
    >>> bool(tf.reduce_all(tf.abs(updates) < 0.1))
    True
    """

    bounded = True

    def __init__(
        self,
        layers=(20, 20),
        beta_1=0.9,
        beta_2=0.95,
        output_scale=0.1,
        zero_head=True,
        seed=None,
        dtype="float32",
        name=None,
    ):
        super().__init__(layers, 2, output_scale, zero_head, seed, dtype=dtype, name=name)
        preprocessing.check_betas(beta_1, beta_2)
        self.beta_1 = beta_1
        self.beta_2 = beta_2

    def initial_moments(self, num_coordinates):
        zeros = tf.zeros([num_coordinates], self.dtype)
        return zeros, zeros, zeros, zeros

    def preprocess(self, gradients, moments):
        return preprocessing.moment_ratios(gradients, moments, self.beta_1, self.beta_2)

    def get_config(self):
        return {
            **super().get_config(),
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
        }
