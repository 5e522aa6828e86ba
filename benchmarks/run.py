"""Benchmarks: meta-training and applying a rule, against the textbook way, Adam and the limit.

  python benchmarks/run.py                      # all, about twelve minutes; the machine to itself
  python benchmarks/run.py --only=meta,apply --output=benchmarks/results.json
  python benchmarks/run.py --only=meta --isa=avx2  # as on a processor without AVX-512

Parts: meta (meta-training speed), apply (in `fit`), tabular (in `fit`, many small variables),
growth (with the number of coordinates), memory, first (first steps, compilation included), fraction
(variance against cost of ``--backward_fraction``), small (whole episodes of small optimizees, one
and two groups at once), any_fit, any_step, any_memory (the rule for any model beside Keras' Adam,
in ``fit``, its step alone, and in memory). Ratios of one run are what counts; figures of other runs
differ.
"""

import inspect
import itertools
import json
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks import isa

isa.set_environment()

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import l2l_tf
from benchmarks import any_model, measure, small_problems, textbook
from l2l_tf.engine import unroll as unroll_lib
from l2l_tf.meta_training import meta_gradient as meta_gradient_lib
from l2l_tf.problems.classification import BATCH_SIZE, perceptron
from l2l_tf.update_rules import base

_ONLY = flags.DEFINE_list(
    "only",
    [
        *("meta", "apply", "tabular", "growth", "memory", "first", "fraction", "small"),
        *("any_fit", "any_step", "any_memory"),
    ],
    "Parts to run.",
)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")
_PEERS = flags.DEFINE_bool("peers", False, "meta: beside JAX too (`pip install jax`).")

UNROLL_LENGTH = 20


def mlp(*hidden):
    return perceptron((28, 28, 1), 1 / 255, hidden)


def conv_net():
    layers = keras.layers
    convolutions = [
        layer
        for _ in range(2)
        for layer in (layers.Conv2D(16, 5, activation="relu"), layers.MaxPooling2D())
    ]
    head = [layers.Flatten(), layers.Dense(32, "relu"), layers.Dense(10)]
    return keras.Sequential(
        [keras.Input([28, 28, 1]), layers.Rescaling(1 / 255), *convolutions, *head]
    )


def tabular_net(num_columns):
    """A column in two is a number, the other a category; each has layers of its own."""
    layers = keras.layers
    inputs, encoded = [], []
    for column in range(num_columns):
        is_category = column % 2
        inputs.append(keras.Input([1], dtype="int32" if is_category else "float32"))
        if is_category:
            encoded.append(layers.Flatten()(layers.Embedding(20, 8)(inputs[-1])))
        else:
            normalized = layers.Normalization(mean=0.0, variance=1.0)(inputs[-1])
            encoded.append(layers.Dense(8, "relu")(normalized))
    hidden = layers.BatchNormalization()(layers.Concatenate()(encoded))
    return keras.Model(inputs, layers.Dense(10)(layers.Dense(16, "relu")(hidden)))


MODELS = {
    "mlp 784-20-10": lambda: mlp(20),
    "mlp 784-128-10": lambda: mlp(128),
    "conv net": conv_net,
    "mlp 1 million": lambda: mlp(1000, 200),
    "mlp 5 million": lambda: mlp(2400, 1280),
}
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def data(num_batches=40):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (num_batches * BATCH_SIZE, 28, 28, 1), dtype="uint8")
    y = rng.integers(0, 10, num_batches * BATCH_SIZE)
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH_SIZE)


def lstm(layers):
    return l2l_tf.update_rules.CoordinatewiseLSTM(layers, zero_head=False, output_scale=1e-4)


def problem_of(model):
    return l2l_tf.problems.KerasProblem(MODELS[model], data(), LOSS)


def meta_step(model, layers, unroll_length=UNROLL_LENGTH, num_steps=100, **kwargs):
    """A function that meta-trains for one segment, as ``fit`` does."""
    rule, problem = lstm(layers), problem_of(model)
    trainer = l2l_tf.MetaTrainer(rule, problem, unroll_length, num_steps, **kwargs)
    trainer.compile(optimizer=keras.optimizers.Adam(1e-4))
    windows = iter(trainer.dataset(0, 1000))
    return lambda: trainer.train_on_batch(next(windows))["loss"]


def segments(model):
    """Parameters and batches of one optimizee, a segment after another, as ``fit`` has them."""
    trainer = l2l_tf.MetaTrainer(lstm((8,)), problem_of(model), UNROLL_LENGTH, 100)
    for window in trainer.dataset(0, 1000):
        batches = tf.nest.map_structure(lambda leaf: leaf[0], window["batches"])
        yield window["parameters"][0], batches


def textbook_step(model, layers):
    trainer, of_model = textbook.TextbookTrainer(lstm(layers), problem_of(model)), segments(model)
    carry = [None, trainer.initial_state()]

    def step():
        initial, batches = next(of_model)
        parameters = initial if carry[0] is None else carry[0]
        carry[0], carry[1], total = trainer.train_segment(parameters, carry[1], batches)
        return total

    return step


def optimizee_step(model):
    descend, of_model = textbook.descend(problem_of(model), UNROLL_LENGTH), segments(model)
    carry = [None]

    def step():
        initial, batches = next(of_model)
        carry[0], total = descend(initial if carry[0] is None else carry[0], batches)
        return total

    return step


def jax_steps(model, layers):
    """Functions that meta-train for one segment: by JAX, with all stored and with steps redone."""
    from benchmarks import jax_peer

    rule, of_model = lstm(layers), segments(model)
    weights = [weight.numpy() for weight in rule.weights]
    parameters = [v.numpy() for v in MODELS[model]().trainable_variables]
    network = jax_peer.conv_net if model == "conv net" else jax_peer.perceptron

    def step_of(trainer):
        def step():
            _, batches = next(of_model)
            images, labels, *_ = [leaf.numpy() for leaf in tf.nest.flatten(batches)]
            return tf.constant(np.asarray(trainer.train_segment(images, labels)))

        return step

    return {
        name: step_of(
            jax_peer.JaxTrainer(weights, rule.output_scale, network, parameters, recomputes)
        )
        for name, recomputes in (("JAX", False), ("JAX, steps redone", True))
    }


def meta():
    """Inner steps a second of meta-training, at unroll length 20 and batch size 128.

    *Ours* is the share of a step that the optimizee's own losses and gradients, those at the end of
    a segment too, do not take.
    """
    limit = measure.flops_per_second()
    rows = []
    cases = [(m, layers) for m in list(MODELS)[:3] for layers in ((20, 20), (8,))]
    for model, layers in cases:
        contestants = {
            "textbook": textbook_step(model, layers),
            "full backward": meta_step(model, layers),
            "default": meta_step(model, layers, backward_fraction=0.25),
            "optimizee alone": optimizee_step(model),
            **(jax_steps(model, layers) if _PEERS.value else {}),
        }
        seconds, _ = measure.median_seconds(contestants)
        rate = {name: UNROLL_LENGTH / s for name, s in seconds.items()}
        n = base.num_coordinates(problem_of(model).layout)
        # Forward once, and twice as much for the gradients by inputs and by weights.
        of_limit = rate["full backward"] * 3 * measure.lstm_flops(layers) * n / limit
        of_peers = [r for name, r in rate.items() if name.startswith("JAX")]
        beside = {"default / JAX": round(rate["default"] / max(of_peers), 2)} if of_peers else {}
        rows.append(
            {
                "model": model,
                "coordinates": n,
                "rule": str(layers),
                **{f"{name}, steps/s": round(r, 1) for name, r in rate.items()},
                "full / textbook": round(rate["full backward"] / rate["textbook"], 2),
                "default / textbook": round(rate["default"] / rate["textbook"], 2),
                "full, share of limit": round(of_limit, 3),
                "ours, of default": round(1 - rate["default"] / rate["optimizee alone"], 2),
                **beside,
            }
        )
    return rows


def tabular_data(num_columns, num_batches=40):
    rng = np.random.default_rng(0)
    shape = (num_batches * BATCH_SIZE, 1)
    columns = [
        rng.integers(0, 20, shape, dtype="int32") if column % 2 else rng.normal(size=shape)
        for column in range(num_columns)
    ]
    y = rng.integers(0, 10, shape[0])
    return tf.data.Dataset.from_tensor_slices((tuple(columns), y)).batch(BATCH_SIZE).cache()


def fit_step(model, optimizer, steps_per_execution=1):
    """A function that trains for ten steps, as ``fit`` does."""
    return _fit_step(MODELS[model](), data(), optimizer, steps_per_execution)


def _fit_step(network, batches, optimizer, steps_per_execution=1):
    network.compile(optimizer=optimizer, loss=LOSS, steps_per_execution=steps_per_execution)
    network.make_train_function()
    batches = iter(batches.repeat())

    def steps():
        for _ in range(10 // steps_per_execution):
            logs = network.train_function(batches)
        return [logs["loss"], network.trainable_variables[-1].value]

    return steps


def minus_gradient():
    return l2l_tf.LearnedOptimizer(l2l_tf.update_rules.SGD(1e-4))


def apply():
    """Milliseconds of a step of ``fit``, at batch size 128.

    As it is, and with ten steps a call of the train function (Keras' ``steps_per_execution``):
    between calls Python runs, slower after a rule whose state drives it out of the caches.
    """
    limit = measure.flops_per_second()
    rows = []
    models = "mlp 784-20-10", "mlp 784-128-10", "conv net"
    for model, steps in itertools.product(models, (1, 10)):
        optimizers = {
            "Adam": keras.optimizers.Adam(),
            "rule -g": minus_gradient(),
            "LSTM (20, 20)": l2l_tf.LearnedOptimizer(lstm((20, 20))),
            "LSTM (8)": l2l_tf.LearnedOptimizer(lstm((8,))),
        }
        contestants = {
            name: fit_step(model, optimizer, steps) for name, optimizer in optimizers.items()
        }
        seconds, _ = measure.median_seconds(contestants)
        milliseconds = {name: 100 * s for name, s in seconds.items()}
        n = sum(int(np.prod(v.shape)) for v in MODELS[model]().trainable_variables)
        at_limit = 1e3 * n * measure.lstm_flops((20, 20)) / limit
        rows.append(
            {
                "model": model,
                "coordinates": n,
                "steps a call": steps,
                **{f"{name}, ms": round(m, 2) for name, m in milliseconds.items()},
                "LSTM (20, 20) - rule -g, over limit": round(
                    (milliseconds["LSTM (20, 20)"] - milliseconds["rule -g"]) / at_limit, 2
                ),
                "LSTM (8) / Adam": round(milliseconds["LSTM (8)"] / milliseconds["Adam"], 2),
            }
        )
    return rows


def tabular():
    """Milliseconds of a step of ``fit`` of a net with many small variables, at batch size 128."""
    rows = []
    for num_columns in (40, 100):
        batches = tabular_data(num_columns)
        optimizers = {
            "Adam": keras.optimizers.Adam(),
            "rule -g": minus_gradient(),
            "mnist-mlp-lite": l2l_tf.LearnedOptimizer("mnist-mlp-lite"),
            "cifar10": l2l_tf.LearnedOptimizer("cifar10"),
        }
        contestants = {
            name: _fit_step(tabular_net(num_columns), batches, optimizer)
            for name, optimizer in optimizers.items()
        }
        seconds, first = measure.median_seconds(contestants, num_rounds=25)
        variables = tabular_net(num_columns).trainable_variables
        rows.append(
            {
                "columns": num_columns,
                "variables": len(variables),
                "coordinates": sum(int(np.prod(v.shape)) for v in variables),
                **{f"{name}, ms": round(100 * s, 2) for name, s in seconds.items()},
                **{
                    f"{name} / Adam": round(seconds[name] / seconds["Adam"], 2)
                    for name in list(optimizers)[1:]
                },
                "first ten steps, s": ", ".join(f"{s:.1f}" for s in first.values()),
            }
        )
    return rows


def apply_to(n, state_dtype="float32"):
    """A function that makes a step of the LSTM (20, 20) for `n` coordinates."""
    variable = tf.Variable(tf.zeros([n // 100, 100]))
    optimizer = l2l_tf.LearnedOptimizer(lstm((20, 20)), state_dtype=state_dtype)
    optimizer.build([variable])
    gradient = tf.random.normal(variable.shape)

    @tf.function
    def step():
        optimizer.apply([gradient], [variable])
        return variable[0, 0]

    return step


def growth():
    """Nanoseconds a coordinate of a step of the LSTM (20, 20), against the number of them."""
    return [
        {"coordinates": n, "ns a coordinate": round(1e9 * measure.alone(_step_seconds, n) / n, 1)}
        for n in (10_000, 100_000, 1_000_000, 5_000_000)
    ]


def _step_seconds(n):
    seconds, _ = measure.median_seconds({"step": apply_to(n)})
    return seconds["step"]


def _first_and_second_step(n, state_dtype):
    # The state counts from the start: built here, used in the step.
    step = apply_to(n, state_dtype)
    return lambda: [measure.seconds(step) for _ in range(2)]


def _two_segments(model, kwargs):
    step = meta_step(model, (20, 20), **kwargs)
    return lambda: [measure.seconds(step) for _ in range(2)]


def memory():
    """Peak memory in MiB, above model, data and state at the start."""
    rows = []
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        n = 5_000_000
        state = 80 * n * size / 2**20
        # The rule's state is there before the first step.
        above, _ = measure.peak_mebibytes(_first_and_second_step, n, dtype)
        peak = state + above
        rows.append(
            {
                "what": f"apply, 5 million coordinates, {dtype} state",
                "rule state": round(state),
                "peak": round(peak),
                "peak / state": round(peak / state, 2),
            }
        )
    for model, length, share in (
        ("mlp 784-20-10", 20, 1.0),
        ("mlp 784-20-10", 200, 1.0),
        ("mlp 1 million", 20, 0.25),
    ):
        n = base.num_coordinates(problem_of(model).layout)
        kwargs = {"unroll_length": length, "num_steps": 200, "backward_fraction": share}
        peak, (_, seconds) = measure.peak_mebibytes(_two_segments, model, kwargs)
        rows.append(
            {
                "what": f"meta-train, {model}, unroll {length}, share {share}",
                "rule state": round(80 * n * 4 / 2**20),
                "gradients, cotangents": round(2 * length * n * 4 / 2**20),
                "peak": round(peak),
                "ms a step": round(1e3 * seconds / length, 1),
            }
        )
    return rows


def first():
    """Seconds of the first step, tracing and compilation included."""
    rows = []
    for unroll_length in (20, 100):
        trainer = l2l_tf.MetaTrainer(
            lstm((20, 20)), problem_of("mlp 784-20-10"), unroll_length, 100, backward_fraction=0.25
        )
        trainer.compile(optimizer=keras.optimizers.Adam(1e-4))
        windows = iter(trainer.dataset(0, 10))
        _, seconds = measure.median_seconds(
            {"first": lambda t=trainer, w=windows: t.train_on_batch(next(w))["loss"]}, num_rounds=1
        )
        rows.append(
            {"what": f"meta-train, unroll {unroll_length}", "seconds": round(seconds["first"], 2)}
        )
    for name, optimizer in (
        ("LSTM (20, 20)", l2l_tf.LearnedOptimizer(lstm((20, 20)))),
        ("Adam", keras.optimizers.Adam()),
    ):
        step = {"first": fit_step("mlp 784-128-10", optimizer)}
        _, seconds = measure.median_seconds(step, num_rounds=1)
        rows.append({"what": f"fit, {name}", "seconds": round(seconds["first"], 2)})
    return rows


def fraction():
    """The noise of the meta-gradient against its cost, by the share of coordinates."""
    rule, problem = lstm((20, 20)), problem_of("mlp 784-20-10")
    trainer = l2l_tf.MetaTrainer(rule, problem, UNROLL_LENGTH, 100)
    windows = [w for w, _ in zip(trainer.dataset(0, 10), range(11))][::5]
    state = unroll_lib.initial_state(rule, problem.layout, 1)

    @tf.function
    def unrolled(window):
        return unroll_lib.unroll(
            rule, problem, window["parameters"], state, window["batches"], num_steps=UNROLL_LENGTH
        )

    trajectories = [unrolled(window) for window in windows]
    rows = []
    for share in (1.0, 0.5, 0.25, 0.1):

        @tf.function
        def gradient(trajectory, seed, share=share):
            products = meta_gradient_lib.meta_gradient(
                rule,
                problem.layout,
                trajectory,
                tf.ones_like(trajectory.losses),
                backward_fraction=share,
                seed=seed,
            )
            return tf.concat([tf.reshape(p, [-1]) for p in products], axis=0)

        draws = np.array(
            [gradient(trajectories[0], tf.constant([0, i])).numpy() for i in range(20)]
        )
        between = np.array([gradient(t, tf.constant([0, 0])).numpy() for t in trajectories])
        size = float(np.linalg.norm(draws.mean(axis=0)))
        seconds, _ = measure.median_seconds(
            {"backward": lambda g=gradient: g(trajectories[0], tf.constant([0, 0]))}
        )
        rows.append(
            {
                "share": share,
                "backward, ms a step": round(1e3 * seconds["backward"] / UNROLL_LENGTH, 2),
                "noise by the draw": round(_noise(draws) / size, 3),
                "noise by episode": round(_noise(between) / size, 3),
            }
        )
    return rows


def any_fit():
    """Hierarchical and Adam: milliseconds of a step of ``fit``."""
    return any_model.fit(
        {
            "mlp 784-128-10": (MODELS["mlp 784-128-10"], data),
            "conv net": (MODELS["conv net"], data),
            "transformer": (any_model.transformer, any_model.sentences),
        }
    )


def _noise(vectors):
    """Root mean square distance from the mean."""
    return float(np.sqrt(np.sum(vectors.var(axis=0, ddof=1))))


PARTS = {
    "meta": meta,
    "apply": apply,
    "tabular": tabular,
    "growth": growth,
    "memory": memory,
    "first": first,
    "fraction": fraction,
    "small": small_problems.small,
    "any_fit": any_fit,
    "any_step": any_model.step,
    "any_memory": any_model.memory,
}


def table(rows):
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(str(row.get(c, "")) for c in columns) + " |" for row in rows]
    return "\n".join(lines)


def main(_):
    results = {"isa": isa.ISA.value}
    for name in _ONLY.value:
        results[name] = PARTS[name]()
        heading = f"{inspect.getdoc(PARTS[name])}\n\n{isa.description()}"
        print(f"\n{heading}\n\n{table(results[name])}", flush=True)
    if _OUTPUT.value:
        with open(_OUTPUT.value, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    app.run(main)
