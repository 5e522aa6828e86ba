"""The rules in CONTRIBUTING.md do all that a rule can."""

import pathlib
import re

import conftest
import keras
import numpy as np
import pytest
import tensorflow as tf

import l2l_tf
from l2l_tf.update_rules import UpdateRule

TEXT = (pathlib.Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()
NAMES = {"__name__": "examples"}
for block in re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL):
    exec(block, NAMES)  # each goes on where the one before has ended
RULES = [c for c in NAMES.values() if isinstance(c, type) and c is not UpdateRule]


def flat(tensors):
    return np.concatenate([np.ravel(t) for t in tensors])


def test_there_are_rules():
    assert [cls.__name__ for cls in RULES] == ["DecayedSigns", "TrustRatio", "ClippedDescent"]


@pytest.mark.parametrize("cls", RULES)
def test_a_rule_of_contributing_md(cls, tmp_path):
    rule = cls()
    trainer = l2l_tf.MetaTrainer(rule, conftest.keras_problem(), 5, 10)
    trainer.compile(keras.optimizers.Adam(0.01))
    before = flat(rule.weights)
    trainer.fit(trainer.dataset(0, 2), verbose=0)
    assert 1e-3 < np.abs(flat(rule.weights) - before).min() < 1

    l2l_tf.save(rule, tmp_path / "rule")
    loaded = l2l_tf.load(tmp_path / "rule")
    np.testing.assert_array_equal(flat(loaded.weights), flat(rule.weights))

    model = conftest.mlp()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(l2l_tf.LearnedOptimizer(loaded), loss)
    data = conftest.image_data()
    losses = model.fit(data, epochs=2, verbose=0, shuffle=False).history["loss"]
    assert losses[1] < losses[0]

    # TensorFlow alone takes the optimizer's next step.
    m, (x, y) = tf.saved_model.load(tmp_path / "rule"), next(iter(data))
    with tf.GradientTape() as tape:
        value = loss(y, model(x, training=True))
    variables = model.trainable_variables
    gradients = tape.gradient(value, [v.value for v in variables])
    expected = flat(variables)
    shapes = [tf.ragged.constant([list(v.shape) for v in variables], tf.int32)]
    shapes = shapes if rule.has_control else []
    state = m.initial_state(*shapes or [expected.size])
    seen = [flat(gradients)] + [expected] * rule.sees_parameters
    updates, _ = m.update(*map(tf.constant, seen), state, *shapes)
    model.train_on_batch(x, y)
    np.testing.assert_allclose(flat(variables), expected + updates, rtol=1e-5, atol=1e-6)
    assert np.abs(updates).max() > 1e-4
