import json
import os
from unittest import mock

import conftest
import keras
import numpy as np
import pytest
import tensorflow as tf

import l2l_tf
from l2l_tf import update_rules
from l2l_tf.engine.episodes import episode_seed, windows
from l2l_tf.evaluation import baselines, curves
from l2l_tf.evaluation.learning_curves import Arena, loss_at
from l2l_tf.evaluation.pictures import draw_pictures
from l2l_tf.evaluation.report import Result, check_directory
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
    keys = {"problem", "num_steps", "num_seeds", "side", "has_heldout", "optimizers"}
    assert keys == set(content)
    assert content["side"] == "heldout" and content["has_heldout"] is True
    sgd = content["optimizers"]["sgd"]
    assert (sgd["source"], content["optimizers"]["good"]["source"]) == ("tuned", "learned")
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
    return [conftest.loss_on_batch(model, x[t], y[t]) for t in range(num_steps)]


def with_exclusions():
    optimizer = keras.optimizers.AdamW(0.01, weight_decay=20.0)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


def of_several():
    if not hasattr(keras.optimizers, "MultiOptimizer"):
        pytest.skip("This Keras has no MultiOptimizer.")
    by_name = keras.optimizers.OptimizerMap(keras.optimizers.SGD(0.5))
    by_name["bias|kernel"] = with_exclusions()
    return keras.optimizers.MultiOptimizer(by_name)


KERAS_OPTIMIZERS = {
    "AdamW": with_exclusions,
    "schedule": lambda: keras.optimizers.Lion(
        keras.optimizers.schedules.PiecewiseConstantDecay([3], [0.1, 0.01])
    ),
    "scaled loss": lambda: keras.optimizers.SGD(0.5, momentum=0.9, loss_scale_factor=64.0),
    "LossScaleOptimizer": lambda: keras.optimizers.LossScaleOptimizer(with_exclusions()),
    "MultiOptimizer": of_several,
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
    runner, last = arena.runner(optimizer), arena._episodes("report", 3)[-1]
    runner.prepare(last)
    np.testing.assert_allclose(runner.run(last)[0][0], losses[-1], rtol=1e-6)


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
        super().__init__(0.1, name="no_config")


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
        (
            lambda: keras.optimizers.LossScaleOptimizer(excluding_variables()),
            "'adam_?w.*' excludes variables of one model",
        ),
    ],
)
def test_keras_optimizers_that_cannot_be_copied_are_refused_before_any_tuning(make, message):
    with (
        mock.patch.object(baselines, "tune", side_effect=AssertionError),
        pytest.raises(ValueError, match=message),
    ):
        l2l_tf.evaluate(Bowl(), [make()], ["sgd"], num_steps=2, num_seeds=1)


class OwnConfig(keras.optimizers.SGD):
    """A class whose config has what it needs, and no learning rate."""

    def __init__(self, name="own_config"):
        super().__init__(0.5, name=name)

    def get_config(self):
        return {"name": self.name}


@pytest.mark.parametrize(
    "make, rate",
    [
        (lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.5)), 0.5),
        (of_several, None),
        (OwnConfig, None),
    ],
)
def test_the_learning_rate_of_a_keras_optimizer_that_has_none_of_its_own(make, rate):
    problem = conftest.keras_problem()
    result = l2l_tf.evaluate(problem, {"given": make()}, [], num_steps=2, num_seeds=1)
    assert result.optimizers["given"]["learning_rate"] == rate


def test_rules_in_a_list_have_their_own_names():
    rules = [update_rules.SGD(0.1, name="mine"), update_rules.Adam(0.1, name="other")]
    result = l2l_tf.evaluate(Bowl(), rules, [], num_steps=2, num_seeds=1)
    assert list(result.optimizers) == ["mine", "other"]


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
        ({"baselines": []}, "Nothing to compare"),
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


def made(losses, source="learned", learning_rate=None, seconds_per_step=1e-3):
    return {
        "source": source,
        "learning_rate": learning_rate,
        "grid": [[learning_rate, 1.0]] if source == "tuned" else None,
        "loss": np.asarray(losses, "float64"),
        "seconds_per_step": seconds_per_step,
    }


def made_result(losses=((3.0, 2.0, 1.0), (2.0, 2.0, 1.0)), **kwargs):
    losses = np.asarray(losses, "float64")
    return Result("bowl", losses.shape[1], len(losses), {"mine": made(losses)}, **kwargs)


@pytest.mark.parametrize(
    "kwargs, data",
    [
        ({}, "held-out data"),
        ({"side": "train"}, "training data"),
        ({"side": "train", "has_heldout": False}, "training data"),
        ({"has_heldout": False}, "training data (the problem has no held-out data)"),
    ],
)
def test_a_result_says_which_data_it_is_on(kwargs, data):
    result = made_result(**kwargs)
    assert result.data == data
    assert f"'bowl' on {data}, 2 fresh optimizees" in result.table()
    assert "trained on the very batches whose loss is reported" in result.table()
    assert drawn(result)[0].get_suptitle() == f"bowl: fresh optimizees on {data}"


def test_a_result_says_where_each_optimizer_came_from():
    losses = [[3.0, 2.0, 1.0]]
    optimizers = {
        "mine": made(losses),
        "adam": made(losses, "tuned", 0.0123),
        "lion": made(losses, "given", 0.01),
        "adamw": made(losses, "given"),
    }
    result = Result("bowl", 3, 1, optimizers)
    assert (result.learned, result.tuned) == (["mine", "lion", "adamw"], ["adam"])
    rows = {line.split()[0]: line for line in result.table().splitlines()[2:6]}
    assert "  learned  " in rows["mine"] and "  0.0123  " in rows["adam"]
    assert "  0.01 (given)  " in rows["lion"] and "  given  " in rows["adamw"]
    labels = [text.get_text() for text in drawn(result)[0].legends[0].get_texts()]
    assert labels == ["mine", "lion (given: 0.01)", "adamw (given)", "adam (tuned: 0.0123)"]
    sources = {name: o["source"] for name, o in result.to_json()["optimizers"].items()}
    assert sources == {"mine": "learned", "adam": "tuned", "lion": "given", "adamw": "given"}


def test_one_seed_has_no_standard_error():
    table = made_result([[3.0, 2.0, 1.0]]).table()
    assert "one fresh optimizee" in table and "±" not in table


def test_no_ratio_of_losses_that_are_not_above_0():
    optimizers = {"mine": made([[1.0, -2.0]]), "sgd": made([[1.0, -3.0]], "tuned", 0.1)}
    assert "of the best tuned" not in Result("bowl", 2, 1, optimizers).table()


def drawn(result, tmp="curves.png"):
    """The figure of a result's plot, and its two axes."""
    with mock.patch("matplotlib.figure.Figure.savefig", autospec=True) as savefig:
        result.plot(tmp)
    (figure, _), _ = savefig.call_args
    return figure, *figure.axes


def test_lines_are_the_tables_mean_of_five_and_single_steps_are_behind():
    losses = np.random.default_rng(0).uniform(1, 2, (3, 12))
    losses[0, 6] = 100.0  # a spike of one seed
    result = made_result(losses)
    _, by_step, by_time = drawn(result)
    for axes in (by_step, by_time):
        each_step, line = axes.lines
        np.testing.assert_allclose(each_step.get_ydata(), losses.mean(axis=0))
        expected = [result.loss_at("mine", step) for step in range(1, 13)]
        np.testing.assert_allclose(line.get_ydata(), expected)
        assert each_step.get_alpha() < 0.5 and each_step.get_linewidth() < line.get_linewidth()
    np.testing.assert_array_equal(by_step.lines[1].get_xdata(), np.arange(1, 13))
    assert "mean of 3 optimizees, at a step: the mean of 5" in by_step.get_ylabel()
    assert "pale: each step" in by_step.get_ylabel()


def test_the_axis_stays_logarithmic_where_a_loss_is_0():
    losses = np.array([[1.0, 0.1, 0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]] * 2)
    _, by_step, _ = drawn(made_result(losses))
    low, high = by_step.get_ylim()
    assert by_step.get_yscale() == "log" and 0 < low < 0.01 and high > 1
    for line in by_step.lines:
        assert line.get_ydata()[-1] == low
    assert "0 is drawn at the lower edge" in by_step.get_ylabel()
    _, by_step, _ = drawn(made_result(losses + 0.1))
    assert "lower edge" not in by_step.get_ylabel()


@pytest.mark.parametrize(
    "losses, scale",
    [
        ([[1.0, -1.0, -2.0]] * 2, "linear"),
        ([[0.0, 0.0, 0.0]] * 2, "linear"),
        ([[np.nan, np.nan, np.nan]] * 2, "linear"),
        ([[1.0, 1e200, np.inf]] * 2, "log"),
        ([[1.0, 1.0, 1.0]] * 2, "log"),
        ([[1.0, 0.0, 0.0]] * 2, "log"),
    ],
)
def test_axes_of_unusual_losses(losses, scale, tmp_path, recwarn):
    result = made_result(losses)
    result.optimizers["steep"] = made(np.abs(losses) * [1.0, 1e9, 1e100])
    _, by_step, _ = drawn(result)
    assert by_step.get_yscale() == scale
    low, high = by_step.get_ylim()
    assert np.isfinite([low, high]).all() and low < high and high < 1e3
    assert by_step.get_xlim()[0] < 1 and by_step.get_xlim()[1] > 3
    result.plot(tmp_path / "curves.png")
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


def test_what_diverged_is_named_in_the_legend():
    figure, *_ = drawn(made_result([[1.0, 2.0, np.inf], [1.0, 1.0, 1.0]]))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["mine (diverged)"]


@pytest.mark.parametrize(
    "seconds_per_step, unit, last",
    [(1.0, "seconds", 2), (2e-3, "milliseconds", 4), (3e-6, "microseconds", 6)],
)
def test_times_are_in_a_unit_that_fits(seconds_per_step, unit, last):
    result = made_result()
    result.optimizers["mine"]["seconds_per_step"] = seconds_per_step
    _, _, by_time = drawn(result)
    assert by_time.get_xlabel() == f"{unit}, of one optimizee"
    np.testing.assert_allclose(by_time.lines[1].get_xdata()[-1], last)


@pytest.mark.parametrize("num_steps", [2, 5, 7, 100])
def test_ticks_of_steps_are_integers(num_steps):
    figure, by_step, _ = drawn(made_result(np.ones([2, num_steps])))
    figure.draw_without_rendering()
    ticks = by_step.get_xticks()
    assert len(ticks) >= 2
    np.testing.assert_array_equal(ticks, np.round(ticks))


def test_the_legend_hides_no_curve():
    result = made_result(np.random.default_rng(0).uniform(1, 2, (3, 12)))
    for index in range(8):
        name = f"runs/a/directory/of/some/length/experiment-{index}"
        result.optimizers[name] = made(np.random.default_rng(index).uniform(1, 2, (3, 12)))
    figure, *all_axes = drawn(result)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert all(axes.get_legend() is None for axes in all_axes)
    assert not any(axes.get_tightbbox().overlaps(box) for axes in all_axes)
    assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1


def test_titles_of_pictures_touch_nothing():
    image = np.zeros([8, 8, 3], "uint8")
    name = "runs/a/directory/of/some/length/experiment, 128 steps"
    rows = [[("content", image, None), (name, image, 0.5), (name, image, 1e-5)]] * 3
    with mock.patch("matplotlib.figure.Figure.savefig", autospec=True) as savefig:
        draw_pictures(rows, "pictures.png")
    (figure, _), _ = savefig.call_args
    figure.draw_without_rendering()
    texts = [t for axes in figure.axes for t in (axes.title, axes.xaxis.label) if t.get_text()]
    boxes = [text.get_window_extent().padded(4) for text in texts]
    for index, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])


def test_save_replaces_an_earlier_result_alone(tmp_path, monkeypatch):
    directory = tmp_path / "out"
    made_result().save(directory)
    before = (directory / "results.json").read_text()
    made_result([[9.0, 9.0]]).save(directory)
    assert (directory / "results.json").read_text() != before

    monkeypatch.setenv("HOME", str(tmp_path))
    made_result().save("~/at-home")
    assert (tmp_path / "at-home" / "results.json").exists()
    assert check_directory("~/at-home") == str(tmp_path / "at-home")


@pytest.mark.parametrize("name", ["results.json", "curves.png", "pictures.png"])
@pytest.mark.parametrize("kind", ["file", "directory", "link", "dangling link"])
def test_save_leaves_the_users_files(name, kind, tmp_path):
    directory, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    directory.mkdir()
    path = directory / name
    if kind == "directory":
        path.mkdir()
    elif kind == "file":
        path.write_text('{"mine": 1}')
    else:
        if kind == "link":
            made_result().save(elsewhere)
        path.symlink_to(elsewhere / "results.json")
    before = sorted(os.listdir(directory))
    with pytest.raises(FileExistsError, match=f"has {name}, which no earlier result"):
        made_result().save(directory)
    assert sorted(os.listdir(directory)) == before
    assert kind != "file" or path.read_text() == '{"mine": 1}'


def test_save_where_no_directory_can_be(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below" / "it"):
        with pytest.raises(FileExistsError, match="cannot be a directory"):
            made_result().save(path)
    with pytest.raises(TypeError, match="`directory` must be a path"):
        made_result().save(3)


def test_time_unit_of_the_slowest():
    result = made_result()
    result.optimizers["slow"] = made([[1.0] * 3], seconds_per_step=2.0)
    assert curves.time_unit(result) == ("seconds", 1)
