import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import l2l_tf
from l2l_tf import update_rules
from l2l_tf.update_rules.base import UpdateRule

GRADIENTS = np.random.default_rng(0).normal(size=(3, 5)).astype("float32")


def rule():
    return update_rules.RNNprop((4, 3), zero_head=False, seed=0)


def run(rule_, state=None):
    state = rule_.initial_state(5) if state is None else state
    for gradient in GRADIENTS:
        updates, state = rule_.update(tf.constant(gradient), state)
    return updates.numpy()


@pytest.mark.parametrize(
    "original",
    [rule, update_rules.CoordinatewiseLSTM, update_rules.SGD, update_rules.Adam],
)
def test_round_trip(original, tmp_path):
    original = original()
    l2l_tf.save(original, tmp_path / "rule")
    loaded = l2l_tf.load(tmp_path / "rule")
    assert type(loaded) is type(original)
    np.testing.assert_array_equal(run(loaded), run(original))
    assert os.listdir(tmp_path) == ["rule"]


def test_tensorflow_alone_can_use_it_for_any_number_of_coordinates(tmp_path):
    path = str(tmp_path / "rule")
    l2l_tf.save(rule(), path)
    program = f"""
import sys
sys.modules["l2l_tf"] = sys.modules["keras"] = None
import json, numpy, tensorflow as tf
m = tf.saved_model.load({path!r})
for n in (2, 5):
    state = m.initial_state(n)
    for gradient in {GRADIENTS.tolist()}:
        updates, state = m.update(tf.constant(gradient[:n]), state)
print(json.dumps(updates.numpy().tolist()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(json.loads(done.stdout), run(rule()), rtol=1e-5, atol=1e-8)


def test_existing_directories_are_safe(tmp_path):
    path = tmp_path / "rule"
    l2l_tf.save(update_rules.SGD(1.0), path)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        l2l_tf.save(update_rules.SGD(2.0), path)
    assert float(l2l_tf.load(path).learning_rate) == 1.0
    l2l_tf.save(update_rules.SGD(2.0), path, overwrite=True)
    assert float(l2l_tf.load(path).learning_rate) == 2.0

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    with pytest.raises(FileExistsError, match="not a saved rule"):
        l2l_tf.save(rule(), tmp_path / "other", overwrite=True)
    assert os.listdir(tmp_path / "other") == ["thesis.tex"]


class Unregistered(UpdateRule):
    def initial_state(self, layout):
        return ()


def test_what_cannot_be_saved_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="register_keras_serializable"):
        l2l_tf.save(Unregistered(), tmp_path / "rule")
    with pytest.raises(TypeError, match="must be an UpdateRule"):
        l2l_tf.save(keras.optimizers.Adam(), tmp_path / "rule")
    assert not os.listdir(tmp_path)


def _edit(path, **changes):
    content = json.loads((path / "rule.json").read_text())
    (path / "rule.json").write_text(json.dumps({**content, **changes}))


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda p: (p / "rule.json").unlink(), "is not a saved rule"),
        (lambda p: (p / "rule.json").write_text('{"format_v'), "damaged one"),
        (lambda p: _edit(p, format_version=99), "format version 99"),
        (
            lambda p: _edit(p, rule={"class": "os>system", "config": {}}),
            "not a registered UpdateRule",
        ),
    ],
)
def test_damaged_directories(damage, message, tmp_path):
    path = tmp_path / "rule"
    l2l_tf.save(rule(), path)
    damage(path)
    with pytest.raises(ValueError, match=message):
        l2l_tf.load(path)


def test_unknown_names_and_paths(tmp_path):
    with pytest.raises(ValueError, match="Unknown rule 'mnits'"):
        l2l_tf.load("mnits")
    with pytest.raises(FileNotFoundError, match="No directory"):
        l2l_tf.load(tmp_path / "nothing")
