import math

import numpy as np
import pytest
import tensorflow as tf

from l2l_tf import preprocessing


def test_log_and_sign_is_the_papers_formula():
    p = 10.0
    gradients = np.array([1.0, -2.0, 1e-3, math.exp(-p), 1e-5, -1e-6, 0.0])
    expected = [
        (math.log(abs(g)) / p, math.copysign(1.0, g))
        if abs(g) >= math.exp(-p)
        else (-1.0, math.exp(p) * g)
        for g in gradients
    ]
    features = preprocessing.log_and_sign(tf.constant(gradients, tf.float64), p)
    np.testing.assert_allclose(features, np.transpose(expected), rtol=1e-12)


def test_log_and_sign_lets_nan_and_infinity_through():
    features = preprocessing.log_and_sign(tf.constant([math.nan, math.inf])).numpy()
    assert np.isnan(features[:, 0]).all()
    assert np.isinf(features[0, 1])


def test_moment_ratios_by_hand():
    zeros = tf.zeros([1], tf.float64)
    moments = (zeros, zeros, zeros, zeros)
    m = v = 0.0
    for t, g in enumerate([2.0, -1.0, 0.5], start=1):
        features, moments = preprocessing.moment_ratios(
            tf.constant([g], tf.float64), moments, 0.9, 0.95, epsilon=0.0
        )
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        root = math.sqrt(v / (1 - 0.95**t))
        np.testing.assert_allclose(features[:, 0], [g / root, m / (1 - 0.9**t) / root])


ONES = tf.ones([1])
MOMENTS = (ONES,) * 4


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: preprocessing.log_and_sign(ONES, 0), ValueError, "`p` must be .* above 0"),
        (lambda: preprocessing.log_and_sign(ONES, 88), ValueError, "at most 87. Received: p=88"),
        (lambda: preprocessing.log_and_sign(ONES, "10"), TypeError, "p='10'"),
        (lambda: preprocessing.log_and_sign(tf.constant([1])), TypeError, "`gradients`.*int32"),
        (
            lambda: preprocessing.moment_ratios(ONES, MOMENTS, 0.9, 1.0),
            ValueError,
            "`beta_2` must be .* below 1",
        ),
        (
            lambda: preprocessing.moment_ratios(ONES, MOMENTS, 0.9, 0.9, math.nan),
            ValueError,
            "epsilon=nan",
        ),
        (
            lambda: preprocessing.update_moments(ONES, MOMENTS, None, 0.9),
            TypeError,
            "`beta_1` must be",
        ),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
