"""Meta-objectives: what meta-training minimizes, as a function of an optimizee's losses."""

import math

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


OBJECTIVES = {"sum": loss_sum, "sqrt": sqrt_loss_sum, "log": log_loss_sum, "last": last_loss}


def loss_weights(objective, losses):
    """∂L/∂f(θ_t), for L the mean of `objective` over optimizees.

    f(θ_0) is not counted: no update has touched it.

    Args:
        objective: function of losses ``[T]``, f(θ_1) … f(θ_T), to a scalar.
        losses: ``[T + 1, M]``.

    Returns:
        Weights ``[T + 1, M]``; NaN where the objective itself is not finite, such as the logarithm
        of a negative loss, whose derivative would point uphill.
    """
    with tf.GradientTape() as tape:
        tape.watch(losses)
        value = mean_objective(objective, losses)
    weights = tape.gradient(value, losses)
    # The NaN is made where it is due alone: tf.debugging.enable_check_numerics looks for it.
    return tf.cond(
        tf.math.is_finite(value),
        lambda: weights,
        lambda: tf.fill(tf.shape(weights), tf.constant(math.nan, weights.dtype)),
    )


def mean_objective(objective, losses):
    """The mean of `objective` over optimizees, for losses ``[T + 1, M]``."""
    columns = [objective(column) for column in tf.unstack(losses[1:], axis=1)]
    return tf.add_n(columns) / len(columns)


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
            value = objective(losses)
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
