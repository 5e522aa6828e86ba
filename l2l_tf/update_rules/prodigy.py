"""Prodigy: Adam that estimates its learning rate."""

import math

import keras
import tensorflow as tf

from l2l_tf import arguments, preprocessing
from l2l_tf.update_rules import hand_designed


@keras.saving.register_keras_serializable("l2l_tf")
class Prodigy(hand_designed.HandDesignedRule):
    """Prodigy for Adam (Mishchenko and Defazio 2023, "Prodigy: an expeditiously adaptive …").

    A baseline without a rate to tune: d estimates how far it is from θ_0 to a solution, from below.
    The paper's algorithm 4, for step k = 0, 1 …, with γ_k the learning rate::

        m_{k+1} = β1 m_k + (1 - β1) d_k g_k
        v_{k+1} = β2 v_k + (1 - β2) d_k² g_k²
        r_{k+1} = √β2 r_k + (1 - √β2) γ_k d_k² ⟨g_k, θ_0 - θ_k⟩
        s_{k+1} = √β2 s_k + (1 - √β2) γ_k d_k² g_k
        d_{k+1} = max(d_k, r_{k+1} / ‖s_{k+1}‖₁)
        θ_{k+1} = θ_k - γ_k d_k m_{k+1} / (√v_{k+1} + d_k ε)

    The sums are over all tensors of the model. As in the authors' code, r and s are kept divided
    by d_0², which leaves their ratio as it is and float32 in range. As there by default, there is
    neither a bias correction nor a safeguard for warm-up.

    Args:
        learning_rate: γ; the paper's is 1.
        beta_1, beta_2, epsilon: of Adam.
        initial_distance: d_0.
        num_steps: None, or a horizon over which γ decays to 0 as a cosine, as the authors recommend
            where the horizon is known.
        dtype, name: as of ``UpdateRule``.

    State of a coordinate: ``(m, v, s, θ_k - θ_0)``, each ``[N]``; the last is the sum of its own
    updates. Of the model, in each tensor's column: ``(r, d, k)``.

    >>> from l2l_tf import LearnedOptimizer
    >>> variable = tf.Variable([3.0])
    >>> optimizer = LearnedOptimizer(Prodigy())
    >>> for _ in range(100):
    ...     optimizer.apply([2 * variable], [variable])
    >>> bool(abs(variable[0]) < 1)
    True
    """

    def __init__(
        self,
        learning_rate=1.0,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        initial_distance=1e-6,
        num_steps=None,
        dtype="float32",
        name=None,
    ):
        super().__init__(learning_rate, dtype, name)
        preprocessing.check_betas(beta_1, beta_2)
        self.beta_1, self.beta_2 = beta_1, beta_2
        arguments.real("epsilon", epsilon, minimum=0)
        self.epsilon = epsilon
        arguments.real("initial_distance", initial_distance, above=0)
        self.initial_distance = initial_distance
        self.num_steps = hand_designed.check_num_steps(num_steps)

    def initial_state(self, layout):
        zeros = self._zeros(layout)
        return zeros, zeros, zeros, zeros

    def initial_control(self, tensors):
        zeros = tf.zeros_like(tensors.sizes)
        return zeros, zeros + self.initial_distance, zeros

    def summarize(self, gradients, state):
        _, _, s, moved = state
        return tf.stack([-gradients * moved, tf.abs(s)])

    def control(self, summaries, state, tensors):
        r, d, k = state
        # d_k, of the r_k and s_k that the step before has left.
        product, norm = tf.unstack(tensors.model_sum(summaries))
        d = tf.maximum(d, tf.math.divide_no_nan(r, norm))
        rate = self.learning_rate * hand_designed.cosine_decay(k, self.num_steps)
        beta_3 = math.sqrt(self.beta_2)
        r = beta_3 * r + (1.0 - beta_3) * rate * (d / self.initial_distance) ** 2 * product
        return tf.stack([d, rate]), (r, d, k + 1.0)

    def update(self, gradients, state, controls):
        m, v, s, moved = state
        d, rate = controls[0], controls[1]
        scaled, beta_3 = d * gradients, math.sqrt(self.beta_2)
        m = self.beta_1 * m + (1.0 - self.beta_1) * scaled
        v = self.beta_2 * v + (1.0 - self.beta_2) * tf.square(scaled)
        weight = rate * (d / self.initial_distance) ** 2
        s = beta_3 * s + (1.0 - beta_3) * weight * gradients
        # With a gradient of 0 so far, 0 / 0 where ε is 0.
        updates = -rate * d * tf.math.divide_no_nan(m, tf.sqrt(v) + d * self.epsilon)
        return updates, (m, v, s, moved + updates)

    def get_config(self):
        return {
            **super().get_config(),
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
            "initial_distance": self.initial_distance,
            "num_steps": self.num_steps,
        }
