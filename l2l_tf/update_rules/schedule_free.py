"""Schedule-Free AdamW: an average of the iterates in place of a decaying rate."""

import keras
import tensorflow as tf

from l2l_tf import arguments, preprocessing
from l2l_tf.update_rules import hand_designed


@keras.saving.register_keras_serializable("l2l_tf")
class ScheduleFreeAdamW(hand_designed.HandDesignedRule):
    """Schedule-Free AdamW (Defazio et al. 2024, "The road less scheduled", algorithm 1).

    A baseline that needs no horizon, but a learning rate. For step t = 1, 2 …::

        y_t = (1 - β1) z_t + β1 x_t                       g_t = ∇f(y_t)
        v_t = β2 v_{t-1} + (1 - β2) g_t²                  γ_t = γ min(1, t / warm-up steps)
        z_{t+1} = z_t - γ_t (g_t / (√(v_t / (1 - β2^t)) + ε) + λ y_t)
        x_{t+1} = (1 - c_{t+1}) x_t + c_{t+1} z_{t+1}     c_{t+1} = γ_t² / Σ_{i ≤ t} γ_i²

    **The parameters that it moves are y, where gradients are to be taken; its result is x**, to
    which ``final_shift`` leads.

    The bias correction divides v_t, as Adam's does. The code of the paper's experiments multiplies
    γ_t with √(1 - β2^t) instead, and so gives early iterates less weight.

    Args:
        learning_rate: γ; the authors' default is 0.0025.
        weight_decay: λ.
        beta_1: of the interpolation.
        beta_2, epsilon: of Adam's denominator.
        warmup_steps: of a linear warm-up; 0 for none.
        dtype, name: as of ``UpdateRule``.

    State: ``(z - x, v, 1 - β2^t, t, Σ γ² / γ²)``, each ``[N]``.

    >>> from l2l_tf.update_rules import levels
    >>> rule = ScheduleFreeAdamW(0.1)
    >>> theta, state = tf.constant([1.0]), rule.initial_state(1)
    >>> for _ in range(50):
    ...     inputs = levels.Inputs(gradients=2 * theta, parameters=theta)
    ...     updates, state = rule.update(inputs, state)
    ...     theta += updates
    >>> bool(abs((theta + rule.final_shift(state))[0]) < 0.5)
    True
    """

    sees_parameters = True

    def __init__(
        self,
        learning_rate=0.0025,
        weight_decay=0.0,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        warmup_steps=0,
        dtype="float32",
        name=None,
    ):
        super().__init__(learning_rate, dtype, name)
        arguments.real("weight_decay", weight_decay, minimum=0)
        self.weight_decay = weight_decay
        preprocessing.check_betas(beta_1, beta_2)
        self.beta_1, self.beta_2 = beta_1, beta_2
        arguments.real("epsilon", epsilon, minimum=0)
        self.epsilon = epsilon
        self.warmup_steps = arguments.integer("warmup_steps", warmup_steps, 0)

    def initial_state(self, layout):
        zeros = self._zeros(layout)
        return zeros, zeros, zeros, zeros, zeros

    def update(self, inputs, state):
        distance, v, correction, t, weights = state  # the first is z - x
        t = t + 1.0
        warmup = tf.minimum(t / self.warmup_steps, 1.0) if self.warmup_steps else tf.ones_like(t)
        rate = self.learning_rate * warmup
        v = self.beta_2 * v + (1.0 - self.beta_2) * tf.square(inputs.gradients)
        correction = self.beta_2 * correction + (1.0 - self.beta_2)
        step = inputs.gradients / (tf.sqrt(v / correction) + self.epsilon)
        step = rate * (step + self.weight_decay * inputs.parameters)
        weights = weights + tf.square(warmup)
        c = tf.square(warmup) / weights
        # z' = z - step;  x' = x + c (z' - x);  z' - x' = (1 - c) (z' - x)
        moved = distance - step  # z' - x
        new_distance = (1.0 - c) * moved
        # y = x + (1 - β1) (z - x)
        updates = c * moved + (1.0 - self.beta_1) * (new_distance - distance)
        return updates, (new_distance, v, correction, t, weights)

    def final_shift(self, state):
        """From y to x, the average: ``[N]``."""
        return -(1.0 - self.beta_1) * state[0]

    def get_config(self):
        return {
            **super().get_config(),
            "weight_decay": self.weight_decay,
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
            "warmup_steps": self.warmup_steps,
        }
