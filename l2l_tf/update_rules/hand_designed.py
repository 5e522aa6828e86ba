"""Hand-designed optimizers as update rules: the baselines, and the simplest examples.

Each equals the Keras optimizer of the same name step for step. The learning rate is a variable, so
that one compiled program serves a whole grid of learning rates.
"""

import math

import keras
import tensorflow as tf

from l2l_tf import arguments, preprocessing
from l2l_tf.update_rules import base


class HandDesignedRule(base.UpdateRule):
    """What the hand-designed rules share: a learning rate, and vectors as state."""

    def __init__(self, learning_rate, dtype="float32", name=None):
        super().__init__(dtype=dtype, name=name)
        arguments.real("learning_rate", learning_rate, above=0)
        self.learning_rate = self.add_weight(
            name="learning_rate",
            shape=(),
            initializer=keras.initializers.Constant(learning_rate),
            trainable=False,
        )

    @property
    def weights_to_save(self):
        return [w for w in super().weights_to_save if w is not self.learning_rate]

    def get_config(self):
        return {**super().get_config(), "learning_rate": float(self.learning_rate.numpy())}

    def _zeros(self, layout):
        return tf.zeros([base.num_coordinates(layout)], self.dtype)


@keras.saving.register_keras_serializable("l2l_tf")
class SGD(HandDesignedRule):
    """Gradient descent: ``u = -α g``. No state.

    >>> SGD(learning_rate=0.5).update(tf.constant([2.0]), ())[0].numpy().tolist()
    [-1.0]
    """

    def __init__(self, learning_rate=1.0, dtype="float32", name=None):
        super().__init__(learning_rate, dtype, name)

    def initial_state(self, layout):
        return ()

    def update(self, gradients, state):
        return -self.learning_rate * gradients, state


@keras.saving.register_keras_serializable("l2l_tf")
class Momentum(HandDesignedRule):
    """Momentum, plain or Nesterov's, as ``keras.optimizers.SGD`` has it.

    ``v = μ v - α g``; then ``u = v``, or ``u = μ v - α g`` with `nesterov` (NAG).
    State: the velocity v ``[N]``.
    """

    def __init__(
        self, learning_rate=0.01, momentum=0.9, nesterov=False, dtype="float32", name=None
    ):
        super().__init__(learning_rate, dtype, name)
        arguments.real("momentum", momentum, minimum=0, maximum=1)
        self.momentum = momentum
        arguments.boolean("nesterov", nesterov)
        self.nesterov = nesterov

    def initial_state(self, layout):
        return self._zeros(layout)

    def update(self, gradients, state):
        step = self.learning_rate * gradients
        velocity = self.momentum * state - step
        updates = self.momentum * velocity - step if self.nesterov else velocity
        return updates, velocity

    def get_config(self):
        return {**super().get_config(), "momentum": self.momentum, "nesterov": self.nesterov}


@keras.saving.register_keras_serializable("l2l_tf")
class RMSprop(HandDesignedRule):
    """RMSprop (Tieleman and Hinton 2012): ``v = ρ v + (1-ρ) g²``, ``u = -α g / √(v + ε)``.

    State: the mean square v ``[N]``.
    """

    def __init__(self, learning_rate=0.001, rho=0.9, epsilon=1e-7, dtype="float32", name=None):
        super().__init__(learning_rate, dtype, name)
        arguments.real("rho", rho, minimum=0, below=1)
        self.rho = rho
        arguments.real("epsilon", epsilon, minimum=0)
        self.epsilon = epsilon

    def initial_state(self, layout):
        return self._zeros(layout)

    def update(self, gradients, state):
        mean_square = self.rho * state + (1.0 - self.rho) * tf.square(gradients)
        updates = -self.learning_rate * gradients / tf.sqrt(mean_square + self.epsilon)
        return updates, mean_square

    def get_config(self):
        return {**super().get_config(), "rho": self.rho, "epsilon": self.epsilon}


@keras.saving.register_keras_serializable("l2l_tf")
class Adam(HandDesignedRule):
    """Adam (Kingma and Ba 2015), with ε as Keras has it ("epsilon hat" of the paper's section 2).

    State: ``(m, v, c1, c2)``, each ``[N]``; see ``l2l_tf.preprocessing.moment_ratios``.
    """

    def __init__(
        self,
        learning_rate=0.001,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-7,
        dtype="float32",
        name=None,
    ):
        super().__init__(learning_rate, dtype, name)
        preprocessing.check_betas(beta_1, beta_2)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        arguments.real("epsilon", epsilon, minimum=0)
        self.epsilon = epsilon

    def initial_state(self, layout):
        zeros = self._zeros(layout)
        return zeros, zeros, zeros, zeros

    def update(self, gradients, state):
        state = preprocessing.update_moments(gradients, state, self.beta_1, self.beta_2)
        first, second, correction_1, correction_2 = state
        rate = self.learning_rate * tf.sqrt(correction_2) / correction_1
        return -rate * first / (tf.sqrt(second) + self.epsilon), state

    def get_config(self):
        return {
            **super().get_config(),
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
        }


@keras.saving.register_keras_serializable("l2l_tf")
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), as Keras has it.

    ``u = -η_t (α m̂ / (√v̂ + ε) + α λ θ)``, for step t = 0, 1 …; η_t = 1, or with `num_steps`
    ``(1 + cos(π t / num_steps)) / 2``: the rate decays to 0 over a horizon that is known.

    State: ``(m, v, c1, c2, t)``, each ``[N]``.
    """

    sees_parameters = True

    def __init__(
        self,
        learning_rate=0.001,
        weight_decay=0.004,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-7,
        num_steps=None,
        dtype="float32",
        name=None,
    ):
        super().__init__(learning_rate, beta_1, beta_2, epsilon, dtype, name)
        arguments.real("weight_decay", weight_decay, minimum=0)
        self.weight_decay = weight_decay
        self.num_steps = check_num_steps(num_steps)

    def initial_state(self, layout):
        return *super().initial_state(layout), self._zeros(layout)

    def update(self, inputs, state):
        *moments, t = state
        updates, moments = super().update(inputs.gradients, tuple(moments))
        updates -= self.learning_rate * self.weight_decay * inputs.parameters
        return cosine_decay(t, self.num_steps) * updates, (*moments, t + 1.0)

    def get_config(self):
        config = {"weight_decay": self.weight_decay, "num_steps": self.num_steps}
        return {**super().get_config(), **config}


def check_num_steps(num_steps):
    """The horizon of a cosine decay, or None."""
    return num_steps if num_steps is None else arguments.integer("num_steps", num_steps, 1)


def cosine_decay(step, num_steps):
    """What a rate is multiplied with at a step, from 1 to 0; 1 without a horizon.

    As ``keras.optimizers.schedules.CosineDecay`` (Loshchilov and Hutter 2017, without restarts).

    Args:
        step: tensor of the steps taken before: 0 at the first one.
        num_steps: the horizon, or None.
    """
    if num_steps is None:
        return tf.ones_like(step)
    return 0.5 * (1.0 + tf.cos(math.pi * tf.minimum(step / num_steps, 1.0)))
