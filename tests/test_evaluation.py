import json

import conftest
import keras
import numpy as np
import pytest
import tensorflow as tf

import l2l_tf
from l2l_tf import update_rules
from l2l_tf.evaluation import baselines
from l2l_tf.evaluation.learning_curves import Arena, loss_at
from l2l_tf.meta_training.episodes import episode_seed, windows
from l2l_tf.problems import Quadratic
from l2l_tf.problems.base import Problem


class Bowl(Problem):
    """f(θ) = ½θ² from θ = 1: with gradient descent at rate α, θ_t = (1 - α)^t."""

    name = "bowl"
    layout = [("theta", (1,))]

    def sample_parameters(self, seed):
        return [tf.ones([1])]

    def batches(self, side, seed, num_batches):
        return tf.data.Dataset.range(num_batches)

    def loss_and_gradients(self, parameters, batch):
        return 0.5 * tf.reduce_sum(parameters[0] ** 2), parameters


def test_losses_are_measured_before_each_update():
    arena = Arena(Bowl(), num_steps=4)
    losses = arena.losses(arena.runner(update_rules.SGD(0.5)), "report", num_seeds=2)
    np.testing.assert_allclose(losses, [[0.5, 0.125, 0.03125, 0.0078125]] * 2)


def test_loss_at_a_step_is_the_mean_of_the_five_before():
    assert loss_at(np.arange(10.0), 10) == 7.0
    assert loss_at(np.arange(10.0), 2) == 0.5


def test_every_optimizer_gets_the_same_optimizees_and_tuning_gets_others():
    arena = Arena(conftest.keras_problem(), num_steps=3)
    first, other = (
        arena.losses(arena.runner(update_rules.SGD(rate)), "report", 3) for rate in (0.1, 1.0)
    )
    np.testing.assert_array_equal(first[:, 0], other[:, 0])
    assert len(set(first[:, 0])) == 3
    tuning = arena.losses(arena.runner(update_rules.SGD(0.1)), "tune", 3)
    assert not set(tuning[:, 0]) & set(first[:, 0])


@pytest.mark.parametrize("name", baselines.BASELINES)
def test_tuning_ends_with_the_best_inside_a_fine_grid(name):
    tuned = baselines.tune(name, Arena(Quadratic(), num_steps=20), num_seeds=4)
    rates, scores = zip(*tuned.grid)
    scores = [np.inf if s is None else s for s in scores]
    best = int(np.argmin(scores))
    assert rates[best] == tuned.learning_rate == pytest.approx(float(tuned.rule.learning_rate))
    assert 0 < best < len(rates) - 1
    for neighbour in (rates[best - 1], rates[best + 1]):
        ratio = max(neighbour, rates[best]) / min(neighbour, rates[best])
        assert ratio == pytest.approx(1.5, rel=1e-3)


def test_tuning_finds_a_best_far_from_where_it_starts():
    class Flat(Bowl):
        def loss_and_gradients(self, parameters, batch):
            loss, gradients = super().loss_and_gradients(parameters, batch)
            return loss, [1e-5 * g for g in gradients]

    tuned = baselines.tune("sgd", Arena(Flat(), num_steps=20), num_seeds=1)
    assert 5e4 < tuned.learning_rate < 2e5


def test_tuning_says_so_if_no_rate_is_best():
    class Linear(Bowl):
        def loss_and_gradients(self, parameters, batch):
            return -tf.reduce_sum(parameters[0]), [-tf.ones([1])]

    with pytest.raises(RuntimeError, match="No best learning rate found for 'sgd' on 'bowl'"):
        baselines.tune("sgd", Arena(Linear(), num_steps=3), num_seeds=1)


@pytest.fixture(scope="module")
def result():
    rules = {
        "good": update_rules.Momentum(0.01, nesterov=True),
        "diverging": update_rules.SGD(1e30),
    }
    return l2l_tf.evaluate(Quadratic(), rules, ["sgd", "adam"], num_steps=20, num_seeds=8)


def test_table_and_ratio(result):
    table = result.table()
    assert [line.split()[0] for line in table.splitlines()[2:6]][-1] == "diverging"
    assert "diverged" in table and "good: loss sum" in table
    assert all(f"loss at {step}" in table for step in (5, 10, 20))
    best = min(result.loss_sum("sgd"), result.loss_sum("adam"))
    assert result.ratio("good") == pytest.approx(result.loss_sum("good") / best)
    assert (result.learned, result.tuned) == (["good", "diverging"], ["sgd", "adam"])


def test_results_json_and_curves(result, tmp_path):
    result.save(tmp_path / "out")
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {"problem", "num_steps", "num_seeds", "optimizers"} == set(content)
    sgd = content["optimizers"]["sgd"]
    assert np.shape(sgd["loss"]) == (8, 20)
    np.testing.assert_allclose(np.mean(sgd["loss"], axis=0), sgd["mean_loss"], rtol=1e-5)
    error = np.std(sgd["loss"], axis=0, ddof=1) / np.sqrt(8)
    np.testing.assert_allclose(error, sgd["stderr"], rtol=1e-4)
    assert sgd["learning_rate"] in [rate for rate, _ in sgd["grid"]]
    assert sgd["seconds_per_step"] > 0
    assert None in content["optimizers"]["diverging"]["loss"][0]
    assert (tmp_path / "out" / "curves.png").stat().st_size > 10_000
    summary = result.summary()
    assert summary["diverging"]["loss_sum"] is None and summary["sgd"]["loss_sum"] > 0
    for step in (5, 10, 20):
        expected = loss_at(sgd["loss"], step).mean()
        np.testing.assert_allclose(summary["sgd"][f"loss_at_{step}"], expected, rtol=1e-3)
    assert not result.pictures and not (tmp_path / "out" / "pictures.png").exists()


def test_compare_prints_the_table_and_writes_the_curves(tmp_path, capsys):
    result = l2l_tf.compare(
        conftest.mlp,
        conftest.image_data(),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        {"mine": update_rules.Adam(0.05)},
        baselines=["sgd"],
        num_steps=5,
        num_seeds=2,
        output_dir=tmp_path,
    )
    assert result.table() in capsys.readouterr().out
    assert (tmp_path / "curves.png").exists()


def by_fit(problem, optimizer, num_steps, build_model=conftest.mlp):
    """The losses of Keras' own training on the first optimizee of a report."""
    (window,) = windows(problem, "heldout", episode_seed(0, "report", 0), 1, num_steps - 1)
    model = build_model()
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    sizes = [v.shape.num_elements() for v in model.trainable_variables]
    for variable, value in zip(model.trainable_variables, tf.split(window["parameters"], sizes)):
        variable.assign(tf.reshape(value, variable.shape))
    x, y = window["batches"][0]
    return [float(np.asarray(model.train_on_batch(x[t], y[t]))) for t in range(num_steps)]


def with_exclusions():
    optimizer = keras.optimizers.AdamW(0.01, weight_decay=20.0)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


KERAS_OPTIMIZERS = {
    "AdamW": with_exclusions,
    "schedule": lambda: keras.optimizers.Lion(
        keras.optimizers.schedules.PiecewiseConstantDecay([3], [0.1, 0.01])
    ),
    "scaled loss": lambda: keras.optimizers.SGD(0.5, momentum=0.9, loss_scale_factor=64.0),
    "accumulation": lambda: keras.optimizers.Adam(0.1, gradient_accumulation_steps=2),
    "EMA": lambda: keras.optimizers.SGD(0.5, use_ema=True, ema_overwrite_frequency=3),
    "learned": lambda: l2l_tf.LearnedOptimizer("mnist-mlp-lite", learning_rate=0.3),
}


@pytest.mark.parametrize("make", KERAS_OPTIMIZERS.values(), ids=KERAS_OPTIMIZERS)
def test_a_keras_optimizer_trains_as_in_fit_and_each_optimizee_afresh(make):
    problem, optimizer = conftest.keras_problem(), make()
    result = l2l_tf.evaluate(problem, {"given": optimizer}, [], num_steps=6, num_seeds=3)
    losses = result.optimizers["given"]["loss"]
    np.testing.assert_allclose(losses[0], by_fit(problem, make(), 6), rtol=2e-4)
    assert int(optimizer.iterations) == 0
    # The last optimizee's losses do not depend on those before it.
    arena = Arena(problem, num_steps=6)
    runner = arena.runner(optimizer)
    for element in arena._episodes("report", 3)[::-1]:
        runner.prepare(element)
        last = runner.run(element)[0][0]
        np.testing.assert_allclose(last, losses[-1], rtol=1e-6)
        break


def test_a_keras_optimizer_and_the_rule_of_its_name_are_equal_on_any_problem():
    problem = l2l_tf.problems.get("simple-multi")
    rules = {"rule": update_rules.Momentum(0.1), "keras": keras.optimizers.SGD(0.1, momentum=0.9)}
    result = l2l_tf.evaluate(problem, rules, [], num_steps=5, num_seeds=2)
    losses = [result.optimizers[name]["loss"] for name in rules]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    sources = [(o["source"], o["learning_rate"]) for o in result.optimizers.values()]
    assert sources == [("learned", None), ("given", pytest.approx(0.1))]


def test_a_rule_of_another_dtype_than_the_problem():
    class Double(Bowl):
        dtype = "float64"

        def sample_parameters(self, seed):
            return [tf.ones([1], tf.float64)]

    rules = {"rule": update_rules.SGD(0.5)}
    result = l2l_tf.evaluate(Double(), rules, ["sgd"], num_steps=4, num_seeds=1)
    np.testing.assert_allclose(
        result.optimizers["rule"]["loss"], [[0.5, 0.125, 0.03125, 0.0078125]]
    )


class NoConfig(keras.optimizers.SGD):
    def __init__(self, secret):
        super().__init__(0.1)


def excluding_variables():
    optimizer = keras.optimizers.AdamW()
    optimizer.build(conftest.mlp().trainable_variables)
    optimizer.exclude_from_weight_decay(var_list=optimizer._trainable_variables[:1])
    return optimizer


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: NoConfig(3), "'no_config' .NoConfig. cannot be copied by its config"),
        (excluding_variables, "'adam_?w' excludes variables of one model"),
    ],
)
def test_keras_optimizers_that_cannot_be_copied(make, message):
    with pytest.raises(ValueError, match=message):
        l2l_tf.evaluate(Bowl(), [make()], [], num_steps=2, num_seeds=1)


def test_sides_and_progress(capsys):
    problem = conftest.keras_problem()
    rules = {"mine": update_rules.SGD()}
    result = l2l_tf.evaluate(problem, rules, ["sgd"], num_steps=2, num_seeds=1, verbose=True)
    assert (result.side, result.has_heldout) == ("heldout", False)
    assert "tuning sgd" in capsys.readouterr().err
    result = l2l_tf.evaluate(Bowl(), rules, [], num_steps=2, num_seeds=1, side="train")
    assert (result.side, result.has_heldout) == ("train", True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"baselines": ["adm"]}, "Unknown baseline 'adm'. Did you mean 'adam'"),
        ({"optimizers": ["no-such-rule"]}, "Unknown rule 'no-such-rule'"),
        ({"num_steps": 1}, "num_steps=1"),
        ({"optimizers": {"adam": update_rules.SGD()}}, "different names"),
        ({"baselines": ["sgd", "sgd"]}, "different names. Received twice: .'sgd'"),
        ({"optimizers": ["quadratic", "quadratic"]}, "different names"),
        ({"optimizers": {"x": 3}}, r"`optimizers\['x'\]` must be an update rule"),
        ({"optimizers": "quadratic"}, "`optimizers` must be a dict"),
        ({"baselines": "sgd"}, "`baselines` must be a list"),
        ({"num_steps": 10.0}, "`num_steps` must be an integer"),
        ({"num_seeds": 1.5}, "`num_seeds` must be an integer"),
        ({"num_tuning_seeds": 0}, "`num_tuning_seeds` must be an integer, 1 at least"),
        ({"seed": "x"}, "`seed` must be an integer"),
        ({"side": "test"}, "`side` must be one of"),
        (
            {"optimizers": {"x": update_rules.GroupedRule([("bias", update_rules.SGD())])}},
            "No pattern of the GroupedRule matches the variable 'theta'",
        ),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        l2l_tf.evaluate(Quadratic(), **{"optimizers": {}, **kwargs})
    assert "in user code" not in str(caught.value)
