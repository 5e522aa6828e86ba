"""Meta-objectives: what meta-training minimizes, as a function of an optimizee's losses."""

import inspect

import tensorflow as tf


def loss_sum(losses):
    """Σ_t f(θ_t): the paper's objective (equation 3 with w_t = 1)."""
    return tf.reduce_sum(losses)


def sqrt_loss_sum(losses):
    """Σ_t √f(θ_t): late, small losses weigh more than in the sum. Losses must not be negative."""
    return tf.reduce_sum(tf.sqrt(losses + 1e-10))  # finite derivative at a loss of 0


def log_loss_sum(losses):
    """Σ_t log f(θ_t): weighs a step by its relative improvement. Losses must be positive."""
    return tf.reduce_sum(tf.math.log(losses))


def last_loss(losses):
    """f(θ_T): only the result counts."""
    return losses[-1]


FLOOR = 0.03


def relative_log_loss_mean(losses, first_loss, floor=FLOOR):
    """Mean over t of log(f(θ_t)/f(θ_0) + floor).

    Problems count alike, whatever the scale of their losses; late progress counts, and what is far
    below `floor` stops counting. Losses must not be negative.
    """
    return tf.reduce_mean(tf.math.log(losses / first_loss + floor))


OBJECTIVES = {
    "sum": loss_sum,
    "sqrt": sqrt_loss_sum,
    "log": log_loss_sum,
    "last": last_loss,
    "relative": relative_log_loss_mean,
}


def values(objective, losses, first_losses):
    """The objective of each optimizee.

    f(θ_0) is not counted: no update has touched it.

    Args:
        objective: function of losses ``[T]``, f(θ_1) … f(θ_T), to a scalar; or of these and
            `first_loss`, f(θ_0).
        losses: ``[T + 1, M]``.
        first_losses: ``[M]``, f(θ_0).

    Returns:
        ``[M]``, and of which the losses or the objective are not finite, bool ``[M]``.
    """
    is_finite = tf.reduce_all(tf.math.is_finite(losses), axis=0)
    # Where they are not, the objective gets others, whose derivative is not used.
    sound = tf.where(is_finite, losses, 1)
    first_losses = tf.where(is_finite, first_losses, 1)
    columns = zip(tf.unstack(sound[1:], axis=1), tf.unstack(first_losses))
    values_of_sound = tf.stack([of_optimizee(objective, *column) for column in columns])
    is_finite &= tf.math.is_finite(values_of_sound)
    return values_of_sound, ~is_finite


def values_and_weights(objective, losses, first_losses):
    """``values`` ``[M]``; w_t = ∂L/∂f(θ_t) ``[T + 1, M]``, L their mean; who is left out ``[M]``.

    Left out, with weights of 0, is an optimizee whose losses are not finite, or of whom the
    objective is not, such as the logarithm of a negative loss, whose derivative would point uphill.
    """
    with tf.GradientTape() as tape:
        tape.watch(losses)
        of_each, left_out = values(objective, losses, first_losses)
        total = tf.reduce_sum(of_each)
    weights = tape.gradient(total, losses) / losses.shape[1]
    return of_each, tf.where(left_out, tf.zeros_like(weights), weights), left_out


def of_optimizee(objective, losses, first_loss):
    """``objective(losses)``, or ``objective(losses, first_loss)`` of one that names it."""
    if "first_loss" in _parameters(objective):
        return objective(losses, first_loss=first_loss)
    return objective(losses)


def _parameters(function):
    try:
        return inspect.signature(function).parameters
    except ValueError:  # of some built-in functions
        return {}


def check_objective(objective, num_losses, dtype):
    """Refuses an objective that does not take losses ``[num_losses]`` to a scalar.

    Nothing is computed: it is called with a tensor that has a shape and no value, as in a traced
    train step.

    Raises:
        ValueError: it returns something else, or what does not depend on the losses. (What the
            objective itself raises is raised.)
    """

    def trace(losses):
        with tf.GradientTape() as tape:
            tape.watch(losses)
            value = of_optimizee(objective, losses, losses[0])
        is_scalar = tf.is_tensor(value) and value.shape.rank == 0 and value.dtype == losses.dtype
        if not is_scalar:
            raise ValueError(
                f"`objective` must return a scalar of dtype {losses.dtype.name} for losses of "
                f"shape ({num_losses},). Received: {value!r}"
            )
        if tape.gradient(value, losses) is None:
            raise ValueError(
                "`objective` must be a differentiable function of the losses. Received: "
                f"{value!r}, which does not depend on them."
            )

    spec = tf.TensorSpec([num_losses], dtype)
    tf.function(trace, autograph=False).get_concrete_function(spec)
