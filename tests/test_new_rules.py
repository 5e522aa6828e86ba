"""New rules by name, and of classes of one's own."""

import sys

import pytest

from l2l_tf import update_rules
from l2l_tf.meta_training.new_rules import name_of, new_rule, takes_layers
from l2l_tf.update_rules import CoordinatewiseLSTM, UpdateRule

OWN = """
import keras
from l2l_tf import update_rules

@keras.saving.register_keras_serializable("own_rules")
class Mine(update_rules.CoordinatewiseLSTM):
    pass

@keras.saving.register_keras_serializable("own_rules")
class Plain(update_rules.UpdateRule):
    pass

class Unregistered(update_rules.UpdateRule):
    pass

def small(layers):
    return update_rules.RNNprop(layers[:1], seed=0)

def fixed():
    return update_rules.RNNprop((3,), seed=0)

def seeded(seed, size=2):
    return update_rules.RNNprop((size,), seed=seed)

def everything():
    return Global()

@keras.saving.register_keras_serializable("own_rules")
class Global(update_rules.UpdateRule):
    coupling = "global"

def raises():
    raise KeyError("what")

def number():
    return 3
"""


@pytest.fixture(autouse=True)
def own_rules(tmp_path, monkeypatch):
    (tmp_path / "own_rules.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_rules", raising=False)


def test_a_class_of_ones_own_gets_what_its_signature_names():
    mine = new_rule("own_rules:Mine", [4, 5], seed=3)
    assert type(mine).__name__ == "Mine" and mine.layers == (4, 5)
    expected = CoordinatewiseLSTM((4, 5), seed=3)
    assert (mine.weights[0].numpy() == expected.weights[0].numpy()).all()
    assert name_of(mine) == "Mine" and name_of(expected) == "lstm"

    assert isinstance(new_rule("own_rules:Plain", [4], seed=3), UpdateRule)
    assert new_rule("own_rules:small", [4, 5], seed=3).layers == (4,)
    assert new_rule("own_rules:fixed", [4, 5], seed=3).layers == (3,)
    seeded = new_rule("own_rules:seeded", [4, 5], seed=3)
    expected = update_rules.RNNprop((2,), seed=3)
    assert (seeded.weights[0].numpy() == expected.weights[0].numpy()).all()
    hierarchical, other = (new_rule("hierarchical", layers, 3) for layers in ([4], [5]))
    assert (hierarchical.weights[0].numpy() == other.weights[0].numpy()).all()
    lite = new_rule("hierarchical-lite", [4], 3)
    assert (hierarchical.coordinate_units, lite.coordinate_units) == (8, 0)
    assert (name_of(hierarchical), name_of(lite)) == ("hierarchical", "hierarchical-lite")
    takers = ["lstm", "own_rules:Mine", "own_rules:small"]
    assert all(map(takes_layers, takers))
    assert not any(
        map(
            takes_layers, ["hierarchical", "own_rules:Plain", "own_rules:fixed", "own_rules:seeded"]
        )
    )


def test_a_rule_of_ones_own_for_convolutions():
    layout = [("conv2d/kernel", (3, 3, 1, 8)), ("dense/kernel", (8, 2))]
    grouped = new_rule("lstm", (4,), 0, conv_name="own_rules:small", layout=layout)
    assert [type(rule).__name__ for rule in grouped.rules] == ["RNNprop", "CoordinatewiseLSTM"]


@pytest.mark.parametrize(
    "name, kwargs, error, message",
    [
        ("lstn", {}, ValueError, r"must be one of \('lstm', 'rnnprop', 'averaging', 'hierarchical"),
        (3, {}, TypeError, "`rule` must be a string"),
        ("lstm", {"layers": "20"}, TypeError, "`layers` must be a list of numbers of units"),
        ("lstm", {"layers": [2.5]}, TypeError, "`layers` must be an integer, 1 at least"),
        ("lstm", {"layers": [0]}, ValueError, "layers=0"),
        ("lstm", {"seed": 1.5}, TypeError, "`seed` must be an integer"),
        ("own_rules:Unregistered", {}, ValueError, "not registered.*register_keras_serializable"),
        ("own_rules:everything", {}, ValueError, "Received: 'global'"),
        ("own_rules:raises", {}, ValueError, "'own_rules:raises': the function raised KeyError"),
        ("own_rules:number", {}, TypeError, "must return an .*UpdateRule. Received: int"),
        ("own_rules:nothing", {}, ValueError, "has no 'nothing'"),
        ("no_such:Rule", {}, ValueError, "no module 'no_such'"),
    ],
)
def test_bad_input(name, kwargs, error, message):
    with pytest.raises(error, match=message):
        new_rule(name, **{"layers": [4], "seed": 0, **kwargs})
