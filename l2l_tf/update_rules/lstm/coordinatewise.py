"""The paper's rule: one small LSTM, shared by all coordinates."""

import keras
import tensorflow as tf

from l2l_tf import preprocessing
from l2l_tf.update_rules import base
from l2l_tf.update_rules.lstm import cells, kernel
from l2l_tf.update_rules.lstm.stack import LSTMStack


class LSTMRule(LSTMStack):
    """What the coordinatewise LSTM rules share.

    Abstract: a subclass adds ``preprocess``, the features that go in, and says by ``bounded``
    what becomes of the head's outputs: its updates are ``output_scale`` times these or, bounded,
    times their tanh.

    Args:
        layers, num_features, output_scale, zero_head, seed: as of ``LSTMStack``.
    """

    bounded = False

    def __init__(self, layers, num_features, output_scale, zero_head, seed, **kwargs):
        super().__init__(layers, num_features, 1, output_scale, zero_head, seed, **kwargs)

    def preprocess(self, gradients, moments):
        """Gradients ``[N]`` to ``(features [num_features, N], moments)``.

        `moments` is what the features remember of earlier gradients, leaves ``[..., N]``. Nothing
        here depends on meta-parameters.
        """
        raise NotImplementedError

    def initial_moments(self, num_coordinates):
        return ()

    def postprocess(self, outputs):
        """The head's outputs to updates, element by element. Also without meta-parameters."""
        return self.output_scale * (tf.tanh(outputs) if self.bounded else outputs)

    def initial_state(self, layout):
        n = base.num_coordinates(layout)
        return self.initial_layers(n), self.initial_moments(n)

    def update(self, gradients, state):
        layers, moments = state
        features, moments = self.preprocess(gradients, moments)  # [num_features, N]
        outputs, layers = self.run_layers(features, layers)  # [1, N]
        return self.postprocess(outputs[0]), (layers, moments)

    def kernel(self):
        # A subclass with a step of its own has another.
        rule = type(self)
        if (rule.update, rule.run_layers) != (LSTMRule.update, LSTMRule.run_layers):
            return None
        backward = rule.backpropagate, rule.postprocess
        return kernel.Kernel(self, backward == (LSTMRule.backpropagate, LSTMRule.postprocess))

    def features(self, gradients, moments):
        """``preprocess`` of T steps: gradients ``[T, N]`` to ``[T, num_features, N]``."""
        num_steps = gradients.shape[0]

        def one_step(t, moments, features):
            of_step, moments = self.preprocess(gradients[t], moments)
            return t + 1, moments, features.write(t, of_step)

        *_, features = tf.while_loop(
            lambda t, *_: t < num_steps,
            one_step,
            (0, moments, tf.TensorArray(gradients.dtype, num_steps)),
            maximum_iterations=num_steps,
        )
        return features.stack()

    def backpropagate(self, gradients, state, cotangents):
        """As of ``UpdateRule``, by hand: see ``cells``."""
        layers, moments = state

        def output_cotangent(t, outputs):
            with tf.GradientTape() as tape:
                tape.watch(outputs)
                updates = self.postprocess(outputs)
            return tape.gradient(updates, outputs, output_gradients=cotangents[t][None])

        return cells.backpropagate(
            [(kernel.value, bias.value) for kernel, bias in zip(self._kernels, self._biases)],
            (self._head.value, self._head_bias.value),
            self.features(gradients, moments),
            layers,
            output_cotangent,
        )


@keras.saving.register_keras_serializable("l2l_tf")
class CoordinatewiseLSTM(LSTMRule):
    """The coordinatewise LSTM of "Learning to learn by gradient descent by gradient descent".

    Andrychowicz et al. 2016, section 2.1 and Appendix A: an LSTM of two layers of 20 units, the
    same for every coordinate of the optimizee, each coordinate with a state of its own; its input
    the log magnitude and sign of the gradient, its output a linear head, scaled.

    Args:
        layers: units of each LSTM layer.
        p: of the log-and-sign preprocessing; see ``l2l_tf.preprocessing.log_and_sign``.
        output_scale: factor on the output. The paper's code takes 0.01.
        zero_head: start from a head of zeros (not in the paper), so that the first episodes of
            meta-training see an optimizee at rest, not one that diverges.
        seed: int, of the initial meta-parameters.
        dtype, name: as of ``UpdateRule``.

    State: ``(layers, ())``; for each layer ``(hidden, cell)``, each ``[units, N]``.

    Example:

    >>> rule = CoordinatewiseLSTM(layers=(20, 20), seed=0)
    >>> updates, state = rule.update(tf.ones([5]), rule.initial_state(5))
    >>> updates.shape
    TensorShape([5])
    """

    def __init__(
        self,
        layers=(20, 20),
        p=10.0,
        output_scale=0.1,
        zero_head=True,
        seed=None,
        dtype="float32",
        name=None,
    ):
        super().__init__(layers, 2, output_scale, zero_head, seed, dtype=dtype, name=name)
        preprocessing.check_p(p, self.dtype)
        self.p = p

    def preprocess(self, gradients, moments):
        return preprocessing.log_and_sign(gradients, self.p), moments

    def get_config(self):
        return {**super().get_config(), "p": self.p}
