"""Rules with a control: their meta-gradient, against a tape by code that shares nothing with it."""

import itertools

import conftest
import keras
import numpy as np
import pytest
import tensorflow as tf
from level_rules import RULES, ThreeLevels, flat, start, step

from l2l_tf import LearnedOptimizer, MetaTrainer, update_rules
from l2l_tf.engine.unroll import initial_state, unroll
from l2l_tf.meta_training import objectives
from l2l_tf.meta_training.meta_gradient import meta_gradient
from l2l_tf.problems import Problem
from l2l_tf.update_rules import GroupedRule

NUM_STEPS, SEGMENT, OPTIMIZEES = 6, 3, 2


class Curved(Problem):
    """A loss of tensors of several ranks, in float64; its gradients have derivatives."""

    dtype = "float64"
    layout = [("kernel", (3, 2)), ("bias", (2,)), ("deep/kernel", (2, 2, 2)), ("scale", ())]

    def sample_parameters(self, seed):
        seeds = tf.random.experimental.stateless_split(seed, len(self.layout))
        return [
            tf.random.stateless_normal(shape, seeds[i], dtype=self.dtype)
            for i, (_, shape) in enumerate(self.layout)
        ]

    def loss_and_gradients(self, parameters, batch):
        with tf.GradientTape() as tape:
            tape.watch(parameters)
            kernel, bias, deep, scale = parameters
            y = tf.tanh(batch @ kernel + bias) @ deep[0] @ deep[1] * scale
            loss = tf.reduce_mean((y - 1) ** 2)
        return loss, tape.gradient(loss, parameters)


def episode(problem, num_windows=1):
    """Parameters θ_0 of each optimizee, a list, and the batches of each window."""
    parameters = [problem.sample_parameters([0, m]) for m in range(OPTIMIZEES)]
    if isinstance(problem, Curved):
        rng = np.random.default_rng(0)
        shape = [num_windows, OPTIMIZEES, NUM_STEPS + 1, 4, 3]
        return parameters, list(tf.constant(rng.normal(size=shape)))
    data = [
        list(problem.batches("train", [1, m], num_windows * (NUM_STEPS + 1)))
        for m in range(OPTIMIZEES)
    ]
    windows = []
    for w in range(num_windows):
        of_window = [d[w * (NUM_STEPS + 1) : (w + 1) * (NUM_STEPS + 1)] for d in data]
        stacked = [tf.nest.map_structure(lambda *leaves: tf.stack(leaves), *d) for d in of_window]
        windows.append(tf.nest.map_structure(lambda *leaves: tf.stack(leaves), *stacked))
    return parameters, windows


def taped(parts, problem, parameters, states, batches, second_derivatives=False):
    """The meta-gradient by a tape over the unrolled training, optimizee by optimizee.

    Args:
        parts: list of (rule, indices of its tensors).
        states: for each optimizee, for each part, a state as of ``start``.

    Returns:
        Gradients by all variables of the rules, θ_T and h_T of each optimizee.
    """
    variables = [v.value for rule, _ in parts for v in rule.trainable_variables]
    ends, end_states, total = [], [], 0.0
    with tf.GradientTape() as tape:
        for m in range(OPTIMIZEES):
            theta, of_parts = list(parameters[m]), list(states[m])
            for t in range(NUM_STEPS + 1):
                batch = tf.nest.map_structure(lambda leaf, m=m, t=t: leaf[m, t], batches)
                loss, gradients = problem.loss_and_gradients(theta, batch)
                total += loss / OPTIMIZEES if t else 0.0
                if t == NUM_STEPS:
                    break
                new = list(theta)
                for p, (rule, indices) in enumerate(parts):
                    if t % SEGMENT == 0:
                        of_parts[p] = tf.nest.map_structure(tf.stop_gradient, of_parts[p])
                    updates, of_parts[p] = step(
                        rule,
                        [gradients[i] for i in indices],
                        [theta[i] for i in indices],
                        of_parts[p],
                        tf.identity if second_derivatives else tf.stop_gradient,
                    )
                    for i, update in zip(indices, updates):
                        new[i] = theta[i] + update
                theta = new
            ends.append(theta)
            end_states.append(of_parts)
    return tape.gradient(total, variables), ends, end_states


def vector(lists):
    return tf.stack([tf.concat([flat(t) for t in of_one], axis=0) for of_one in lists])


def largest_relative_difference(received, expected):
    differences = []
    for a, b in zip(received, expected, strict=True):
        assert np.linalg.norm(b) > 0
        differences.append(np.abs(a - b).max() / np.abs(b).max())
    return max(differences)


def grouped(rule, dtype):
    biases = update_rules.CoordinatewiseLSTM((3,), zero_head=False, seed=2, dtype=dtype)
    return GroupedRule([("bias", biases), ("", rule)])


WHOLE, CHUNKS = 10**6, 30
BY_DEFAULT = [
    ("moments", "curved", True, CHUNKS),
    ("learned decay", "mlp", False, WHOLE),
]


@pytest.mark.parametrize(
    "name, problem, is_grouped, chunk_size",
    [
        pytest.param(*case, marks=[] if case in BY_DEFAULT else pytest.mark.slow)
        for case in itertools.product(RULES, ["curved", "mlp"], [False, True], [WHOLE, CHUNKS])
    ],
)
def test_identity_equals_taping_the_unroll(name, problem, is_grouped, chunk_size):
    """In the second window of an episode, of segments each, so that no state is the initial one."""
    problem = Curved() if problem == "curved" else conftest.keras_problem()
    rule = RULES[name](problem.dtype)
    whole = grouped(rule, problem.dtype) if is_grouped else rule
    everywhere = range(len(problem.layout))
    biases = [i for i in everywhere if "bias" in problem.layout[i][0]]
    parts = [(rule, everywhere)]
    if is_grouped:
        parts = [(whole.rules[0], biases), (rule, [i for i in everywhere if i not in biases])]
    shapes = [shape for _, shape in problem.layout]
    states = [[start(r, [shapes[i] for i in indices]) for r, indices in parts]] * OPTIMIZEES
    parameters, (first, second) = episode(problem, num_windows=2)
    kwargs = {"num_steps": NUM_STEPS, "segment_length": SEGMENT}

    state = initial_state(whole, problem.layout, OPTIMIZEES)
    before = unroll(whole, problem, vector(parameters), state, first, **kwargs)
    _, ends, states = taped(parts, problem, parameters, states, first)
    tolerance = 1e-9 if problem.dtype == "float64" else 1e-4
    np.testing.assert_allclose(before.parameters, vector(ends), rtol=tolerance, atol=tolerance / 10)

    # From here on both start at the very same point.
    sizes = [int(np.prod(shape)) for shape in shapes]
    parameters = [
        [tf.reshape(t, s) for t, s in zip(tf.split(row, sizes), shapes)]
        for row in before.parameters
    ]
    expected, *_ = taped(parts, problem, parameters, states, second)

    @tf.function
    def received():
        trajectory = unroll(whole, problem, before.parameters, before.state, second, **kwargs)
        weights = conftest.loss_weights(objectives.loss_sum, trajectory.losses)
        return meta_gradient(whole, problem.layout, trajectory, weights, chunk_size=chunk_size)

    tolerance = 1e-9 if problem.dtype == "float64" else 1e-5
    assert largest_relative_difference(received(), expected) < tolerance


def curved_episode(rule):
    problem = Curved()
    parameters, (batches,) = episode(problem)
    return problem, vector(parameters), initial_state(rule, problem.layout, OPTIMIZEES), batches


one_rule_by_default = pytest.mark.parametrize(
    "name", ["learned decay", pytest.param("moments", marks=pytest.mark.slow)]
)


@one_rule_by_default
def test_drawn_coordinates_give_an_unbiased_meta_gradient(name):
    rule = RULES[name]("float64")
    problem, *of_episode = curved_episode(rule)
    trajectory = unroll(rule, problem, *of_episode, num_steps=NUM_STEPS, segment_length=SEGMENT)
    weights = conftest.loss_weights(objectives.loss_sum, trajectory.losses)

    @tf.function
    def drawn(seed, backward_fraction=0.5):
        products = meta_gradient(
            rule,
            problem.layout,
            trajectory,
            weights,
            backward_fraction=backward_fraction,
            seed=seed,
        )
        return tf.concat([flat(product) for product in products], axis=0)

    whole = drawn(tf.constant([0, 0]), backward_fraction=1.0).numpy()
    draws = np.array([drawn(tf.constant([0, i])) for i in range(200)])
    error = np.std(draws, axis=0, ddof=1) / np.sqrt(len(draws))
    difference = draws.mean(axis=0) - whole
    assert error.min() > 0
    assert np.abs(difference / error).mean() < 1.5
    assert np.linalg.norm(difference) < 0.1 * np.linalg.norm(whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_second_derivatives_equal_a_tape(name):
    rule = RULES[name]("float64")
    problem, parameters, state, batches = curved_episode(rule)
    kwargs = {"num_steps": NUM_STEPS, "segment_length": SEGMENT}

    @tf.function
    def value_and_gradients():
        with tf.GradientTape() as tape:
            losses = unroll(
                rule,
                problem,
                parameters,
                state,
                batches,
                record=False,
                second_derivatives=True,
                **kwargs,
            ).losses
            value = conftest.mean_objective(objectives.loss_sum, losses)
        return value, tape.gradient(value, [v.value for v in rule.trainable_variables])

    _, exact = value_and_gradients()
    shapes = [shape for _, shape in problem.layout]
    (starts, _), states = episode(problem), [[start(rule, shapes)]] * OPTIMIZEES
    parts = [(rule, range(len(shapes)))]
    expected, *_ = taped(parts, problem, starts, states, batches, second_derivatives=True)
    assert largest_relative_difference(exact, expected) < 1e-9
    first_order, *_ = taped(parts, problem, starts, states, batches)
    assert largest_relative_difference(first_order, expected) > 1e-3


def trainer_of(rule, **kwargs):
    """With segments, between which states of coordinates and control are carried."""
    options = {"credit": "segment", "meta_batch_size": 2}
    trainer = MetaTrainer(rule, conftest.keras_problem(), 5, 10, **options)
    trainer.compile(optimizer=keras.optimizers.Adam(0.03), **kwargs)
    return trainer


@one_rule_by_default
def test_meta_training_lowers_the_loss(name):
    trainer = trainer_of(RULES[name]())
    losses = trainer.fit(trainer.dataset(0, 20), epochs=4, verbose=0).history["loss"]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_meta_training_in_one_program_gives_the_same_rule(name):
    ends = []
    for jit_compile in (False, True):
        trainer = trainer_of(RULES[name](), jit_compile=jit_compile)
        trainer.fit(trainer.dataset(0, 4), verbose=0)
        ends.append(tf.concat([flat(w.value) for w in trainer.rule.weights], axis=0))
    np.testing.assert_allclose(*ends, atol=1e-4)


def of_shape(method, make):
    """A rule with a method that returns what it must not."""
    return type("Broken", (ThreeLevels,), {method: make})()


@pytest.mark.parametrize(
    "method, returned, message",
    [
        ("summarize", lambda self, inputs, _: inputs.gradients, r"\[S, N\], of shape \(None, "),
        ("summarize", lambda *_: tf.ones([2, 3]), r"\[S, N\].* Received: shape \(2, 3\)"),
        ("control", lambda _, sums, state, tensors: (tensors.sizes, state), r"controls \[C, K\]"),
        ("control", lambda _, sums, state, tensors: (tf.ones([2, 7]), state), r"shape \(2, 7\)"),
        ("initial_control", lambda *_: tf.zeros([]), r"leaves \[..., K\], .*shape \(\)"),
        ("initial_control", lambda *_: [tf.zeros([7])], r"leaves \[..., K\], .*shape \(7,\)"),
    ],
)
def test_what_is_of_a_wrong_shape_is_named(method, returned, message):
    variables = [tf.Variable(tf.ones(shape)) for shape in [(2, 2), (2,)]]
    with pytest.raises(ValueError, match=f"^Broken.{method} must return .*{message}"):
        rule = of_shape(method, returned)
        LearnedOptimizer(rule).apply([tf.ones_like(v) for v in variables], variables)
    with pytest.raises(ValueError, match=f"^Broken.{method} must return .*{message}"):
        rule = of_shape(method, returned)
        trainer = trainer_of(rule)
        trainer.fit(trainer.dataset(0, 2), verbose=0)


def test_a_control_goes_with_coordinates_alone():
    with pytest.raises(ValueError, match="has a `control`, so its coupling must be 'coordinate'"):
        of_shape("coupling", "tensor")
