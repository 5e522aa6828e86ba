"""Benchmarks of scale: seconds of a meta-step against problems, parameters, horizon and workers.

  python benchmarks/scale.py              # all, about ten minutes; the machine to itself
  python benchmarks/scale.py --only=workers

Workers are processes of this machine, on loopback. Ratios of one run are what counts.
"""

import json
import os
import socket
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from absl import app, flags

_ONLY = flags.DEFINE_list("only", ["problems", "parameters", "horizon", "workers"], "Parts to run.")
_AS_WORKER = flags.DEFINE_string("as_worker", None, "The part that this process does for another.")
_NUM_META_STEPS = flags.DEFINE_integer("num_meta_steps", 10, "To time, after two others.", 2)

NUM_OPTIMIZEES = 6  # of a group; a multiple of 1, 2 and 3


def trainer_of(units, num_problems=1, num_steps=100, num_groups=1, strategy=None):
    """A trainer of ``Hierarchical`` on nets 196-units-10, each problem with a width of its own."""
    import keras
    import numpy as np
    import tensorflow as tf

    import l2l_tf

    rng = np.random.default_rng(0)
    x = rng.normal(size=(64 * 40, 196)).astype("float32")
    y = rng.integers(0, 10, 64 * 40)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(64)

    def problem(width):
        def build_model():
            layers = [keras.layers.Dense(width, "relu"), keras.layers.Dense(10)]
            return keras.Sequential([keras.Input([196]), *layers])

        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        return l2l_tf.problems.KerasProblem(build_model, data, loss, name=f"mlp-{width}")

    mixture = l2l_tf.problems.Mixture([(problem(units + i), 1.0) for i in range(num_problems)])
    trainer = l2l_tf.MetaTrainer(
        l2l_tf.update_rules.Hierarchical(seed=0),
        mixture,
        unroll_length=num_steps,
        num_steps=num_steps,
        meta_batch_size=NUM_OPTIMIZEES,
        num_groups=num_groups,
        credit="episode",
        objective="relative",
        strategy=strategy,
    )
    trainer.compile(keras.optimizers.Adam(1e-4))
    return trainer


def seconds_of(trainer):
    """Seconds of the first pass over all problems, and of a meta-step after it."""
    episodes = trainer.num_episodes_at_once
    num_problems = len(trainer.problem.problems)
    first = time.perf_counter()
    warm = 2 + 8 * (num_problems > 1) * num_problems // trainer.num_groups
    trainer.fit(trainer.dataset(0, warm * episodes), verbose=0)
    first = time.perf_counter() - first
    times = []
    groups = iter(trainer.dataset(0, (_NUM_META_STEPS.value + 1) * episodes))
    for _ in range(_NUM_META_STEPS.value):
        step = [next(groups) for _ in range(trainer.num_groups)]
        start = time.perf_counter()
        trainer.train_on_batch(step)["loss"].numpy()
        times.append(time.perf_counter() - start)
    return first, sorted(times)[len(times) // 2]


def held():
    """Memory maps of this process, and MiB that are resident."""
    with open("/proc/self/maps") as file:
        maps = len(file.readlines())
    with open("/proc/self/statm") as file:
        return maps, int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def row(trainer, **what):
    num_problems = len(trainer.problem.problems)
    before = held()
    first, seconds = seconds_of(trainer)
    maps, size = [(b - a) / num_problems for a, b in zip(before, held())]
    inner_steps = trainer.num_episodes_at_once * trainer.num_steps
    return {
        **what,
        "seconds of a meta-step": round(seconds, 4),
        "inner steps a second": round(inner_steps / seconds),
        "first seconds": round(first, 1),
        "memory maps a problem": round(maps),
        "MiB a problem": round(size),
    }


def problems():
    """The number of problems costs compilation and memory; two groups run side by side."""
    cases = [(1, 1), (4, 1), (4, 2)]
    return [
        row(trainer_of(32, number, num_groups=groups), problems=number, groups=groups)
        for number, groups in cases
    ]


def parameters():
    return [
        row(trainer_of(units), units=units, parameters=(196 + 11) * units + 10)
        for units in (8, 32, 128, 512)
    ]


def horizon():
    return [row(trainer_of(32, num_steps=steps), horizon=steps) for steps in (25, 100, 400)]


def workers():
    """The same meta-steps by 1, 2 and 3 processes, which share the cores of this machine."""
    rows = []
    for number in (1, 2, 3):
        sockets = [socket.socket() for _ in range(number)]
        for one in sockets:
            one.bind(("localhost", 0))
        cluster = {"worker": [f"localhost:{one.getsockname()[1]}" for one in sockets]}
        for one in sockets:
            one.close()
        processes = []
        for index in range(number):
            environment = dict(os.environ)
            if number > 1:
                task = {"type": "worker", "index": index}
                environment["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})
            command = [sys.executable, __file__, "--as_worker=workers"]
            command.append(f"--num_meta_steps={_NUM_META_STEPS.value}")
            processes.append(
                subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
            )
        outputs = [process.communicate()[0] for process in processes]
        rows.append({"workers": number, **json.loads(outputs[0].splitlines()[-1])})
    for of_row in rows:
        ratio = of_row["inner steps a second"] / rows[0]["inner steps a second"]
        of_row["speed over one worker"] = round(ratio, 2)
    return rows


def as_worker():
    """What one of `workers` does."""
    from l2l_tf.meta_training.replicas import new_strategy

    strategy = new_strategy("multi_worker") if "TF_CONFIG" in os.environ else None
    print("\n" + json.dumps(row(trainer_of(32, strategy=strategy))))


def main(_):
    if _AS_WORKER.value:
        as_worker()
        return
    parts = {"problems": problems, "parameters": parameters, "horizon": horizon, "workers": workers}
    for name in _ONLY.value:
        rows = parts[name]()
        print(f"\n{name}: {(parts[name].__doc__ or '').strip()}")
        print("| " + " | ".join(rows[0]) + " |")
        print("|" + "---|" * len(rows[0]))
        for of_row in rows:
            print("| " + " | ".join(map(str, of_row.values())) + " |", flush=True)


if __name__ == "__main__":
    app.run(main)
