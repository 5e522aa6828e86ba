"""The problems that the rule for any model is meta-trained on."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from l2l_tf import problems
from l2l_tf.problems.general_problems import images, mixture, models, synthetic

SEED = tf.constant([3, 4], tf.int64)
TASKS = {
    "regression": synthetic.regression(5, 2),
    "linear": synthetic.linear_regression(5),
    "classification": synthetic.classification(5, 3),
    "waves": synthetic.waves(2),
    "chains": synthetic.markov_chains(7, 5),
    "repetitions": synthetic.repetitions(7, 8, 3),
    "sums": synthetic.marked_sums(6),
    "tones": synthetic.tones(6),
    "ratings": synthetic.ratings(30, 20),
    "table": synthetic.table(2, (4, 3)),
    "topics": synthetic.topics(50, 6, 4),
}


@pytest.mark.parametrize("draw", TASKS.values(), ids=TASKS)
def test_data_are_a_function_of_the_seed(draw):
    x, y = draw(SEED)
    again, _ = draw(SEED)
    others = draw(tf.constant([3, 5], tf.int64))
    assert len(x) == len(y) == synthetic.NUM_EXAMPLES
    assert np.all(np.isfinite(x)) and np.all(np.isfinite(y))
    assert np.array_equal(x, again)
    assert not np.array_equal(x, others[0]) and not np.array_equal(y, others[1])


def test_what_comes_next_is_what_follows():
    for name in ("chains", "repetitions"):
        x, y = TASKS[name](SEED)
        assert np.array_equal(x[:, 1:], y[:, :-1])


def test_marked_sums_are_of_two():
    x, y = TASKS["sums"](SEED)
    assert np.all(np.sum(x[..., 1], axis=1) == 2)
    np.testing.assert_allclose(np.sum(x[..., 0] * x[..., 1], axis=1, keepdims=True), y, rtol=1e-5)


def test_indices_are_within_bounds():
    assert np.max(TASKS["topics"](SEED)[0]) < 50
    assert np.all(np.max(TASKS["ratings"](SEED)[0], axis=0) < [30, 20])


def drawn_problem():
    return synthetic.SyntheticProblem(
        lambda: models.mlp([5], 2, [8]), TASKS["regression"], "mse", 32, name="drawn"
    )


def examples(problem, side, seed, num_batches=2):
    return np.concatenate([x for (x, _), _ in problem.batches(side, seed, num_batches)])


def test_each_episode_has_data_of_its_own():
    problem = drawn_problem()
    assert problem.has_heldout
    one = examples(problem, "train", SEED)
    assert np.array_equal(one, examples(problem, "train", SEED))
    for side, seed in ("heldout", SEED), ("train", [3, 5]):
        assert not np.isin(one, examples(problem, side, tf.constant(seed, tf.int64))).any()


def test_an_episode_has_the_same_data_in_each_epoch():
    problem = drawn_problem()
    batches_an_epoch = synthetic.NUM_EXAMPLES // 32
    both = examples(problem, "train", SEED, 2 * batches_an_epoch)
    first, second = np.split(both, 2)
    assert not np.array_equal(first, second)
    assert np.array_equal(np.sort(first, axis=0), np.sort(second, axis=0))


def test_few_batches_are_of_the_drawn_data():
    problem = problems.FewBatches(drawn_problem(), (2, 2))
    batches = [x for ((x, _), _), _ in problem.batches("train", SEED, 6)]
    assert len(np.unique(np.concatenate(batches), axis=0)) == 64


def small_images(data_dir, size, **_):
    rng = np.random.default_rng(size)
    return rng.normal(size=(300, size, size, 1)).astype("float32"), rng.integers(0, 10, 300)


def check_trains(problem):
    """Adam's loss on a batch falls."""
    parameters, _, batches = problem.episode("train", SEED, 1)
    batch = next(iter(batches))
    variables = [keras.Variable(p) for p in parameters]
    optimizer = keras.optimizers.Adam(0.003)
    first, gradients = problem.loss_and_gradients(parameters, batch)
    for _ in range(5):
        optimizer.apply(gradients, variables)
        values = [v.value for v in variables]
        loss, gradients = problem.loss_and_gradients(values, batch)
    assert 0 <= loss < first


def test_an_augmented_problem_trains():
    check_trains(mixture._augmented(drawn_problem()))


@pytest.mark.slow
def test_all_problems_train(monkeypatch):
    monkeypatch.setattr(images, "mnist", small_images)
    monkeypatch.setattr(images, "cifar10", small_images)
    general = problems.get("general")
    names = [problem.name for problem in general.problems]
    assert len(names) == len(set(names)) > 50
    for problem in general.problems:
        check_trains(problem)


def test_images_are_means_of_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, [4, 28, 28, 1]).astype("uint8"), np.arange(4)
    monkeypatch.setattr(images, "_as_read", lambda name, data_dir: (pixels, labels))
    x, y = images.mnist("a test's own", 7)
    assert x.shape == (4, 7, 7, 1) and np.array_equal(y, labels)
    corner = pixels[:, :4, :4].mean(axis=(1, 2)) - pixels.mean()
    assert np.corrcoef(x[:, 0, 0, 0], corner[:, 0])[0, 1] > 0.9999
    assert abs(x.mean()) < 1e-5 and abs(x.std() - 1) < 1e-5


def test_images_are_not_there():
    with pytest.raises(FileNotFoundError, match="mnist"):
        problems.get("general", data_dir="/no/such/directory")
