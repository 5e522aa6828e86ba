"""Two rules with all three levels, and a step of such a rule by the contract's words alone."""

import types

import keras
import numpy as np
import tensorflow as tf

from l2l_tf.update_rules import UpdateRule
from l2l_tf.update_rules.levels import Inputs

UNITS = 3


def unit(a, b, c):
    """a / √(b c), where they are not 0."""
    return a * tf.math.rsqrt(b * c + 1e-12)


@keras.saving.register_keras_serializable("level_rules")
class ThreeLevels(UpdateRule):
    """Moments; a gated cell for each tensor, which integrates a log step; a net a coordinate."""

    sees_parameters = True
    state_depends_on_weights = False

    def __init__(self, dtype="float32", name=None):
        super().__init__(dtype=dtype, name=name)
        rng = np.random.default_rng(1)

        def weight(name, *shape):
            value = 0.3 * rng.normal(size=shape)
            return self.add_weight(shape=shape, initializer=lambda *a, **k: value, name=name)

        self.gates = weight("gates", 2 * UNITS, 9 + UNITS)
        self.gate_biases = weight("gate_biases", 2 * UNITS, 1)
        self.head = weight("head", 3, UNITS)
        self.hidden = weight("hidden", 4, 4)
        self.last = weight("last", 1, 4)

    def initial_state(self, layout):
        (size,) = [layout] if not isinstance(layout, list) else [sum_of_sizes(layout)]
        return {name: tf.zeros([size], self.dtype) for name in "mv"}

    def initial_control(self, tensors):
        zeros = tf.zeros_like(tensors.sizes)
        return {"log_step": zeros[None] - 3.0, "cell": tf.stack([zeros] * UNITS)}

    def summarize(self, inputs, state):
        g, m = inputs.gradients, state["m"]
        return tf.stack([g**2, g * m, m**2, state["v"], inputs.parameters**2])

    def control(self, summaries, state, tensors):
        g2, gm, m2, v, p2 = tf.unstack(summaries)
        size = tf.maximum(tensors.sizes, 1.0)
        scale = tf.sqrt(p2 / size + 0.1 / tensors.fan_in)
        features = [
            unit(gm, g2, m2),
            unit(*map(tensors.model_sum, (gm, g2, m2))),
            tf.math.log((m2 + 1e-8) / (v + 1e-8)),
            tf.math.log(g2 + 1e-8) / 10,
            tf.math.log(scale),
            state["log_step"][0],
            tf.math.log(tensors.fan_in) / 4,
            tf.math.log(size) / 4,
            tensors.ranks,
        ]
        columns = tf.concat([features, state["cell"]], axis=0)
        gate, new = tf.split(self.gates @ columns + self.gate_biases, 2)
        gate = tf.sigmoid(gate)
        cell = gate * state["cell"] + (1 - gate) * tf.tanh(new)
        out = tf.matmul(self.head, cell)
        log_step = state["log_step"] + 0.15 * tf.tanh(out[:1])
        step = tf.exp(tf.minimum(log_step, -2.0)) * scale
        return tf.concat([step, out[1:]], axis=0), {"log_step": log_step, "cell": cell}

    def decay(self, controls):
        return 0.8

    def update(self, inputs, state, controls):
        decay = self.decay(controls)
        m = decay * state["m"] + (1 - decay) * inputs.gradients
        v = 0.9 * state["v"] + 0.1 * inputs.gradients**2
        size = tf.math.rsqrt(v + 1e-8)
        features = tf.stack([m * size, inputs.gradients * size, *tf.unstack(controls[1:])])
        correction = self.last @ tf.tanh(self.hidden @ features)
        return -controls[0] * (m * size + correction[0]), {"m": m, "v": v}


@keras.saving.register_keras_serializable("level_rules")
class LearnedDecay(ThreeLevels):
    """The same, with a decay that φ and the control say: the coordinates' state depends on φ."""

    state_depends_on_weights = True

    def __init__(self, dtype="float32", name=None):
        super().__init__(dtype=dtype, name=name)
        self.logit = self.add_weight(shape=(), initializer="ones", name="logit")

    def decay(self, controls):
        return tf.sigmoid(self.logit + controls[1])


def sum_of_sizes(layout):
    return sum(int(np.prod(shape)) for _, shape in layout)


RULES = {"moments": ThreeLevels, "learned decay": LearnedDecay}


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
        summaries = [
            tf.reduce_sum(rule.summarize(*pair), axis=1) for pair in zip(inputs, of_tensors)
        ]
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
