"""The shipped rules: whole, small, and as good as their cards say."""

import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from test_command_line import call

import l2l_tf
from l2l_tf import catalog, saving, update_rules
from l2l_tf.evaluation import pretrained
from l2l_tf.evaluation.suite import evaluate_suite
from l2l_tf.evaluation.suite.contestants import CONTESTANTS
from l2l_tf.files import cards
from l2l_tf.problems import suite

FOR_ANY_MODEL = ["general"]
every_rule = pytest.mark.parametrize("name", l2l_tf.pretrained_names())
every_special_rule = pytest.mark.parametrize(
    "name", [name for name in l2l_tf.pretrained_names() if name not in FOR_ANY_MODEL]
)


def test_names():
    names = ["cifar10", "digits-mlp", "general"]
    names += ["mnist-mlp", "mnist-mlp-lite", "neural-style", "quadratic"]
    assert l2l_tf.pretrained_names() == names


@every_rule
def test_card(name):
    card = cards.read_card(catalog.pretrained_path(name))
    is_learned = name not in FOR_ANY_MODEL
    assert card["command"].startswith("bin/meta_train" if is_learned else "python -c")
    assert name.replace("-", "_").startswith(card["settings"]["problem"])
    assert {"tensorflow", "keras", "l2l_tf"} < set(card["versions"])
    assert (card["seconds"] > 0) == is_learned and card["machine"] and card["known_limits"]
    files = pathlib.Path(catalog.pretrained_path(name)).rglob("*")
    assert sum(f.stat().st_size for f in files if f.is_file()) < 400_000


@every_special_rule
def test_the_tables_of_a_card(name):
    card = cards.read_card(catalog.pretrained_path(name))
    assert f"{card['settings']['num_steps']} steps" in card["tables"]
    for table in card["tables"].values():
        assert set(table) == {name, "adam", "rmsprop", "sgd", "nag"}


def test_the_rule_for_any_model():
    """It is the default; and its card tells all that it lost."""
    assert saving.fingerprint(l2l_tf.LearnedOptimizer().rule) == saving.fingerprint(
        l2l_tf.load("general")
    )
    table = l2l_tf.card("general")["tables"]["general suite"]
    ratios = table["final loss over tuned Adam's"]
    assert sorted([*ratios, *table["left out"]]) == sorted(suite.NAMES)
    against = table["against"]
    assert list(against) == list(CONTESTANTS)
    for row in against.values():
        assert row["wins"] + row["ties"] + row["losses"] == len(ratios)
    assert against["adam"]["worst"]["ratio"] == max(ratios.values())


def test_the_command_of_the_rule_for_any_model_makes_it(tmp_path):
    """As it is shipped, nothing in it is learned."""
    _, _, code = l2l_tf.card("general")["command"].partition(" -c ")
    code = code.strip('"')
    assert code.count("'general'") == 1
    exec(code.replace("'general'", repr(str(tmp_path / "made"))), {})
    made = l2l_tf.load(tmp_path / "made")
    assert saving.fingerprint(made) == saving.fingerprint(l2l_tf.load("general"))


@pytest.mark.slow
def test_the_rule_for_any_model_is_as_good_as_its_card_says():
    names = ["graph", "wine_hinge", "point_sets"]
    table = l2l_tf.card("general")["tables"]["general suite"]["final loss over tuned Adam's"]
    result = evaluate_suite.evaluate_suite(["general"], names)
    for name, comparison in result.comparisons("general", "adam").items():
        # Rounding, which differs from machine to machine, is magnified in the course of training.
        assert 0.5 < comparison.final / table[name] < 2


@every_special_rule
def test_the_saved_model_is_the_rule(name):
    loaded = l2l_tf.load(name)
    saved = tf.saved_model.load(catalog.pretrained_path(name))
    for rule, module in zip(getattr(loaded, "rules", [loaded]), getattr(saved, "rules", [saved])):
        state, its_state = rule.initial_state(3), module.initial_state(3)
        for gradient in np.random.default_rng(0).normal(size=(4, 3)).astype("float32"):
            updates, state = rule.update(tf.constant(gradient), state)
            its_updates, its_state = module.update(tf.constant(gradient), its_state)
            np.testing.assert_allclose(updates, its_updates, rtol=1e-5, atol=1e-7)
        assert np.abs(updates).min() > 0


@pytest.mark.parametrize("name", ["digits-mlp", "quadratic"])
def test_as_good_as_the_card_says(name):
    """On other seeds than the card's, and against the baselines as tuned there."""
    card = cards.read_card(catalog.pretrained_path(name))
    table = card["tables"]["100 steps"]
    problem = l2l_tf.problems.get(card["settings"]["problem"])
    adam = update_rules.Adam(table["adam"]["learning_rate"])
    nag = update_rules.Momentum(table["nag"]["learning_rate"], nesterov=True)
    rules = {name: name, "tuned adam": adam, "tuned nag": nag}
    result = l2l_tf.evaluate(problem, rules, baselines=[], num_seeds=20, seed=77)
    assert result.loss_sum(name) < 0.9 * result.loss_sum("tuned adam")
    assert result.loss_sum(name) < 0.9 * result.loss_sum("tuned nag")
    assert result.loss_sum(name) < 1.3 * table[name]["loss_sum"]


def test_by_name_on_the_command_line():
    flags = ["--problem=quadratic", "--optimizers=quadratic", "--baselines=sgd"]
    done = call("evaluate", *flags, "--num_steps=5", "--num_seeds=2")
    assert done.returncode == 0, done.stderr
    assert "quadratic: loss sum" in done.stdout


def test_the_table_of_a_shipped_rule():
    done = call("pretrained", "--names=quadratic", "--horizons=5", "--num_seeds=2")
    assert done.returncode == 0, done.stderr
    assert "bin/meta_train --problem=quadratic" in done.stdout
    assert "loss sum (5 steps)" in done.stdout


def test_an_unknown_rule_or_horizon():
    done = call("pretrained", "--names=mnits")
    assert done.returncode == 1 and "Unknown shipped rule 'mnits'" in done.stderr
    done = call("pretrained", "--horizons=x")
    assert done.returncode == 1 and "--horizons" in done.stderr


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"name": 3}, "`name` must be a string"),
        ({"name": "digits"}, "Unknown shipped rule 'digits'. Did you mean 'digits-mlp'"),
        ({"data_dir": 3}, "`data_dir` must be a path"),
        ({"horizons": 20}, "`horizons` must be a list of integers"),
        ({"horizons": [20.0]}, "`horizons` must be an integer.*20.0"),
        ({"horizons": [1]}, "`horizons` must be an integer, 2 at least"),
        ({"num_seeds": 0}, "`num_seeds` must be an integer, 1 at least"),
        ({"num_seeds": 1.5}, "`num_seeds` must be an integer.*1.5"),
    ],
)
def test_bad_arguments_of_a_measurement(kwargs, message):
    with pytest.raises((TypeError, ValueError), match=message):
        pretrained.measure(**{"name": "quadratic", **kwargs})


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"run_dir": 3}, "`run_dir` must be a path"),
        ({"run_dir": "quadratic"}, "No directory 'quadratic/?'"),  # not the shipped one
        ({"name": 3}, "`name` must be a string"),
        ({"name": "../mine"}, "`name` must be a name of letters.*, not a path"),
        ({"name": ".."}, "`name` must be a name of letters.*, not a path"),
        ({"name": ""}, "`name` must be a string, not an empty one"),
        ({"known_limits": None}, "`known_limits` must be a string"),
    ],
)
def test_bad_arguments_of_shipping(kwargs, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = {"run_dir": catalog.pretrained_path("quadratic"), "name": "mine"}
    monkeypatch.setattr(catalog, "_DIRECTORY", tmp_path / "shipped")
    with pytest.raises((TypeError, ValueError, FileNotFoundError), match=message):
        pretrained.add(**{"known_limits": "", **arguments, **kwargs})
    assert not list(tmp_path.iterdir())


def test_ship_a_rule(tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    flags = ["--problem=quadratic", "--layers=4", "--num_steps=10", "--unroll_length=5"]
    flags += ["--num_episodes=4", "--validate_every=4", "--noevaluate", f"--save_dir={run_dir}"]
    assert call("meta_train", *flags).returncode == 0
    monkeypatch.setattr(catalog, "_DIRECTORY", tmp_path / "shipped")
    pretrained.add(run_dir, "mine", "It is small.")
    assert l2l_tf.pretrained_names() == ["mine"]
    np.testing.assert_array_equal(l2l_tf.load("mine").weights[0], l2l_tf.load(run_dir).weights[0])
    card = cards.read_card(catalog.pretrained_path("mine"))
    assert card["known_limits"] == "It is small."
    assert "best" not in card and os.fspath(tmp_path) not in str(card)
    with pytest.raises(FileExistsError):
        pretrained.add(run_dir, "mine", "It is small.")
    l2l_tf.save(update_rules.SGD(1.0), tmp_path / "no-card")
    with pytest.raises(ValueError, match="Expected the save directory of a bin/meta_train"):
        pretrained.add(tmp_path / "no-card", "other", "")
    assert l2l_tf.pretrained_names() == ["mine"]
