"""Augmentations: what is drawn for an episode, and what it does to parameters, loss and data."""

import conftest
import keras
import numpy as np
import pytest
import tensorflow as tf
from test_problems import check_problem

import l2l_tf
from l2l_tf import problems, update_rules
from l2l_tf.engine import episodes, unroll
from l2l_tf.problems import (
    Ensemble,
    FewBatches,
    KerasProblem,
    NoisyLabels,
    Quadratic,
    ScaledLoss,
    ScaledParameters,
    base,
)

SEED = tf.constant([1, 2], tf.int64)
ALL_BY_TENSOR = {"probability_by_tensor": 1, "probability_together": 0}
ALL_TOGETHER = {"probability_by_tensor": 0, "probability_together": 1}


class Quadratic64(Quadratic):
    dtype = "float64"

    def sample_parameters(self, seed):
        return [tf.random.stateless_normal([self.num_dimensions], seed, dtype="float64")]

    def sample_coefficients(self, seed):
        return tuple(tf.cast(c, "float64") for c in super().sample_coefficients(seed))


class Counting(problems.Problem):
    """A new batch each step: its number."""

    name = "counting"
    layout = [("x", ())]

    def sample_parameters(self, seed):
        return [tf.random.stateless_normal([], seed)]

    def batches(self, side, seed, num_batches):
        return tf.data.Dataset.range(num_batches).map(lambda step: (tf.cast(step, "float32"),))

    def loss_and_gradients(self, parameters, batch):
        (x,), (step,) = parameters, batch
        return (x - step) ** 2, [2 * (x - step)]


def two_tensors():
    return Ensemble([(Quadratic64(3), 1.0), (Quadratic64(2), 0.5)])


def numbered(batch_size=4, num_examples=20, as_stream=False, y=None):
    """A problem whose examples have their numbers as x, and y or the numbers as labels."""
    x = np.arange(num_examples, dtype="float32")[:, None]
    dataset = tf.data.Dataset.from_tensor_slices((x, x if y is None else y, np.ones(num_examples)))
    dataset = dataset.batch(batch_size)

    def build_model():
        layers = [keras.Input([1]), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
        return keras.Sequential(layers)

    return KerasProblem(build_model, dataset.repeat() if as_stream else dataset, "mse")


def everything(problem):
    problem = NoisyLabels(FewBatches(problem, (1, 3)), (0.1, 0.3))
    return ScaledLoss(ScaledParameters(problem, **ALL_BY_TENSOR), (0.1, 10))


def draws(problem, num_seeds=400):
    """What is drawn of many seeds, ``[num_seeds, …]``."""
    drawn = tf.data.Dataset.range(num_seeds).map(lambda n: problem.draw(base.fold_in(SEED, n)))
    return np.array(list(drawn.as_numpy_iterator()))


def episode(problem, num_batches=3, seed=SEED, side="train"):
    parameters, _, batches = problem.episode(side, seed, num_batches)
    return parameters, list(batches)


def close(a, b, rtol=1e-6):
    tf.nest.map_structure(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol), a, b)


AUGMENTED = {
    "scaled": lambda: ScaledParameters(Quadratic(), **ALL_TOGETHER),
    "scaled loss": lambda: ScaledLoss(Quadratic(), (0.1, 10)),
    "all": lambda: everything(conftest.keras_problem(heldout=conftest.image_data(seed=1))),
    "within an ensemble": lambda: Ensemble(
        [(ScaledParameters(Quadratic()), 2.0), (Quadratic(), 1.0)]
    ),
    "around an ensemble": lambda: FewBatches(ScaledLoss(Ensemble([(Quadratic(), 2.0)]), (0.1, 10))),
}


@pytest.mark.parametrize("name", AUGMENTED)
def test_it_is_a_problem(name):
    check_problem(AUGMENTED[name]())


@pytest.mark.parametrize("arguments", [ALL_BY_TENSOR, ALL_TOGETHER])
def test_sgd_on_scaled_parameters_is_sgd_with_squared_scales_as_rates(arguments):
    problem, inner = ScaledParameters(two_tensors(), **arguments), two_tensors()
    (element,) = episodes.windows(problem, "train", SEED, 1, 5)
    element = tf.nest.map_structure(lambda t: t[None], element)
    rule = update_rules.SGD(2**-10, dtype="float64")
    trajectory = unroll.unroll(
        rule,
        problem,
        element["parameters"],
        unroll.initial_state(rule, problem.layout, 1),
        element["batches"],
        num_steps=5,
        record=False,
    )

    theta, batches = episode(inner, 6)
    scales = element["batches"][1][0, 0].numpy()
    assert len(set(scales)) == (2 if arguments is ALL_BY_TENSOR else 1)
    losses = []
    for batch in batches:
        last = [t.numpy() / c for t, c in zip(theta, scales)]
        loss, gradients = inner.loss_and_gradients(theta, batch)
        losses.append(loss)
        theta = [t - 2**-10 * c**2 * g for t, c, g in zip(theta, scales, gradients)]
    np.testing.assert_allclose(trajectory.losses[:, 0], losses, rtol=1e-12)
    np.testing.assert_allclose(trajectory.parameters[0], np.concatenate(last), rtol=1e-12)


def test_scaled_loss():
    problem, inner = ScaledLoss(two_tensors(), (3.0, 3.0)), two_tensors()
    parameters, ((batch, scale), *_) = episode(problem)
    close(scale, 3.0)
    loss, gradients = inner.loss_and_gradients(parameters, batch)
    close(
        problem.loss_and_gradients(parameters, (batch, scale)),
        (scale * loss, [scale * g for g in gradients]),
    )


def test_gradients_are_those_of_a_tape():
    problem = ScaledLoss(ScaledParameters(ScaledLoss(two_tensors()), **ALL_BY_TENSOR))
    parameters, (batch, *_) = episode(problem)
    with tf.GradientTape() as tape:
        tape.watch(parameters)
        loss, gradients = problem.loss_and_gradients(parameters, batch)
    close(gradients, tape.gradient(loss, parameters), rtol=1e-12)


def test_scales_are_drawn_by_tensor_or_together_or_not_at_all():
    scales = draws(ScaledParameters(two_tensors(), (0.5, 2), (5, 50)))
    first, second = scales.T
    is_one = (scales == 1).all(axis=1)
    is_together = (first == second) & ~is_one
    by_tensor = scales[first != second]
    np.testing.assert_allclose([is_one.mean(), is_together.mean()], [0.4, 0.2], atol=0.07)
    for drawn, (low, high) in ((by_tensor, (0.5, 2)), (first[is_together], (5, 50))):
        assert low <= drawn.min() < low * 1.2 and high / 1.2 < drawn.max() <= high * 1.00001
        middle = np.sqrt(low * high)  # log-uniformly: half of them is below
        np.testing.assert_allclose((drawn < middle).mean(), 0.5, atol=0.1)


def test_other_draws():
    scales = draws(ScaledLoss(Quadratic(), (0.01, 100), probability=0.5))
    np.testing.assert_allclose((scales == 1).mean(), 0.5, atol=0.08)
    np.testing.assert_allclose((scales < 1).mean(), 0.25, atol=0.07)
    assert 0.01 <= scales.min() < 0.02 and 50 < scales.max() <= 100.001
    few = draws(FewBatches(Quadratic(), (1, 3), probability=0.5))
    shares = [(few == n).mean() for n in (1, 2, 3, np.iinfo(np.int64).max)]
    expected = 0.5 * np.log([2, 3 / 2, 4 / 3]) / np.log(4)
    np.testing.assert_allclose(shares, [*expected, 0.5], atol=0.07)
    noise = draws(NoisyLabels(numbered(), (0.2, 0.4), probability=0.5))
    np.testing.assert_allclose((noise == 0).mean(), 0.5, atol=0.08)
    np.testing.assert_allclose(noise[noise > 0].mean(), 0.3, atol=0.02)
    assert 0.2 <= noise[noise > 0].min() and noise.max() <= 0.4


def test_draws_are_those_of_the_episode_in_all_windows_and_processes():
    inner = two_tensors()
    problem = ScaledLoss(ScaledParameters(inner, **ALL_BY_TENSOR))
    windows = list(episodes.windows(problem, "train", SEED, 3, 4))
    (_, scales), of_loss = windows[0]["batches"]
    expected, _ = episode(inner)  # the same start, in other units
    for window in windows:
        (_, again), of_loss_again = window["batches"]
        assert (again == scales[0]).numpy().all() and (of_loss_again == of_loss[0]).numpy().all()
        theta = [t / c for t, c in zip(expected, scales[0])]
        close(window["parameters"], np.concatenate(theta), rtol=1e-12)
    # As when this was written.
    np.testing.assert_allclose([*scales[0], of_loss[0]], [1.18418157, 0.68074709, 0.05569499])
    _, [((_, others), other)] = episode(problem, 1, seed=SEED + 1)
    assert (others != scales[0]).numpy().all() and other != of_loss[0]


def test_members_of_an_ensemble_draw_for_themselves():
    def ensemble(augmented):
        return Ensemble([(augmented(Quadratic64(2)), 1.0)] * 2)

    theta, (batch, *_) = episode(ensemble(lambda q: ScaledParameters(q, **ALL_BY_TENSOR)))
    expected, _ = episode(ensemble(lambda q: q))
    scales = [scale for _, scale in batch]
    assert scales[0] != scales[1]
    close(theta, [t / c for t, c in zip(expected, scales)], rtol=1e-12)


def numbers(batches):
    """The examples of each batch, sorted."""
    batches = [tf.nest.flatten(batch)[0].numpy().ravel() for batch in batches]
    return [tuple(sorted(batch)) for batch in batches]


@pytest.mark.parametrize("around", [lambda p: p, ScaledParameters, NoisyLabels])
def test_few_batches_in_memory_are_drawn_anew_from_few_examples(around):
    problem = FewBatches(around(numbered()), (2, 2))
    seen = numbers(episode(problem, 20)[1])
    passes = [first + second for first, second in zip(seen[::2], seen[1::2])]
    assert all(len(set(examples)) == 8 for examples in passes)  # each pass has each once
    assert len({tuple(sorted(examples)) for examples in passes}) == 1
    assert len(set(seen)) > 5  # in other batches
    others = numbers(episode(problem, 2, seed=SEED + 1)[1])
    assert set(others[0] + others[1]) != set(passes[0])


def test_few_batches_of_a_stream_come_in_other_orders():
    _, batches = episode(FewBatches(numbered(as_stream=True), (3, 3)), 31)
    seen = numbers(batches)
    assert seen[:3] == numbers(numbered(as_stream=True).batches("train", SEED, 3))
    assert all(len(set(seen[start : start + 3])) == 3 for start in range(0, 30, 3))
    assert set(seen) == set(seen[:3]) and len({tuple(seen[i : i + 3]) for i in range(0, 30, 3)}) > 2
    seeds = {tuple(seed.numpy()) for (_, seed), _ in batches}
    assert len(seeds) == 31  # Dropout draws new masks each time


def test_few_batches_of_any_problem():
    _, batches = episode(FewBatches(FewBatches(Counting(), (4, 4)), (6, 6)), 9)
    steps = [int(step) for (((step,), _), _) in batches]
    assert steps[:4] == [0, 1, 2, 3] and sorted(steps[4:8]) == [0, 1, 2, 3] and len(steps) == 9


@pytest.mark.parametrize(
    "problem",
    [
        Counting,
        pytest.param(numbered, marks=pytest.mark.slow),
        pytest.param(lambda: numbered(as_stream=True), marks=pytest.mark.slow),
    ],
)
def test_many_batches_are_as_without(problem):
    for few in ({"num_batches": (100, 100)}, {"probability": 0}):
        _, batches = episode(FewBatches(problem(), **few), 10)
        expected = numbers(episode(problem(), 10)[1])
        assert len(batches) == 10
        if problem is numbered:  # in an order of its own
            assert len(set(sum(numbers(batches)[:5], ()))) == 20
        else:
            assert numbers(batches) == expected


def noisy(inner, share, num_batches=1):
    """x and noisy labels of each batch; nothing else differs from the batches without noise."""
    clean = inner.batches("train", base.fold_in(SEED, 1), num_batches)
    _, batches = episode(NoisyLabels(inner, (share, share)), num_batches)
    pairs = []
    for ((x, _, weights), seed), (((same_x, y, same_weights), same_seed), _) in zip(clean, batches):
        close((x, weights, seed), (same_x, same_weights, same_seed))
        pairs.append((x.numpy().ravel(), y.numpy()))
    return pairs


def test_integers_become_those_of_other_examples_at_their_share():
    inner = numbered(64, 64, y=np.arange(64))
    changed = np.array([x != y for x, y in noisy(inner, 0.25, 40)])
    np.testing.assert_allclose(changed.mean(), 0.25, atol=0.03)
    assert len({row.tobytes() for row in changed}) == 40  # anew each step
    for x, y in noisy(inner, 1, 10):
        assert (x != y).all() and set(y) <= set(range(64))
    ((x, y),) = noisy(inner, 0)
    assert (x == y).all()


def test_floats_get_noise_of_their_size_unless_they_are_classes():
    clean = np.stack([np.arange(64.0), 1000 * np.arange(64.0)], axis=1).astype("float32")
    pairs = noisy(numbered(64, 64, y=clean), 0.1, 20)
    noise = np.concatenate([y - clean[x.astype(int)] for x, y in pairs])
    np.testing.assert_allclose(noise.std(axis=0), 0.1 * clean.std(axis=0), rtol=0.1)

    classes = (np.arange(64.0)[:, None] < 20).astype("float32")
    ((x, y),) = noisy(numbered(64, 64, y=classes), 0.9)
    assert set(y.ravel()) == {0.0, 1.0} and (y != classes[x.astype(int)]).any()


def test_labels_of_several_outputs_go_together():
    problem = NoisyLabels(numbered())
    y = {"a": tf.range(8), "b": tf.range(10, 18)[:, None]}
    data = tf.data.Dataset.from_tensors(((tf.zeros([8, 1]), y), SEED))
    (((_, y), _),) = problem.change_batches(data, tf.constant(1.0), SEED)
    assert (y["a"] != tf.range(8)).numpy().all()
    np.testing.assert_array_equal(y["a"] + 10, y["b"][:, 0])


@pytest.mark.slow
def test_evaluation_by_unroll_and_in_place_and_meta_training():
    problem = everything(numbered())
    result = l2l_tf.evaluate(
        problem,
        {"rule": update_rules.SGD(0.1), "keras": keras.optimizers.SGD(0.1)},
        baselines=[],
        num_steps=4,
        num_seeds=1,
        verbose=False,
    )
    assert result.problem == problem.name and not result.has_heldout
    losses = [result.optimizers[name]["loss"] for name in ("rule", "keras")]
    close(*losses, rtol=1e-4)
    assert np.isfinite(losses).all()

    trainer = l2l_tf.MetaTrainer(update_rules.CoordinatewiseLSTM((4,), seed=0), problem, 2, 4)
    trainer.compile(optimizer=keras.optimizers.Adam(1e-3))
    before = [w.numpy() for w in trainer.rule.trainable_weights]
    history = trainer.fit(trainer.dataset(seed=0, num_episodes=2), verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert any((a != b.numpy()).any() for a, b in zip(before, trainer.rule.trainable_weights))


def test_what_it_takes_over():
    inner = conftest.keras_problem(heldout=conftest.image_data(seed=1), name="images")
    problem = everything(inner)
    assert problem.name == "images~few-batches~noisy-labels~scaled~scaled-loss"
    assert (problem.layout, problem.dtype) == (inner.layout, "float32")
    assert problem.has_heldout and not ScaledLoss(numbered()).has_heldout
    assert not problem.vectorized and ScaledLoss(Quadratic()).vectorized
    assert problem.settings["augmentations"][1] == {
        "name": "noisy-labels",
        "shares": [0.1, 0.3],
        "probability": 1.0,
    }
    ensemble = Ensemble([(ScaledLoss(Quadratic()), 1.0), (Quadratic(), 1.0)])
    assert ensemble.settings["members"] == [ScaledLoss(Quadratic()).settings, {}]
    assert Ensemble([(Quadratic(), 1.0)]).settings == {}


def test_pictures_are_shown_in_their_own_units_alone():
    class Image(Counting):
        def picture(self, parameters):
            return "picture"

        def reference_pictures(self, batch):
            return {"number": batch}

    problem = ScaledLoss(FewBatches(Image()))
    (batch, *_) = problem.batches("train", SEED, 1)
    assert problem.picture([]) == "picture"
    assert problem.reference_pictures(batch) == {"number": (0.0,)}
    assert ScaledParameters(Image()).picture is None
    assert ScaledLoss(ScaledParameters(Image())).picture is None


def test_what_cannot_be_augmented_is_refused():
    def build_model():
        dense = keras.layers.Dense(3, kernel_constraint="non_neg")
        return keras.Sequential([keras.Input([6, 6, 1]), keras.layers.Flatten(), dense])

    with pytest.raises(ValueError, match="constraint.*by itself"):
        ScaledLoss(conftest.keras_problem(build_model))
    for problem in (Quadratic(), ScaledLoss(Ensemble([(numbered(), 1.0)]))):
        with pytest.raises(ValueError, match="must have labels.*augment the members"):
            NoisyLabels(problem)
    with pytest.raises(ValueError, match="1 at most, in sum. Received: 0.7 and 0.4"):
        ScaledParameters(Quadratic(), probability_by_tensor=0.7, probability_together=0.4)


def test_data_without_labels_have_none_to_change():
    def build_model():
        return keras.Sequential(
            [keras.Input([1]), keras.layers.Dense(2, activity_regularizer="l2")]
        )

    data = tf.data.Dataset.from_tensor_slices(np.ones([8, 1], "float32")).batch(4)
    with pytest.raises(ValueError, match="must have labels"):
        NoisyLabels(KerasProblem(build_model, data, None))
