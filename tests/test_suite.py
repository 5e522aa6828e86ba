"""The general suite: its problems, baselines, arithmetic, and report."""

import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from l2l_tf import update_rules
from l2l_tf.evaluation.suite import baselines as baselines_lib
from l2l_tf.evaluation.suite import contestants, evaluate_suite, standing, summary
from l2l_tf.evaluation.suite.baselines import Baselines
from l2l_tf.evaluation.suite.contest import Contest, Run, thinned
from l2l_tf.evaluation.suite.report import Entry, SuiteResult
from l2l_tf.problems import suite

QUICK = ("cancer_logistic", "graph", "factorization", "image_vae", "burgers")
GET = suite.get
LOCAL = [name for name in suite.NAMES if name not in suite.READ_FROM_TFDS]
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in LOCAL if name not in QUICK]


def few_steps(name, num_steps=60):
    problem = GET(name)
    problem.num_steps = num_steps
    return problem


@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_adam_lowers_the_loss_of_each_problem(name):
    problem = few_steps(name)
    assert problem.name == name
    contest = Contest(problem)
    assert not contest.problem.acts_between_steps
    rule = update_rules.Adam(0.01 if name != "image_blur" else 0.003)
    run = contest.run(contest.runner(rule), num_seeds=1)
    assert all(np.isfinite(values).all() for values in run)
    assert run.curve.shape == (1, 60) and run.curve.min() >= 0
    assert run.final[0] < 0.97 * run.initial[0]
    size = sum(int(np.prod(shape)) for _, shape in contest.problem.layout)
    assert 10 < size < 500_000


def test_the_list_is_of_functions_of_these_names():
    assert len(suite.NAMES) >= 16
    for name in suite.NAMES:
        assert [hasattr(m, name) for m in suite._MODULES].count(True) == 1, name
    with pytest.raises(ValueError, match="Unknown suite problem 'grap'.*graph"):
        suite.get("grap")


def test_nothing_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr("l2l_tf.problems.tfds_images.is_online", lambda: True)
    with pytest.raises(FileNotFoundError, match="'mnist'.*not fetched here"):
        suite.get("mnist_28", tmp_path)


def test_what_is_measured():
    """The final loss is after the last update, and of the sample; so is the first."""
    problem = few_steps("graph", 5)
    contest = Contest(problem)
    rule = update_rules.SGD(0.5)
    run = contest.run(contest.runner(rule), num_seeds=2)
    keras_problem, (first, _) = contest.problem, contest._arena.initial_parameters("report", 2)
    theta = tf.split(first, [int(np.prod(s)) for _, s in keras_problem.layout])
    theta = [tf.reshape(t, s) for t, (_, s) in zip(theta, keras_problem.layout)]

    def of_sample():
        losses = [keras_problem.loss_and_gradients(theta, batch)[0] for batch in contest._sample]
        return float(np.mean(losses))

    assert run.initial[0] == pytest.approx(of_sample(), rel=1e-5)
    episode = contest._arena._episodes("report", 2)[0]
    for t in range(5):
        batch = tf.nest.map_structure(lambda leaf: leaf[0, t], episode["batches"])  # noqa: B023
        loss, gradients = keras_problem.loss_and_gradients(theta, batch)
        assert run.curve[0, t] == pytest.approx(float(loss), rel=1e-4)
        theta = [p - 0.5 * g for p, g in zip(theta, gradients)]
    assert run.final[0] == pytest.approx(of_sample(), rel=1e-4)
    assert len(contest._sample) == 120 // problem.batch_size


def test_schedule_free_is_measured_at_its_average():
    """One step: y = x = z; two: y is not x."""
    contest = Contest(few_steps("graph", 30))
    rule = update_rules.ScheduleFreeAdamW(0.1)
    run = contest.run(contest.runner(rule), num_seeds=1)
    _, at_x = contest._arena.losses_and_parameters(contest.runner(rule), "report", 1)
    assert run.final[0] == pytest.approx(contest.loss(at_x[0]), rel=1e-6)

    class AtY(update_rules.ScheduleFreeAdamW):
        def final_shift(self, state):
            return None

    _, at_y = contest._arena.losses_and_parameters(contest.runner(AtY(0.1)), "report", 1)
    assert np.abs(at_x - at_y).max() > 1e-3


def test_divergence_is_seen_where_only_a_gradient_is_not_finite():
    class Blind(update_rules.SGD):
        """Goes to where the loss is finite, and its gradient is not."""

        def update(self, gradients, state):
            return tf.fill(tf.shape(gradients), 3e38), state

    contest = Contest(few_steps("factorization", 6))
    run = contest.run(contest.runner(Blind(0.1)), num_seeds=1)
    assert summary.diverged(run).all() and not np.isfinite(run.final[0])


def test_images_with_batch_normalization_are_judged_by_statistics_of_training_data():
    contest = Contest(few_steps("image_blur", 4))
    (start,) = contest._arena.initial_parameters("report", 1)
    x, _ = contest.suite_problem.heldout
    keras_problem = contest.problem
    theta = tf.split(start, [int(np.prod(s)) for _, s in keras_problem.layout])
    theta = [tf.reshape(t, s) for t, (_, s) in zip(theta, keras_problem.layout)]
    seen = contest.suite_problem.train[0][:256]
    with_some = keras_problem.outputs(theta, x[:8], seen)
    np.testing.assert_allclose(
        keras_problem.outputs(theta, x[:4], seen), with_some[:4], rtol=1e-3, atol=1e-4
    )
    assert np.abs(with_some - keras_problem.outputs(theta, x[:8])).max() > 0.01


# The arithmetic.


def run_of(final, initial=1.0, mean=None, heldout=0.5, curve=None):
    final = np.atleast_1d(np.array(final, "float64"))
    ones = np.ones_like(final)
    return Run(
        initial * ones,
        final,
        0.5 * ones if mean is None else np.array(mean, "float64"),
        heldout * ones,
        np.tile(np.linspace(1, 0.1, 100), (len(final), 1)) if curve is None else curve,
    )


@pytest.mark.parametrize(
    "final, baseline, ratio, outcome",
    [
        ([0.1, 0.1], [0.2, 0.2], 0.5, "win"),
        ([0.4, 0.1], [0.2, 0.2], 1.0, "tie"),  # geometric: neither seed counts for more
        ([0.203, 0.203], [0.2, 0.2], 1.015, "tie"),
        ([0.21, 0.21], [0.2, 0.2], 1.05, "loss"),
        ([1e-9, 1e-9], [1e-5, 1e-5], 1.0, "tie"),  # both below the floor
        ([1e-9, 1e-9], [0.1, 0.1], 0.01, "win"),
        ([np.nan, 0.1], [0.2, 0.2], np.sqrt(5 * 0.5), "loss"),  # as if nothing was learned
        ([np.inf, 0.0], [1.0, 1.0], np.sqrt(0.001), "loss"),  # a small ratio, but it diverged
        ([50.0, 0.1], [0.2, 0.2], np.sqrt(5 * 0.5), "loss"),  # finite, but above the start
        ([0.1, 0.1], [np.nan, 0.1], np.sqrt(0.1), "win"),
    ],
)
def test_ratio_and_outcome(final, baseline, ratio, outcome):
    comparison = summary.compare(run_of(final), run_of(baseline))
    assert comparison.final == pytest.approx(ratio, rel=1e-6)
    assert comparison.outcome == outcome


def test_a_loss_that_is_not_finite_on_the_way_is_a_divergence():
    curve = np.tile(np.linspace(1, 0.1, 100), (2, 1))
    curve[1, 50] = np.nan
    run = run_of([0.1, 0.1], mean=[0.5, np.nan], curve=curve)
    assert summary.diverged(run).tolist() == [False, True]
    comparison = summary.compare(run, run_of([0.2, 0.2]))
    assert comparison.outcome == "loss"
    assert comparison.mean == pytest.approx(np.sqrt(2))  # its mean counts as the initial loss


def test_the_summary_shows_the_worst_and_every_loss():
    pairs = {"a": 0.1, "b": 0.1, "c": 0.1, "d": 0.2, "e": 8.0}
    baseline = run_of([0.2])
    found = {
        name: summary.compare(run_of([final * 0.2]), baseline) for name, final in pairs.items()
    }
    found["e"] = summary.compare(run_of([np.nan]), baseline)
    whole = summary.summarize(found)
    assert (whole.wins, whole.ties, whole.losses) == (4, 0, 1)
    assert whole.worst == ("e", pytest.approx(5.0))
    assert whole.share_at_or_below == pytest.approx(0.8)
    values = [0.1, 0.1, 0.1, 0.2, 5.0]
    assert whole.geometric_mean == pytest.approx(np.exp(np.mean(np.log(values))))
    assert whole.median == pytest.approx(0.1)


@pytest.mark.parametrize(
    "ours, theirs, higher_is_better, expected",
    [
        (0.9, 0.8, True, "better"),
        (0.8, 0.803, True, "alike"),
        (0.7, 0.8, True, "worse"),
        (0.7, 0.8, False, "better"),
        (0.81, 0.8, False, "alike"),
        (0.9, 0.8, False, "worse"),
        (np.nan, 0.8, False, "worse"),
        (np.nan, 0.8, True, "worse"),
    ],
)
def test_held_out(ours, theirs, higher_is_better, expected):
    pair = run_of([0.1], heldout=ours), run_of([0.1], heldout=theirs)
    assert summary.compare_heldout(*pair, higher_is_better) == expected


def test_steps_to_a_loss():
    curve = np.concatenate([np.linspace(1, 0, 50), np.zeros(50)])[None]
    assert summary.steps_to(run_of([0.1], curve=curve), -0.1) is None
    width = 2  # a fiftieth
    first = summary.steps_to(run_of([0.1], curve=curve), 0.5)
    assert curve[0, first - width : first].mean() <= 0.5
    assert curve[0, first - 1 - width : first - 1].mean() > 0.5
    assert summary.steps_to(run_of([0.1], curve=np.full([1, 100], np.nan)), 0.5) is None


def test_thinned():
    assert thinned(np.arange(100.0)).tolist() == np.arange(0.5, 100, 2).tolist()
    assert len(thinned(np.arange(7.0))) == 7


# Baselines.


@pytest.fixture
def tiny(monkeypatch):
    """The suite with three contestants on a problem of 20 steps, one tuning seed and two seeds."""
    names = ("adam", "adam_default", "schedule_free")
    chosen = {name: contestants.CONTESTANTS[name] for name in names}
    for module in (contestants, baselines_lib, evaluate_suite):
        monkeypatch.setattr(module, "CONTESTANTS", chosen)
    monkeypatch.setattr(contestants, "NUM_TUNING_SEEDS", 1)
    for module in (baselines_lib, evaluate_suite):
        monkeypatch.setattr(module, "NUM_SEEDS", 2)
    monkeypatch.setattr(suite, "get", lambda name, data_dir=None: few_steps(name, 20))
    return chosen


def test_baselines_are_computed_once_and_resumed(tiny, tmp_path, monkeypatch):
    store = Baselines(tmp_path / "baselines")
    assert store.missing("graph") == list(tiny)
    contest = Contest(few_steps("graph", 20))

    def stop(what):
        if what == "schedule_free":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.complete(contest, stop)
    assert store.missing("graph") == ["schedule_free"]
    before = store.read("graph")
    started = []
    store.complete(contest, started.append)
    assert started == ["schedule_free"] and not store.missing("graph")
    after = store.read("graph")
    assert {name: after[name] for name in before} == before
    store.complete(contest, started.append)
    assert started == ["schedule_free"]

    record = after["adam"]
    rates, losses = zip(*record["grid"])
    losses = [np.inf if loss is None else loss for loss in losses]
    best = int(np.argmin(losses))
    assert 0 < best < len(rates) - 1 and record["learning_rate"] == pytest.approx(rates[best])
    assert rates[best + 1] == pytest.approx(2 * rates[best]) == pytest.approx(4 * rates[best - 1])
    rule = update_rules.Adam(record["learning_rate"])
    again = contest.run(contest.runner(rule), num_seeds=2)
    baselines_lib.check_same_start("graph", record, again.initial)
    kept = baselines_lib.from_json(record)
    for field in ("initial", "final", "mean", "heldout"):
        np.testing.assert_allclose(getattr(kept, field), getattr(again, field), rtol=1e-3)
    np.testing.assert_allclose(kept.curve[0], thinned(again.curve.mean(axis=0)), rtol=1e-3)
    text = (tmp_path / "baselines" / "graph.json").read_text()
    assert json.loads(text)["num_steps"] == 20


class Losses:
    """A contest whose final losses are a function of the learning rate's exponent."""

    def __init__(self, of_exponent):
        self.of_exponent = of_exponent
        self.suite_problem = suite.get("graph")

    def runner(self, rule):
        return rule

    def tuning_loss(self, rule, num_seeds):
        return self.of_exponent(round(np.log2(float(rule.learning_rate) / 0.001)))


@pytest.mark.parametrize(
    "of_exponent, best",
    [
        (lambda e: abs(e - 5), 5),
        (lambda e: abs(e + 9), -9),  # far below where it starts
        (lambda e: np.inf if e > -3 else abs(e + 5), -5),  # all diverge at first
        (lambda e: min(abs(e - 1) + 1, abs(e - 6)), 6),  # the better of two
        (lambda e: np.nan if e > 4 else -e, 4),  # best just before it diverges
    ],
)
def test_tuning_finds_the_best_rate_inside_of_its_grid(of_exponent, best):
    rule = update_rules.Adam()
    grid = contestants.tune(rule, Losses(of_exponent), (0, 2, 4, 6))
    rates = [rate for rate, _ in grid]
    assert rates == sorted(rates)
    at = rates.index(pytest.approx(0.001 * 2.0**best))
    assert float(rule.learning_rate) == pytest.approx(rates[at])
    assert rates[at - 1] * 2 == pytest.approx(rates[at]) and at > 0
    assert rates[at + 1] == pytest.approx(2 * rates[at])
    assert all(loss is None or np.isfinite(loss) for _, loss in grid)


@pytest.mark.parametrize("of_exponent", [lambda e: np.inf, lambda e: -e, lambda e: e])
def test_tuning_without_a_best_rate_says_so(of_exponent):
    with pytest.raises(RuntimeError, match="No best learning rate found for .*'graph'"):
        contestants.tune(update_rules.Adam(), Losses(of_exponent), (0, 2, 4, 6))


def test_records_keep_what_is_not_finite_as_null():
    record = json.loads(json.dumps(baselines_lib.to_json(run_of([np.inf, 0.1], heldout=np.nan))))
    assert record["final"] == [None, 0.1] and record["heldout"] == [None, None]
    run = baselines_lib.from_json(record, num_seeds=1)
    assert np.isnan(run.final[0]) and len(run.final) == 1


def test_baselines_of_other_data_are_refused():
    record = baselines_lib.to_json(run_of([0.1, 0.2]))
    baselines_lib.check_same_start("graph", record, np.ones(2))
    with pytest.raises(ValueError, match="'graph' must be of the same optimizees.*tune_suite"):
        baselines_lib.check_same_start("graph", record, np.array([1, 1.01]))


def test_a_suite_from_tuning_to_report(tiny, tmp_path):
    directory = tmp_path / "baselines"
    rules = {"mine": update_rules.Adam(0.05), "keras": keras.optimizers.Adam(0.05)}
    with pytest.raises(ValueError, match="no baselines of adam, .*--tune_suite_baselines"):
        evaluate_suite.evaluate_suite(rules, ["graph"], 2, baselines=directory)
    assert evaluate_suite.tune_baselines(["graph"], baselines=directory) == {}
    result = evaluate_suite.evaluate_suite(rules, ["graph"], 2, baselines=directory)
    assert [entry.name for entry in result.entries] == ["graph"]
    assert set(result.entries[0].seconds_per_step) == {"adam", "mine", "keras"}
    (entry,) = result.entries
    for ours, theirs in zip(entry.runs["mine"], entry.runs["keras"]):
        np.testing.assert_allclose(ours, theirs, rtol=1e-2)
    assert entry.baselines["adam"].final.shape == (2,)
    with pytest.raises(ValueError, match="`num_seeds` must be 2 at most"):
        evaluate_suite.evaluate_suite(rules, ["graph"], 3, baselines=directory)


def test_of_all_problems_those_of_other_data_are_left_out(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "NAMES", {"graph": ""})
    evaluate_suite.tune_baselines(baselines=tmp_path)
    content = json.loads((tmp_path / "graph.json").read_text())
    content["contestants"]["adam"]["initial"][0] *= 1.01
    (tmp_path / "graph.json").write_text(json.dumps(content))
    result = evaluate_suite.evaluate_suite([update_rules.SGD()], None, 2, baselines=tmp_path)
    assert not result.entries and "same optimizees" in result.left_out["graph"]
    assert "same optimizees" in result.table()
    with pytest.raises(ValueError, match="same optimizees"):
        evaluate_suite.evaluate_suite([update_rules.SGD()], ["graph"], 2, baselines=tmp_path)


def test_the_baselines_that_come_along_are_whole():
    store = Baselines()
    for name in suite.NAMES:
        content = store.content(name)
        assert not store.missing(name), name
        assert content["num_steps"] >= 400 and content["problem"] == name
        for contestant, record in content["contestants"].items():
            run = baselines_lib.from_json(record)
            assert len(run.final) == 3 and run.curve.shape == (1, 50)
            assert np.isfinite(run.initial).all()
            assert (record["grid"] is not None) == (
                contestants.CONTESTANTS[contestant].start is not None
            )
            if record["grid"]:
                rates, losses = zip(*record["grid"])
                losses = [np.inf if loss is None else loss for loss in losses]
                best = int(np.argmin(losses))
                assert 0 < best < len(rates) - 1, (name, contestant)
                assert record["learning_rate"] == pytest.approx(rates[best], rel=1e-4)
                for other in (rates[best - 1], rates[best + 1]):
                    ratio = max(other, rates[best]) / min(other, rates[best])
                    assert ratio == pytest.approx(2, rel=1e-4)
                assert not summary.diverged(run).all(), (name, contestant)


def test_the_documentation_has_every_problem():
    text = (pathlib.Path(__file__).parent.parent / "docs" / "suite.md").read_text()
    for name in suite.NAMES:
        assert f"| {name} |" in text


def test_the_standing_is_of_files_alone(tiny, tmp_path, monkeypatch):
    store = Baselines(tmp_path)
    assert standing.standing(store, ["graph"]) == "No problem has all baselines."
    evaluate_suite.tune_baselines(["graph"], baselines=tmp_path)
    monkeypatch.setattr(standing, "CONTESTANTS", tiny)
    table = standing.standing(store, ["graph", "spirals"])
    assert "| graph | 676 | 20 | 24 |" in table and "Without baselines: spirals." in table
    assert "| Adam at Keras' default, 0.001 | 0 | 0 | 1 |" in table


def test_what_is_not_there_is_named(tiny, tmp_path, monkeypatch):
    def get(name, data_dir=None):
        raise FileNotFoundError("no MNIST")

    monkeypatch.setattr(suite, "get", get)
    monkeypatch.setattr(suite, "NAMES", {"mnist_28": ""})
    assert list(evaluate_suite.tune_baselines(baselines=tmp_path)) == ["mnist_28"]
    with pytest.raises(FileNotFoundError, match="no MNIST"):
        evaluate_suite.tune_baselines(["mnist_28"], baselines=tmp_path)
    result = evaluate_suite.evaluate_suite([update_rules.SGD()], None, 2, baselines=tmp_path)
    assert "mnist_28: no baselines of adam" in result.table() and not result.entries


def result_of(finals):
    """A ``SuiteResult`` of a rule on problems, with all contestants at 0.2."""
    entries = [
        Entry(
            name=name,
            num_steps=100,
            metric_name="accuracy",
            higher_is_better=True,
            runs={"mine": run_of(final, heldout=0.4)},
            baselines={c: run_of([0.2, 0.2]) for c in contestants.CONTESTANTS},
            learning_rates=dict.fromkeys(contestants.CONTESTANTS, 0.1),
            seconds_per_step={"adam": 1.0, "mine": 2.0},
        )
        for name, final in finals.items()
    ]
    return SuiteResult(["mine"], 2, entries, {"mnist_28": "no data"})


def test_ahead_by_steps_and_by_the_clock():
    result = result_of(dict.fromkeys(["soon", "late", "never"], [0.1, 0.1]))
    for entry, at in zip(result.entries, (30, 80, 200)):  # steps that take twice as long as Adam's
        curve = np.linspace(1, 1 - 0.9 * 100 / at, 100)
        entry.runs["mine"] = run_of([0.1, 0.1], curve=np.tile(curve, (2, 1)))
    assert result.ahead_of_adam("mine") == {"steps": ["soon", "late"], "time": ["soon"]}
    assert "before it: in fewer steps on 2, in less time on 1 of 3." in result.table()
    assert result.to_json()["rules"]["mine"]["ahead_of_adam"]["time"] == ["soon"]


def test_the_report_hides_nothing(tmp_path):
    result = result_of({"good": [0.1, 0.1], "bad": [0.1, np.nan]})
    table = result.table()
    assert "Diverged: bad (1 of 2)." in table and "**1 of 2**" in table
    assert "mnist_28: no data" in table
    assert "worse held out: good." in table  # a lower final loss, a lower accuracy
    assert table.count("**worse**") == 2
    (line,) = [line for line in table.splitlines() if line.startswith("| Adam, tuned |")]
    assert [cell.strip() for cell in line.split("|")[2:5]] == ["1", "0", "1"]
    assert "(bad)" in line
    result.save(tmp_path / "out")
    result.save(tmp_path / "out")  # over one of ours
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert content["rules"]["mine"]["diverged"] == {"bad": 1}
    assert content["rules"]["mine"]["overfitted"] == ["good"]
    assert content["problems"]["bad"]["rules"]["mine"]["final"] == [0.1, None]
    assert (tmp_path / "out" / "curves.png").read_bytes()[:4] == b"\x89PNG"
