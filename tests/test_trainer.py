import conftest
import keras
import numpy as np
import pytest
import tensorflow as tf

import l2l_tf
from l2l_tf import saving, update_rules
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
