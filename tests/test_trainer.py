import itertools
import math
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
from l2l_tf.files import cards, json_file
from l2l_tf.meta_training.callbacks import KeepBestRule
from l2l_tf.meta_training.run import meta_train
from l2l_tf.meta_training.trainer import MetaTrainer
from l2l_tf.problems import Quadratic, Simple


def rule():
    return update_rules.CoordinatewiseLSTM((4,), seed=0)


def trainer(problem=None, num_steps=10, **kwargs):
    return MetaTrainer(rule(), problem or Quadratic(), 5, num_steps, **kwargs)


def fitted(trainer_, epochs=2, num_episodes=4, **kwargs):
    trainer_.compile(optimizer=keras.optimizers.Adam(0.01))
    history = trainer_.fit(trainer_.dataset(0, num_episodes), epochs=epochs, verbose=0, **kwargs)
    return history.history


@pytest.mark.parametrize(
    "credit, options",
    [
        ("segment", {}),
        ("episode", {"second_derivatives": True}),
        pytest.param("episode", {}, marks=pytest.mark.slow),
        pytest.param("segment", {"second_derivatives": True}, marks=pytest.mark.slow),
    ],
)
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
    from l2l_tf.engine.episodes import episode_seed
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
        ({"objective": "mean"}, "'last', 'log', 'relative', 'sqrt', 'sum'.*'mean'"),
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


def first_difference(a, b):
    """Of two trainers: rule, meta-optimizer and carry, bit for bit; None if there is none."""
    for name, of_a, of_b in (
        ("rule", a.rule.weights, b.rule.weights),
        ("optimizer", a.optimizer.variables, b.optimizer.variables),
        ("episode", [a.episode], [b.episode]),
        ("carry", *(tf.nest.flatten([c for c in t._carries if c]) for t in (a, b))),
    ):
        if any((x.numpy() != y.numpy()).any() for x, y in zip(of_a, of_b, strict=True)):
            return name
    return None


def compiled(credit="segment", **options):
    trainer_ = trainer(credit=credit, meta_batch_size=2, **options)
    trainer_.compile(optimizer=keras.optimizers.Adam(0.01))
    return trainer_


class Stopped(Exception):
    pass


class StopAt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise Stopped


@pytest.mark.parametrize("credit", ["segment", pytest.param("episode", marks=pytest.mark.slow)])
def test_backup_and_restore_resumes_to_the_same_rule(credit, tmp_path):
    whole, first, second = (compiled(credit) for _ in range(3))
    whole.fit(whole.dataset(0, 4), epochs=4, verbose=0)
    callbacks = [keras.callbacks.BackupAndRestore(tmp_path / "backup"), StopAt()]
    with pytest.raises(Stopped):
        first.fit(first.dataset(0, 4), epochs=4, verbose=0, callbacks=callbacks)
    second.fit(second.dataset(0, 4), epochs=4, verbose=0, callbacks=callbacks[:1])
    assert whole.episode.numpy() == 16
    assert first_difference(second, whole) is None


def test_weights_saved_within_an_episode_resume_in_it(tmp_path):
    whole, first, second = (compiled() for _ in range(3))
    windows = list(whole.dataset(0, 4))
    assert [int(w["window"][0]) for w in windows] == [0, 1, 0, 1]
    for window in windows:
        whole.train_on_batch(window)
    for window in windows[:3]:
        first.train_on_batch(window)
    first.save_weights(tmp_path / "a.weights.h5")
    second.load_weights(tmp_path / "a.weights.h5")
    assert first_difference(second, first) is None
    assert first_difference(second, whole) == "rule"
    second.train_on_batch(windows[3])
    assert first_difference(second, whole) is None


@pytest.mark.slow  # as BackupAndRestore does, by default
def test_a_checkpoint_of_the_weights_resumes(tmp_path):
    whole, first, second = (compiled("episode") for _ in range(3))
    whole.fit(whole.dataset(0, 4), epochs=2, verbose=0)
    path = tmp_path / "{epoch}.weights.h5"
    callback = keras.callbacks.ModelCheckpoint(path, save_weights_only=True)
    first.fit(first.dataset(0, 4), verbose=0, callbacks=[callback])
    second.load_weights(tmp_path / "1.weights.h5")
    second.fit(second.dataset(0, 4), verbose=0)
    assert first_difference(second, whole) is None


def test_weights_of_another_trainer_are_refused(tmp_path):
    path = tmp_path / "a.weights.h5"
    compiled().save_weights(path)
    with pytest.raises(ValueError, match="not of such a MetaTrainer"):
        compiled("episode").load_weights(path)
    # A file of an earlier version has no episode.
    no_episode = compiled()
    no_episode.save_own_variables = lambda store: None
    no_episode.save_weights(path)
    other = compiled()
    other.episode.assign(6)
    with pytest.warns(UserWarning, match="goes on from episode 6"):
        other.load_weights(path)


def test_what_cannot_be_saved_is_said_before_training(tmp_path):
    trainer_ = compiled()
    refused = {
        "save_weights_only=True": [keras.callbacks.ModelCheckpoint(tmp_path / "a.keras")],
        "Received: save_freq=2": keras.callbacks.BackupAndRestore(tmp_path, save_freq=2),
    }
    for message, callbacks in refused.items():
        with pytest.raises(ValueError, match=message):
            trainer_.fit(trainer_.dataset(0, 4), callbacks=callbacks, verbose=0)
    with pytest.raises(ValueError, match="steps_per_epoch=3"):
        callbacks = [keras.callbacks.BackupAndRestore(tmp_path)]
        trainer_.fit(trainer_.dataset(0, 4), callbacks=callbacks, steps_per_epoch=3, verbose=0)
    with pytest.raises(TypeError, match="`callbacks` must be Keras callbacks.*'backup'"):
        trainer_.fit(trainer_.dataset(0, 4), callbacks="backup", verbose=0)
    assert trainer_.episode.numpy() == 0
    for name in ("a.keras", "a.h5"):
        for save in (trainer_.save, lambda path: keras.saving.save_model(trainer_, path)):
            with pytest.raises(NotImplementedError, match=r"l2l_tf.save\(trainer.rule, path\)"):
                save(tmp_path / name)
    with pytest.raises(NotImplementedError, match="save_weights"):
        trainer_.get_config()


def test_the_other_callbacks_of_keras(tmp_path):
    trainer_ = trainer()
    trainer_.compile(keras.optimizers.Adam(0.01, use_ema=True))
    seen = []
    weights_by_epoch = []
    kc = keras.callbacks
    callbacks = [
        # Each epoch counts as worse than the first, whose weights are to come back.
        kc.EarlyStopping("epoch_index", patience=3, mode="min", restore_best_weights=True),
        kc.ReduceLROnPlateau("epoch_index", factor=0.5, patience=1, mode="min"),
        kc.LearningRateScheduler(lambda epoch, rate: 0.01 if epoch == 0 else rate),
        kc.TerminateOnNaN(),
        kc.CSVLogger(str(tmp_path / "log.csv")),
        kc.TensorBoard(tmp_path / "logs", histogram_freq=1, update_freq="batch"),
        kc.SwapEMAWeights(),
        kc.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(sorted(logs))),
    ]

    class EpochIndex(kc.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["epoch_index"] = epoch
            weights_by_epoch.append([w.numpy() for w in trainer_.rule.weights])

    history = trainer_.fit(
        trainer_.dataset(0, 4),
        epochs=6,
        validation_data=trainer_.validation_dataset(0, 2),
        callbacks=[EpochIndex(), *callbacks],
        verbose=0,
    ).history
    assert len(history["loss"]) == 4  # stopped early
    assert history["learning_rate"][-1] == pytest.approx(0.00125)
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 5
    assert list((tmp_path / "logs" / "train").iterdir())
    assert {"loss", "val_loss", "val_final_loss", "inner_steps_per_second"} <= set(seen[0])
    for restored, first in zip(trainer_.rule.weights, weights_by_epoch[0], strict=True):
        np.testing.assert_array_equal(restored, first)


FOREIGN = {
    "other num_steps": lambda own: trainer(num_steps=20).dataset(0, 4),
    "same shapes": lambda own: trainer().dataset(0, 4),
    "for validation": lambda own: own.validation_dataset(0, 4),
    "in part": lambda own: own.dataset(0, 4).concatenate(trainer().dataset(0, 4)),
    "changed": lambda own: own.dataset(0, 4).map(lambda e: {**e, "batches": 0}),
    "of a user": lambda own: tf.data.Dataset.from_tensors((tf.zeros([2]), tf.zeros([2]))),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_data_of_others_are_refused(name):
    own = trainer()
    own.compile("adam")
    with pytest.raises(ValueError, match="`dataset` must be what dataset.* of this MetaTrainer"):
        own.fit(FOREIGN[name](own), verbose=0)
    other = own.dataset(0, 4) if name == "for validation" else FOREIGN[name](own)
    message = "must be what validation_dataset.* of this MetaTrainer"
    with pytest.raises(ValueError, match=message):
        own.fit(own.dataset(0, 4), validation_data=other, verbose=0)
    with pytest.raises(ValueError, match=message):
        own.evaluate(other, verbose=0)
    assert own.episode.numpy() == 0


def test_arrays_are_refused_and_parts_of_own_data_are_not():
    own = trainer()
    own.compile("adam")
    with pytest.raises(TypeError, match="`dataset` must be what dataset"):
        own.fit(np.zeros([4, 2]), verbose=0)
    with pytest.raises(TypeError, match="`validation_data` must be"):
        own.fit(own.dataset(0, 4), validation_data=(np.zeros(2), np.zeros(2)), verbose=0)
    own.fit(own.dataset(0, 8).take(4).prefetch(1), verbose=0)
    assert own.episode.numpy() == 2
    with pytest.raises(ValueError, match="compile"):
        trainer_ = trainer()
        trainer_.fit(trainer_.dataset(0, 4), verbose=0)


def test_compile_takes_an_optimizer_alone():
    for name in ("loss", "loss_weights", "metrics", "weighted_metrics"):
        with pytest.raises(ValueError, match=f"takes no `{name}`.*objective"):
            trainer().compile("adam", **{name: ["mae"]})
    with pytest.raises(TypeError, match="`optimizer` must be a Keras optimizer"):
        trainer().compile(None)
    with pytest.raises(ValueError, match="mixed precision"):
        trainer().compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()))
    optimizer = keras.optimizers.Adam()
    trainer().compile(optimizer)
    with pytest.raises(ValueError, match="built for other variables"):
        trainer().compile(optimizer)


def test_second_derivatives_and_jit_compile():
    trainer_ = trainer(second_derivatives=True)
    with pytest.raises(ValueError, match="XLA cannot compile.*'quadratic'"):
        trainer_.compile("adam", jit_compile=True)
    # As with a GPU, where Keras' "auto" is True.
    trainer_._resolve_auto_jit_compile = lambda: True
    trainer_.compile("adam")
    assert not trainer_.jit_compile
    first_order = trainer()
    first_order._resolve_auto_jit_compile = lambda: True
    first_order.compile("adam")
    assert first_order.jit_compile


def test_keras_dtype_policy_changes_nothing():
    weights = []
    for policy in ("float32", "mixed_float16", "float64"):
        keras.config.set_dtype_policy(policy)
        try:
            trainer_ = trainer()
            trainer_.compile(keras.optimizers.SGD(0.01))
            trainer_.fit(trainer_.dataset(0, 2), verbose=0)
        finally:
            keras.config.set_dtype_policy("float32")
        weights.append(np.concatenate([w.numpy().ravel() for w in trainer_.rule.weights]))
    np.testing.assert_array_equal(weights[0], weights[1])
    np.testing.assert_array_equal(weights[0], weights[2])


@pytest.mark.slow
def test_several_steps_an_execution(monkeypatch):
    """The rate counts all steps; the place of a divergence is that of the first."""
    ticks = itertools.count()
    clock = types.SimpleNamespace(perf_counter=lambda: next(ticks))
    monkeypatch.setattr("l2l_tf.meta_training.callbacks.time", clock)
    trainer_ = trainer()
    trainer_.compile("adam", steps_per_execution=2)
    history = trainer_.fit(trainer_.dataset(0, 4), verbose=0).history
    # Eight windows of five steps in four executions, at ticks 0, 1, 2, 3; the first is not counted.
    assert history["inner_steps_per_second"] == [6 * 5 / 3]

    trainer_ = trainer(NegativeLoss(), objective="log")
    trainer_.compile("adam", steps_per_execution=4)
    with pytest.raises(FloatingPointError, match="in episode 0, at its end"):
        trainer_.fit(trainer_.dataset(0, 4), verbose=0)


WRONG_KINDS = {
    "rule": ["adam", update_rules.CoordinatewiseLSTM, 3],
    "problem": ["mnist", Quadratic, conftest.mlp, None],
    "unroll_length": [5.0, "5", None, True],
    "num_steps": [10.0, "10", None],
    "meta_batch_size": [1.5, True],
    "credit": [None, 1],
    "objective": [3, None],
    "backward_fraction": ["x", None, True],
    "second_derivatives": [1, None],
    "chunk_size": [1.5, "x"],
}
OUT_OF_RANGE = {
    "unroll_length": [0, -5],
    "num_steps": [0, -10],
    "meta_batch_size": [0, -1],
    "credit": ["x"],
    "objective": ["x"],
    "backward_fraction": [math.nan, math.inf, -0.5, 1.5],
    "chunk_size": [0, -1],
}


@pytest.mark.parametrize(
    "error, name, value",
    [
        (error, name, value)
        for error, cases in ((TypeError, WRONG_KINDS), (ValueError, OUT_OF_RANGE))
        for name, values in cases.items()
        for value in values
    ],
)
def test_every_argument_is_checked(error, name, value):
    arguments = {"rule": rule(), "problem": Quadratic(), "unroll_length": 5, "num_steps": 10}
    with pytest.raises(error, match=f"`{name}` must be .*{name}="):
        MetaTrainer(**{**arguments, name: value})


def test_a_name_or_class_gets_a_hint():
    with pytest.raises(TypeError, match=r"l2l_tf.problems.get\('mnist'\).*KerasProblem"):
        MetaTrainer(rule(), "mnist")
    with pytest.raises(TypeError, match=r"make an instance, Quadratic\(...\)"):
        MetaTrainer(rule(), Quadratic)
    with pytest.raises(TypeError, match="l2l_tf.load"):
        MetaTrainer("mnist", Quadratic())


@pytest.mark.parametrize("method", ["dataset", "validation_dataset"])
def test_numbers_of_episodes_and_seeds(method):
    make = getattr(trainer(), method)
    for num_episodes in (0, -2):
        with pytest.raises(ValueError, match="`num_episodes` must be"):
            make(0, num_episodes)
    for num_episodes in (2.0, "2", None):
        with pytest.raises(TypeError, match="`num_episodes` must be"):
            make(0, num_episodes)
    for seed in (0.5, "0", None, [0, 1]):
        with pytest.raises(TypeError, match="`seed` must be"):
            make(seed, 2)
    for seed in (2**63, -(2**63) - 1):
        with pytest.raises(ValueError, match="`seed` must be .* 64 bits"):
            make(seed, 2)
    with pytest.raises(ValueError, match="less than 2.63 steps"):
        make(0, 2**62)
    assert "parameters" in next(iter(make(np.int64(-3), np.int32(2))))


@pytest.mark.parametrize(
    "objective, message",
    [
        (lambda losses: losses, r"must return a scalar.*losses of shape \(5,\)"),
        (lambda losses: 1.0, "must return a scalar"),
        (lambda losses: None, "must return a scalar"),
        (lambda losses: tf.cast(losses[-1], tf.float64), "must return a scalar of dtype float32"),
        (lambda losses: tf.constant(1.0), "does not depend on them"),
        (lambda losses: tf.cast(losses[-1] > 0, tf.float32), "does not depend on them"),
    ],
)
def test_an_objective_that_is_none(objective, message):
    with pytest.raises(ValueError, match=message):
        trainer(objective=objective)


def test_an_objective_of_ones_own():
    by_name, own = trainer(objective="last"), trainer(objective=lambda losses: losses[4])
    for trainer_ in (by_name, own):
        fitted(trainer_, epochs=1)
    for a, b in zip(by_name.rule.weights, own.rule.weights):
        np.testing.assert_array_equal(a, b)


def test_a_rule_that_does_not_take_the_problem():
    """At once, also where no state is carried from window to window."""
    problem = conftest.keras_problem()
    kernelwise = update_rules.KernelwiseLSTM((3, 3), (4,))
    left_out = update_rules.GroupedRule([("kernel", rule())])
    for credit in ("segment", "episode"):
        with pytest.raises(ValueError, match="takes convolution kernels of shape"):
            MetaTrainer(kernelwise, problem, 5, 10, credit=credit)
        with pytest.raises(ValueError, match="No pattern of the GroupedRule matches.*bias"):
            MetaTrainer(left_out, problem, 5, 10, credit=credit)


class BadParts(update_rules.GlobalAveragingLSTM):
    def __init__(self, received):
        super().__init__((4,), 2)
        self.received = received

    def parts(self, layout):
        return self.received


@pytest.mark.parametrize(
    "indices", [[(0,)], [(0, 1), (1,)], [(1, 0)], [(0, 1, 2)], [], [(0,), (-1,)]]
)
def test_parts_that_forget_a_tensor_or_take_one_twice(indices):
    parts = [update_rules.base.Part(rule(), of_part) for of_part in indices]
    bad = BadParts(parts)
    for use in (
        lambda: MetaTrainer(bad, Simple(2), 5, 10),
        lambda: l2l_tf.evaluate(Simple(2), {"bad": bad}, [], num_steps=2, num_seeds=1),
        lambda: l2l_tf.LearnedOptimizer(bad).build(Simple(2).variables()),
    ):
        with pytest.raises(ValueError, match="each of the 2 tensors .* in one part.*x_0.*x_1"):
            use()


@pytest.mark.parametrize("received", [None, [1, 2], [(rule, (0, 1))], [("adam", (0, 1))]])
def test_parts_of_another_kind(received):
    with pytest.raises(TypeError, match="must return a list of Part|must be an UpdateRule"):
        MetaTrainer(BadParts(received), Simple(2), 5, 10)


def test_what_does_not_fit_the_memory_is_not_allocated(monkeypatch):
    huge = 10**9
    with pytest.raises(ValueError, match="must fit this machine's memory.*Received: .* GiB"):
        trainer(num_steps=huge, credit="episode")
    with pytest.raises(ValueError, match="of 1000000000 optimizees on 'quadratic'"):
        trainer(meta_batch_size=huge)
    long = trainer(num_steps=huge)  # trained on in windows of five steps
    assert next(iter(long.dataset(0, 1)))["window"] == 0
    for num_episodes in (1, 8):
        with pytest.raises(ValueError, match=f"1000000000 steps of {num_episodes} optimizees"):
            long.validation_dataset(0, num_episodes)
    with pytest.raises(ValueError, match="10 steps of 10000000000 optimizees"):
        trainer().validation_dataset(0, 10**10)
    # (5 + 1) batches of 110 floats, and 1 + 2 * 5 vectors of 10 coordinates, for 2 optimizees.
    exact = 2 * (6 * 440 + 11 * 40)
    monkeypatch.setattr("l2l_tf.engine.episodes._physical_memory", lambda: exact)
    trainer(meta_batch_size=2)
    with pytest.raises(ValueError, match=r"\(10 coordinates, 440 bytes a batch\)"):
        trainer(meta_batch_size=3)
    monkeypatch.setattr("l2l_tf.engine.episodes._physical_memory", lambda: None)
    trainer(meta_batch_size=3)


def test_bytes_of_batches_of_unknown_shape():
    from l2l_tf.engine.episodes import _num_bytes

    spec = {
        "x": tf.TensorSpec([None, 3], tf.float32),
        "of unknown rank": tf.TensorSpec(None, tf.int64),
        "ragged": tf.RaggedTensorSpec([4, None], tf.float64),
    }
    assert _num_bytes(spec) == 3 * 4 + 8 + 4 * 8


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
        cards.write_card(save_dir, card)
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
    assert cards.read_card(save_dir)["superseded"] == []
    assert {"notes", "rule.npz", "variables"} <= set(os.listdir(save_dir / "rule-8"))
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
    card = cards.read_card(tmp_path)
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
                patch.setattr("l2l_tf.files.rule_directory.remove", kill)
        with pytest.raises(Killed):
            end_epoch(callback, 8, 0.3)
    card = cards.read_card(tmp_path)
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
    card = cards.read_card(tmp_path)
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
    cards.add_to_card(tmp_path / "run", changes)
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
    cards.write_card(tmp_path / "run", {"format_version": 1, "best": "rule-4"})
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
    with pytest.raises(ValueError, match="validate_every=3, 2 episodes a meta-step"):
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
    json_file.write({"format_version": 1, "best": None}, str(tmp_path / "card.json"))
    with pytest.raises(ValueError, match="has no rule yet"):
        l2l_tf.load(tmp_path)
