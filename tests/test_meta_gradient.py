"""The identity, against taping the whole unroll by code that shares nothing with it."""

import conftest
import numpy as np
import pytest
import tensorflow as tf

from l2l_tf import problems, update_rules
from l2l_tf.engine.episodes import episode_seed, windows
from l2l_tf.engine.unroll import initial_state, unroll
from l2l_tf.meta_training import objectives
from l2l_tf.meta_training.meta_gradient import cotangents, meta_gradient
from l2l_tf.update_rules.base import UpdateRule, flatten, split

NUM_STEPS, SEGMENT = 6, 3


def lstm(dtype="float32"):
    rule = update_rules.CoordinatewiseLSTM((5, 4), zero_head=False, seed=2, dtype=dtype)
    rule.trainable_variables[-1].assign([[0.1]])
    return rule


def rnnprop():
    return update_rules.RNNprop((5,), zero_head=False, seed=2)


class TensorNormRule(UpdateRule):
    """Normalized steps with momentum, each tensor by its own norm: coupled coordinates."""

    coupling = "tensor"

    def __init__(self):
        super().__init__()
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")
        self.decay = self.add_weight(shape=(), initializer=lambda *a, **k: 0.7, name="decay")

    def initial_state(self, layout):
        return [tf.zeros(shape) for _, shape in layout]

    def update(self, gradients, state):
        state = [self.decay * s + g / tf.norm(g) for s, g in zip(state, gradients)]
        return [-0.1 * self.scale * s for s in state], state


def episode(problem, num_optimizees=2, num_windows=1, window_length=NUM_STEPS):
    """Parameters ``[M, N]`` and, for each window, batches with leaves ``[M, W + 1, ...]``."""
    optimizees = [
        list(
            windows(problem, "train", episode_seed(0, "meta_train", m), num_windows, window_length)
        )
        for m in range(num_optimizees)
    ]
    stack = lambda *leaves: tf.stack(leaves)  # noqa: E731
    parameters = stack(*[o[0]["parameters"] for o in optimizees])
    batches = [
        tf.nest.map_structure(stack, *[o[w]["batches"] for o in optimizees])
        for w in range(num_windows)
    ]
    return parameters, batches


def taped(rule, problem, parameters, states, batches, objective, second_derivatives=False):
    """The meta-gradient by a tape over the unrolled training, optimizee by optimizee.

    The rule's state is cut each SEGMENT steps. Returns value, gradients, parameters, states.
    """
    variables = [v.value for v in rule.trainable_variables]
    with tf.GradientTape() as tape:
        values, ends, end_states = [], [], []
        for m, state in enumerate(states):
            theta, losses = parameters[m], []
            for t in range(NUM_STEPS + 1):
                batch = tf.nest.map_structure(lambda leaf, m=m, t=t: leaf[m, t], batches)
                loss, gradients = problem.loss_and_gradients(split(theta, problem.layout), batch)
                losses.append(loss)
                if t == NUM_STEPS:
                    break
                if t % SEGMENT == 0:
                    state = tf.nest.map_structure(tf.stop_gradient, state)
                if not second_derivatives:
                    gradients = [tf.stop_gradient(g) for g in gradients]
                if rule.coupling == "coordinate":
                    update, state = rule.update(flatten(gradients), state)
                else:
                    updates, state = rule.update(gradients, state)
                    update = flatten(updates)
                theta = theta + update
            first_loss = tf.stop_gradient(losses[0])
            values.append(objectives.of_optimizee(objective, tf.stack(losses[1:]), first_loss))
            ends.append(theta)
            end_states.append(state)
        value = tf.add_n(values) / len(values)
    return value, tape.gradient(value, variables), tf.stack(ends), end_states


def by_identity(rule, problem, parameters, state, batches, objective, **kwargs):
    trajectory = unroll(
        rule,
        problem,
        parameters,
        state,
        batches,
        num_steps=NUM_STEPS,
        segment_length=SEGMENT,
    )
    weights = conftest.loss_weights(objective, trajectory.losses)
    return meta_gradient(rule, problem.layout, trajectory, weights, **kwargs), trajectory


def largest_relative_difference(received, expected):
    differences = []
    for a, b in zip(received, expected):
        assert np.linalg.norm(b) > 0
        differences.append(np.abs(a - b).max() / np.abs(b).max())
    return max(differences)


PROBLEMS = {
    "mlp": conftest.keras_problem,
    "conv_net": lambda: conftest.keras_problem(conftest.conv_net),
}


@pytest.mark.parametrize("chunk_size", [10**6, 72])
@pytest.mark.parametrize("make_rule", [lstm, rnnprop, TensorNormRule])
@pytest.mark.parametrize("name", PROBLEMS)
def test_identity_equals_taping_the_unroll(name, make_rule, chunk_size):
    """In the second window of an episode, so that the rule's state is not the initial one."""
    problem, rule = PROBLEMS[name](), make_rule()
    if rule.coupling != "coordinate" and chunk_size == 72:
        pytest.skip("coupled coordinates are not chunked")
    parameters, (first, second) = episode(problem, num_windows=2)
    state = initial_state(rule, problem.layout, 2)
    separate = [initial_state(rule, problem.layout, 1) for _ in range(2)]
    if rule.coupling != "coordinate":
        separate = [s[0] for s in separate]
    objective = objectives.loss_sum

    _, before = by_identity(rule, problem, parameters, state, first, objective)
    *_, ends, separate = taped(rule, problem, parameters, separate, first, objective)
    np.testing.assert_allclose(before.parameters, ends, rtol=1e-4, atol=1e-5)

    # From here on both start at the very same point.
    _, expected, *_ = taped(rule, problem, before.parameters, separate, second, objective)
    received, _ = tf.function(
        lambda: by_identity(
            rule,
            problem,
            before.parameters,
            before.state,
            second,
            objective,
            chunk_size=chunk_size,
        )
    )()
    assert largest_relative_difference(received, expected) < 1e-5


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_every_objective(name):
    problem, rule, objective = conftest.keras_problem(), lstm(), objectives.OBJECTIVES[name]
    parameters, (batches,) = episode(problem)
    state = initial_state(rule, problem.layout, 2)
    separate = [initial_state(rule, problem.layout, 1) for _ in range(2)]
    _, expected, *_ = taped(rule, problem, parameters, separate, batches, objective)
    received, _ = by_identity(rule, problem, parameters, state, batches, objective)
    assert largest_relative_difference(received, expected) < 1e-5


def test_cotangents_by_hand():
    gradients = tf.constant([[1.0], [10.0], [100.0]])  # ∇f(θ_0), ∇f(θ_1), ∇f(θ_2)
    weights = tf.constant([[5.0], [1.0], [2.0]])
    np.testing.assert_array_equal(cotangents(gradients, weights), [[210.0], [200.0]])


def test_random_coordinates_give_an_unbiased_meta_gradient():
    problem, rule = conftest.keras_problem(), lstm()
    parameters, (batches,) = episode(problem)
    state = initial_state(rule, problem.layout, 2)
    trajectory = unroll(rule, problem, parameters, state, batches, num_steps=NUM_STEPS)
    weights = conftest.loss_weights(objectives.loss_sum, trajectory.losses)
    weights *= [[1.0, 3.0]]  # each optimizee's own
    whole = meta_gradient(rule, problem.layout, trajectory, weights)

    @tf.function
    def part(seed):
        return meta_gradient(
            rule, problem.layout, trajectory, weights, backward_fraction=0.5, seed=seed
        )

    draws = [
        np.concatenate([g.numpy().ravel() for g in part(tf.constant([0, i]))]) for i in range(200)
    ]
    whole = np.concatenate([g.numpy().ravel() for g in whole])
    error = np.std(draws, axis=0, ddof=1) / np.sqrt(len(draws))
    assert error.max() > 0
    standardized = (np.mean(draws, axis=0) - whole)[error > 0] / error[error > 0]
    assert np.abs(standardized).mean() < 1.5
    assert np.linalg.norm(np.mean(draws, axis=0) - whole) < 0.1 * np.linalg.norm(whole)


class Quadratic64(problems.Quadratic):
    """In float64, for finite differences."""

    dtype = "float64"

    def sample_parameters(self, seed):
        return [tf.cast(p, "float64") for p in super().sample_parameters(seed)]

    def sample_coefficients(self, seed):
        return tuple(tf.cast(c, "float64") for c in super().sample_coefficients(seed))


def test_second_derivatives_equal_finite_differences():
    problem, rule = Quadratic64(4), lstm("float64")
    parameters, (batches,) = episode(problem)

    @tf.function
    def losses():
        state = initial_state(rule, problem.layout, 2)
        return unroll(
            rule,
            problem,
            parameters,
            state,
            batches,
            num_steps=NUM_STEPS,
            record=False,
            second_derivatives=True,
        ).losses

    def value():
        return conftest.mean_objective(objectives.loss_sum, losses())

    variables = rule.trainable_variables
    with tf.GradientTape() as tape:
        total = value()
    exact = tape.gradient(total, [v.value for v in variables])
    rng = np.random.default_rng(0)
    for variable, gradient in zip(variables, exact):
        direction, step, start = rng.normal(size=variable.shape), 1e-5, variable.numpy()
        variable.assign(start + step * direction)
        above = value()
        variable.assign(start - step * direction)
        difference = (above - value()) / (2 * step)
        variable.assign(start)
        np.testing.assert_allclose(np.sum(gradient * direction), difference, rtol=1e-6)
    # It is another gradient than the first-order one.
    first_order, _ = by_identity(
        rule,
        problem,
        parameters,
        initial_state(rule, problem.layout, 2),
        batches,
        objectives.loss_sum,
    )
    assert np.linalg.norm(first_order[0] - exact[0]) > 1e-3 * np.linalg.norm(exact[0])


def test_meta_gradient_checks_its_arguments():
    problem, rule = problems.Quadratic(), lstm()
    parameters, (batches,) = episode(problem)
    state = initial_state(rule, problem.layout, 2)
    kwargs = {"num_steps": NUM_STEPS, "segment_length": SEGMENT}
    trajectory = unroll(rule, problem, parameters, state, batches, **kwargs)
    weights = tf.ones_like(trajectory.losses)
    unrecorded = trajectory._replace(gradients=None)

    def call(rule=rule, layout=problem.layout, trajectory=trajectory, weights=weights, **options):
        return meta_gradient(rule, layout, trajectory, weights, **options)

    for error, message, options in (
        (TypeError, "`rule` must be an UpdateRule", {"rule": "adam"}),
        (TypeError, "`trajectory` must be what unroll", {"trajectory": trajectory.gradients}),
        (ValueError, "record=True", {"trajectory": unrecorded}),
        (ValueError, "10 coordinates. Received: 2", {"layout": problems.Simple(2).layout}),
        (
            ValueError,
            r"`weights` must .*\(7, 2\). Received: shape \(7,\)",
            {"weights": weights[:, 0]},
        ),
        (ValueError, "`backward_fraction` must be", {"backward_fraction": 0.0}),
        (TypeError, "`backward_fraction` must be", {"backward_fraction": "x"}),
        (ValueError, "`chunk_size` must be", {"chunk_size": -1}),
        (TypeError, "`chunk_size` must be", {"chunk_size": 10.0}),
        (ValueError, r"`seed` must be .*\[2\]", {"backward_fraction": 0.5, "seed": 3}),
    ):
        with pytest.raises(error, match=message):
            call(**options)
    assert len(call(backward_fraction=0.5, seed=(1, 2))) == len(rule.trainable_variables)


def test_a_rule_with_nothing_to_train_has_no_meta_gradient():
    problem, rule = problems.Quadratic(), update_rules.Adam(0.1)
    parameters, (batches,) = episode(problem)
    state = initial_state(rule, problem.layout, 2)
    received, _ = by_identity(rule, problem, parameters, state, batches, objectives.loss_sum)
    assert received == []


def test_pieces_side_by_side_equal_one(monkeypatch):
    problem, rule = conftest.keras_problem(), rnnprop()
    parameters, (batches,) = episode(problem)
    state = initial_state(rule, problem.layout, 2)
    results = []
    for least in (10**9, 3):
        conftest.in_pieces(monkeypatch, side_by_side=2, least=least)
        kwargs = {"num_steps": NUM_STEPS, "segment_length": SEGMENT}
        trajectory = unroll(rule, problem, parameters, state, batches, **kwargs)
        results.append(np.concatenate([x.numpy().ravel() for x in tf.nest.flatten(trajectory)]))
    np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-6)
