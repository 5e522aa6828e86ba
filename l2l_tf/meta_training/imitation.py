"""Imitation: meta-training on what a teacher would do, beside what the rule achieves.

The teacher is any update rule, such as Adam with a rate that is good on the problem. It sees the
gradients and parameters along the rule's own trajectory, as the rule does, with a state of its own;
to the objective L of an optimizee is added, for the updates u_s of a window::

    λ D,            D = Σ_s ‖u_s - u_s^teacher‖² / Σ_s ‖u_s^teacher‖²

D is 1 for a rule that makes no step, and 0 for the teacher; no unit is in it. An imitation loss of
updates is from Chen et al. 2020, "Training stronger baselines for learning to optimize"; theirs is
off-policy, along the teacher's trajectory, and not relative to the teacher's norm.

What the rule sees is stopped, so φ reaches D through u_s alone, and the identity of
``meta_gradient.py`` holds with one more term in the cotangents::

    ∂(L + λ D)/∂u_s = Σ_{t>s} w_t ∇f(θ_t) + 2 λ (u_s - u_s^teacher) / Σ_r ‖u_r^teacher‖²
"""

from typing import Any, NamedTuple

import tensorflow as tf

from l2l_tf import arguments
from l2l_tf.engine import optimizee_step
from l2l_tf.engine import unroll as unroll_lib
from l2l_tf.engine.parts import Parts
from l2l_tf.meta_training.estimator import Identity
from l2l_tf.update_rules import base, levels


class ImitationCarry(NamedTuple):
    """A ``Carry``, and the teacher's state."""

    parameters: tf.Tensor
    state: Any
    runs: unroll_lib.Runs
    teacher_state: Any


class Imitation(Identity):
    """The meta-gradient of the objective and of the distance to a teacher; see the module.

    The `values` of its ``Estimate`` are those of both together, L + λ D.

    Args:
        teacher: an ``UpdateRule`` of the rule's dtype. Its weights stay as they are.
        imitation: λ, the weight of the distance.
        others: see ``Identity``.

    Raises:
        TypeError, ValueError: `teacher` is no ``UpdateRule``, or `imitation` not above 0.

    Example:

    >>> import functools, keras, l2l_tf
    >>> rule = l2l_tf.update_rules.CoordinatewiseLSTM(layers=(4,), seed=0)
    >>> teacher = l2l_tf.update_rules.Adam(0.1)
    >>> trainer = l2l_tf.MetaTrainer(
    ...     rule,
    ...     l2l_tf.problems.get("quadratic"),
    ...     num_steps=40,
    ...     estimator=functools.partial(Imitation, teacher=teacher, imitation=10.0),
    ... )
    >>> trainer.compile(optimizer=keras.optimizers.Adam(1e-3))
    >>> history = trainer.fit(trainer.dataset(seed=0, num_episodes=2), verbose=0)
    """

    def __init__(
        self,
        objective,
        segment_length=None,
        max_loss_ratio=None,
        *,
        teacher,
        imitation=1.0,
        **options,
    ):
        super().__init__(objective, segment_length, max_loss_ratio, **options)
        self.teacher = arguments.instance("teacher", teacher, base.UpdateRule, "an UpdateRule")
        self.imitation = arguments.real("imitation", imitation, above=0)

    def start(self, rule, problem, parameters):
        state = unroll_lib.initial_state(self.teacher, problem.layout, parameters.shape[0])
        return ImitationCarry(*super().start(rule, problem, parameters), state)

    def __call__(self, rule, problem, carry, data):
        trajectory, after = self.unroll(rule, problem, carry, data, record_updates=True)
        updates = trajectory.updates  # [T, M, N]
        is_run = _is_run(carry.runs, trajectory.runs, updates.shape[0])[..., None]
        taught, teacher_state = _updates_along(
            self.teacher,
            problem.layout,
            trajectory.gradients[:-1],
            carry.parameters + tf.cumsum(updates, axis=0, exclusive=True),
            carry.teacher_state,
        )
        zeros = tf.zeros_like(updates)
        taught = tf.where(is_run, taught, zeros)
        scale = tf.reduce_sum(tf.square(taught), axis=[0, 2])  # [M]
        difference = updates - taught
        distance = tf.math.divide_no_nan(tf.reduce_sum(tf.square(difference), axis=[0, 2]), scale)
        is_finite = tf.math.is_finite(distance)
        of_updates = 2 * tf.math.divide_no_nan(difference, scale[:, None]) / updates.shape[1]
        estimate = self._estimate(
            rule,
            problem,
            carry,
            data,
            trajectory,
            after,
            of_updates=self.imitation * tf.where(is_finite[:, None], of_updates, zeros),
        )
        return estimate._replace(
            carry=ImitationCarry(*after, teacher_state),
            values=estimate.values + self.imitation * distance,
            left_out=estimate.left_out | ~is_finite,
        )


def _is_run(before, after, num_steps):
    """Whether an optimizee made a step, bool ``[T, M]``."""
    stop = tf.where(after.stopped_at < 0, after.num_steps, after.stopped_at) - before.num_steps
    return tf.range(num_steps)[:, None] < stop


def _updates_along(rule, layout, gradients, parameters, state):
    """A rule's updates ``[T, M, N]`` at given gradients and parameters, and its state after."""
    parts = Parts(rule, layout)
    num_steps, num_optimizees, _ = gradients.shape
    steps = [optimizee_step.step(*part, num_optimizees, is_compiled=True) for part in parts]

    def one(t, states, updates):
        of_gradients, of_parameters = parts.take(gradients[t]), parts.take(parameters[t])
        made = [
            step(levels.inputs(step.rule, *seen), of_part)
            for step, of_part, *seen in zip(steps, states, of_gradients, of_parameters)
        ]
        of_parts, states, _ = zip(*made)
        return t + 1, list(states), updates.write(t, parts.put_together(list(of_parts)))

    states = [step.split(of_part) for step, of_part in zip(steps, parts.states(state))]
    updates = tf.TensorArray(gradients.dtype, num_steps, element_shape=gradients.shape[1:])
    _, states, updates = tf.while_loop(
        lambda t, *_: t < num_steps, one, (0, states, updates), maximum_iterations=num_steps
    )
    state = parts.state_of_rule([step.join(of_part) for step, of_part in zip(steps, states)])
    return updates.stack(), state
