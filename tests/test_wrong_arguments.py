"""Every argument of every public function, with values of wrong kinds: one clear error of ours.

What is checked where: the tables below are the list. A new argument has to be entered here.
"""

import inspect
import math
import pathlib
import traceback

import conftest
import keras
import numpy as np
import pytest
import tensorflow as tf

import l2l_tf
from l2l_tf import problems, update_rules

HERE = pathlib.Path(l2l_tf.__file__).parent
NAN, INF = math.nan, math.inf
DENSE = [keras.Input([2]), keras.layers.Dense(1)]

# Values that are not of a kind.
WRONG = {
    "count": [0, -1, 1.5, NAN, "x", [], True],
    "count or 0": [-1, 1.5, "x"],  # Keras takes 0 for None
    "integer": [1.5, NAN, "x", [], True],
    "learning rate": [NAN, "fast", []],
    "positive": [0, -1, NAN, INF, "x", [], True],
    "not negative": [-1, NAN, INF, "x", [], True],
    "number": [NAN, INF, "x", [], True],
    "decay": [-0.5, 1.0, NAN, "x", []],
    "share": [-0.5, 1.5, NAN, "x", []],
    "boolean": [2, "yes", []],
    "name": [3, [], ""],
    "dtype": [3, "int8", []],
    "layer's name": [3, []],
    "units": ["x", [], [0], [1.5], [True], ["x"]],
    "hidden units": [3, "x", [0], [1.5], [True], ["x"]],
    "path": [3, [], "", object()],
    "function": [3, "x", []],
    "choice": [3, "nonsense", []],
    "rule": [3, object(), keras.optimizers.Adam, update_rules.SGD],
    "rule's name or path": [3, "no-such-rule", "no/such/rule", [], update_rules.SGD],
    "problem": [3, "digits", problems.Quadratic, keras.Sequential, None],
    "dataset": [3, "x", [], np.ones([4, 2])],
    "optimizers": [3, "quadratic", {"x": 3}, ["no-such-rule"], {"": update_rules.SGD()}],
    "baselines": [3, "sgd", ["no-such"], [3], ["sgd", "sgd"]],
    "groups": [3, [], ["x"], [("x", 3)], [(3, update_rules.SGD())], [("(", update_rules.SGD())]],
    "members": [3, [], [3], [("x", 1.0)], [(problems.Quadratic(), NAN)]],
    "kernel shape": [3, [], (3,), (0, 3), (1.5, 3), ("x", 3)],
    "labels": [3, [], [3], [3, 3], [3, 10], [1.5, 2], ["x", "y"]],
    "images": [3, "x.jpg", [], ["no/such.jpg"], [3]],
    "image": [3, "no/such.jpg", np.ones([2, 2])],
    "layers of VGG19": ["x", 3, [], ["block9_conv1"]],
    "layer of VGG19": [3, "block9_conv1"],
    "file": [3, "no/such.npz", ""],
    "scales": [3, "ab", [], (1.0,), (2.0, 1.0), (0.0, 1.0), (1.0, INF), ("x", 1.0)],
    "counts": [3, "ab", [], (1,), (2, 1), (0, 1), (1.5, 2), (1, NAN)],
    "shares": [3, "ab", [], (0.1,), (0.2, 0.1), (-0.1, 0.5), (0.5, 1.5), (NAN, 1.0)],
    "strategy": ["mirrored", 3, [], tf.distribute.MirroredStrategy],
    "probability": [-0.5, 1.5, NAN, "x", [], True],
    "problem's name": [3, "no-such", "digits+", "0*digits", "-1*digits", "no.module:f", ""],
}

LSTM = {
    "layers": "units",
    "output_scale": "positive",
    "zero_head": "boolean",
    "seed": "integer",
    "dtype": "dtype",
    "name": "layer's name",
}
HAND_DESIGNED = {"learning_rate": "positive", "dtype": "dtype", "name": "layer's name"}


def model():
    return keras.Sequential([keras.Input([6, 6, 1]), keras.layers.Flatten(), keras.layers.Dense(3)])


def rule():
    return update_rules.CoordinatewiseLSTM((4,), seed=0)


def trainer():
    return l2l_tf.MetaTrainer(rule(), problems.Quadratic(), 5, 10)


def data_arguments():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return {"build_model": model, "dataset": conftest.image_data(), "loss": loss}


KERAS_DATA = {
    "build_model": "function",
    "dataset": "dataset",
    "loss": None,  # whatever Keras' compile takes
    "heldout": "dataset",
}

# For each function: arguments that it takes, and of which kind its arguments are.
PUBLIC = {
    l2l_tf.LearnedOptimizer: (
        lambda: {"rule": rule(), "use_ema": True},
        {
            "rule": "rule's name or path",
            "learning_rate": "learning rate",
            "weight_decay": "not negative",
            "clipnorm": "positive",
            "clipvalue": "positive",
            "global_clipnorm": "positive",
            "use_ema": "boolean",
            "ema_momentum": "share",
            "ema_overwrite_frequency": "count or 0",
            "loss_scale_factor": "positive",
            "gradient_accumulation_steps": "count",
            "state_dtype": "dtype",
            "name": "layer's name",
        },
    ),
    l2l_tf.MetaTrainer: (
        lambda: {"rule": rule(), "problem": problems.Quadratic()},
        {
            "rule": "rule",
            "problem": "problem",
            "unroll_length": "count",
            "num_steps": "count",
            "meta_batch_size": "count",
            "credit": "choice",
            "objective": "choice",
            "backward_fraction": "positive",
            "second_derivatives": "boolean",
            "estimator": "choice",
            "chunk_size": "count",
            "num_groups": "count",
            "clip_norm": "positive",
            "max_loss_ratio": "positive",
            "max_diverged": "probability",
            "strategy": "strategy",
        },
    ),
    l2l_tf.compare: (
        lambda: {**data_arguments(), "rules": {}},
        {**KERAS_DATA, "rules": "optimizers", "output_dir": "path"},
    ),
    l2l_tf.evaluate: (
        lambda: {"problem": problems.Quadratic(), "optimizers": {}, "num_steps": 3},
        {
            "problem": "problem",
            "optimizers": "optimizers",
            "baselines": "baselines",
            "num_steps": "count",
            "num_seeds": "count",
            "num_tuning_seeds": "count",
            "seed": "integer",
            "side": "choice",
            "verbose": "boolean",
        },
    ),
    l2l_tf.load: (dict, {"name_or_path": "rule's name or path"}),
    l2l_tf.card: (dict, {"name_or_path": "rule's name or path"}),
    l2l_tf.save: (
        lambda: {"rule": rule(), "path": "/proc/no/such"},
        {"rule": "rule", "path": "path", "overwrite": "boolean"},
    ),
    l2l_tf.pretrained_names: (dict, {}),
    problems.FewBatches: (
        lambda: {"problem": problems.Quadratic()},
        {"problem": "problem", "num_batches": "counts", "probability": "probability"},
    ),
    problems.NoisyLabels: (
        lambda: {"problem": conftest.keras_problem()},
        {"problem": "problem", "shares": "shares", "probability": "probability"},
    ),
    problems.ScaledLoss: (
        lambda: {"problem": problems.Quadratic()},
        {"problem": "problem", "scales": "scales", "probability": "probability"},
    ),
    problems.ScaledParameters: (
        lambda: {"problem": problems.Quadratic()},
        {
            "problem": "problem",
            "by_tensor": "scales",
            "together": "scales",
            "probability_by_tensor": "probability",
            "probability_together": "probability",
        },
    ),
    problems.Ensemble: (
        lambda: {"members": [(problems.Quadratic(), 1.0)]},
        {"members": "members", "name": "name"},
    ),
    problems.Mixture: (
        lambda: {"members": [(problems.Quadratic(), 1.0)]},
        {"members": "members", "name": "name"},
    ),
    problems.KerasProblem: (
        data_arguments,
        {**KERAS_DATA, "name": "name", "max_bytes": "count"},
    ),
    problems.Lasso: (
        dict,
        {
            "num_dimensions": "count",
            "num_observations": "count",
            "regularization": "not negative",
        },
    ),
    problems.NeuralStyle: (
        lambda: {"weights": "no/such.npz"},
        {
            "style": "image",
            "content": "images",
            "heldout_content": "images",
            "image_size": "count",
            "weights": "file",
            "style_layers": "layers of VGG19",
            "content_layer": "layer of VGG19",
            "content_weight": "number",
            "style_weight": "number",
            "variation_weight": "number",
            "num_crops": "count",
            "initial_scale": "not negative",
        },
    ),
    problems.Quadratic: (dict, {"num_dimensions": "count"}),
    problems.Rastrigin: (dict, {"num_dimensions": "count", "amplitude": "number"}),
    problems.Simple: (dict, {"num_variables": "count"}),
    problems.cifar: (dict, {"data_dir": "path", "labels": "labels", "name": "name"}),
    problems.digits: (dict, {}),
    problems.mnist: (
        dict,
        {"data_dir": "path", "hidden": "hidden units", "activation": "name", "name": "name"},
    ),
    problems.get: (lambda: {"name": "mnist"}, {"name": "problem's name", "data_dir": "path"}),
    update_rules.SGD: (dict, HAND_DESIGNED),
    update_rules.Momentum: (dict, {**HAND_DESIGNED, "momentum": "share", "nesterov": "boolean"}),
    update_rules.RMSprop: (dict, {**HAND_DESIGNED, "rho": "decay", "epsilon": "not negative"}),
    update_rules.Adam: (
        dict,
        {**HAND_DESIGNED, "beta_1": "decay", "beta_2": "decay", "epsilon": "not negative"},
    ),
    update_rules.AdamW: (
        dict,
        {
            **HAND_DESIGNED,
            "weight_decay": "not negative",
            "beta_1": "decay",
            "beta_2": "decay",
            "epsilon": "not negative",
            "num_steps": "count",
        },
    ),
    update_rules.Prodigy: (
        dict,
        {
            **HAND_DESIGNED,
            "beta_1": "decay",
            "beta_2": "decay",
            "epsilon": "not negative",
            "initial_distance": "positive",
            "num_steps": "count",
        },
    ),
    update_rules.ScheduleFreeAdamW: (
        dict,
        {
            **HAND_DESIGNED,
            "weight_decay": "not negative",
            "beta_1": "decay",
            "beta_2": "decay",
            "epsilon": "not negative",
            "warmup_steps": "count or 0",
        },
    ),
    update_rules.CoordinatewiseLSTM: (dict, {**LSTM, "p": "positive"}),
    update_rules.RNNprop: (dict, {**LSTM, "beta_1": "decay", "beta_2": "decay"}),
    update_rules.GlobalAveragingLSTM: (dict, {**LSTM, "p": "positive", "num_averaging": "count"}),
    update_rules.KernelwiseLSTM: (dict, {**LSTM, "p": "positive", "kernel_shape": "kernel shape"}),
    update_rules.Hierarchical: (
        dict,
        {
            "control_units": "count",
            "coordinate_units": "count or 0",
            "initial_log_step": "number",
            "max_log_step": "number",
            "depth_power": "not negative",
            "max_change": "positive",
            "max_direction": "positive",
            "averaging": "decay",
            "averaging_power": "not negative",
            "warm_up": "count or 0",
            "decay_after": "count or 0",
            "settling": "count or 0",
            "max_growth": "positive",
            "seed": "integer",
            "dtype": "dtype",
            "name": "layer's name",
        },
    ),
    update_rules.GroupedRule: (
        lambda: {"groups": [(".*", rule())]},
        {"groups": "groups", "name": "layer's name"},
    ),
    update_rules.UpdateRule: (dict, {"dtype": "dtype", "name": "layer's name"}),
}
# Methods, of the objects that the functions make.
METHODS = {
    "dataset": (trainer, {}, {"seed": "integer", "num_episodes": "count"}),
    "validation_dataset": (
        trainer,
        {},
        {"seed": "integer", "num_episodes": "count", "num_steps": "count"},
    ),
}


def test_the_tables_have_every_public_function_and_argument():
    listed = {*PUBLIC, problems.Problem, problems.Augmentation}
    modules = [l2l_tf, problems, update_rules]
    public = [getattr(m, name) for m in modules for name in m.__all__]
    assert {f for f in public if callable(f)} == listed
    for function, (_, kinds) in PUBLIC.items():
        parameters = inspect.signature(function).parameters.values()
        names = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        assert sorted(names) == sorted(kinds), function


def check_refused(call, function_name, name, value):
    try:
        call()
    except (TypeError, ValueError, OSError) as error:
        text = str(error)
        *_, last = traceback.extract_tb(error.__traceback__)
        where = f"{function_name}({name}={value!r}): {type(error).__name__}: {text[:300]}"
        assert len(text) < 1000 and "in user code" not in text, where
        words = {name, "optimizers", *map(repr, tf.nest.flatten(value)), "An image"}
        assert any(word in text for word in words), f"no word of the argument: {where}"
        # Keras checks some of its own arguments, and names them.
        of_keras = pathlib.Path(last.filename).is_relative_to(pathlib.Path(keras.__file__).parent)
        is_ours = pathlib.Path(last.filename).is_relative_to(HERE) or (of_keras and name in text)
        assert is_ours, f"from the depths, {last.filename}: {where}"
    else:
        pytest.fail(f"{function_name} takes {name}={value!r}")


@pytest.mark.parametrize("function", PUBLIC, ids=lambda f: f.__name__)
def test_values_of_wrong_kinds_get_one_clear_error(function):
    make_arguments, kinds = PUBLIC[function]
    for name, kind in kinds.items():
        for value in WRONG[kind] if kind else []:
            check_refused(
                lambda: function(**{**make_arguments(), name: value}),  # noqa: B023
                function.__name__,
                name,
                value,
            )


@pytest.mark.parametrize("method", METHODS)
def test_methods_too(method):
    make, arguments, kinds = METHODS[method]
    made = make()
    for name, kind in kinds.items():
        for value in WRONG[kind]:
            check_refused(
                lambda: getattr(made, method)(**{**arguments, name: value}),  # noqa: B023
                method,
                name,
                value,
            )
