"""KernelwiseLSTM: one LSTM column for each convolution kernel."""

import keras
import tensorflow as tf

from l2l_tf import arguments, preprocessing
from l2l_tf.update_rules.lstm.stack import LSTMStack


@keras.saving.register_keras_serializable("l2l_tf")
class KernelwiseLSTM(LSTMStack):
    """For convolution kernels ``[kh, kw, in, out]``: an LSTM sees all weights of a kernel at once.

    One LSTM column for each of the in · out kernels, the same LSTM for all; its input the log
    magnitudes and signs of the kernel's kh · kw gradients, its output a linear head to kh · kw
    updates. Source: ``KernelDeepLSTM`` of DeepMind's code for the 2016 paper
    (learning-to-learn, ``networks.py``).

    It takes such tensors alone: in a ``GroupedRule``, with another rule for the rest.

    Args:
        kernel_shape: ``(kh, kw)``.
        layers, p, output_scale, zero_head, seed, dtype, name: as of ``CoordinatewiseLSTM``.

    State: for each tensor, for each layer ``(hidden, cell)``, each ``[units, in · out]``.

    Raises:
        ValueError: a tensor of another shape.

    Example:

    >>> rule = KernelwiseLSTM(kernel_shape=(3, 3), layers=(8,), seed=0)
    >>> state = rule.initial_state([("conv2d/kernel", (3, 3, 1, 16))])
    >>> state[0][0][0].shape  # hidden: [units, in · out]
    TensorShape([8, 16])
    """

    coupling = "tensor"

    def __init__(
        self,
        kernel_shape=(5, 5),
        layers=(20, 20),
        p=10.0,
        output_scale=0.1,
        zero_head=True,
        seed=None,
        dtype="float32",
        name=None,
    ):
        if not isinstance(kernel_shape, (list, tuple)) or len(kernel_shape) != 2:
            raise ValueError(
                "`kernel_shape` must be the height and width of the kernels, such as (5, 5). "
                f"Received: kernel_shape={kernel_shape!r}"
            )
        kernel_shape = tuple(arguments.integer("kernel_shape", size, 1) for size in kernel_shape)
        num_weights = kernel_shape[0] * kernel_shape[1]
        super().__init__(
            layers,
            2 * num_weights,
            num_weights,
            output_scale,
            zero_head,
            seed,
            dtype=dtype,
            name=name,
        )
        preprocessing.check_p(p, self.dtype)
        self.kernel_shape = kernel_shape
        self.p = p

    @property
    def tensor_shape(self):
        return (*self.kernel_shape, None, None)

    def initial_state(self, layout):
        for name, shape in layout:
            if not tf.is_tensor(shape):
                self._check(name, shape)
        return [self.initial_layers(shape[2] * shape[3]) for _, shape in layout]

    def update(self, gradients, state):
        steps = [self._update_tensor(*tensor) for tensor in zip(gradients, state)]
        return [update for update, _ in steps], [layers for _, layers in steps]

    def _update_tensor(self, gradient, layers):
        self._check("a gradient", gradient.shape)
        num_weights = self.kernel_shape[0] * self.kernel_shape[1]
        columns = tf.reshape(gradient, [num_weights, -1])  # [kh · kw, in · out]
        features = preprocessing.log_and_sign(columns, self.p)  # [2, kh · kw, in · out]
        features = tf.reshape(features, [2 * num_weights, -1])
        outputs, layers = self.run_layers(features, layers)  # [kh · kw, in · out]
        return tf.reshape(self.output_scale * outputs, tf.shape(gradient)), layers

    def _check(self, name, shape):
        if not tf.TensorShape(self.tensor_shape).is_compatible_with(shape):
            height, width = self.kernel_shape
            raise ValueError(
                f"KernelwiseLSTM takes convolution kernels of shape ({height}, {width}, in, out). "
                f"Received: {name} of shape {tuple(shape)}. Make it one rule of a GroupedRule, "
                "with a pattern, or a function of name and shape, that picks such kernels."
            )

    def get_config(self):
        return {
            **super().get_config(),
            "kernel_shape": list(self.kernel_shape),
            "p": self.p,
        }
