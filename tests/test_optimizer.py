import conftest
import keras
import numpy as np
import pytest
import tensorflow as tf

import l2l_tf
from l2l_tf import update_rules


def compiled(optimizer, **kwargs):
    keras.utils.set_random_seed(0)
    model = conftest.mlp()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, **kwargs)
    return model


def fit(model, epochs=2):
    return model.fit(conftest.image_data(), epochs=epochs, verbose=0, shuffle=False).history["loss"]


def lstm():
    return update_rules.CoordinatewiseLSTM((4,), zero_head=False, seed=1)


@pytest.mark.parametrize("kwargs", [{}, {"jit_compile": True}, {"run_eagerly": True}])
def test_fit_with_a_rule_equals_fit_with_the_keras_optimizer(kwargs):
    ours, keras_ = [
        fit(compiled(optimizer, **kwargs))
        for optimizer in (
            l2l_tf.LearnedOptimizer(update_rules.Momentum(0.1, nesterov=True)),
            keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
        )
    ]
    assert keras_[1] < keras_[0]
    np.testing.assert_allclose(ours, keras_, rtol=1e-5)


def test_learning_rate_multiplies_the_update():
    variable = tf.Variable([1.0, 2.0])
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0], [1.0, 0.5])
    optimizer = l2l_tf.LearnedOptimizer(update_rules.SGD(1.0), learning_rate=schedule)
    for expected in ([0.0, 1.0], [-0.5, 0.5]):
        optimizer.apply_gradients([(tf.ones([2]), variable)])
        np.testing.assert_allclose(variable, expected)


def test_the_same_rule_in_fit_and_in_an_unroll():
    """What meta-training sees is what a Keras user gets."""
    from l2l_tf.evaluation.learning_curves import Arena
    from l2l_tf.meta_training.episodes import episode_seed, windows

    problem, rule = conftest.keras_problem(), lstm()
    arena = Arena(problem, num_steps=6)
    (expected,) = arena.losses(arena.runner(rule), "report", 1)
    (window,) = windows(problem, "heldout", episode_seed(0, "report", 0), 1, 5)

    model = compiled(l2l_tf.LearnedOptimizer(rule))
    sizes = [v.shape.num_elements() for v in model.trainable_variables]
    for variable, value in zip(
        model.trainable_variables, tf.split(window["parameters"], sizes)
    ):
        variable.assign(tf.reshape(value, variable.shape))
    x, y = window["batches"][0]
    losses = [model.train_on_batch(x[t], y[t]) for t in range(6)]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


def test_keras_file_resumes_bit_for_bit(tmp_path):
    model = compiled(l2l_tf.LearnedOptimizer(lstm()))
    fit(model)
    path = str(tmp_path / "model.keras")
    model.save(path)
    copy = keras.models.load_model(path)
    np.testing.assert_array_equal(copy.optimizer.rule.weights[0], model.optimizer.rule.weights[0])
    assert fit(copy) == fit(model)


def test_by_path_and_saved_again(tmp_path):
    l2l_tf.save(lstm(), tmp_path / "rule")
    optimizer = l2l_tf.LearnedOptimizer(tmp_path / "rule")
    l2l_tf.save(optimizer, tmp_path / "again")
    again = l2l_tf.LearnedOptimizer(str(tmp_path / "again"))
    assert fit(compiled(optimizer)) == fit(compiled(again))


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: l2l_tf.LearnedOptimizer(3), TypeError, "`rule` must be an UpdateRule"),
        (lambda: l2l_tf.LearnedOptimizer("no-such"), ValueError, "Unknown rule 'no-such'"),
        (lambda: l2l_tf.LearnedOptimizer(lstm(), "fast"), ValueError, "learning_rate"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
