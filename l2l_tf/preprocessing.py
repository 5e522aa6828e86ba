"""Gradient → features: what an update rule's network sees of a gradient.

Pure functions. Feature-major: a vector of N coordinates becomes ``[features, N]``.
"""

import math

import numpy as np
import tensorflow as tf

from l2l_tf import arguments


def log_and_sign(gradients, p=10.0):
    """Log magnitude and sign of each gradient coordinate.

    Gradients of different coordinates differ by orders of magnitude, and a small network cannot
    see across them. The paper's remedy (Andrychowicz et al. 2016, Appendix A)::

        (log|g| / p, sign(g))    if |g| >= exp(-p)
        (-1, exp(p) g)           otherwise

    Args:
        gradients: floating tensor ``[N]``, or of any shape.
        p: positive float, at most 87 in float32 and 708 in float64, where ``exp(p)`` and
            ``exp(-p)`` end; magnitudes below ``exp(-p)`` count as small.

    Returns:
        Features ``[2, N]``, or ``[2, *shape]``. The first is at least -1, the second between -1
        and 1.

    Example:

    >>> log_and_sign(tf.constant([1.0, 0.0])).numpy().tolist()
    [[0.0, -1.0], [1.0, 0.0]]
    """
    gradients = _floating(gradients)
    check_p(p, gradients.dtype)
    # |g| is clamped at exp(-p), where log|g| / p = -1: the two cases in one formula, finite at 0.
    # `maximum` lets a NaN gradient through: divergence must stay visible.
    magnitude = tf.maximum(tf.abs(gradients), math.exp(-p))
    sign = tf.clip_by_value(gradients * math.exp(p), -1.0, 1.0)
    return tf.stack([tf.math.log(magnitude) / p, sign])


def check_p(p, dtype):
    """Refuses a `p` that ``log_and_sign`` cannot take: exp(p) and exp(-p) are to be numbers."""
    smallest = np.finfo(tf.as_dtype(dtype).as_numpy_dtype).tiny
    arguments.real("p", p, above=0, maximum=math.floor(-math.log(smallest)))


def _floating(gradients):
    gradients = tf.convert_to_tensor(gradients)
    if not gradients.dtype.is_floating:
        raise TypeError(
            "`gradients` must be of a floating dtype, such as float32. "
            f"Received: a tensor of {gradients.dtype.name}"
        )
    return gradients


def moment_ratios(gradients, moments, beta_1, beta_2, epsilon=1e-8):
    """Gradient and momentum, each relative to the running root mean square of the gradient.

    The inputs of RNNprop (Lv, Jiang and Li 2017, section 4.2): the direction in which RMSprop and
    Adam would go. Rescaling the loss does not change them::

        m_t = β1 m_{t-1} + (1 - β1) g_t         m̂_t = m_t / c1_t
        v_t = β2 v_{t-1} + (1 - β2) g_t²        v̂_t = v_t / c2_t
        features = (g_t / √v̂_t, m̂_t / √v̂_t)

    where the bias corrections c1_t = 1 - β1^t and c2_t = 1 - β2^t are kept as running averages of
    ones: no power at each step, and no cancellation at the first ones.

    Args:
        gradients: floating tensor ``[N]``.
        moments: ``(m, v, c1, c2)`` of the step before, each ``[N]``; zeros before the first.
        beta_1, beta_2: decay rates in [0, 1).
        epsilon: added to √v̂, 0 at least.

    Returns:
        ``(features [2, N], moments)``.
    """
    arguments.real("epsilon", epsilon, minimum=0)
    gradients = _floating(gradients)
    first, second, correction_1, correction_2 = update_moments(gradients, moments, beta_1, beta_2)
    scale = 1.0 / (tf.sqrt(second / correction_2) + epsilon)
    features = tf.stack([gradients * scale, first / correction_1 * scale])
    return features, (first, second, correction_1, correction_2)


def update_moments(gradients, moments, beta_1, beta_2):
    """The next ``(m, v, c1, c2)``; see ``moment_ratios``."""
    check_betas(beta_1, beta_2)
    first, second, correction_1, correction_2 = moments
    return (
        beta_1 * first + (1.0 - beta_1) * gradients,
        beta_2 * second + (1.0 - beta_2) * tf.square(gradients),
        beta_1 * correction_1 + (1.0 - beta_1),
        beta_2 * correction_2 + (1.0 - beta_2),
    )


def check_betas(beta_1, beta_2):
    """Refuses decay rates that ``update_moments`` cannot take."""
    arguments.real("beta_1", beta_1, minimum=0, below=1)
    arguments.real("beta_2", beta_2, minimum=0, below=1)
