"""A teacher beside the objective, against a tape over code that shares nothing with it."""

import functools

import conftest
import keras
import numpy as np
import pytest
import tensorflow as tf
from test_evolution import Bowl64, Momentum64, Torn64, called, data

from l2l_tf import MetaTrainer, problems, update_rules
from l2l_tf.meta_training import objectives
from l2l_tf.meta_training.estimator import Identity
from l2l_tf.meta_training.imitation import Imitation
from l2l_tf.update_rules.base import flatten, split

STARTS = [[1.0, -0.7], [0.8, 1.2]]
LENGTH = 4


def imitation(teacher, **kwargs):
    return Imitation(objectives.loss_sum, LENGTH, teacher=teacher, imitation=3.0, **kwargs)


def taped(rule, teacher, problem):
    """Gradients and values of L + 3 D in the second window of an episode, by a tape."""
    variables, values = [v.value for v in rule.trainable_variables], []
    with tf.GradientTape() as tape:
        for start in STARTS:
            theta = tf.constant(start, tf.float64)
            state, teacher_state = rule.initial_state(2), teacher.initial_state(2)
            for _ in range(2):
                theta, state = tf.stop_gradient(theta), tf.stop_gradient(state)
                losses, distance, scale = [], 0.0, 0.0
                for t in range(LENGTH + 1):
                    loss, gradients = problem.loss_and_gradients(split(theta, problem.layout), 0)
                    losses.append(loss)
                    if t < LENGTH:
                        gradients = tf.stop_gradient(flatten(gradients))
                        update, state = rule.update(gradients, state)
                        taught, teacher_state = teacher.update(gradients, teacher_state)
                        distance += tf.reduce_sum((update - taught) ** 2)
                        scale += tf.reduce_sum(taught**2)
                        theta += update
            values.append(tf.add_n(losses[1:]) + 3.0 * distance / scale)
        value = tf.add_n(values) / 2
    return tape.gradient(value, variables), values


@pytest.mark.slow
def test_the_meta_gradient_is_that_of_a_tape():
    rule, teacher, problem = Momentum64(), update_rules.Adam(0.1, dtype="float64"), Bowl64()
    estimator = imitation(teacher)
    first = called(estimator, rule, problem, data(STARTS, LENGTH))
    received = called(estimator, rule, problem, data(STARTS, LENGTH, 1), carry=first.carry)
    gradients, values = taped(rule, teacher, problem)
    np.testing.assert_allclose(received.values, values, rtol=1e-9)
    np.testing.assert_allclose(np.array(received.gradients), np.array(gradients), rtol=1e-9)
    assert not received.left_out.numpy().any()


@pytest.mark.slow
def test_after_a_stop_nothing_is_imitated():
    """The teacher would go on, by its momentum."""
    problem = Torn64()
    problem.bound = -0.5
    rule, teacher = Momentum64(), update_rules.Momentum(0.5, 0.9, dtype="float64")
    rule.trainable_variables[0].assign(0.0)  # from -1 to above the bound
    starts = [[-1.0, 0.1]]
    received = called(imitation(teacher), rule, problem, data(starts, LENGTH))
    assert received.carry.runs.stopped_at.numpy().tolist() == [1]
    assert received.left_out.numpy().all()  # its losses are not finite
    update, _ = rule.update(tf.constant([-2.0, 0.2], tf.float64), rule.initial_state(2))
    taught = tf.constant([1.0, -0.1], tf.float64)
    distance = tf.reduce_sum((update - taught) ** 2) / tf.reduce_sum(taught**2)
    without = called(Identity(objectives.loss_sum, LENGTH), rule, problem, data(starts, LENGTH))
    np.testing.assert_allclose(received.values - without.values, 3.0 * distance, rtol=1e-9)


@pytest.mark.slow
def test_a_rule_with_parts_and_a_teacher_with_parts():
    problem = conftest.keras_problem()
    make = functools.partial(update_rules.CoordinatewiseLSTM, (4,), seed=0)
    rule = update_rules.GroupedRule([("bias", make()), (".*", update_rules.RNNprop((3,), seed=1))])
    sgd, adam = update_rules.SGD(0.1), update_rules.Adam(0.01)
    teacher = update_rules.GroupedRule([("bias", sgd), (".*", adam)])
    estimator = functools.partial(Imitation, teacher=teacher, imitation=100.0)
    trainer = MetaTrainer(rule, problem, 5, 10, meta_batch_size=2, estimator=estimator)
    trainer.compile(optimizer=keras.optimizers.Adam(0.01))
    history = trainer.fit(trainer.dataset(0, 20), epochs=4, verbose=0).history["objective"]
    assert history[-1] < 0.8 * history[0]


@pytest.mark.slow
def test_a_rule_becomes_like_its_teacher():
    """With a large weight: from no step at all, a distance of 1, to a small one."""
    rule = update_rules.RNNprop((8,), seed=0)
    estimator = functools.partial(Imitation, teacher=update_rules.Adam(0.05), imitation=1e4)
    trainer = MetaTrainer(
        rule, problems.Quadratic(), 10, 20, meta_batch_size=4, estimator=estimator
    )
    trainer.compile(optimizer=keras.optimizers.Adam(0.01))
    history = trainer.fit(trainer.dataset(0, 80), epochs=10, verbose=0).history["objective"]
    assert 1e3 < history[0] < 2e4 and history[-1] < 500


def test_bad_arguments():
    for error, message, options in (
        (TypeError, "`teacher` must be an UpdateRule", {"teacher": "adam"}),
        (ValueError, "`imitation` must be", {"teacher": update_rules.SGD(), "imitation": 0.0}),
    ):
        with pytest.raises(error, match=message):
            Imitation(objectives.loss_sum, **options)
