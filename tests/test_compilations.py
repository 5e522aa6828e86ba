"""Under ``jit_compile``, a train step is compiled once: not for each value that it computes.

XLA writes down each program that it compiles, if asked before it starts: so each case runs in a
process of its own, which is this file as a program.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent

# Problem, rule, options of MetaTrainer.
CASES = {
    "quadratic": ("quadratic", "lstm", {"meta_batch_size": 2, "chunk_size": 12}),
    "lasso": ("lasso", "rnnprop", {"meta_batch_size": 2, "backward_fraction": 0.5}),
    "rastrigin": ("rastrigin", "averaging", {"credit": "episode", "objective": "sum"}),
    "simple": ("simple", "lstm", {"meta_batch_size": 3, "objective": "last"}),
    "simple-multi": ("simple-multi", "averaging", {"credit": "episode", "meta_batch_size": 2}),
    "ensemble": ("ensemble", "rnnprop", {"meta_batch_size": 2}),
    "mixed ensemble": ("mixed ensemble", "lstm", {}),
    "digits": ("digits", "averaging", {}),
    "mnist": ("mnist", "rnnprop", {"credit": "episode"}),
    "cifar": ("cifar", "kernelwise", {}),
    "mlp": ("mlp", "lstm", {"second_derivatives": True}),
    "conv_net": ("conv_net", "kernelwise", {"meta_batch_size": 2}),
    "conv_net, episode": ("conv_net", "kernelwise", {"credit": "episode"}),
    "neural_style": ("neural_style", "rnnprop", {}),
}
FAST = ("quadratic",)


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_no_step_compiles_anew(name):
    done = subprocess.run(
        [sys.executable, __file__, name],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["after two train steps"] > 0
    assert counts["after an epoch"] == counts["after two train steps"]
    assert counts["after its validation"] > counts["after an epoch"]
    assert counts["after two more epochs"] == counts["after its validation"]


def main(name):
    directory = tempfile.TemporaryDirectory()
    os.environ["XLA_FLAGS"] = f"--xla_dump_to={directory.name} --xla_dump_hlo_as_text"

    import keras

    from l2l_tf.meta_training.trainer import MetaTrainer

    def num_programs():
        return len(list(pathlib.Path(directory.name).glob("*.before_optimizations.txt")))

    class Count(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                counts["after two train steps"] = num_programs()

    problem, rule, options = CASES[name]
    problem = new_problem(problem)  # before the rule: conftest sets the devices
    counts = {}
    trainer = MetaTrainer(new_rule(rule), problem, 2, 4, **options)
    schedule = keras.optimizers.schedules.CosineDecay(1e-3, 100)
    trainer.compile(keras.optimizers.Adam(schedule, global_clipnorm=1.0), jit_compile=True)
    train = trainer.dataset(0, 4 * trainer.meta_batch_size)
    validation = trainer.validation_dataset(0, 2)
    trainer.fit(train, verbose=0, callbacks=[Count()])
    counts["after an epoch"] = num_programs()
    trainer.evaluate(validation, verbose=0)
    counts["after its validation"] = num_programs()
    trainer.fit(train, epochs=2, validation_data=validation, verbose=0)
    counts["after two more epochs"] = num_programs()
    directory.cleanup()
    print("\n" + json.dumps(counts))


def new_rule(name):
    from l2l_tf import update_rules

    def lstm():
        return update_rules.CoordinatewiseLSTM((3,), seed=0)

    def kernelwise(size):
        return update_rules.KernelwiseLSTM((size, size), (3,), seed=0)

    def has_shape(size):
        return lambda name, shape: len(shape) == 4 and shape[0] == size

    return {
        "lstm": lstm,
        "rnnprop": lambda: update_rules.RNNprop((3,), seed=0),
        "averaging": lambda: update_rules.GlobalAveragingLSTM((3,), 2, seed=0),
        "kernelwise": lambda: update_rules.GroupedRule(
            [(has_shape(3), kernelwise(3)), (has_shape(5), kernelwise(5)), (".*", lstm())]
        ),
    }[name]()


def new_problem(name):
    """A built-in problem; those of images have small batches, or compiling takes minutes."""
    from unittest import mock

    import numpy as np
    import tensorflow as tf
    import test_neural_style
    import test_problems

    from l2l_tf import problems

    if name == "cifar":
        with mock.patch("l2l_tf.problems.cifar10.BATCH_SIZE", 2):
            return test_problems.fake_cifar("cifar5")
    if name == "mnist":
        images = np.random.default_rng(0).integers(0, 255, (300, 28, 28, 1)).astype("uint8")
        data = tf.data.Dataset.from_tensor_slices((images, np.arange(300) % 10))
        with mock.patch("l2l_tf.problems.classification.load_tfds", lambda *args: [data, data]):
            return problems.get("mnist")
    if name == "neural_style":
        with tempfile.TemporaryDirectory() as directory:
            weights = os.path.join(directory, "weights.npz")
            np.savez(weights, **test_neural_style.random_weights(["block1_conv1"]))
            return problems.NeuralStyle(
                test_neural_style.photograph(4),
                [test_neural_style.photograph(0)],
                image_size=16,
                weights=weights,
                num_crops=20,
                style_layers=["block1_conv1"],
                content_layer="block1_conv1",
            )
    return test_problems.PROBLEMS[name]()


if __name__ == "__main__":
    main(sys.argv[1])
