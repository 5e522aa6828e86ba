import contextlib
import json
import os
import pathlib
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import conftest
import keras
import numpy as np
import pytest
import tensorflow as tf

import l2l_tf
from l2l_tf import saving, update_rules
from l2l_tf.files import cards, json_file, rule_directory
from l2l_tf.update_rules.base import UpdateRule

DATA = pathlib.Path(__file__).parent / "data"
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
import json, numpy, tensorflow as tf
m = tf.saved_model.load({path!r})
for n in (2, 5):
    state = m.initial_state(n)
    for gradient in {GRADIENTS.tolist()}:
        updates, state = m.update(tf.constant(gradient[:n]), state)
print(json.dumps(updates.numpy().tolist()))
"""
    received = conftest.in_tensorflow_alone(program)
    np.testing.assert_allclose(received, run(rule()), rtol=1e-5, atol=1e-8)


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


def contents(path):
    """All that lies there, links unfollowed, as a dict that can be compared."""
    return {
        str(p.relative_to(path)): os.readlink(p)
        if p.is_symlink()
        else p.is_file() and p.read_bytes()
        for p in path.rglob("*")
    }


def a_file(name):
    return lambda path: (path / name).write_text("precious")


FOREIGN = {
    "notes.txt": a_file("notes.txt"),
    "card.json": a_file("card.json"),
    "variables/mine": a_file("variables/mine"),
    "assets/mine": a_file("assets/mine"),
    "mine/": lambda path: (path / "mine").mkdir(),
    "rule.json/": lambda path: (path / "rule.json").mkdir(),
    "rule.npz/": lambda path: ((path / "rule.npz").unlink(), (path / "rule.npz").mkdir()),
    "fingerprint.pb": lambda path: (
        (path / "fingerprint.pb").unlink(),
        (path / "fingerprint.pb").symlink_to(path / "rule.npz"),
    ),
    "assets/": lambda path: ((path / "assets").rmdir(), (path / "assets").symlink_to(path.parent)),
}


@pytest.mark.parametrize("name, put", FOREIGN.items(), ids=FOREIGN)
def test_a_users_own_file_in_a_rule_stays(name, put, saved, tmp_path):
    path = shutil.copytree(saved, tmp_path / "rule")
    (path / "assets").mkdir(exist_ok=True)
    put(path)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=f"did not write.*: {name}. Move that away"):
        l2l_tf.save(update_rules.SGD(), path, overwrite=True)
    rule_directory.remove(str(path))
    assert contents(tmp_path) == before


@pytest.mark.parametrize("target", ["rule", "empty", "file", "nothing"])
def test_a_link_is_not_written_through(target, saved, tmp_path):
    shutil.copytree(saved, tmp_path / "rule")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / target)
    before = contents(tmp_path)
    for path in ("link", "link/"):
        for overwrite in (False, True):
            with pytest.raises(FileExistsError, match="is a symbolic link.*left as it is"):
                l2l_tf.save(update_rules.SGD(), f"{tmp_path}/{path}", overwrite=overwrite)
    rule_directory.remove(str(tmp_path / "link"))
    assert contents(tmp_path) == before
    if target == "rule":  # reading is another matter
        np.testing.assert_array_equal(run(l2l_tf.load(tmp_path / "link")), run(rule()))


class Unregistered(UpdateRule):
    def initial_state(self, layout):
        return ()


def test_what_cannot_be_saved_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="register_keras_serializable"):
        l2l_tf.save(Unregistered(), tmp_path / "rule")
    with pytest.raises(TypeError, match="must be an UpdateRule"):
        l2l_tf.save(keras.optimizers.Adam(), tmp_path / "rule")
    assert not os.listdir(tmp_path)


class Wrapper(update_rules.SGD):
    """A rule with a rule in it: the outer one is meant."""

    def __init__(self):
        super().__init__()
        self.rule = update_rules.SGD()


@pytest.mark.parametrize(
    "wrong, message",
    [
        (update_rules.SGD, "That is the class: make an instance, SGD"),
        (l2l_tf.LearnedOptimizer, "That is the class: make an instance"),
        (keras.Sequential(), "pass model.optimizer"),
        (keras.optimizers.Adam(), "optimizers are saved with their model"),
        ("mnist-mlp", r"save\(rule, path\)"),
        (0.001, "Received: rule=0.001 of type float"),
        (None, "Received: rule=None"),
    ],
)
def test_what_is_no_rule_is_named(wrong, message, tmp_path):
    with pytest.raises(TypeError, match=f"`rule` must be an UpdateRule.*{message}"):
        l2l_tf.save(wrong, tmp_path / "rule")
    assert not os.listdir(tmp_path)


def test_a_rule_with_a_rule_in_it_is_saved_itself(tmp_path):
    with pytest.raises(ValueError, match="Wrapper is not registered"):
        l2l_tf.save(Wrapper(), tmp_path / "rule")


@pytest.mark.parametrize("wrong", [3, 0.5, b"rule", None, ["rule"], rule, update_rules.SGD])
def test_what_is_no_path_is_named(wrong, tmp_path):
    for call, name in (
        (lambda: l2l_tf.save(update_rules.SGD(), wrong), "path"),
        (lambda: json_file.write({}, wrong), "path"),
        (lambda: l2l_tf.load(wrong), "name_or_path"),
        (lambda: l2l_tf.card(wrong), "name_or_path"),
    ):
        with pytest.raises(TypeError, match=f"`{name}` must be .*Received: {name}="):
            call()
    for call in (l2l_tf.load, l2l_tf.card, lambda path: l2l_tf.save(update_rules.SGD(), path)):
        with pytest.raises(ValueError, match="not an empty one"):
            call("")
        with pytest.raises(ValueError, match="without null characters"):
            call(f"{tmp_path}/a\0b")
    with pytest.raises(TypeError, match="`overwrite` must be True or False.*'no'"):
        l2l_tf.save(update_rules.SGD(), tmp_path / "rule", overwrite="no")
    assert not os.listdir(tmp_path)


def test_what_needs_no_loading_gets_a_hint():
    with pytest.raises(TypeError, match="cifar10.*learning_rate=..."):
        l2l_tf.load(0.001)
    with pytest.raises(TypeError, match="an update rule is used as it is"):
        l2l_tf.load(update_rules.SGD())


def test_weights_that_are_not_finite_are_refused(tmp_path):
    sgd = update_rules.SGD(1.0)
    sgd.learning_rate.assign(float("inf"))
    with pytest.raises(ValueError, match="NaN or infinity in learning_rate"):
        l2l_tf.save(sgd, tmp_path / "rule")
    assert not os.listdir(tmp_path)


def edit(**changes):
    """Damage to rule.json: entries of the config changed; format_version and rule in the file."""

    def damage(path):
        content = json.loads((path / "rule.json").read_text())
        of_file = {key: changes.pop(key) for key in ("format_version", "rule") if key in changes}
        content["rule"]["config"].update(changes)
        (path / "rule.json").write_text(json.dumps({**content, **of_file}))

    return damage


def write(name, text):
    return lambda path: (path / name).write_text(text)


def edit_weight(value):
    def damage(path):
        content = json.loads((path / "rule.json").read_text())
        content["rule"]["config"]["weights"][-1] = value
        (path / "rule.json").write_text(json.dumps(content))

    return damage


def card(text):
    def damage(path):
        (path / "rule.json").unlink()
        (path / "card.json").write_text(text)
        (path / "rule-2").mkdir()
        (path / "rule-4").symlink_to(path / "variables")

    return damage


DAMAGE = {
    "no rule.json": (
        lambda p: (p / "rule.json").unlink(),
        "not a saved rule: it has no rule.npz or rule.json",
    ),
    "empty": (write("rule.json", ""), "cut or no JSON"),
    "cut": (write("rule.json", '{"format_v'), "cut or no JSON"),
    "binary": (lambda p: (p / "rule.json").write_bytes(b"\xff\x00"), "cut or no JSON"),
    "nested": (write("rule.json", "[" * 10**5), "cut or no JSON"),
    "list": (write("rule.json", "[1]"), "holds a list, not an object"),
    "no version": (write("rule.json", "{}"), "its format_version is None"),
    "newer": (edit(format_version=99), "format version 99; this l2l_tf reads 1. Update l2l_tf"),
    "no rule": (write("rule.json", '{"format_version": 1}'), "lacks 'rule' with 'class'"),
    "rule a list": (edit(rule=["x"]), "lacks 'rule' with 'class'"),
    "unknown class": (
        edit(rule={"class": "os>system", "config": {}}),
        "'os>system', which is not a registered UpdateRule",
    ),
    "Lambda": (edit(rule={"class": "Lambda", "config": {}}), "not a registered UpdateRule"),
    "unknown key": (edit(lairs=[4]), "unexpected keyword argument 'lairs'"),
    "bad value": (edit(output_scale="big"), "no RNNprop can be made of it"),
    "other layers": (edit(layers=[4, 4]), "Expected shapes"),
    "no weights": (edit(weights=None), "its config lacks 'weights'"),
    "weights a number": (edit(weights=1.0), "no RNNprop can be made of it"),
    "ragged": (edit_weight([[1.0, 2.0], [3.0]]), "no RNNprop can be made of it"),
    "wrong shape": (edit_weight([[0.0, 0.0]]), "Expected shapes"),
    "NaN": (edit_weight([[float("nan")]]), "NaN or infinity in head_bias"),
    "infinite": (edit_weight([[1e300]]), "NaN or infinity in head_bias"),
    "long text": (edit_weight([["a"] * 10**4]), "no RNNprop can be made of it"),
    "text": (edit_weight([["a"]]), "no RNNprop can be made of it"),
    "card cut": (card('{"format_v'), "card.json in .* is damaged: it is cut"),
    "card a list": (card("[]"), "holds a list"),
    "card newer": (card('{"format_version": 2}'), "format version 2; this l2l_tf reads 1"),
    "best missing": (card('{"format_version": 1, "best": "rule-8"}'), "no directory beside it"),
    "best outside": (card('{"format_version": 1, "best": "../rule"}'), "no directory beside it"),
    "best no text": (card('{"format_version": 1, "best": [1]}'), "no directory beside it"),
    "best no rule": (
        card('{"format_version": 1, "best": "rule-2"}'),
        "it has no rule.npz or rule.json",
    ),
    "best no name": (card('{"format_version": 1, "best": "variables"}'), "no directory beside it"),
    "best a link": (card('{"format_version": 1, "best": "rule-4"}'), "no directory beside it"),
    "no best": (card('{"format_version": 1, "best": null}'), "has no rule yet"),
}


def edit_arrays(edit_members=None, **of_json):
    """Damage to rule.npz: its arrays changed, and what it holds as JSON."""

    def damage(path):
        with np.load(path / "rule.npz") as file:
            members = dict(file)
        content = json.loads(members["rule_json"].tobytes()) | of_json
        members["rule_json"] = np.frombuffer(json.dumps(content).encode(), "uint8")
        if edit_members is not None:
            edit_members(members)
        np.savez(path / "rule.npz", **members)

    return damage


def with_array(value):
    """Damage to rule.npz: another bias of the head; None for none."""

    def edit_members(members):
        members["0/5_head_bias"] = value
        if value is None:
            del members["0/5_head_bias"]

    return edit_arrays(edit_members)


def edit_bytes(change):
    return lambda path: (path / "rule.npz").write_bytes(change((path / "rule.npz").read_bytes()))


class RunsCode:
    def __reduce__(self):
        return os._exit, (3,)


def other_zip(path):
    with zipfile.ZipFile(path / "rule.npz", "w") as file:
        file.writestr("notes.txt", "precious")


NO_NPZ = "rule.npz in .* is damaged: it is cut or no npz file of a rule"
DAMAGE_OF_ARRAYS = {
    "no rule.npz": (
        lambda p: (p / "rule.npz").unlink(),
        "not a saved rule: it has no rule.npz or rule.json",
    ),
    "empty": (edit_bytes(lambda data: b""), NO_NPZ),
    "cut": (edit_bytes(lambda data: data[:-100]), NO_NPZ),
    "a byte": (edit_bytes(lambda data: data.replace(b"RNNprop", b"RNNprob")), NO_NPZ),
    "JSON": (edit_bytes(lambda data: b'{"format_version": 1}'), NO_NPZ),
    "npy": (lambda p: np.save((p / "rule.npz").open("wb"), np.ones(3)), NO_NPZ),
    "another zip": (other_zip, NO_NPZ),
    "pickled": (with_array(np.array([RunsCode()], object)), NO_NPZ),
    "no JSON": (edit_arrays(lambda m: m.update(rule_json=np.ones(3))), "cut or no JSON"),
    "older": (edit_arrays(format_version=1), "its format_version is 1"),
    "newer": (edit_arrays(format_version=99), "format version 99; this l2l_tf reads 2. Update"),
    "no rule": (edit_arrays(rule=None), "lacks 'rule' with 'class'"),
    "unknown class": (
        edit_arrays(rule={"class": "os>system", "config": {}}),
        "'os>system', which is not a registered UpdateRule",
    ),
    "no weights": (
        edit_arrays(rule={"class": "l2l_tf>RNNprop", "config": {}}),
        "its config lacks 'weights'",
    ),
    "no array": (with_array(None), "Expected shapes"),
    "no arrays": (
        edit_arrays(lambda m: [m.pop(key) for key in list(m) if key != "rule_json"]),
        "Expected shapes",
    ),
    "wrong shape": (with_array(np.zeros([1, 2], "float32")), "Expected shapes"),
    "NaN": (with_array(np.full([1, 1], np.nan)), "NaN or infinity in head_bias"),
    "infinite": (with_array(np.full([1, 1], 1e300)), "NaN or infinity in head_bias"),
    "text": (with_array(np.array([["a" * 10**4]])), "no RNNprop can be made of it"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "rule"
    l2l_tf.save(rule(), path)
    return path


@pytest.fixture(scope="module")
def saved_in_version_1(saved, tmp_path_factory):
    """As an older version saved it: one JSON file, with the trainable weights as lists."""
    path = shutil.copytree(saved, tmp_path_factory.mktemp("saved") / "rule")
    (path / "rule.npz").unlink()
    config = {**rule().get_config(), "weights": [w.numpy().tolist() for w in rule().weights]}
    content = {"format_version": 1, "rule": {"class": "l2l_tf>RNNprop", "config": config}}
    (path / "rule.json").write_text(json.dumps(content))
    np.testing.assert_array_equal(run(l2l_tf.load(path)), run(rule()))
    return path


def check_one_clear_error(path, message):
    for read in (l2l_tf.load, l2l_tf.LearnedOptimizer):
        with pytest.raises(ValueError, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("damage, message", DAMAGE.values(), ids=DAMAGE)
def test_damage_gets_one_clear_error(damage, message, saved_in_version_1, tmp_path):
    path = shutil.copytree(saved_in_version_1, tmp_path / "rule")
    damage(path)
    check_one_clear_error(path, message)


@pytest.mark.parametrize("damage, message", DAMAGE_OF_ARRAYS.values(), ids=DAMAGE_OF_ARRAYS)
def test_damage_of_arrays_gets_one_clear_error(damage, message, saved, tmp_path):
    path = shutil.copytree(saved, tmp_path / "rule")
    damage(path)
    check_one_clear_error(path, message)


def test_a_rule_of_version_1_is_replaced_by_one_of_version_2(saved_in_version_1, tmp_path):
    path = shutil.copytree(saved_in_version_1, tmp_path / "rule")
    l2l_tf.save(update_rules.SGD(0.5), path, overwrite=True)
    assert float(l2l_tf.load(path).learning_rate) == 0.5
    assert "rule.npz" in os.listdir(path) and "rule.json" not in os.listdir(path)
    # What a killed save of a newer version left does not stand before what is there.
    shutil.copytree(path, tmp_path / "old.l2l_tf-replaced")
    shutil.copytree(saved_in_version_1, tmp_path / "old")
    np.testing.assert_array_equal(run(l2l_tf.load(tmp_path / "old")), run(rule()))
    # What one left of an older version is found, and put back.
    shutil.copytree(saved_in_version_1, tmp_path / "lost.l2l_tf-replaced")
    with pytest.warns(UserWarning, match="was killed"):
        np.testing.assert_array_equal(run(l2l_tf.load(tmp_path / "lost")), run(rule()))
    with pytest.raises(FileExistsError, match="overwrite=True"):
        l2l_tf.save(update_rules.SGD(), tmp_path / "lost")
    assert (tmp_path / "lost" / "rule.json").exists()


@pytest.mark.parametrize("damaged", ["saved_model.pb", "variables"])
def test_a_rule_outlives_its_saved_model(damaged, saved, tmp_path):
    path = shutil.copytree(saved, tmp_path / "rule")
    if damaged == "variables":
        shutil.rmtree(path / damaged)
    else:
        (path / damaged).write_bytes((path / damaged).read_bytes()[:100])
    loaded = l2l_tf.load(path)
    np.testing.assert_array_equal(run(loaded), run(rule()))
    l2l_tf.save(loaded, path, overwrite=True)
    tf.saved_model.load(str(path))


def test_unknown_names_and_paths(tmp_path):
    with pytest.raises(ValueError, match="Unknown rule 'mnits'"):
        l2l_tf.load("mnits")
    with pytest.raises(FileNotFoundError, match="No directory"):
        l2l_tf.load(tmp_path / "nothing")
    with pytest.raises(OSError, match="Cannot read 'nosuch://rule'.*not implemented"):
        l2l_tf.load("nosuch://rule")


@pytest.mark.parametrize(
    "name, near", [("mnist", "'mnist-mlp'"), ("cifar", "'cifar10'"), ("neural_style", "'neural-s")]
)
def test_unknown_names_get_the_nearest(name, near):
    for read in (l2l_tf.load, l2l_tf.card, l2l_tf.LearnedOptimizer):
        with pytest.raises(ValueError, match=f"Did you mean {near}"):
            read(name)


def test_a_shipped_rules_name_means_it_whatever_lies_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = {name: saving.fingerprint(l2l_tf.load(name)) for name in l2l_tf.pretrained_names()}
    for name in shipped:
        l2l_tf.save(update_rules.SGD(), f"./{name}")
    (tmp_path / "quadratic" / "rule.npz").unlink()
    shutil.rmtree("cifar10")
    (tmp_path / "cifar10").write_text("notes")
    for name, expected in shipped.items():
        assert saving.fingerprint(l2l_tf.load(name)) == expected
        assert saving.fingerprint(l2l_tf.LearnedOptimizer(name).rule) == expected
        assert "known_limits" in l2l_tf.card(name)
    paths = ["./mnist-mlp", "mnist-mlp/", tmp_path / "mnist-mlp", pathlib.Path("mnist-mlp")]
    for path in paths:
        assert type(l2l_tf.load(path)) is update_rules.SGD
    for path in ("./quadratic", pathlib.Path("cifar10")):
        with pytest.raises((ValueError, FileNotFoundError), match="quadratic|cifar10"):
            l2l_tf.load(path)


def test_fingerprints_are_those_of_older_cards():
    sgd, inner = update_rules.SGD(0.1), update_rules.GroupedRule([("c", update_rules.Adam())])
    expected = {
        "cifar10": "09bf5aad",
        "mnist-mlp-lite": "1375dcf6",
        "quadratic": "61c06373",
        update_rules.SGD(0.3): "1108be07",
        update_rules.GroupedRule([("a", sgd), ("b", inner)]): "614d6a7e",
    }
    for value, fingerprint in expected.items():
        value = l2l_tf.load(value) if isinstance(value, str) else value
        assert saving.fingerprint(value) == fingerprint


def test_what_load_would_not_find_is_not_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="name of a shipped rule.*write './quadratic'"):
        l2l_tf.save(update_rules.SGD(), "quadratic")
    assert not os.listdir(tmp_path)
    l2l_tf.save(update_rules.SGD(), pathlib.Path("quadratic"))
    assert type(l2l_tf.load("./quadratic")) is update_rules.SGD


def test_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    l2l_tf.save(update_rules.SGD(0.5), "~/mine")
    json_file.write({"format_version": 1, "best": "rule-4"}, "~/mine/card.json")
    for path in ("~/mine", pathlib.Path("~/mine"), f"file://{tmp_path}/mine"):
        assert float(l2l_tf.load(path).learning_rate) == 0.5
        assert float(l2l_tf.LearnedOptimizer(path).rule.learning_rate) == 0.5
        assert l2l_tf.card(path)["best"] == "rule-4"
    assert os.listdir(tmp_path) == ["mine"]


def test_results_in_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    problem, rules = l2l_tf.problems.get("quadratic"), {"sgd": update_rules.SGD()}
    result = l2l_tf.evaluate(problem, rules, baselines=[], num_steps=2, num_seeds=1)
    result.save("~/results")
    result.plot("~/results/mine.png")
    assert sorted(os.listdir("results")) == ["curves.png", "mine.png", "results.json"]


def test_cards(tmp_path):
    l2l_tf.save(update_rules.SGD(), tmp_path / "rule-8")
    l2l_tf.save(update_rules.SGD(), tmp_path / "other")
    for path in (tmp_path, tmp_path / "rule-8", tmp_path / "other"):
        with pytest.raises(ValueError, match="has no card.json. Expected .*cifar10"):
            l2l_tf.card(path)
    with pytest.raises(FileNotFoundError, match="No directory"):
        l2l_tf.card(tmp_path / "nothing")
    content = {"format_version": 1, "best": "rule-8"}
    cards.write_card(tmp_path, content)
    assert l2l_tf.card(tmp_path) == l2l_tf.card(tmp_path / "rule-8") == content
    with pytest.raises(ValueError, match="has no card.json"):  # it is of another rule
        l2l_tf.card(tmp_path / "other")
    (tmp_path / "card.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        l2l_tf.card(tmp_path)


def test_loads_through_gfile(saved):
    tf.io.gfile.makedirs("ram://rules/mine")
    tf.io.gfile.copy(str(saved / "rule.npz"), "ram://rules/mine/rule.npz")
    np.testing.assert_array_equal(run(l2l_tf.load("ram://rules/mine")), run(rule()))


def test_what_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (f"{tmp_path}/file/rule", "nosuch://rule"):
        with pytest.raises(OSError, match=f"Cannot write '{path}'.*Check the path"):
            l2l_tf.save(rule(), path)
    with pytest.raises(OSError, match="Cannot write"):
        json_file.write({}, f"{tmp_path}/file/card.json")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "name, golden",
    [
        ("rnnprop-v1", [0.023269616, -0.0045307395, -0.0026056173]),
        ("lstm-v1", [0.0089211678, -0.015372909, 0.020855732]),
    ],
)
def test_what_was_saved_in_format_1_loads(name, golden):
    """Of the LSTM only rule.json is kept: it is all that `load` reads."""
    rules = [l2l_tf.load(DATA / name)]
    if (DATA / name / "saved_model.pb").exists():
        rules.append(tf.saved_model.load(str(DATA / name)))
    for rule_ in rules:
        state = rule_.initial_state(3)
        for gradient in ([1.0, -0.5, 0.002], [0.25, -2.0, 0.0], [-0.5, -0.1, 30.0]):
            updates, state = rule_.update(tf.constant(gradient), state)
        np.testing.assert_allclose(updates, golden, rtol=1e-5)


# Saves two rules by turns until it is killed: by itself at a `point` of the third save, or from
# outside; then it lingers at each step, or hardly any kill would come between two renames.
SAVER = """
import itertools, os, random, shutil, signal, sys, time
import tensorflow as tf
import l2l_tf

path, point = sys.argv[1:]
saves, renames = 0, 0

def reach(here):
    if point == "anywhere":
        time.sleep(random.choice([0, 0.05 * random.random()]))
    elif here == point and saves == 3:
        os.kill(os.getpid(), signal.SIGKILL)

def then(call, name):
    def called(*args, **kwargs):
        global renames
        if name == "removing":  # killed with some of the files gone
            for file in ("rule.npz", "saved_model.pb"):
                if os.path.exists(os.path.join(args[0], file)):
                    os.remove(os.path.join(args[0], file))
                reach(name)
        call(*args, **kwargs)
        renames += name == "renamed"
        reach(f"{name} {renames}" if name == "renamed" else name)
    return called

tf.saved_model.save = then(tf.saved_model.save, "written")
tf.io.gfile.rename = then(tf.io.gfile.rename, "renamed")
tf.io.gfile.rmtree = then(tf.io.gfile.rmtree, "removing")
rules = [l2l_tf.update_rules.CoordinatewiseLSTM((2,), zero_head=False, seed=s) for s in (1, 2)]
for rule in itertools.cycle(rules):
    saves, renames = saves + 1, 0
    l2l_tf.save(rule, path, overwrite=True)
    print("saved", flush=True)
"""


def start_saver(path, point):
    return subprocess.Popen(
        [sys.executable, "-c", SAVER, str(path), point], stdout=subprocess.PIPE, text=True
    )


def check_whole(path):
    """`path` is one of the two rules, also for TensorFlow alone; or ready to be put back."""
    is_there = path.exists()
    with contextlib.nullcontext() if is_there else pytest.warns(UserWarning, match="was killed"):
        loaded = l2l_tf.load(path)
    expected = [run(update_rules.CoordinatewiseLSTM((2,), zero_head=False, seed=s)) for s in (1, 2)]
    assert any(np.array_equal(run(loaded), updates) for updates in expected)
    place = path if is_there else path.with_name(path.name + ".l2l_tf-replaced")
    np.testing.assert_allclose(run(tf.saved_model.load(str(place))), run(loaded), rtol=1e-5)
    return is_there


def check_the_next_save_clears_up(path):
    with pytest.raises(FileExistsError):
        l2l_tf.save(rule(), path)
    l2l_tf.save(rule(), path, overwrite=True)
    assert os.listdir(path.parent) == [path.name]


def test_killed_at_each_step_of_a_save(tmp_path):
    points = {"written": True, "renamed 1": False, "removing": True}
    savers = []
    for point in points:
        (tmp_path / point).mkdir()
        savers.append(start_saver(tmp_path / point / "rule", point))
    for saver, (point, is_there) in zip(savers, points.items()):
        output, _ = saver.communicate(timeout=120)
        assert saver.returncode == -signal.SIGKILL and output == "saved\n" * 2
        path = tmp_path / point / "rule"
        assert len(os.listdir(path.parent)) == 2
        assert check_whole(path) == is_there
        check_the_next_save_clears_up(path)


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    path, found = tmp_path / "rule", []
    for _ in range(24):
        saver = start_saver(path, "anywhere")
        assert saver.stdout.readline() == "saved\n"
        time.sleep(0.5 * random.random())
        saver.kill()
        saver.communicate()
        found.append(check_whole(path))
    print(f"{len(found)} kills: {sum(found)} times there, else to be put back")
    check_the_next_save_clears_up(path)


def test_what_others_write_beside_it_stays(tmp_path):
    node = platform.node()
    mine = [  # of a running process, another machine, and by hand
        f"rule.l2l_tf-writing-{node}-{os.getpid()}-0",
        "rule.l2l_tf-writing-elsewhere-1-0",
        f"rule.l2l_tf-writing-{node}-notes",
        "rule.replaced",
    ]
    for name in mine:
        (tmp_path / name).mkdir()
    for overwrite in (False, True):
        l2l_tf.save(rule(), tmp_path / "rule", overwrite=overwrite)
    assert sorted(os.listdir(tmp_path)) == sorted([*mine, "rule"])


@pytest.fixture
def left():
    """The end of the name that a process which is no more wrote at."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return f".l2l_tf-writing-{platform.node()}-{process.pid}-0123abcd"


def test_what_killed_saves_left_goes_but_nothing_else(left, saved, tmp_path):
    path = tmp_path / "rule"
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "notes").write_text("precious")
    shutil.copytree(saved, f"{path}{left}")
    # As they are while TensorFlow writes.
    (tmp_path / f"rule{left}" / "saved_model.pb.tmp0a1b").write_text("")
    parts = tmp_path / f"rule{left}" / "variables" / "variables_temp"
    parts.mkdir()
    (parts / "part-00000-of-00001.data-00000-of-00001.tempstate123").write_text("")
    (parts / "part-00000-of-00001.index").write_text("")
    shutil.copytree(saved, f"{path}{left[:-1]}1")
    (tmp_path / f"rule{left[:-1]}1" / "notes").write_text("precious")
    (tmp_path / f"rule{left[:-1]}2").symlink_to(tmp_path / "target")
    (tmp_path / f"rule{left[:-1]}3").write_text("precious")
    before = contents(tmp_path)
    l2l_tf.save(rule(), path)
    kept = {name: there for name, there in before.items() if not name.startswith(f"rule{left}")}
    after = contents(tmp_path)
    assert {name: there for name, there in after.items() if name.split("/")[0] != "rule"} == kept


def test_what_a_killed_writing_of_json_left_goes_but_nothing_else(left, tmp_path):
    path = tmp_path / "card.json"
    (tmp_path / "target").write_text("precious")
    (tmp_path / f"card.json{left}").write_text("{")
    (tmp_path / f"card.json{left[:-1]}1").mkdir()
    (tmp_path / f"card.json{left[:-1]}2").symlink_to(tmp_path / "target")
    json_file.write({}, path)
    expected = ["card.json", f"card.json{left[:-1]}1", f"card.json{left[:-1]}2", "target"]
    assert sorted(os.listdir(tmp_path)) == sorted(expected)
    assert (tmp_path / "target").read_text() == "precious"


@pytest.mark.parametrize("kind", ["notes in it", "a link", "a file"])
def test_an_old_rule_with_more_in_it_is_not_replaced(kind, saved, tmp_path):
    path, replaced = tmp_path / "rule", tmp_path / "rule.l2l_tf-replaced"
    shutil.copytree(saved, path)
    if kind == "a file":
        replaced.write_text("precious")
    else:
        place = replaced if kind == "notes in it" else tmp_path / "place"
        shutil.copytree(saved, place)
        (place / "notes").write_text("precious")
    if kind == "a link":
        replaced.symlink_to(place)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match="l2l_tf-replaced.*left as it is"):
        l2l_tf.save(rule(), path, overwrite=True)
    assert contents(tmp_path) == before


def test_a_link_is_not_put_back(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "mine")
    (tmp_path / "rule.l2l_tf-replaced").symlink_to(tmp_path / "mine")
    l2l_tf.save(update_rules.SGD(), tmp_path / "rule")
    assert (tmp_path / "rule.l2l_tf-replaced").is_symlink()
    assert not (tmp_path / "rule").is_symlink()
    np.testing.assert_array_equal(run(l2l_tf.load(tmp_path / "mine")), run(rule()))
