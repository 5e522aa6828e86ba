"""A rule's own weights, trainable or not, go wherever the rule goes."""

import json
import pickle

import conftest
import keras
import numpy as np
import pytest
import tensorflow as tf

import l2l_tf
from l2l_tf import saving, update_rules
from l2l_tf.update_rules import arrays
from l2l_tf.update_rules.base import UpdateRule


@keras.saving.register_keras_serializable("own_weights")
class Scaled(UpdateRule):
    """One trainable weight, and others of several dtypes that something else has set."""

    def __init__(self, is_learned=True, **kwargs):
        super().__init__(**kwargs)
        self.is_learned = is_learned
        self.bound = self.add_weight(name="bound", shape=(), initializer="ones", trainable=False)
        self.gain = self.add_weight(
            name="gain", shape=(1, 1), initializer="ones", trainable=is_learned
        )
        self.shift = self.add_weight(
            name="shift", shape=(2,), initializer="zeros", trainable=False, dtype="bfloat16"
        )
        self.count = self.add_weight(
            name="count", shape=(), initializer="zeros", trainable=False, dtype="int32"
        )
        self.is_on = self.add_weight(
            name="is_on", shape=(1,), initializer="zeros", trainable=False, dtype="bool"
        )

    def initial_state(self, layout):
        return ()

    def update(self, gradients, state):
        updates = -self.gain[0] * tf.clip_by_value(gradients, -self.bound, self.bound)
        factor = tf.cast(self.count, self.dtype) + tf.cast(self.shift[1], self.dtype)
        return tf.where(self.is_on, factor, 1.0) * updates, state

    def get_config(self):
        return {**super().get_config(), "is_learned": self.is_learned}


@keras.saving.register_keras_serializable("own_weights")
class GroupedWithBound(update_rules.GroupedRule):
    def __init__(self, groups, name=None):
        super().__init__(groups, name)
        self.bound = self.add_weight(name="bound", shape=(), initializer="ones", trainable=False)


def set_weights(rule):
    values = {"bound": 0.1, "gain": [[0.3]], "shift": [0.0, 0.34], "count": 7, "is_on": [True]}
    for name, value in values.items():
        getattr(rule, name).assign(value)
    return rule


def scaled():
    return set_weights(Scaled())


def none_learned():
    return set_weights(Scaled(is_learned=False))


def frozen():
    rule = scaled()
    rule.trainable = False
    return rule


def grouped():
    groups = [("bias", update_rules.SGD(0.5)), (".*", update_rules.GroupedRule([("", scaled())]))]
    rule = GroupedWithBound(groups)
    rule.bound.assign(0.7)
    return rule


every_rule = pytest.mark.parametrize("make_rule", [scaled, none_learned, frozen, grouped])


def values(rule):
    return [weight.numpy() for weight in rule.weights]


def by_save(rule, path):
    l2l_tf.save(rule, path / "rule")
    return l2l_tf.load(path / "rule")


def by_config(rule, path):
    return type(rule).from_config(json.loads(json.dumps(rule.get_config())))


def by_pickle(rule, path):
    return pickle.loads(pickle.dumps(rule))


def by_pickle_of_the_optimizer(rule, path):
    return pickle.loads(pickle.dumps(l2l_tf.LearnedOptimizer(rule))).rule


def by_model_file(end):
    def restored(rule, path):
        model = conftest.mlp()
        model.compile(l2l_tf.LearnedOptimizer(rule), "sparse_categorical_crossentropy")
        model.optimizer.build(model.trainable_variables)
        model.save(path / f"model{end}")
        return keras.models.load_model(path / f"model{end}").optimizer.rule

    return restored


WAYS = {
    "save": by_save,
    "config": by_config,
    "pickle": by_pickle,
    "pickle of the optimizer": by_pickle_of_the_optimizer,
    ".keras": by_model_file(".keras"),
    ".h5": by_model_file(".h5"),
}


@every_rule
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_all_weights_go_along(make_rule, way, tmp_path):
    rule = make_rule()
    restored = way(rule, tmp_path)
    assert restored is not rule and len(rule.weights) >= 5
    for received, expected in zip(values(restored), values(rule), strict=True):
        assert received.dtype == expected.dtype
        np.testing.assert_array_equal(received, expected)
    assert saving.fingerprint(restored) == saving.fingerprint(rule)


def test_tensorflow_alone_has_them(tmp_path):
    path = str(tmp_path / "rule")
    l2l_tf.save(scaled(), path)
    program = f"""
import json, tensorflow as tf
m = tf.saved_model.load({path!r})
print(json.dumps(m.update(tf.constant([1.0, -0.05]), m.initial_state(2))[0].numpy().tolist()))
"""
    factor = 0.3 * (7 + 0.34)
    received = conftest.in_tensorflow_alone(program)
    np.testing.assert_allclose(received, [-0.1 * factor, 0.05 * factor], rtol=2e-3)


def test_a_fingerprint_is_of_all_weights():
    rule = scaled()
    before = saving.fingerprint(rule)
    rule.count.assign(8)
    assert saving.fingerprint(rule) != before


@every_rule
def test_what_an_argument_gives_is_said_once(make_rule):
    assert "weights" not in update_rules.SGD(0.5).get_config()
    assert json.dumps(make_rule().get_config()).count("npz:") == (2 if make_rule is grouped else 1)


@pytest.mark.parametrize("make_rule", [scaled, none_learned, grouped])
def test_older_configs_with_the_trainable_weights_alone(make_rule, tmp_path):
    rule = make_rule()
    config = rule.get_config()
    config.pop("weights")
    of_scaled = config
    if make_rule is grouped:
        of_scaled = config["groups"][1]["rule"]["config"]["groups"][0]["rule"]["config"]
        of_scaled.pop("weights")
    if make_rule in (scaled, grouped):
        of_scaled["weights"] = [[[0.25]]]
    l2l_tf.save(rule, tmp_path / "rule")
    (tmp_path / "rule" / "rule.npz").unlink()
    of_rule = {"class": keras.saving.get_registered_name(type(rule)), "config": config}
    text = json.dumps({"format_version": 1, "rule": of_rule})
    (tmp_path / "rule" / "rule.json").write_text(text)
    for restored in (type(rule).from_config(config), l2l_tf.load(tmp_path / "rule")):
        inner = restored.rules[1].rules[0] if make_rule is grouped else restored
        assert float(inner.gain[0, 0]) == (1.0 if make_rule is none_learned else 0.25)
        assert float(inner.bound) == 1.0


def test_a_config_of_fewer_weights_is_refused():
    config = {**scaled().get_config(), "weights": arrays.to_text({"gain": np.ones([1, 1])})}
    with pytest.raises(ValueError, match=r"Expected shapes: \[\(1, 1\), \(\), .*Received: \[\(1, "):
        Scaled.from_config(config)
