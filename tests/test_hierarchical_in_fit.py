"""The rule for any model in `fit`: everything that a Keras optimizer does."""

import contextlib

import conftest
import keras
import numpy as np
import pytest
import tensorflow as tf
from test_hierarchical import random_rule

import l2l_tf
from l2l_tf.update_rules import Hierarchical


def optimizer(rule=None, **kwargs):
    rule = random_rule(0.05, initial_log_step=-4.0) if rule is None else rule
    return l2l_tf.LearnedOptimizer(rule, **kwargs)


def compiled(optimizer_):
    keras.utils.set_random_seed(0)
    model = conftest.mlp()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer_, loss=loss)
    return model


def fit(model, epochs=3):
    data = conftest.image_data(num_examples=96)
    return model.fit(data, epochs=epochs, verbose=0, shuffle=False).history["loss"]


def multi_optimizer():
    if not hasattr(keras.optimizers, "MultiOptimizer"):
        pytest.skip("this Keras has no MultiOptimizer")
    kernels, biases = optimizer(name="kernels"), keras.optimizers.Adam(0.01, name="biases")
    return keras.optimizers.MultiOptimizer(
        lambda variable: biases if "bias" in variable.path else kernels
    )


OPTIONS = {
    "schedule": lambda: optimizer(
        learning_rate=keras.optimizers.schedules.CosineDecay(1.0, 36, alpha=0.1)
    ),
    "weight_decay": lambda: optimizer(weight_decay=0.01),
    "clipping": lambda: optimizer(global_clipnorm=0.5),
    "ema": lambda: optimizer(use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=4),
    "accumulation": lambda: optimizer(gradient_accumulation_steps=2),
    "bfloat16": lambda: optimizer(state_dtype="bfloat16"),
    "several": multi_optimizer,
}


@pytest.mark.slow
@pytest.mark.parametrize("make", OPTIONS.values(), ids=OPTIONS)
def test_options_of_keras(make):
    losses = fit(compiled(make()))
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    try:
        losses = fit(compiled(optimizer()))
    finally:
        keras.config.set_dtype_policy("float32")
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.slow
def test_two_replicas_equal_one_device():
    def weights(strategy):
        with strategy.scope() if strategy else contextlib.nullcontext():
            model = compiled(optimizer())
        fit(model)
        return np.concatenate([np.ravel(w) for w in model.get_weights()])

    mirrored = weights(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
    np.testing.assert_allclose(mirrored, weights(None), atol=1e-4)


@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16"])
def test_without_a_gru_its_step_is_the_untrained_rule_s(state_dtype):
    """By the native step; the state is smaller by the two momenta of each variable."""
    options = {"coordinate_units": 0, "averaging": 0.9, "initial_log_step": -4.0}
    models = []
    for units in (0, 16):
        rule = Hierarchical(control_units=units, seed=0, **options)
        models.append(compiled(optimizer(rule, state_dtype=state_dtype)))
        fit(models[-1])
    for a, b in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    num_leaves = [len(model.optimizer._state.leaves) for model in models]
    assert num_leaves == [4 * (2 + 4), 4 * (4 + 8)]


def test_a_control_of_ones_own_is_asked():
    class Halved(Hierarchical):
        def control(self, summaries, state, tensors):
            controls, state = super().control(summaries, state, tensors)
            return tf.concat([controls[:1] / 2, controls[1:]], axis=0), state

    options = {"control_units": 0, "coordinate_units": 0, "averaging": 0.9}
    steps = []
    for cls in (Hierarchical, Halved):
        variable = tf.Variable([[1.0, -1.0]])
        optimizer(cls(**options)).apply([tf.constant([[0.1, 0.2]])], [variable])
        steps.append(variable.numpy() - [[1.0, -1.0]])
    np.testing.assert_allclose(steps[1], steps[0] / 2, rtol=1e-4)  # of numbers near 1


@pytest.mark.parametrize("units", [0, 16])
def test_a_saved_model_goes_on_as_if_it_had_not_been(tmp_path, units):
    kwargs = {} if units else {"control_units": 0, "coordinate_units": 0, "averaging": 0.9}
    model = compiled(optimizer(random_rule(0.05, initial_log_step=-4.0, **kwargs)))
    fit(model, 1)
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    for one in (model, copy):
        fit(one, 1)
    for a, b in zip(model.get_weights(), copy.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
