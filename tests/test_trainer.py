import os
import pathlib
import shutil
import types

import conftest
import keras
import numpy as np
import pytest
import tensorflow as tf

import l2l_tf
from l2l_tf import saving, update_rules
from l2l_tf.meta_training.callbacks import KeepBestRule
from l2l_tf.meta_training.run import meta_train
from l2l_tf.meta_training.trainer import MetaTrainer
from l2l_tf.problems import Quadratic


def rule():
    return update_rules.CoordinatewiseLSTM((4,), seed=0)


def trainer(problem=None, num_steps=10, **kwargs):
    return MetaTrainer(rule(), problem or Quadratic(), 5, num_steps, **kwargs)


def fitted(trainer_, epochs=2, num_episodes=4, **kwargs):
    trainer_.compile(optimizer=keras.optimizers.Adam(0.01))
    history = trainer_.fit(trainer_.dataset(0, num_episodes), epochs=epochs, verbose=0, **kwargs)
    return history.history


@pytest.mark.parametrize("credit", ["episode", "segment"])
@pytest.mark.parametrize("options", [{}, {"second_derivatives": True}])
def test_meta_training_lowers_the_loss(credit, options):
    trainer_ = trainer(conftest.keras_problem(), credit=credit, meta_batch_size=2, **options)
    validation = trainer_.validation_dataset(0, 4)
    history = fitted(trainer_, epochs=4, num_episodes=20, validation_data=validation)
    assert history["val_loss"][-1] < 0.9 * history["val_loss"][0]
    assert history["val_final_loss"][-1] < history["val_loss"][-1]
    assert history["inner_steps_per_second"][-1] > 0
    assert trainer_.episode.numpy() == 80


def test_segments_carry_the_optimizee_and_the_rules_state():
    """At meta-rate 0, segment after segment gives the losses of the whole episode.

    (The batches of a quadratic's episode are all the same, however they are cut into windows.)
    """
    mean_losses = []
    for credit in ("episode", "segment"):
        trainer_ = trainer(Quadratic(), credit=credit, meta_batch_size=2)
        trainer_.rule.weights[-2].assign(tf.ones([1, 4]))
        trainer_.compile(optimizer=keras.optimizers.SGD(0.0))
        history = trainer_.fit(trainer_.dataset(0, 2), verbose=0).history
        mean_losses.append(history["loss"][0])
    np.testing.assert_allclose(mean_losses[0], mean_losses[1], rtol=1e-5)


def test_jit_compile_gives_the_same_rule():
    weights = []
    for jit_compile in (False, True):
        trainer_ = trainer(conftest.keras_problem(), credit="segment")
        trainer_.compile(optimizer=keras.optimizers.Adam(0.01), jit_compile=jit_compile)
        trainer_.fit(trainer_.dataset(0, 2), verbose=0)
        weights.append(np.concatenate([w.numpy().ravel() for w in trainer_.rule.weights]))
    assert np.abs(weights[0]).max() > 0
    np.testing.assert_allclose(weights[0], weights[1], atol=1e-4)


@pytest.mark.slow
def test_jit_compile_with_drawn_coordinates():
    trainer_ = trainer(conftest.keras_problem(), backward_fraction=0.5)
    before = [w.numpy() for w in trainer_.rule.weights]
    trainer_.compile(optimizer=keras.optimizers.Adam(0.01), jit_compile=True)
    trainer_.fit(trainer_.dataset(0, 2), verbose=0)
    moved = [np.abs(w.numpy() - b).max() for w, b in zip(trainer_.rule.weights, before)]
    assert 1e-3 < max(moved) < 0.1


def test_each_epoch_goes_on_with_new_episodes():
    trainer_ = trainer(credit="episode", meta_batch_size=2)
    dataset = trainer_.dataset(seed=0, num_episodes=4)
    first = [e["episode"].numpy().tolist() for e in dataset]
    trainer_.episode.assign(4)
    second = [e["episode"].numpy().tolist() for e in dataset]
    assert (first, second) == ([[0, 1], [2, 3]], [[4, 5], [6, 7]])
    a, b = (next(iter(trainer_.dataset(seed, 4)))["parameters"] for seed in (0, 1))
    assert np.abs(a - b).max() > 0


class DivergingQuadratic(Quadratic):
    """Not finite from step 7 of episode 3 on."""

    def batches(self, side, seed, num_batches):
        dataset = super().batches(side, seed, num_batches).enumerate()
        is_third = tf.reduce_all(seed == self.bad_seed)
        return dataset.map(
            lambda step, coefficients: tf.nest.map_structure(
                lambda c: tf.where((step >= 7) & is_third, np.nan, c), coefficients
            )
        )


@pytest.mark.parametrize("num_optimizees", [1, 2])
def test_a_loss_that_is_not_finite_stops_at_its_episode_and_step(num_optimizees):
    from l2l_tf.meta_training.episodes import episode_seed
    from l2l_tf.problems.base import fold_in

    problem = DivergingQuadratic()
    problem.bad_seed = fold_in(episode_seed(0, "meta_train", 3), 1)
    trainer_ = trainer(problem, credit="episode", meta_batch_size=num_optimizees)
    with pytest.raises(FloatingPointError, match="episode 3, at step 7"):
        fitted(trainer_)
    assert all(np.isfinite(w.numpy()).all() for w in trainer_.rule.weights)


class NegativeLoss(Quadratic):
    def loss(self, theta, coefficients):
        return super().loss(theta, coefficients) - 1e6


def test_a_rule_and_a_problem_of_two_dtypes():
    rule_ = update_rules.CoordinatewiseLSTM((3,), dtype="float64")
    with pytest.raises(ValueError, match="one dtype. Received: float64 and float32"):
        MetaTrainer(rule_, Quadratic())


def test_a_meta_gradient_that_is_not_finite_is_named():
    with pytest.raises(FloatingPointError, match="objective or its meta-gradient is not"):
        fitted(trainer(NegativeLoss(), objective="log"))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"num_steps": 12}, "num_steps=12, unroll_length=5"),
        ({"meta_batch_size": 0}, "meta_batch_size=0"),
        ({"credit": "all"}, "'segment', 'episode'.*'all'"),
        ({"objective": "mean"}, "'last', 'log', 'sqrt', 'sum'.*'mean'"),
        ({"backward_fraction": 0.0}, "backward_fraction=0.0"),
        ({"backward_fraction": 0.5, "second_derivatives": True}, "second_derivatives=True"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        trainer(**kwargs)


def test_bad_rules_and_numbers_of_episodes():
    with pytest.raises(TypeError, match="must be an UpdateRule"):
        MetaTrainer("adam", Quadratic())
    with pytest.raises(ValueError, match="SGD has no trainable weights"):
        MetaTrainer(update_rules.SGD(), Quadratic())
    with pytest.raises(ValueError, match="num_episodes=3, meta_batch_size=2"):
        trainer(meta_batch_size=2).dataset(0, 3)


def run(save_dir, num_episodes=12, **kwargs):
    options = {"meta_learning_rate": 0.01, "validate_every": 4, "verbose": 0, **kwargs}
    trainer_ = trainer(credit="segment")
    card = meta_train(trainer_, str(save_dir), num_episodes=num_episodes, **options)
    return trainer_, card


def test_run_keeps_the_best_rule_and_resumes_to_the_same_weights(tmp_path, monkeypatch):
    whole, card = run(tmp_path / "whole")
    best = min(card["validation"], key=lambda record: record["val_loss"])
    assert card["best"] == f"rule-{best['episodes']}"
    assert [p.name for p in (tmp_path / "whole").glob("rule-*")] == [card["best"]]
    loaded = l2l_tf.load(tmp_path / "whole")
    assert loaded.get_config()["layers"] == [4]

    class Killed(BaseException):
        pass

    def kill(self, epoch, logs=None):
        if epoch == 1:
            raise Killed

    # Killed in the worst place: the best rule and card are written, the checkpoint is not.
    with monkeypatch.context() as patch:
        patch.setattr("l2l_tf.meta_training.callbacks.SaveCheckpoint.on_epoch_end", kill)
        patch.setattr(
            "l2l_tf.meta_training.callbacks.SaveCheckpoint.on_epoch_begin",
            lambda self, epoch, logs=None: epoch == 1 and self._manager.save(),
        )
        with pytest.raises(Killed):
            run(tmp_path / "resumed")
    resumed, resumed_card = run(tmp_path / "resumed")
    for a, b in zip(whole.rule.weights, resumed.rule.weights):
        np.testing.assert_array_equal(a, b)
    assert resumed_card["validation"] == card["validation"]
    for a, b in zip(l2l_tf.load(tmp_path / "resumed").weights, loaded.weights):
        np.testing.assert_array_equal(a, b)


def test_run_refuses_what_is_not_its_own(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(FileExistsError, match="holds something else"):
        run(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]

    run(tmp_path / "a", num_episodes=4, settings={"layers": 4, "seed": 0})
    with pytest.raises(ValueError, match="layers=4 there, 5 now"):
        run(tmp_path / "a", num_episodes=4, settings={"layers": 5, "seed": 0})
    go_on = "To go on from its best rule.*a new save_dir and --init_from=.*/a .*l2l_tf.load"
    with pytest.raises(ValueError, match=go_on):
        run(tmp_path / "a", num_episodes=4, settings={"layers": 5, "seed": 0})
    with pytest.raises(ValueError, match="num_episodes=5, validate_every=4"):
        run(tmp_path / "b", num_episodes=5)
    assert not (tmp_path / "b").exists()

    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Cannot write .*file/c"):
        run(tmp_path / "file" / "c")
    for text, message in (('{"form', "it is cut"), ('{"format_version": 1}', "not the card of a")):
        (tmp_path / "a" / "card.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            run(tmp_path / "a", num_episodes=4)


def test_a_best_rule_whose_replacement_was_killed_is_put_back(tmp_path):
    _, card = run(tmp_path, num_episodes=4)
    best = tmp_path / card["best"]
    best.rename(f"{best}.l2l_tf-replaced")
    run(tmp_path, num_episodes=4)
    assert best.is_dir()


def keeper(save_dir, card=None):
    """KeepBestRule of a meta-training in which the loss is what the test says."""
    if card is None:
        card = {"format_version": 1, "best": None, "best_validation_loss": None, "seconds": 0.0}
        card |= {"superseded": [], "validation": []}
        saving.write_card(save_dir, card)
    callback = KeepBestRule(str(save_dir), card)
    callback.set_model(types.SimpleNamespace(episode=tf.Variable(0), rule=update_rules.SGD()))
    callback.on_train_begin()
    return callback


def end_epoch(callback, episodes, loss):
    callback.model.episode.assign(episodes)
    callback.model.rule.learning_rate.assign(loss)  # so that it can be told
    callback.on_epoch_end(0, {"loss": loss, "val_loss": loss, "val_final_loss": loss})


def rules_in(save_dir):
    return sorted(p.name for p in pathlib.Path(save_dir).glob("rule-*"))


def test_a_superseded_rule_goes_and_nothing_else(tmp_path):
    save_dir, victim = tmp_path / "run", tmp_path / "victim"
    save_dir.mkdir()
    victim.mkdir()
    (victim / "notes").write_text("precious")
    callback = keeper(save_dir)
    end_epoch(callback, 4, 0.4)
    for name in ("rule-notes", "rule-1", "rule-5"):
        (save_dir / name).mkdir()
    l2l_tf.save(update_rules.SGD(), save_dir / "rule-2")
    (save_dir / "rule-old").symlink_to(victim)
    (save_dir / "rule-3").symlink_to(victim)
    users = ["rule-1", "rule-2", "rule-3", "rule-5", "rule-notes", "rule-old"]
    end_epoch(callback, 8, 0.3)
    end_epoch(callback, 12, 0.35)
    assert rules_in(save_dir) == sorted([*users, "rule-8"])
    (save_dir / "rule-8" / "notes").write_text("precious")  # now it is the user's
    end_epoch(callback, 16, 0.2)
    end_epoch(callback, 20, 0.1)
    assert rules_in(save_dir) == sorted([*users, "rule-8", "rule-20"])
    assert saving.read_card(save_dir)["superseded"] == []
    assert {"notes", "rule.json", "variables"} <= set(os.listdir(save_dir / "rule-8"))
    assert (victim / "notes").read_text() == "precious"


@pytest.mark.parametrize("kind", ["rule", "directory", "link"])
def test_a_users_rule_of_the_name_of_the_next_is_not_replaced(kind, tmp_path):
    callback = keeper(tmp_path)
    end_epoch(callback, 4, 0.4)
    l2l_tf.save(update_rules.SGD(), tmp_path / ("rule-8" if kind == "rule" else "mine"))
    if kind == "directory":
        (tmp_path / "rule-8").mkdir()
    if kind == "link":
        (tmp_path / "rule-8").symlink_to(tmp_path / "mine")
    with pytest.raises(FileExistsError, match="rule-8' is not of this meta-training"):
        end_epoch(callback, 8, 0.3)
    assert rules_in(tmp_path) == ["rule-4", "rule-8"]
    card = saving.read_card(tmp_path)
    assert (card["best"], card["superseded"]) == ("rule-4", [])


@pytest.mark.parametrize("moment", ["before the save", "after the save", "after the card"])
def test_a_kill_leaves_no_rule_that_the_card_does_not_know(moment, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(*args, **kwargs):
        raise Killed

    def save_and_kill(*args, **kwargs):
        l2l_tf.save(*args, **kwargs)
        raise Killed

    callback = keeper(tmp_path)
    end_epoch(callback, 4, 0.4)
    with monkeypatch.context() as patch:
        match moment:
            case "before the save":
                patch.setattr(saving, "save", kill)
            case "after the save":
                patch.setattr(saving, "save", save_and_kill)
            case "after the card":
                patch.setattr("l2l_tf.rule_directory.remove", kill)
        with pytest.raises(Killed):
            end_epoch(callback, 8, 0.3)
    card = saving.read_card(tmp_path)
    left = {
        "before the save": ["rule-4"],
        "after the save": ["rule-4", "rule-8"],
        "after the card": ["rule-4", "rule-8"],
    }
    assert rules_in(tmp_path) == left[moment]
    assert {card["best"], *card["superseded"]} == {"rule-4", "rule-8"}
    assert l2l_tf.load(tmp_path) is not None
    callback = keeper(tmp_path, card)
    assert rules_in(tmp_path) == [card["best"]]
    end_epoch(callback, 8, 0.3)
    assert rules_in(tmp_path) == ["rule-8"]
    assert float(l2l_tf.load(tmp_path).learning_rate) == np.float32(0.3)


def test_a_card_of_before_there_was_a_list_goes_on(tmp_path):
    callback = keeper(tmp_path)
    end_epoch(callback, 4, 0.4)
    card = saving.read_card(tmp_path)
    del card["superseded"]
    l2l_tf.save(update_rules.SGD(), tmp_path / "rule-8")  # a kill before the card was written
    callback = keeper(tmp_path, card)
    end_epoch(callback, 8, 0.3)
    assert rules_in(tmp_path) == ["rule-8"]
    assert float(l2l_tf.load(tmp_path).learning_rate) == np.float32(0.3)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The directory of a finished meta-training."""
    path = tmp_path_factory.mktemp("finished") / "run"
    run(path, num_episodes=4)
    return path


BAD_NAMES = {
    "outside": {"best": "../x"},
    "a path": {"best": "rule-4/variables"},
    "absolute": {"best": "/x"},
    "no name": {"best": ""},
    "a link": {"best": "rule-1"},
    "a file": {"best": "rule-2"},
    "not there": {"best": "rule-3"},
    "superseded outside": {"superseded": ["rule-1", "../x"]},
    "superseded no list": {"superseded": "rule-1"},
    "superseded a number": {"superseded": [1]},
}


@pytest.mark.parametrize("changes", BAD_NAMES.values(), ids=BAD_NAMES)
def test_a_card_that_names_what_is_not_its_own_is_damaged(changes, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    for place in ("x", "run/x"):
        l2l_tf.save(update_rules.SGD(), tmp_path / f"{place}.l2l_tf-replaced")
    (tmp_path / "run" / "rule-1").symlink_to(tmp_path / "x.l2l_tf-replaced")
    (tmp_path / "run" / "rule-2").write_text("precious")
    saving.add_to_card(tmp_path / "run", changes)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="card.json in .*run' is damaged"):
        run(tmp_path / "run", num_episodes=4)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("sign", ["[1]", "?", "*", "\\1"])
def test_a_save_dir_that_is_a_pattern_is_refused(sign, tmp_path):
    """The checkpoints of exp1 would be read and removed as those of exp[1]."""
    for path in (tmp_path / f"exp{sign}", tmp_path / f"exp{sign}" / "run"):
        with pytest.raises(ValueError, match="without any of .*TensorFlow takes names of check"):
            run(path)
    assert not os.listdir(tmp_path)


def test_what_is_a_pattern_elsewhere_is_none_here(tmp_path, monkeypatch):
    (tmp_path / "exp[1]").mkdir()
    monkeypatch.chdir(tmp_path / "exp[1]")
    for _ in range(2):
        _, card = run("run {1}]", num_episodes=4)
    assert rules_in("run {1}]") == [card["best"]]


@pytest.mark.parametrize("target", ["empty", "run", "nothing"])
def test_a_link_is_not_meta_trained_into(target, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    saving.write_card(tmp_path / "run", {"format_version": 1, "best": "rule-4"})
    (tmp_path / "link").symlink_to(tmp_path / target)
    before = sorted(tmp_path.rglob("*"))
    for path in ("link", "link/"):
        with pytest.raises(FileExistsError, match="is a symbolic link"):
            run(f"{tmp_path}/{path}")
    assert sorted(tmp_path.rglob("*")) == before


def test_checkpoints_of_others_stay(finished, tmp_path):
    for name in ("run", "other"):
        shutil.copytree(finished, tmp_path / name)
    state = tmp_path / "run" / "checkpoints" / "checkpoint"
    text = state.read_text()
    for path in ("../../other/checkpoints/ckpt-1", f"{tmp_path}/other/checkpoints/ckpt-1"):
        state.write_text(text.replace("ckpt-1", path))
        with pytest.raises(ValueError, match="damaged: it names .*other/checkpoints/ckpt-1"):
            run(tmp_path / "run", num_episodes=4)
    state.write_text(text)
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "elsewhere")
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError, match="checkpoints' is a symbolic link"):
        run(tmp_path / "run", num_episodes=4)


def test_settings_with_a_tuple_are_the_same_when_they_are_read(tmp_path):
    for _ in range(2):
        _, card = run(tmp_path, num_episodes=4, settings={"layers": (4,)})
    assert card["settings"]["layers"] == [4]


def test_a_save_dir_in_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    _, card = run("~/run", num_episodes=4)
    assert l2l_tf.card("~/run") == card


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"trainer": "x"}, "`trainer` must be an l2l_tf.MetaTrainer.*'x'"),
        ({"trainer": MetaTrainer}, "That is the class: make an instance"),
        ({"save_dir": 3}, "`save_dir` must be a path.*3 of type int"),
        ({"save_dir": ""}, "`save_dir` must be a string, not an empty one"),
        ({"save_dir": "quadratic"}, "name of a shipped rule.*'./quadratic'.*save_dir='quadratic'"),
        ({"num_episodes": 8.0}, "`num_episodes` must be an integer.*8.0 of type float"),
        ({"num_episodes": 0}, "`num_episodes` must be an integer, 1 at least.*num_episodes=0"),
        ({"num_episodes": "8"}, "`num_episodes` must be an integer.*'8'"),
        ({"num_episodes": True}, "`num_episodes` must be an integer.*True"),
        ({"num_episodes": 6}, "num_episodes=6, validate_every=4"),
        ({"validate_every": 0}, "`validate_every` must be an integer, 1 at least"),
        ({"validate_every": -4}, "`validate_every` must be an integer, 1 at least"),
        ({"validate_every": 4.0}, "`validate_every` must be an integer.*4.0"),
        ({"meta_learning_rate": -1}, "`meta_learning_rate` must be .*above 0.*=-1"),
        ({"meta_learning_rate": 0}, "`meta_learning_rate` must be .*above 0.*=0"),
        ({"meta_learning_rate": float("nan")}, "`meta_learning_rate` must be a finite.*nan"),
        ({"meta_learning_rate": float("inf")}, "`meta_learning_rate` must be a finite.*inf"),
        ({"meta_learning_rate": "0.1"}, "`meta_learning_rate` must be a finite number.*'0.1'"),
        ({"num_validation_episodes": 0}, "`num_validation_episodes` must be .*1 at least"),
        ({"num_validation_episodes": 1.5}, "`num_validation_episodes` must be an integer.*1.5"),
        ({"seed": 1.5}, "`seed` must be an integer.*1.5"),
        ({"seed": None}, "`seed` must be an integer.*None"),
        ({"settings": ["seed"]}, "`settings` must be a dict or None"),
        ({"settings": {"rate": float("nan")}}, "`settings`.* must be of what JSON knows.*nan"),
        ({"settings": {"rule": rule}}, "`settings`.* must be of what JSON knows.*function"),
        ({"command": 3}, "`command` must be a string"),
        ({"jit_compile": "yes"}, "`jit_compile` must be True or False.*'yes'"),
        ({"verbose": "no"}, "`verbose` must be an integer.*'no'"),
        ({"verbose": -1}, "`verbose` must be an integer, 0 at least"),
    ],
)
def test_bad_arguments_of_a_run_are_refused_before_anything_is_written(
    kwargs, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    options = {"trainer": trainer(), "save_dir": "run", "num_episodes": 8}
    options |= {"meta_learning_rate": 0.01, "validate_every": 4, **kwargs}
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        meta_train(**options)
    assert len(str(caught.value)) < 800
    assert not os.listdir(tmp_path)


def test_validations_must_end_with_a_meta_batch(tmp_path):
    with pytest.raises(ValueError, match="validate_every=3, meta_batch_size=2"):
        meta_train(
            trainer(meta_batch_size=2),
            tmp_path / "run",
            num_episodes=6,
            meta_learning_rate=0.01,
            validate_every=3,
        )
    assert not os.listdir(tmp_path)


def test_a_damaged_checkpoint_is_named_and_the_best_rule_survives(tmp_path):
    run(tmp_path, num_episodes=4)
    for path in (tmp_path / "checkpoints").glob("*.data-*"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read"):
        run(tmp_path, num_episodes=4)
    assert isinstance(l2l_tf.load(tmp_path), update_rules.CoordinatewiseLSTM)


def test_a_run_stopped_before_its_first_validation_has_no_rule_to_load(tmp_path):
    saving.write_json({"format_version": 1, "best": None}, str(tmp_path / "card.json"))
    with pytest.raises(ValueError, match="has no rule yet"):
        l2l_tf.load(tmp_path)
