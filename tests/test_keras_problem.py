"""KerasProblem: the loss, the weights, the state and the batches are what Keras' `fit` has."""

import contextlib
import random
import threading
import time

import conftest
import keras
import numpy as np
import pytest
import tensorflow as tf

from l2l_tf import hooks, update_rules
from l2l_tf.engine.episodes import episode_seed, windows
from l2l_tf.evaluation.learning_curves import Arena
from l2l_tf.meta_training.trainer import MetaTrainer
from l2l_tf.problems import Ensemble, KerasProblem, base, datasets

SEED, OTHER = tf.constant([1, 2], tf.int64), tf.constant([1, 3], tf.int64)
layers = keras.layers


def data(num_examples=64, batch_size=16):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num_examples, 8)).astype("float32")
    return tf.data.Dataset.from_tensor_slices((x, 2 * x[:, :1] - x[:, 1:2])).batch(batch_size)


def net(*middle, **dense):
    return keras.Sequential(
        [keras.Input([8]), layers.Dense(4, "tanh", **dense), *middle, layers.Dense(1)]
    )


def problem(build_model=net, loss="mse", **kwargs):
    return KerasProblem(build_model, data(), loss, **kwargs)


class AddsLoss(layers.Layer):
    def call(self, x):
        self.add_loss(10.0 * keras.ops.mean(x**2))
        return x


class Variational(layers.Layer):
    """A VAE's sampling and KL term, with noise drawn without a generator of its own."""

    def call(self, x):
        self.add_loss(0.1 * keras.ops.mean(x**2))
        return x + keras.random.normal(keras.ops.shape(x))


class OldComputeLoss(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(1)

    def call(self, x):
        return self.dense(x)

    def compute_loss(self, x, y, y_pred, sample_weight):
        return 3.0 * keras.ops.mean(keras.ops.square(y - y_pred))


class NewComputeLoss(OldComputeLoss):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return keras.ops.mean(keras.ops.square(y - y_pred)) * (2.0 if training else 0.0)


def compiled():
    model = net()
    model.compile(loss="mae")
    return model


@pytest.mark.parametrize(
    "build_model, loss",
    [
        (lambda: net(activity_regularizer=keras.regularizers.L2(100.0)), "mse"),
        (lambda: net(AddsLoss()), "mse"),
        (lambda: net(AddsLoss()), None),
        (OldComputeLoss, None),
        (NewComputeLoss, None),
        (compiled, None),
    ],
)
def test_the_loss_is_the_one_that_train_on_batch_minimizes(build_model, loss):
    problem_ = problem(build_model, loss)
    parameters = problem_.sample_parameters(SEED)
    batch = next(iter(problem_.batches("train", SEED, 1)))
    ours, gradients = tf.function(problem_.loss_and_gradients)(parameters, batch)

    model = build_model()
    if not model.built:
        model(batch[0][0])
    rate = 0.01
    optimizer = keras.optimizers.SGD(rate)
    model.compile(optimizer, loss or model.loss)
    for variable, value in zip(model.trainable_variables, parameters):
        variable.assign(value)
    np.testing.assert_allclose(ours, np.ravel(model.train_on_batch(*batch[0]))[0], rtol=1e-5)
    for variable, value, gradient in zip(model.trainable_variables, parameters, gradients):
        np.testing.assert_allclose(variable, value - rate * gradient, rtol=1e-4, atol=1e-6)


def test_noise_without_a_generator_of_its_own_changes_by_step_and_repeats_by_seed():
    problem_ = problem(lambda: net(Variational()))
    parameters = problem_.sample_parameters(SEED)
    (first, seed), (_, other_seed) = problem_.batches("train", SEED, 2)
    loss = tf.function(problem_.loss_and_gradients)
    losses = [float(loss(parameters, (first, s))[0]) for s in (seed, seed, other_seed)]
    assert losses[0] == losses[1] != losses[2]
    assert float(problem_.loss_and_gradients(parameters, (first, seed))[0]) == pytest.approx(
        losses[0], rel=1e-5
    )


class OwnTrainStep(OldComputeLoss):
    def train_step(self, data):
        return {"loss": 0.0}


class AssignsForeign(layers.Layer):
    def __init__(self):
        super().__init__()
        self.count = tf.Variable(0.0)

    def call(self, x):
        self.count.assign_add(1.0)
        return x + self.count


def mismatched(y, predictions):
    return tf.matmul(y, predictions)


@pytest.mark.parametrize(
    "build_model, loss, message",
    [
        (OwnTrainStep, "mse", "has a `train_step` of its own"),
        (lambda: net(), None, "(?s)cannot be computed .*No loss to compute"),
        (lambda: net(), mismatched, r"cannot be computed on a batch .*float32 \(16, 8\)"),
        (lambda: net(AssignsForeign()), "mse", "tf.Variables that Keras does not know"),
        (
            lambda: keras.Sequential(
                [keras.Input([8]), layers.SpectralNormalization(layers.Dense(4)), layers.Dense(1)]
            ),
            "mse",
            "changes its own trainable weights .*kernel",
        ),
    ],
)
def test_what_cannot_be_an_optimizee_is_named(build_model, loss, message):
    with pytest.raises(ValueError, match=message) as caught:
        problem(build_model, loss)
    assert "in user code" not in str(caught.value) and len(str(caught.value)) < 800


class Function(layers.Layer):
    """A layer whose `call` is a tf.function, with Python's control flow on tensors."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 4), initializer="glorot_uniform")

    @tf.function
    def call(self, x):
        if tf.reduce_sum(x) > 1e9:
            return tf.zeros([16, 4])
        return x @ self.kernel


def test_functions_within_a_model_take_the_parameters():
    problem_ = problem(lambda: keras.Sequential([keras.Input([8]), Function(), layers.Dense(1)]))
    assert not problem_.acts_between_steps
    batch = next(iter(problem_.batches("train", SEED, 1)))
    (x, y), _ = batch
    for seed in (SEED, OTHER):
        kernel, head, bias = parameters = problem_.sample_parameters(seed)
        expected = tf.reduce_mean((x @ kernel @ head + bias - y) ** 2)
        for run in (problem_.loss_and_gradients, tf.function(problem_.loss_and_gradients)):
            loss, gradients = run(parameters, batch)
            np.testing.assert_allclose(loss, expected, rtol=1e-5)
            assert all(np.abs(g).max() > 0 for g in gradients)


class Remembers(layers.Layer):
    """Subtracts a running mean that acts on the next step's output."""

    def build(self, shape):
        self.mean = self.add_weight(shape=(shape[-1],), initializer="zeros", trainable=False)

    def call(self, x):
        result = x - self.mean
        self.mean.assign(0.5 * self.mean + 0.5 * keras.ops.mean(x, axis=0))
        return result


def stateful_rnn():
    return keras.Sequential(
        [
            keras.Input(batch_shape=(16, 8)),
            layers.Reshape([4, 2]),
            layers.GRU(3, stateful=True),
            layers.Dense(1),
        ]
    )


BETWEEN_STEPS = {
    "constraint": (lambda: net(kernel_constraint=keras.constraints.UnitNorm()), "UnitNorm of"),
    "state": (lambda: net(Remembers()), "state .*remembers/"),
    "stateful RNN": (stateful_rnn, "state .*gru"),
    "nothing": (lambda: net(layers.BatchNormalization(), layers.Dropout(0.0)), None),
}


@pytest.mark.parametrize("build_model, named", BETWEEN_STEPS.values(), ids=BETWEEN_STEPS)
def test_an_evaluation_trains_as_fit_does(build_model, named):
    problem_ = problem(build_model)
    assert bool(problem_.acts_between_steps) == (named is not None)
    arena = Arena(problem_, num_steps=6)
    runner = arena.runner(update_rules.SGD(0.1))
    ours = arena.losses(runner, "report", 2)
    for episode, losses in enumerate(ours):
        (window,) = windows(problem_, "heldout", episode_seed(0, "report", episode), 1, 5)
        model = build_model()
        model.compile(keras.optimizers.SGD(0.1), "mse")
        sizes = [v.shape.num_elements() for v in model.trainable_variables]
        for variable, value in zip(
            model.trainable_variables, tf.split(window["parameters"], sizes)
        ):
            variable.assign(tf.reshape(value, variable.shape))
        x, y = window["batches"][0]
        by_fit = [conftest.loss_on_batch(model, x[t], y[t]) for t in range(6)]
        np.testing.assert_allclose(losses, by_fit, rtol=1e-4)
    np.testing.assert_allclose(arena.losses(runner, "report", 2), ours, rtol=1e-6)


class Drawn(layers.Layer):
    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def build(self, shape):
        self.kernel = self.add_weight(
            shape=(shape[-1], 4), initializer=lambda shape, dtype=None: self.draw(shape)
        )

    def call(self, x):
        return x @ self.kernel


def drawn(draw):
    return lambda: keras.Sequential([keras.Input([8]), Drawn(draw), layers.Dense(1)])


@pytest.mark.parametrize(
    "draw",
    [
        lambda shape: tf.random.normal(shape),
        lambda shape: keras.random.normal(shape),
        lambda shape: np.random.normal(size=shape),
        lambda shape: random.gauss(0, 1) * np.ones(shape),
    ],
    ids=["tf.random", "keras.random", "NumPy", "random"],
)
def test_weights_are_a_function_of_the_seed_whatever_draws_them(draw):
    problem_ = problem(drawn(draw))

    def kernel(seed):
        return problem_.sample_parameters(seed)[0].numpy()

    first = kernel(SEED)
    (by_dataset,) = tf.data.Dataset.from_tensors(SEED).map(
        lambda seed: problem_.sample_parameters(seed)[0]
    )
    np.testing.assert_array_equal(by_dataset, first)
    assert np.abs(kernel(OTHER) - first).max() > 0
    np.testing.assert_array_equal(kernel(SEED), first)

    def others_draw():
        tf.random.set_seed(3)
        yield tf.random.normal([])
        random.seed(3), np.random.seed(3)
        yield [random.random(), np.random.rand()]

    expected = [np.asarray(x) for x in others_draw()]
    received = []
    for value in others_draw():
        received.append(np.asarray(value))
        kernel(SEED)
    for a, b in zip(expected, received):
        np.testing.assert_array_equal(a, b)


def test_the_seeds_of_weights_are_the_same_on_every_machine():
    (kernel, *_) = problem().sample_parameters(SEED)
    np.testing.assert_allclose(kernel[0, :2], GOLDEN, rtol=1e-6)


GOLDEN = [-0.66650134, -0.06374258]


def reseeding():
    keras.utils.set_random_seed(42)
    return net()


ONE = []


def the_same():
    ONE[:] = ONE or [net()]
    return ONE[0]


WIDTHS = iter(range(3, 100))


@pytest.mark.parametrize(
    "build_model, message",
    [
        (reseeding, "`build_model` .* sets a random seed"),
        (the_same, "`build_model` .* the same variables twice: sequential.*kernel"),
        (drawn(lambda shape: np.random.default_rng().normal(size=shape)), "default_rng"),
        (lambda: net(layers.Dense(next(WIDTHS))), "models of one architecture"),
    ],
)
def test_builders_that_give_no_fresh_weights_are_refused(build_model, message):
    with pytest.raises(ValueError, match=message):
        problem(build_model)


def test_constant_weights_are_noted():
    def zeros():
        return keras.Sequential([keras.Input([8]), layers.Dense(1, kernel_initializer="zeros")])

    with pytest.warns(UserWarning, match="the same initial weights each time"):
        problem(zeros)


def test_constant_weights_are_no_seed_where_tensorflow_hides_its_own(monkeypatch):
    monkeypatch.setattr(hooks, "_tensorflow_context", lambda: None)
    with pytest.warns(UserWarning, match="the same initial weights each time"):
        problem(
            lambda: keras.Sequential(
                [keras.Input([8]), layers.Dense(1, kernel_initializer="zeros")]
            )
        )


class Noise(layers.Layer):
    def __init__(self, draw):
        super().__init__()
        self._draw = draw

    def call(self, x):
        return x + self._draw(tf.shape(x))


@pytest.mark.parametrize(
    "draw, named",
    [
        (tf.random.normal, "RandomStandardNormal"),
        (tf.random.Generator.from_seed(1).normal, "RngReadAndSkip"),
    ],
)
def test_random_operations_that_seeds_do_not_reach_are_noted(draw, named):
    with pytest.warns(UserWarning, match=f"{named}.*SeedGenerator"):
        problem(lambda: net(Noise(draw)))


def test_warnings_are_of_the_line_that_makes_the_problem():
    def build_model():
        of_noise = layers.Dense(1, kernel_initializer="zeros")
        return keras.Sequential([keras.Input([8]), Noise(tf.random.normal), of_noise])

    with pytest.warns(UserWarning) as caught:
        KerasProblem(build_model, data(), "mse", max_bytes=600)
    messages = [str(w.message) for w in caught]
    for what in ("did not end within", "the same initial weights", "draws random numbers"):
        assert any(what in message for message in messages)
    assert {w.filename for w in caught} == {__file__}


def test_a_seed_generator_that_belongs_to_no_layer_is_a_function_of_our_seeds():
    generator = keras.random.SeedGenerator(0)
    problem_ = problem(lambda: net(Noise(lambda s: keras.random.normal(s, seed=generator))))
    assert not problem_.acts_between_steps
    parameters = problem_.sample_parameters(SEED)
    (batch, seed), (_, other_seed) = problem_.batches("train", SEED, 2)
    losses = [
        float(problem_.loss_and_gradients(parameters, (batch, s))[0])
        for s in (seed, seed, other_seed)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_hooks_put_back_what_they_found():
    keras.random.normal([1])  # makes Keras' generator of this thread
    before = hooks._thread_state()["global_seed_generator"]
    with hooks.seed_generator(None):
        keras.backend.clear_session()
        keras.random.normal([1])
    assert hooks._thread_state()["global_seed_generator"] is before

    # Two threads inline functions; the one that came first ends first.
    function = type(tf.function(lambda: None))
    call, first_is_within, first_ends = function.__call__, threading.Event(), threading.Event()

    def first():
        with hooks.functions_inlined():
            first_is_within.set()
            first_ends.wait()

    def second():
        with hooks.functions_inlined():
            threads[0].join()

    threads = [threading.Thread(target=run) for run in (first, second)]
    threads[0].start()
    first_is_within.wait()
    threads[1].start()
    time.sleep(0.2)  # for the second one to come in, if it can
    first_ends.set()
    for thread in threads:
        thread.join()
    assert function.__call__ is call


class Scale(layers.Layer):
    def call(self, x):
        return 2.0 * x


def test_settings_of_the_callers_thread_hold_where_models_are_built():
    text = net(Scale()).to_json()
    with keras.saving.custom_object_scope({"Scale": Scale}):
        problem_ = problem(lambda: keras.models.model_from_json(text))
    (parameters,) = tf.data.Dataset.from_tensors(SEED).map(
        lambda seed: tuple(problem_.sample_parameters(seed))
    )
    assert np.abs(parameters[0]).max() > 0
    # And the settings of the thread that builds are as before.
    with hooks.settings_in_this_thread({"dtype_policy": keras.DTypePolicy("float64")}):
        assert keras.config.dtype_policy().name == "float64"
    assert keras.config.dtype_policy().name == "float32"


@contextlib.contextmanager
def policy(name):
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("name", ["float64", "bfloat16", "mixed_float16", "mixed_bfloat16"])
def test_an_evaluation_under_a_dtype_policy_trains_as_fit_does(name):
    with policy(name):
        problem_ = problem()
        arena = Arena(problem_, num_steps=4)
        (ours,) = arena.losses(arena.runner(update_rules.SGD(0.1)), "report", 1)
        (window,) = windows(problem_, "heldout", episode_seed(0, "report", 0), 1, 3)
        model = net()
        model.compile(keras.optimizers.SGD(0.1), "mse")
    sizes = [v.shape.num_elements() for v in model.trainable_variables]
    for variable, value in zip(model.trainable_variables, tf.split(window["parameters"], sizes)):
        variable.assign(tf.reshape(value, variable.shape))
    x, y = window["batches"][0]
    by_fit = [conftest.loss_on_batch(model, x[t], y[t]) for t in range(4)]
    np.testing.assert_allclose(ours, by_fit, rtol=2e-2 if "16" in name else 1e-6)
    assert bool(problem_.acts_between_steps) == (name in ("bfloat16", "mixed_float16"))


def test_a_loss_of_another_dtype_than_the_weights():
    problem_ = problem(loss=lambda y, p: tf.cast((y - p) ** 2, tf.float64))
    batch = next(iter(problem_.batches("train", SEED, 1)))
    loss, _ = problem_.loss_and_gradients(problem_.sample_parameters(SEED), batch)
    assert loss.dtype == problem_.dtype == "float32"


def test_a_model_of_one_weight():
    problem_ = problem(
        lambda: keras.Sequential([keras.Input([8]), layers.Dense(1, use_bias=False)])
    )
    (kernel,) = problem_.sample_parameters(SEED)
    assert kernel.shape == (8, 1)


def recurrent():
    return keras.Sequential(
        [keras.Input([None, 1]), layers.GRU(3), layers.Dense(1)],
    )


def sequences(lengths, **kwargs):
    def generate():
        for length in lengths:
            yield np.ones([4, length, 1], "float32"), np.ones([4, 1], "float32")

    signature = (tf.TensorSpec([4, None, 1]), tf.TensorSpec([4, 1]))
    return tf.data.Dataset.from_generator(generate, output_signature=signature)


ragged = tf.ragged.constant([[[1.0]], [[1.0], [2.0]]] * 4, ragged_rank=1)
sparse = tf.sparse.from_dense(np.eye(4, dtype="float32"))


@pytest.mark.parametrize(
    "dataset, message",
    [
        (sequences([3, 3, 5]), r"one shape.*\(4, 3, 1\).* in batch 0, .*\(4, 5, 1\).* in batch 2"),
        (sequences([3, 5]).repeat(), r"(?s)a stream.*one shape that is known.*\(4, 3, 1\)"),
        (
            tf.data.Dataset.from_tensor_slices((ragged, np.ones([8, 1]))).batch(4),
            r"a RaggedTensor.*\.to_tensor\(\)",
        ),
        (
            tf.data.Dataset.from_tensor_slices((sparse, np.ones([4, 1]))).batch(2),
            "a SparseTensor.*to_dense",
        ),
    ],
)
def test_batches_of_several_shapes_get_one_clear_error(dataset, message):
    for arguments in ((dataset,), (sequences([3]), "mse", dataset)):
        dataset_, *rest = arguments
        with pytest.raises(ValueError, match=message) as caught:
            KerasProblem(recurrent, dataset_, *(rest or ["mse"]))
        assert len(str(caught.value)) < 800


def test_a_stream_whose_shape_is_made_known():
    dataset = sequences([3, 3]).map(lambda x, y: (tf.ensure_shape(x, [4, 3, 1]), y)).repeat()
    batch = next(iter(KerasProblem(recurrent, dataset, "mse").batches("train", SEED, 1)))
    assert batch[0][0].shape == (4, 3, 1)


def test_endless_data_of_unknown_cardinality_become_a_stream_with_a_word(monkeypatch):
    def endless():
        while True:
            yield np.ones([4, 8], "float32"), np.ones([4, 1], "float32")

    signature = (tf.TensorSpec([4, 8]), tf.TensorSpec([4, 1]))
    dataset = tf.data.Dataset.from_generator(endless, output_signature=signature)
    monkeypatch.setattr(datasets, "MAX_BATCHES_UNKNOWN", 50)
    with pytest.warns(UserWarning, match="did not end within 50 batches.*max_bytes"):
        problem_ = KerasProblem(net, dataset, "mse")
    assert len(list(problem_.batches("train", SEED, 3))) == 3
    with pytest.warns(UserWarning, match="did not end within .*read as a stream"):
        KerasProblem(net, data(), "mse", max_bytes=600)


def test_has_heldout():
    assert not problem().has_heldout and problem(heldout=data()).has_heldout


class Wrong(base.Problem):
    layout = [("x", (2,))]
    values = {}

    def sample_parameters(self, seed):
        return self.values.get("parameters", [tf.ones([2])])

    def batches(self, side, seed, num_batches):
        return tf.data.Dataset.from_tensors(0.0).repeat(num_batches)

    def loss_and_gradients(self, parameters, batch):
        return self.values.get("loss", tf.constant(0.0)), [tf.ones([2])]


def test_problems_of_ones_own_are_checked_once():
    for values, message in (
        ({"parameters": [tf.ones([3])]}, "sample_parameters"),
        ({"loss": tf.ones([2])}, "of the loss"),
        ({"loss": tf.constant(0.0, tf.float64)}, "of the loss.*float64"),
    ):
        wrong = Wrong()
        wrong.values = values
        with pytest.raises(ValueError, match=f"Problem 'problem': .*{message}"):
            base.check_problem(wrong)
    base.check_problem(Wrong())
    with pytest.raises(TypeError, match=r"problems.get\('mnist'\)"):
        base.check_problem("mnist")


@pytest.mark.parametrize(
    "kwargs", [{"name": 3}, {"max_bytes": 1.5}, {"max_bytes": 0}, {"build_model": net()}]
)
def test_arguments_of_another_kind(kwargs):
    with pytest.raises((TypeError, ValueError), match=f"`{next(iter(kwargs))}` must be"):
        problem(**kwargs)


def test_what_acts_between_steps_is_named_by_meta_training_and_ensembles():
    rule = update_rules.CoordinatewiseLSTM((4,), seed=0)
    for key, (build_model, _) in BETWEEN_STEPS.items():
        problem_ = problem(build_model)
        makers = (
            lambda p=problem_: MetaTrainer(rule, p, 2, 4),
            lambda p=problem_: Ensemble([(p, 1.0)]),
        )
        for make in makers:
            if key == "nothing":
                make()
                continue
            with pytest.raises(ValueError, match="act from step to step") as caught:
                make()
            assert problem_.acts_between_steps[0] in str(caught.value)


def test_functions_within_a_model_are_meta_trained_through():
    problem_ = problem(lambda: keras.Sequential([keras.Input([8]), Function(), layers.Dense(1)]))
    rule = update_rules.CoordinatewiseLSTM((4,), zero_head=False, seed=0)
    trainer = MetaTrainer(rule, problem_, 5, 10)
    trainer.compile(keras.optimizers.Adam(0.01))
    trainer.fit(trainer.dataset(0, 2), verbose=0)
    # In another graph the very same losses as in the unroll.
    arena = Arena(problem_, num_steps=3)
    (by_unroll,) = arena.losses(arena.runner(update_rules.SGD(0.1)), "report", 1)
    given = arena.runner(keras.optimizers.SGD(0.1))
    np.testing.assert_allclose(by_unroll, arena.losses(given, "report", 1)[0], rtol=1e-5)
