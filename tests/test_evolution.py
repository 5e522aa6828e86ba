"""Persistent evolution strategies, against the exact meta-gradient and against their formula."""

import conftest
import keras
import level_rules
import numpy as np
import pytest
import tensorflow as tf

from l2l_tf import MetaTrainer, problems, update_rules
from l2l_tf.engine.episodes import episodes
from l2l_tf.engine.unroll import initial_state, unroll
from l2l_tf.meta_training import objectives
from l2l_tf.meta_training.estimator import Exact, Identity
from l2l_tf.meta_training.evolution import PersistentEvolution
from l2l_tf.update_rules import UpdateRule

STEPS = 6


class Momentum64(UpdateRule):
    """Two weights, log rate and decay; and one that is not trained."""

    def __init__(self):
        super().__init__(dtype="float64")
        for name, value in (("log_rate", -1.5), ("scale", 1.0), ("decay", 0.6)):
            self.add_weight(
                shape=(),
                initializer=keras.initializers.Constant(value),
                trainable=name != "scale",
                name=name,
            )

    def initial_state(self, layout):
        return tf.zeros([layout], self.dtype)

    def update(self, gradients, state):
        (log_rate, decay), (scale,) = self.trainable_variables, self.non_trainable_variables
        state = decay * state + scale * gradients
        return -tf.exp(log_rate) * tf.tanh(state), state


class Bowl64(problems.Simple):
    """Σ x² in two dimensions."""

    dtype = "float64"
    vectorized = False

    def __init__(self):
        super().__init__(2)

    def sample_parameters(self, seed):
        return [tf.cast(x, "float64") for x in super().sample_parameters(seed)]


class Torn64(Bowl64):
    """Where x_0 is above its bound, not a number."""

    bound = 5.0

    def loss_and_gradients(self, parameters, batch):
        loss, gradients = super().loss_and_gradients(parameters, batch)
        return tf.where(parameters[0] > self.bound, np.nan * loss, loss), gradients


def data(starts, length, window=0, first_episode=0):
    """A window of Bowl64."""
    return {
        "parameters": tf.constant(starts, tf.float64),
        "batches": tf.zeros([len(starts), length + 1]),
        "episode": first_episode + tf.range(len(starts), dtype=tf.int64),
        "window": tf.fill([len(starts)], tf.constant(window, tf.int64)),
    }


def evolution(standard_deviation=1e-3, **kwargs):
    return PersistentEvolution(objectives.loss_sum, standard_deviation=standard_deviation, **kwargs)


def called(estimator, rule, problem, data, carry=None):
    """The estimate for a window: of an episode the first, if there is no carry."""

    @tf.function
    def call(data):
        before = carry or estimator.start(rule, problem, data["parameters"])
        return estimator(rule, problem, before, data)

    return call(data)


def draws(window_length, is_persistent=True, num_draws=40, num_optimizees=12):
    """Estimates for whole episodes of two kinds of optimizees, ``[num_draws, 2]``."""
    rule, problem, estimator = Momentum64(), Bowl64(), evolution()
    starts = [[1.0, -0.7], [0.8, 1.2]] * (num_optimizees // 2)

    @tf.function
    def episode(first_episode):
        carry, total = estimator.start(rule, problem, tf.constant(starts, tf.float64)), 0.0
        for window in range(STEPS // window_length):
            of_window = data(starts, window_length, window, first_episode)
            if not is_persistent:
                carry = carry._replace(perturbations=tf.zeros_like(carry.perturbations))
            gradients, carry, *_ = estimator(rule, problem, carry, of_window)
            total += tf.stack(gradients)
        return total

    numbers = tf.range(num_draws, dtype=tf.int64) * num_optimizees
    return np.array([episode(number) for number in numbers])


def distance(window_length, **kwargs):
    """From the mean of the estimates to the exact meta-gradient, in standard errors."""
    rule, problem = Momentum64(), Bowl64()
    exact = Exact(objectives.loss_sum, STEPS)
    of_episode = data([[1.0, -0.7], [0.8, 1.2]], STEPS)
    expected = np.array(called(exact, rule, problem, of_episode).gradients)
    received = draws(window_length, **kwargs)
    errors = received.std(axis=0, ddof=1) / np.sqrt(len(received))
    assert (errors < 0.15 * np.linalg.norm(expected)).all()  # else anything would be near
    return np.abs(received.mean(axis=0) - expected) / errors


@pytest.mark.parametrize(
    "window_length",
    [2, pytest.param(STEPS, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.slow)],
)
def test_the_mean_is_the_exact_meta_gradient(window_length):
    """Of a whole episode: with one window, plain evolution strategies."""
    assert distance(window_length).max() < 4


def test_without_persistence_it_is_not():
    """Where each window's perturbations stand alone, what they do later is lost."""
    assert distance(2, is_persistent=False).max() > 4


def grouped_rule():
    lstm = update_rules.CoordinatewiseLSTM((5, 4), zero_head=False, seed=2)
    rnnprop = update_rules.RNNprop((3,), zero_head=False, seed=1)
    kernelwise = update_rules.KernelwiseLSTM((3, 3), (3,), zero_head=False, seed=3)
    groups = [("conv.*kernel", kernelwise), ("gamma|beta", rnnprop), (".*", lstm)]
    return update_rules.GroupedRule(groups)


CASES = {
    "simple": (Momentum64, Bowl64, False),
    "simple, XLA": (Momentum64, Bowl64, True),
    "levels": (level_rules.ThreeLevels, problems.Quadratic, False),
    "grouped": (grouped_rule, lambda: conftest.keras_problem(conftest.conv_net), False),
    "grouped, XLA": (grouped_rule, lambda: conftest.keras_problem(conftest.conv_net), True),
}


FAST = ("simple",)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in CASES],
)
def test_two_windows_equal_the_formula(name):
    """By hand: the rule's own weights are set to φ ± ε, optimizee by optimizee."""
    make_rule, make_problem, jit_compile = CASES[name]
    rule, problem = make_rule(), make_problem()
    estimator = evolution(0.05, num_pairs=2)
    windows = list(
        episodes(
            *(problem, "train", 0, "meta_train", lambda: tf.constant(4, tf.int64), 2),
            num_windows=2,
            window_length=3,
            num_parallel=2,
        )
    )
    received, perturbations = [], [0.0]
    carry = estimator.start(rule, problem, windows[0]["parameters"])
    call = tf.function(
        lambda carry, data: estimator(rule, problem, carry, data), jit_compile=jit_compile
    )
    for window in windows:
        estimate = call(carry, window)
        carry = estimate.carry
        received.append(estimate)
        perturbations.append(carry.perturbations.numpy())
    drawn = np.diff(np.array(perturbations[1:]), axis=0, prepend=0)
    assert 0.02 < drawn.std() < 0.08
    # No two draws are the same, of whatever optimizee, pair or window.
    assert len(np.unique(drawn[..., 0])) == 8

    run = tf.function(
        lambda *args: unroll(rule, problem, *args, num_steps=3, record=False), autograph=False
    )
    center = flat(rule.trainable_variables)
    expected = np.zeros([2, len(center)])
    losses = np.zeros([2, 4, 2, 2])  # window, pair, member, of the first and last step
    for pair in range(4):
        values = np.zeros([2, 2])  # window, member
        for member, sign in enumerate((1.0, -1.0)):
            optimizee = slice(pair // 2, pair // 2 + 1)
            parameters = windows[0]["parameters"][optimizee]
            state = initial_state(rule, problem.layout, 1)
            for window in range(2):
                assign(rule, center + sign * drawn[window, pair])
                batches = tf.nest.map_structure(
                    lambda leaf, o=optimizee: leaf[o], windows[window]["batches"]
                )
                trajectory = run(parameters, state, batches)
                parameters, state = trajectory.parameters, trajectory.state
                values[window, member] = tf.reduce_sum(trajectory.losses[1:])
                losses[window, pair, member] = trajectory.losses[::3, 0]
        difference = values[:, :1] - values[:, 1:]
        expected += np.array(perturbations[1:])[:, pair] * difference / (2 * 0.05**2) / 4
    assign(rule, center)
    is_exact = rule.dtype == "float64"
    for window, estimate in enumerate(received):
        scale = np.abs(expected[window]).max()
        np.testing.assert_allclose(
            flat(estimate.gradients), expected[window], atol=scale * (1e-9 if is_exact else 5e-3)
        )
        of_optimizees = losses[window].reshape([2, 4, 2]).mean(axis=1)
        np.testing.assert_allclose(
            estimate.losses.numpy()[::3].T, of_optimizees, rtol=1e-9 if is_exact else 1e-4
        )
        assert not estimate.left_out.numpy().any()
        assert int(estimate.carry.runs.num_steps) == 3 * (window + 1)


def flat(tensors):
    return np.concatenate([np.ravel(np.array(t)) for t in tensors])


def assign(rule, vector):
    start = 0
    for variable in rule.trainable_variables:
        size = variable.shape.num_elements()
        variable.assign(vector[start : start + size].reshape(variable.shape))
        start += size


def test_optimizees_side_by_side_are_those_alone():
    """So it does not matter on which device, or beside whom, they are."""
    rule, problem, estimator = Momentum64(), Bowl64(), evolution(num_pairs=2)
    starts = [[1.0, -0.7], [0.8, 1.2]]

    @tf.function(reduce_retracing=True)
    def gradients(starts, first_episode):
        of_window = data(starts, 3, window=1, first_episode=first_episode)
        return tf.stack(called(estimator, rule, problem, of_window).gradients)

    seven, eight = (tf.constant(number, tf.int64) for number in (7, 8))
    both = gradients(starts, seven)
    alone = [gradients(starts[:1], seven), gradients(starts[1:], eight)]
    np.testing.assert_allclose(both, np.mean(alone, axis=0), rtol=1e-9)
    assert (gradients(starts, seven).numpy() == both.numpy()).all()
    assert np.abs(gradients(starts, eight) - both).max() > 0


def test_a_pair_that_diverges_adds_nothing():
    rule, problem, estimator = Momentum64(), Torn64(), evolution()
    sound, bad = [1.0, -0.7], [6.0, 1.0]

    def estimate(starts, max_loss_ratio=None):
        estimator.max_loss_ratio = max_loss_ratio
        return called(estimator, rule, problem, data(starts, 3))

    alone, both = estimate([sound]), estimate([sound, bad])
    np.testing.assert_allclose(
        np.array(both.gradients), np.array(alone.gradients) / 2, rtol=1e-9
    )  # a mean over two
    assert both.left_out.numpy().tolist() == [False, True]
    assert both.carry.runs.stopped_at.numpy().tolist() == [-1, 0]
    assert both.carry.runs.running.numpy().tolist() == [True, False]
    # A loss that grows is a loss that counts.
    rule.trainable_variables[0].assign(1.5)
    grown = estimate([[0.1, 0.1]], max_loss_ratio=2.0)
    assert not grown.left_out.numpy().any() and grown.carry.runs.stopped_at.numpy().min() > 0
    assert np.isfinite(np.array(grown.gradients)).all()


def test_of_several_pairs_those_that_do_not_diverge_count():
    """A step from -4.5 to above -3 is one member's, in some pairs."""
    rule, problem = Momentum64(), Torn64()
    problem.bound = -3.0
    rule.trainable_variables[0].assign(0.0)
    of_window = data([[-4.5, 0.1]], 1)
    estimator = evolution(0.5, num_pairs=16)
    received = called(estimator, rule, problem, of_window)
    is_bad = ~np.isfinite(received.carry.members.runs.losses.numpy().reshape([16, 2])).all(axis=1)
    assert 0 < is_bad.sum() < 16
    assert not received.left_out.numpy().any() and np.isfinite(received.losses.numpy()).all()
    values = received.carry.members.runs.losses.numpy().reshape([16, 2])
    difference = np.where(is_bad, 0.0, values[:, 0] - values[:, 1])
    expected = received.carry.perturbations.numpy().T @ difference / (2 * 0.5**2 * 16)
    np.testing.assert_allclose(np.array(received.gradients), expected, rtol=1e-9)
    np.testing.assert_allclose(received.values[0], values[~is_bad].mean(), rtol=1e-9)
    assert int(received.carry.runs.stopped_at[0]) == 1


def trainer(problem="quadratic", **kwargs):
    rule = update_rules.CoordinatewiseLSTM((4,), seed=0)
    options = {"meta_batch_size": 2, "estimator": "evolution", **kwargs}
    problem = problems.get(problem) if isinstance(problem, str) else problem
    trainer_ = MetaTrainer(rule, problem, 5, 10, **options)
    trainer_.compile(optimizer=keras.optimizers.SGD(0.1))
    return trainer_


def test_estimators_by_name():
    assert isinstance(trainer().estimator, PersistentEvolution)
    assert isinstance(trainer(estimator="exact").estimator, Exact)
    assert isinstance(trainer(estimator=None, second_derivatives=True).estimator, Exact)
    identity = trainer(estimator="identity", backward_fraction=0.5).estimator
    assert isinstance(identity, Identity) and identity.backward_fraction == 0.5
    for error, message, options in (
        (ValueError, "'identity', 'exact', 'evolution'.*'es'", {"estimator": "es"}),
        (TypeError, "`estimator` must be a function", {"estimator": 3}),
        (ValueError, "word for estimator='exact'", {"second_derivatives": True}),
    ):
        with pytest.raises(error, match=message):
            trainer(**options)
    for error, name, value in (
        (ValueError, "standard_deviation", 0.0),
        (TypeError, "standard_deviation", "x"),
        (ValueError, "num_pairs", 0),
        (TypeError, "num_pairs", 1.5),
    ):
        with pytest.raises(error, match=f"`{name}` must be"):
            PersistentEvolution(objectives.loss_sum, **{name: value})


def test_it_resumes_within_an_episode(tmp_path):
    whole, first, second = (trainer() for _ in range(3))
    windows = list(whole.dataset(0, 4))
    for window in windows:
        whole.train_on_batch(window)
    for window in windows[:3]:
        first.train_on_batch(window)
    first.save_weights(tmp_path / "a.weights.h5")
    second.load_weights(tmp_path / "a.weights.h5")
    second.train_on_batch(windows[3])
    received, expected = flat(second.rule.weights), flat(whole.rule.weights)
    assert (received == expected).all()
    assert (received != flat(first.rule.weights)).any()


@pytest.mark.slow
def test_on_two_devices_it_is_the_same():
    weights = []
    for strategy in (None, tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
        trainer_ = trainer("quadratic|2*rastrigin", num_groups=2, strategy=strategy)
        before = flat(trainer_.rule.weights)
        trainer_.fit(trainer_.dataset(0, 8), verbose=0)
        weights.append(flat(trainer_.rule.weights))
    assert np.abs(weights[0] - before).max() > 1e-3
    np.testing.assert_allclose(*weights, atol=1e-4 * np.abs(weights[0]).max())


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True])
def test_meta_training_lowers_the_loss(jit_compile):
    trainer_ = trainer(conftest.keras_problem(), num_groups=2)
    trainer_.compile(optimizer=keras.optimizers.Adam(0.01), jit_compile=jit_compile)
    data = trainer_.dataset(0, 40), trainer_.validation_dataset(0, 4)
    history = trainer_.fit(data[0], epochs=4, validation_data=data[1], verbose=0).history
    assert history["val_loss"][-1] < 0.95 * history["val_loss"][0]
