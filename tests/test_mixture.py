"""Mixtures: a problem for each episode, groups averaged, replicas, curricula."""

import collections
import json

import conftest
import keras
import numpy as np
import pytest
import tensorflow as tf

import l2l_tf
from l2l_tf import problems, update_rules
from l2l_tf.meta_training import curriculum
from l2l_tf.meta_training.estimator import Identity
from l2l_tf.meta_training.trainer import MetaTrainer
from l2l_tf.problems import Mixture, Quadratic, Simple


def rule():
    return update_rules.CoordinatewiseLSTM((4,), seed=0, zero_head=False, output_scale=0.01)


def trainer(problem, num_groups=2, credit="segment", **options):
    options = {"meta_batch_size": 2, "objective": "sum", **options}
    trainer_ = MetaTrainer(rule(), problem, 5, 10, num_groups=num_groups, credit=credit, **options)
    trainer_.compile(keras.optimizers.SGD(0.01))
    return trainer_


def weights(trainer_):
    return np.concatenate([w.numpy().ravel() for w in trainer_.rule.weights])


def test_a_problem_is_drawn_by_its_weight_as_a_function_of_seed_and_number():
    mixture = Mixture([(Quadratic(), 1.0), (Simple(), 3.0)])
    drawn = [int(mixture.draw(0, number)) for number in range(200)]
    assert drawn == [int(mixture.draw(0, number)) for number in range(200)]
    assert drawn != [int(mixture.draw(1, number)) for number in range(200)]
    assert collections.Counter(drawn)[1] == pytest.approx(150, abs=25)


class Double(Quadratic):
    """In float64."""

    dtype = "float64"

    def sample_parameters(self, seed):
        return [tf.cast(theta, tf.float64) for theta in super().sample_parameters(seed)]

    def batches(self, side, seed, num_batches):
        dataset = super().batches(side, seed, num_batches)
        return dataset.map(lambda *batch: tf.nest.map_structure(_double, batch))


def _double(leaf):
    return tf.cast(leaf, tf.float64)


def test_names_and_the_command_line():
    mixture = problems.get("quadratic|3*simple|lasso+2*simple|quadratic")
    assert mixture.name == "quadratic|3*simple|lasso+2*simple|quadratic"
    assert mixture.names == ["quadratic-1", "simple", "lasso+2*simple", "quadratic-2"]
    assert mixture.weights == [1.0, 3.0, 1.0, 1.0]
    for name, message in (
        ("quadratic|", "Mixture 'quadratic|': expected names of problems with '|' between.*''"),
        ("quadratic|0*simple", "Received the member: '0\\*simple'"),
        ("quadratic|nothing", "Unknown problem 'nothing'"),
    ):
        with pytest.raises(ValueError, match=message.replace("|", "\\|")):
            problems.get(name)
    with pytest.raises(ValueError, match="members of a mixture must be of one dtype"):
        Mixture([(Quadratic(), 1), (Double(), 1)])


@pytest.mark.parametrize("credit", ["segment", "episode"])
def test_each_window_is_of_the_problem_that_is_drawn(credit):
    """And has the parameters of that episode on that problem alone."""
    mixture = Mixture([(Quadratic(), 1.0), (Simple(), 1.0)])
    trainer_ = trainer(mixture, credit=credit)
    dataset = trainer_.dataset(7, 16)
    windows = list(dataset)
    assert len(dataset) == len(windows) == 8 * trainer_.num_windows
    seen = {}
    for index, element in windows:
        numbers = element["episode"].numpy()
        assert index == int(mixture.draw(7, numbers[0] // 2))
        seen.setdefault(tuple(numbers), []).append(int(element["window"][0]))
        alone = trainer(mixture.problems[index], num_groups=1, credit=credit)
        alone.episode.assign(numbers[0])
        expected = next(iter(alone.dataset(7, 2)))
        np.testing.assert_array_equal(element["parameters"], expected["parameters"])
    assert sorted(sum(seen, ())) == list(range(16))
    assert all(of_group == list(range(trainer_.num_windows)) for of_group in seen.values())
    # Groups take turns, window by window.
    firsts = [int(element["window"][0]) for _, element in windows[: 2 * trainer_.num_windows]]
    assert firsts == sorted(firsts)


def test_meta_gradients_of_groups_are_clipped_and_averaged():
    """A step of SGD at rate 1 against estimates of each group by itself."""
    mixture = Mixture([(Quadratic(), 1.0), (Simple(), 1.0)])
    trainer_ = trainer(mixture, num_groups=3, credit="episode", clip_norm=0.5)
    trainer_.compile(keras.optimizers.SGD(1.0))
    groups = [window for window, _ in zip(trainer_.dataset(0, 6), range(3))]
    assert len({index for index, _ in groups}) == 2
    estimator, total = Identity(trainer_.objective, 5), 0
    for index, data in groups:
        problem = mixture.problems[index]
        carry = estimator.start(trainer_.rule, problem, data["parameters"])
        gradients = estimator(trainer_.rule, problem, carry, data).gradients
        vector = np.concatenate([g.numpy().ravel() for g in gradients])
        norm = np.linalg.norm(vector)
        total += vector * min(1, 0.5 / norm)
        assert norm > 0
    before = weights(trainer_)
    trainer_.train_on_batch(groups)
    np.testing.assert_allclose(weights(trainer_) - before, -total / 3, atol=1e-6)
    with pytest.raises(ValueError, match="a window of each of 3 groups"):
        trainer_.train_on_batch(groups[:2])


def test_fit_validates_each_problem_and_names_the_worst(tmp_path):
    trainer_ = trainer(problems.get("quadratic|simple"), objective="relative")
    history = trainer_.fit(
        trainer_.dataset(0, 8),
        epochs=2,
        validation_data=trainer_.validation_dataset(0, 2),
        callbacks=[keras.callbacks.BackupAndRestore(tmp_path)],
        verbose=0,
    ).history
    assert trainer_.episode.numpy() == 16
    found = trainer_.validation.by_problem()
    assert set(found) == {"quadratic", "simple"}
    objectives = [of["objective"] for of in found.values()]
    assert history["val_objective"][-1] == pytest.approx(np.mean(objectives))
    assert history["val_worst"][-1] == pytest.approx(max(objectives))
    assert trainer_.validation.worst()[0] == max(found, key=lambda name: found[name]["objective"])


def test_an_interrupted_mixture_resumes_to_the_same_rule(tmp_path):
    whole, first, second = (trainer(problems.get("quadratic|simple")) for _ in range(3))
    whole.fit(whole.dataset(0, 8), epochs=2, verbose=0)
    first.fit(first.dataset(0, 8), verbose=0)
    first.save_weights(tmp_path / "a.weights.h5")
    second.load_weights(tmp_path / "a.weights.h5")
    second.fit(second.dataset(0, 8), verbose=0)
    np.testing.assert_array_equal(weights(second), weights(whole))
    middle = trainer(problems.get("quadratic|simple"))
    windows = iter(middle.dataset(0, 8))
    middle.train_on_batch([next(windows), next(windows)])
    with pytest.raises(ValueError, match="saved between episodes alone"):
        middle.save_weights(tmp_path / "b.weights.h5")


class DivergesAtStep(Quadratic):
    """Optimizees whose loss is not finite, or large, from a step on: those of odd episodes."""

    def __init__(self, step, value):
        super().__init__()
        self._step, self._value = step, value

    def batches(self, side, seed, num_batches):
        dataset = super().batches(side, seed, num_batches).enumerate()
        is_odd = tf.math.floormod(seed[0], 2) == 1
        return dataset.map(
            lambda step, coefficients: tf.nest.map_structure(
                lambda c: tf.where((step >= self._step) & is_odd, self._value * c, c), coefficients
            )
        )


def divergences(trainer_, num_episodes=8):
    with pytest.warns(UserWarning, match="An optimizee diverged, on 'quadratic' in episode"):
        trainer_.fit(trainer_.dataset(0, num_episodes), verbose=0)
    return {of["episode"]: of["step"] for of in trainer_.divergence.found}


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("value, max_loss_ratio", [(np.inf, None), (np.nan, None), (100.0, 50.0)])
def test_an_optimizee_that_diverges_is_told_and_the_others_go_on(
    value, max_loss_ratio, jit_compile
):
    problem = DivergesAtStep(3, value)
    options = {"max_loss_ratio": max_loss_ratio, "max_diverged": 1.0, "credit": "episode"}
    trainer_ = trainer(problem, num_groups=1, **options)
    trainer_.compile(keras.optimizers.SGD(1e-6), jit_compile=jit_compile)
    found = divergences(trainer_)
    assert 0 < len(found) < 8 and set(found.values()) == {3}
    assert np.isfinite(weights(trainer_)).all()
    assert (weights(trainer_) != weights(trainer(problem))).any()
    share = len(found) / 8
    assert trainer_.divergence.share == share
    strict = trainer(problem, num_groups=1, **{**options, "max_diverged": share / 2})
    strict.compile(keras.optimizers.SGD(1e-6), jit_compile=jit_compile)
    with pytest.raises(FloatingPointError, match="more than max_diverged=.*episode ., at step 3"):
        divergences(strict)


def test_what_was_stopped_counts_for_the_rest_of_the_episode():
    """∂/∂u by differences: f(θ_3) at the stop stands for all later losses."""
    problem = Double()
    rule_ = update_rules.CoordinatewiseLSTM((2,), seed=0, zero_head=False, dtype="float64")
    estimator = Identity(lambda losses: tf.reduce_sum(losses), max_loss_ratio=1.0001)
    data = next(iter(MetaTrainer(rule_, problem, 5, 10, credit="episode").dataset(0, 1)))
    rule_.weights[-2].assign(tf.fill([1, 2], tf.constant(-1e3, tf.float64)))  # diverges

    def run():
        carry = estimator.start(rule_, problem, data["parameters"])
        return estimator(rule_, problem, carry, data)

    estimate = run()
    stop = int(estimate.carry.runs.stopped_at[0])
    assert 0 < stop < 10
    losses = estimate.losses.numpy()[:, 0]
    np.testing.assert_array_equal(losses[stop:], losses[stop])
    # The bias of the output: the same in every step, so one number tells of all updates.
    bias, step = rule_.weights[-1], 1e-6
    value = {}
    for sign in (1, -1):
        bias.assign_add(sign * step * np.ones(bias.shape))
        value[sign] = float(run().values[0])
        bias.assign_add(-sign * step * np.ones(bias.shape))
    slope = (value[1] - value[-1]) / (2 * step)
    index = [v is bias for v in rule_.trainable_variables].index(True)
    received = np.sum(estimate.gradients[index])
    if stop == 1:  # nothing of the rule's inputs depends on the bias yet: exact
        assert received == pytest.approx(slope, rel=1e-4)
    assert np.sign(received) == np.sign(slope)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["given", "in scope"])
def test_replicas_give_what_one_device_gives(how):
    """Also of a Keras model, whose loss Keras would divide by their number."""
    mixture = Mixture([(Quadratic(), 1.0), (conftest.keras_problem(), 1.0)])
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

    def trained(strategy=None, scope=None):
        with scope or tf.distribute.get_strategy().scope():
            trainer_ = trainer(mixture, credit="episode", strategy=strategy)
            trainer_.compile(keras.optimizers.SGD(0.1))
        history = trainer_.fit(trainer_.dataset(0, 8), verbose=0).history
        assert len({index for index, _ in trainer_.dataset(0, 8)}) == 2
        return trainer_, history["loss"]

    alone, loss = trained()
    spread, loss_of_spread = trained(
        **({"scope": strategy.scope()} if how == "in scope" else {"strategy": strategy})
    )
    assert spread.replicas.num_replicas == 2
    assert np.abs(weights(alone) - weights(trainer(mixture))).max() > 1e-3
    np.testing.assert_allclose(weights(spread), weights(alone), atol=1e-5)
    np.testing.assert_allclose(loss_of_spread, loss, rtol=1e-4)


def test_optimizees_must_spread_evenly():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with pytest.raises(ValueError, match="meta_batch_size=3, of 2 replicas"):
        trainer(Quadratic(), meta_batch_size=3, strategy=strategy)


def test_the_stages_of_a_curriculum():
    assert [s["validation_steps"] for s in curriculum.stages([5, 10, 20], [4, 4, 4])] == [
        10,
        20,
        20,
    ]
    with pytest.raises(ValueError, match="horizons that increase"):
        curriculum.stages([10, 5], [4, 4])
    with pytest.raises(ValueError, match="as many numbers of episodes as horizons"):
        curriculum.stages([5, 10], [4])
    whole = keras.optimizers.schedules.CosineDecay(0.1, 10)
    parts = [curriculum.PartOfCosine(0.1, first, 10) for first in (0, 4)]
    for step in range(10):
        index = int(step >= 4)
        assert float(parts[index](step - 4 * index)) == pytest.approx(float(whole(step)), abs=1e-7)


def test_a_curriculum_runs_and_resumes(tmp_path):
    stages = curriculum.stages([5, 10], [4, 8])

    def run(save_dir):
        def make_trainer(rule_, num_steps):
            return MetaTrainer(rule_, Simple(), 5, num_steps)

        options = {"meta_learning_rate": 0.01, "settings": {"num_steps": [5, 10]}, "verbose": 0}
        return curriculum.run(
            make_trainer, rule(), save_dir, stages, validate_every=[2, 4], **options
        )

    card = run(tmp_path / "run")
    first = json.loads((tmp_path / "run" / "horizon-5" / "card.json").read_text())
    assert [r["episodes"] for r in first["validation"]] == [2, 4]
    assert [r["episodes"] for r in card["validation"]] == [4, 8]
    before = l2l_tf.load(tmp_path / "run").get_config()["weights"]
    assert run(tmp_path / "run")["validation"] == card["validation"]
    assert l2l_tf.load(tmp_path / "run").get_config()["weights"] == before
