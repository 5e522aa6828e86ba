"""Meta-training in several processes: each test starts them, on this machine's loopback.

This file is also what a process runs.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
NUM_STEPS = 4  # meta-steps


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("localhost", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start(num_workers):
    """The processes of a cluster; of one worker, one without a strategy."""
    cluster = {"worker": [f"localhost:{port}" for port in free_ports(num_workers)]}
    processes = []
    for index in range(num_workers):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
        if num_workers > 1:
            task = {"type": "worker", "index": index}
            environment["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})
        processes.append(
            subprocess.Popen(
                [sys.executable, __file__, str(index)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
        )
    return processes


def results(processes):
    """What each process has printed: its weights after each meta-step ``[NUM_STEPS, …]``."""
    found = []
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-3000:]
        found.append(np.array(json.loads(out.splitlines()[-1])))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [2, 3])
def test_workers_agree_with_one_another_and_with_one_process(num_workers):
    (alone,) = results(start(1))
    of_workers = results(start(num_workers))
    assert np.abs(alone[-1] - alone[0]).max() > 1e-3
    for weights in of_workers:
        np.testing.assert_array_equal(weights, of_workers[0])
        np.testing.assert_allclose(weights, alone, atol=1e-5)


def main(index):
    from l2l_tf.meta_training.replicas import new_strategy

    strategy = new_strategy("multi_worker") if "TF_CONFIG" in os.environ else None
    import keras
    import tensorflow as tf

    from l2l_tf import MetaTrainer, problems, update_rules

    def build_model():
        layers = [keras.layers.Dense(3, activation="tanh"), keras.layers.Dense(2)]
        return keras.Sequential([keras.Input([4]), *layers])

    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, x[:, :2] ** 2)).batch(8)
    keras_problem = problems.KerasProblem(build_model, data, "mse")

    # What a worker starts from is the first one's.
    rule = update_rules.CoordinatewiseLSTM(
        (4,), seed=int(index), zero_head=False, output_scale=0.01
    )
    mixture = problems.Mixture([(problems.Quadratic(), 1), (keras_problem, 1)])
    options = {"meta_batch_size": 6, "num_groups": 2, "credit": "episode", "clip_norm": 1.0}
    trainer = MetaTrainer(rule, mixture, 5, 10, strategy=strategy, **options)
    trainer.compile(keras.optimizers.SGD(0.1))
    seen = []

    class Note(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(np.concatenate([w.numpy().ravel() for w in rule.weights]).tolist())

    dataset = trainer.dataset(0, 12 * NUM_STEPS)
    trainer.fit(dataset, verbose=0, callbacks=[Note()])
    print("\n" + json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1])
