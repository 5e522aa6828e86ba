"""Rules with a control: their meta-gradient, against a tape by code that shares nothing with it."""

import types

import conftest
import numpy as np
import pytest
import tensorflow as tf
from level_rules import RULES, LearnedDecay, ThreeLevels

from l2l_tf import update_rules
from l2l_tf.engine.unroll import initial_state, unroll
from l2l_tf.meta_training import objectives
from l2l_tf.meta_training.meta_gradient import meta_gradient
from l2l_tf.problems import Problem
from l2l_tf.update_rules import GroupedRule
from l2l_tf.update_rules.levels import Inputs

NUM_STEPS, SEGMENT, OPTIMIZEES = 6, 3, 2
every_rule = pytest.mark.parametrize("name", RULES)


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


def facts(shapes, dtype):
    """What a control knows of its tensors, by hand."""
    columns = [(float(np.prod(s)), float(np.prod(s[:-1])), float(len(s))) for s in shapes]
    sizes, fan_in, ranks = tf.unstack(tf.constant(np.transpose(columns), dtype))

    def model_sum(values):
        return sum(values[..., k] for k in range(len(shapes)))[..., None] + tf.zeros_like(values)

    return types.SimpleNamespace(sizes=sizes, fan_in=fan_in, ranks=ranks, model_sum=model_sum)


def start(rule, shapes):
    if rule.coupling != "coordinate":
        return rule.initial_state([("", shape) for shape in shapes])
    of_tensors = [rule.initial_state(int(np.prod(shape))) for shape in shapes]
    control = rule.initial_control(facts(shapes, rule.dtype)) if rule.has_control else ()
    return of_tensors, control


def step(rule, gradients, parameters, state, stop):
    """One step, tensor by tensor, by the contract's words alone."""
    shapes = [g.shape for g in gradients]
    inputs = [
        Inputs(*map(stop, pair)) if rule.sees_parameters else stop(pair[0])
        for pair in zip(map(flat, gradients), map(flat, parameters))
    ]
    of_tensors, control = state
    if rule.has_control:
        summaries = [tf.reduce_sum(rule.summarize(*pair), axis=1) for pair in zip(inputs, of_tensors)]
        controls, control = rule.control(
            stop(tf.stack(summaries, axis=1)), control, facts(shapes, rule.dtype)
        )
        extra = [
            (tf.tile(controls[:, k : k + 1], [1, shape.num_elements()]),)
            for k, shape in enumerate(shapes)
        ]
    else:
        extra = [()] * len(shapes)
    results = [rule.update(i, s, *e) for i, s, e in zip(inputs, of_tensors, extra)]
    updates = [tf.reshape(u, shape) for (u, _), shape in zip(results, shapes)]
    return updates, ([new for _, new in results], control)


def flat(tensor):
    return tf.reshape(tensor, [-1])


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


@pytest.mark.parametrize("chunk_size", [10**6, 30])
@pytest.mark.parametrize("is_grouped", [False, True])
@pytest.mark.parametrize("problem", ["curved", "mlp"])
@every_rule
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
        weights = objectives.loss_weights(objectives.loss_sum, trajectory.losses)
        return meta_gradient(whole, problem.layout, trajectory, weights, chunk_size=chunk_size)

    tolerance = 1e-9 if problem.dtype == "float64" else 1e-5
    assert largest_relative_difference(received(), expected) < tolerance
