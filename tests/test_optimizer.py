"""LearnedOptimizer as a Keras optimizer. Keras' own tests of one: test_keras_conformance.py."""

import gc
import re
import warnings

import conftest
import keras
import numpy as np
import pytest
import tensorflow as tf

import l2l_tf
from l2l_tf import update_rules
from l2l_tf.engine import pieces
from l2l_tf.engine.program import Program


def lstm(layers=(4,)):
    return update_rules.CoordinatewiseLSTM(layers, zero_head=False, seed=1)


def compiled(optimizer, build_model=conftest.mlp, **kwargs):
    keras.utils.set_random_seed(0)
    model = build_model()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, **kwargs)
    return model


def fit(model, epochs=2):
    return model.fit(conftest.image_data(), epochs=epochs, verbose=0, shuffle=False).history["loss"]


def weights(model):
    return np.concatenate([v.numpy().ravel() for v in model.trainable_variables])


def gradients_like(variables, seed):
    rng = np.random.default_rng(seed)
    return [tf.constant(rng.normal(size=v.shape), v.dtype) for v in variables]


@pytest.mark.parametrize("kwargs", [{}, {"jit_compile": True}, {"run_eagerly": True}])
def test_fit_with_a_rule_equals_fit_with_the_keras_optimizer(kwargs):
    ours, keras_ = [
        fit(compiled(optimizer, **kwargs))
        for optimizer in (
            l2l_tf.LearnedOptimizer(update_rules.Momentum(0.1, nesterov=True)),
            keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
        )
    ]
    assert keras_[1] < keras_[0]
    np.testing.assert_allclose(ours, keras_, rtol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_all_variables_at_once_equal_one_by_one_and_piece_by_piece(monkeypatch, jit_compile):
    together = compiled(l2l_tf.LearnedOptimizer(lstm()))
    fit(together)
    one_by_one = compiled(conftest.OneByOne(lstm()), jit_compile=jit_compile)
    fit(one_by_one)
    np.testing.assert_allclose(weights(together), weights(one_by_one), atol=1e-5)

    # Of a kernel of 180 and a bias of 3, for two.
    conftest.in_pieces(monkeypatch, side_by_side=4, least=10, most=12)
    cut = compiled(l2l_tf.LearnedOptimizer(lstm()), jit_compile=jit_compile)
    fit(cut)
    (of_pieces, _), *_ = cut.optimizer._state.pieces
    sizes = [layers[0][0].shape[-1] for layers, _ in of_pieces]
    assert set(sizes[:-1]) == {11} and sum(sizes) == len(weights(cut))
    np.testing.assert_allclose(weights(together), weights(cut), atol=1e-5)


@pytest.mark.parametrize(
    "total, expected",
    [
        (0, [0]),
        (8191, [8191]),
        (8192, [4096] * 2),
        (15_680, [7872, 7808]),
        (16_385, [8256, 8129]),
        (65_536, [32_768] * 2),
        (65_537, [16_448, 16_448, 16_448, 16_193]),
        (10**8, [781_312] * 127 + [773_376]),
    ],
)
def test_pieces_but_the_last_are_whole_blocks_of_one_size(monkeypatch, total, expected):
    policy = pieces.Policy(side_by_side=2, least=4096, most=32_768, kept=1)
    monkeypatch.setattr(pieces, "policy", lambda: policy)
    assert pieces.cut(total, policy.most) == expected
    assert sum(expected) == total


def test_pieces_of_a_small_state_are_larger(monkeypatch):
    cpu = pieces.Policy(side_by_side=2, least=4096, most=1000, kept=1, times=16)
    monkeypatch.setattr(pieces, "policy", lambda: cpu)
    assert [pieces.most(n) for n in (0, 4, 16, 80, 200)] == [16_000, 16_000, 5_000, 1_000, 1_000]
    monkeypatch.setattr(pieces, "policy", lambda: pieces.GPU)
    assert pieces.most(4) == pieces.GPU.most


@pytest.mark.parametrize(
    "total, most, least, block, expected",
    [
        (1, 512, 100, 1, (1, 1)),
        (300, 512, 100, 1, (75, 4)),  # too few for fours, but more than one
        (399, 512, 400, 1, (399, 1)),
        (400, 512, 100, 1, (100, 4)),
        (4000, 512, 100, 1, (500, 8)),
        (4096, 512, 100, 64, (512, 8)),
        (4160, 512, 100, 64, (384, 11)),
        (5, 1, 1, 1, (1, 5)),
        (640, 1, 1, 64, (64, 10)),
    ],
)
def test_chunks_come_by_fours_whatever_the_cores(monkeypatch, total, most, least, block, expected):
    for cores in (1, 2, 64):
        monkeypatch.setattr(pieces.os, "cpu_count", lambda cores=cores: cores)
        assert pieces.chunks(total, most, least, block) == expected
    size, number = expected
    assert size * (number - 1) < total <= size * number
    assert size <= total
    assert size % block == 0


def test_runs_cover_each_coordinate_once():
    sizes_of_tensors, sizes_of_pieces = [3, 0, 5, 1, 0], [4, 4, 1]
    runs = pieces.runs(sizes_of_tensors, sizes_of_pieces)
    assert runs == [(0, 0, 0, 0, 3), (2, 0, 0, 3, 1), (2, 1, 1, 0, 4), (3, 0, 2, 0, 1)]


def test_learning_rate_multiplies_the_update():
    variable = tf.Variable([1.0, 2.0])
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0], [1.0, 0.5])
    optimizer = l2l_tf.LearnedOptimizer(update_rules.SGD(1.0), learning_rate=schedule)
    for expected in ([0.0, 1.0], [-0.5, 0.5]):
        optimizer.apply_gradients([(tf.ones([2]), variable)])
        np.testing.assert_allclose(variable, expected)


def test_weight_decay_is_that_of_adamw():
    models = [
        compiled(optimizer)
        for optimizer in (
            l2l_tf.LearnedOptimizer(update_rules.Adam(0.001), weight_decay=20.0),
            keras.optimizers.AdamW(0.001, weight_decay=20.0),
            l2l_tf.LearnedOptimizer(update_rules.Adam(0.001)),
        )
    ]
    for model in models[:2]:
        model.optimizer.exclude_from_weight_decay(var_names=["bias"])
    for model in models:
        fit(model)
    np.testing.assert_allclose(weights(models[0]), weights(models[1]), atol=1e-6)
    assert np.abs(weights(models[0]) - weights(models[2])).max() > 1e-3


def test_the_same_rule_in_fit_and_in_an_unroll():
    """What meta-training sees is what a Keras user gets."""
    from l2l_tf.engine.episodes import episode_seed, windows
    from l2l_tf.evaluation.learning_curves import Arena

    problem, rule = conftest.keras_problem(), lstm()
    arena = Arena(problem, num_steps=6)
    (expected,) = arena.losses(arena.runner(rule), "report", 1)
    (window,) = windows(problem, "heldout", episode_seed(0, "report", 0), 1, 5)

    model = compiled(l2l_tf.LearnedOptimizer(rule))
    sizes = [v.shape.num_elements() for v in model.trainable_variables]
    for variable, value in zip(model.trainable_variables, tf.split(window["parameters"], sizes)):
        variable.assign(tf.reshape(value, variable.shape))
    x, y = window["batches"][0]
    losses = [conftest.loss_on_batch(model, x[t], y[t]) for t in range(6)]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("jit_compile", [None, False, True])
def test_a_gradient_that_is_not_finite_skips_the_whole_step(bad, jit_compile):
    def run(with_bad_step):
        variables = [tf.Variable([1.0, 2.0]), tf.Variable([[3.0]])]
        optimizer = l2l_tf.LearnedOptimizer(lstm(), weight_decay=1.0)
        optimizer.build(variables)

        def apply(a, b):
            optimizer.apply([a, b], variables)

        if jit_compile is not None:
            apply = tf.function(apply, jit_compile=jit_compile)
        apply(*gradients_like(variables, 0))
        before = [v.numpy() for v in variables]
        if with_bad_step:
            apply(tf.constant([0.5, bad]), tf.ones([1, 1]))
            for variable, value in zip(variables, before):
                np.testing.assert_array_equal(variable, value)
        apply(*gradients_like(variables, 1))
        return optimizer, np.concatenate([v.numpy().ravel() for v in variables]), before

    skipping, ends, before = run(True)
    clean, expected, _ = run(False)
    np.testing.assert_array_equal(ends, expected)
    assert np.abs(ends[:2] - before[0]).min() > 0
    assert (skipping.skipped_steps, clean.skipped_steps) == (1, 0)
    assert (int(skipping.iterations), int(clean.iterations)) == (3, 2)


def test_frozen_and_later_unfrozen_layers():
    model = compiled(l2l_tf.LearnedOptimizer(lstm()))
    fit(model, epochs=1)
    start = weights(model)
    model.layers[-1].trainable = False
    # As with Keras' optimizers, the built optimizer goes on in a model compiled anew.
    model.compile(model.optimizer, loss=model.loss)
    fit(model, epochs=1)
    frozen = np.concatenate([v.numpy().ravel() for v in model.layers[-1].weights])
    np.testing.assert_array_equal(frozen, start[-frozen.size :])
    model.layers[-1].trainable = True
    model.compile(model.optimizer, loss=model.loss)
    fit(model, epochs=1)
    assert np.abs(weights(model) - start).min() > 0


def test_variables_without_elements_and_scalars():
    variables = [tf.Variable(tf.ones(shape)) for shape in ([0], [2, 0], [], [3])]
    optimizer = l2l_tf.LearnedOptimizer(lstm())
    optimizer.apply([tf.ones_like(v) for v in variables], variables)
    assert float(variables[2]) != 1.0
    np.testing.assert_allclose(variables[3], [float(variables[2])] * 3, rtol=1e-6)


def test_a_gradient_that_overflows_float32_is_skipped():
    variable = tf.Variable([1.0, 2.0], dtype="float64")
    optimizer = l2l_tf.LearnedOptimizer(update_rules.Adam(0.1))
    for gradient in (1.0, 1e39, 1.0):
        optimizer.apply([tf.constant([gradient, 1.0], "float64")], [variable])
    assert optimizer.skipped_steps == 1
    np.testing.assert_allclose(variable, [0.8, 1.8], rtol=1e-5)


def test_a_gradient_of_unknown_shape():
    variable, dense = (tf.Variable(tf.ones([2, 3])) for _ in range(2))
    optimizer = l2l_tf.LearnedOptimizer(lstm())
    optimizer.build([variable])

    @tf.function(input_signature=[tf.TensorSpec([None, None])])
    def apply(gradient):
        optimizer.apply([gradient], [variable])

    apply(tf.ones([2, 3]))
    l2l_tf.LearnedOptimizer(lstm()).apply([tf.ones([2, 3])], [dense])
    np.testing.assert_allclose(variable, dense, rtol=1e-6)


def test_variables_of_several_dtypes():
    values = np.array([1.0, -2.0, 0.5])
    variables = [
        tf.Variable(values, dtype=d) for d in ("float16", "bfloat16", "float32", "float64")
    ]
    optimizer = l2l_tf.LearnedOptimizer(lstm())
    optimizer.apply_gradients([(tf.ones_like(v), v) for v in variables])
    for variable in variables:
        np.testing.assert_allclose(
            variable.numpy().astype("float32"), variables[2].numpy(), rtol=1e-2
        )
    assert np.abs(variables[2] - values).min() > 1e-4


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_dtype_policies(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = compiled(l2l_tf.LearnedOptimizer(lstm()))
        losses = fit(model)
    finally:
        keras.config.set_dtype_policy("float32")
    optimizer = model.optimizer
    is_scaled = policy == "mixed_float16"
    assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer) == is_scaled
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    assert optimizer.rule.weights[0].dtype == optimizer._state.leaves[0].dtype == "float32"
    np.testing.assert_allclose(losses, fit(compiled(l2l_tf.LearnedOptimizer(lstm()))), rtol=0.05)


def test_rows_of_an_embedding_that_are_not_used_see_a_gradient_of_zero():
    table = keras.Variable(np.ones([4, 2]))
    rule = update_rules.Momentum(0.1)
    sparse, dense = (l2l_tf.LearnedOptimizer(rule) for _ in range(2))
    copy = keras.Variable(np.ones([4, 2]))
    for rows in ([0, 2], [1, 1], [3, 0]):
        slices = tf.IndexedSlices(tf.ones([2, 2]), tf.constant(rows), tf.constant([4, 2]))
        sparse.apply_gradients([(slices, table)])
        dense.apply_gradients([(tf.convert_to_tensor(slices), copy)])
    np.testing.assert_array_equal(table, copy)

    model = keras.Sequential(
        [keras.Input([3]), keras.layers.Embedding(5, 2), keras.layers.Flatten()]
    )
    model.compile(l2l_tf.LearnedOptimizer(lstm()), "mse")
    before = model.trainable_variables[0].numpy()
    model.fit(np.array([[0, 1, 2]]), np.ones([1, 6]), verbose=0)
    assert np.abs(model.trainable_variables[0] - before).min() > 0


@pytest.mark.parametrize("jit_compile", [False, True])
def test_custom_loop_with_an_optimizer_that_is_not_built(jit_compile):
    x, y = next(iter(conftest.image_data()))
    losses = {}
    for how in ("fit", "loop"):
        model = compiled(l2l_tf.LearnedOptimizer(lstm()))
        if how == "fit":
            losses[how] = [conftest.loss_on_batch(model, x, y) for _ in range(3)]
            continue
        if jit_compile:
            model.optimizer.build(model.trainable_variables)

        @tf.function(jit_compile=jit_compile)
        def step(model=model):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(model.loss(y, model(x, training=True)))
            variables = model.trainable_variables
            model.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
            return loss

        losses[how] = [float(step()) for _ in range(3)]
    np.testing.assert_allclose(losses["loop"], losses["fit"], rtol=1e-4)


def test_two_replicas_stay_equal_and_equal_to_one_device():
    def run(strategy):
        with strategy.scope():
            model = compiled(l2l_tf.LearnedOptimizer(lstm(), weight_decay=1.0))
        model.fit(conftest.image_data(num_examples=160), epochs=1, verbose=0, shuffle=False)
        return model

    mirrored = run(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
    one = run(tf.distribute.get_strategy())
    for model in (mirrored, one):
        assert model.optimizer.iterations.numpy() == 20
        assert model.optimizer.skipped_steps == 0
    of_state = tf.nest.flatten(mirrored.optimizer._state.pieces)
    for variable in [*(v.value for v in mirrored.trainable_variables), *of_state]:
        replicas = variable.values
        assert len(replicas) == 2
        for replica in replicas[1:]:
            np.testing.assert_array_equal(replica, replicas[0])
    np.testing.assert_allclose(weights(mirrored), weights(one), atol=1e-5)


@pytest.mark.parametrize(
    "dtype, memory, tolerance", [("bfloat16", 0.5, 0.05), ("float64", 2, 1e-4)]
)
def test_state_in_another_dtype_trains_alike(dtype, memory, tolerance):
    models = [compiled(l2l_tf.LearnedOptimizer(lstm(), state_dtype=d)) for d in ("float32", dtype)]
    losses = [fit(model) for model in models]
    sizes = [
        sum(tf.as_dtype(v.dtype).size * np.prod(v.shape) for v in m.optimizer._state.leaves)
        for m in models
    ]
    assert sizes[1] == memory * sizes[0]
    np.testing.assert_allclose(losses[0], losses[1], rtol=tolerance)


@pytest.mark.skipif(
    not hasattr(keras.optimizers, "MultiOptimizer"), reason="this Keras has no MultiOptimizer"
)
def test_a_rule_for_each_group_of_variables():
    def select(variable):
        return by_bias if "bias" in variable.path else by_kernel

    by_bias = l2l_tf.LearnedOptimizer(update_rules.SGD(0.5), name="by_bias")
    by_kernel = l2l_tf.LearnedOptimizer(lstm(), name="by_kernel")
    model = compiled(keras.optimizers.MultiOptimizer(select))
    losses = fit(model)
    assert losses[1] < losses[0]
    paths = [{leaf.path for leaf in o._state.leaves} for o in (by_bias, by_kernel)]
    assert paths[0] == set() and len(paths[1]) == 2 * 2
    assert all("kernel" in path for path in paths[1])


def test_by_registered_name(tmp_path):
    l2l_tf.save(lstm(), tmp_path / "rule")
    config = {"rule": str(tmp_path / "rule"), "learning_rate": 0.5}
    optimizer = keras.optimizers.get(
        {
            "class_name": "LearnedOptimizer",
            "registered_name": "l2l_tf>LearnedOptimizer",
            "config": config,
        }
    )
    assert isinstance(optimizer, l2l_tf.LearnedOptimizer)
    assert float(optimizer.learning_rate) == 0.5


NAN, RULE = float("nan"), update_rules.SGD(0.1)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (
            lambda: l2l_tf.LearnedOptimizer([3]),
            TypeError,
            "`rule` must be an UpdateRule.*mnist-mlp",
        ),
        (
            lambda: l2l_tf.LearnedOptimizer(0.001),
            TypeError,
            r"`rule` must be .*LearnedOptimizer\(rule, learning_rate=0.001\).*mnist-mlp",
        ),
        (
            lambda: l2l_tf.LearnedOptimizer(update_rules.SGD),
            TypeError,
            r"That is the class: make an instance, SGD\(...\)",
        ),
        (lambda: l2l_tf.LearnedOptimizer("no-such"), ValueError, "Unknown rule 'no-such'"),
        (lambda: l2l_tf.LearnedOptimizer(RULE, "fast"), ValueError, "learning_rate"),
        (lambda: l2l_tf.LearnedOptimizer(RULE, NAN), ValueError, "learning_rate=nan"),
        (lambda: l2l_tf.LearnedOptimizer(RULE, -1.0), ValueError, "learning_rate=-1.0"),
        (lambda: l2l_tf.LearnedOptimizer(RULE, True), TypeError, "learning_rate=True"),
        (
            lambda: l2l_tf.LearnedOptimizer(RULE, state_dtype="int8"),
            ValueError,
            "`state_dtype` must be one of .*'int8'",
        ),
        (lambda: l2l_tf.LearnedOptimizer(RULE, momentum=0.9), ValueError, "momentum"),
        (lambda: l2l_tf.LearnedOptimizer(RULE, gradient_accumulation_steps=1), ValueError, "=1"),
        (lambda: l2l_tf.LearnedOptimizer(RULE, name=3), ValueError, "name=3"),
        *[
            (lambda kwargs=kwargs: l2l_tf.LearnedOptimizer(RULE, **kwargs), error, f"`{key}` must")
            for key, value, error in [
                ("state_dtype", None, TypeError),
                ("weight_decay", NAN, ValueError),
                ("weight_decay", -0.1, ValueError),
                ("weight_decay", "0.1", TypeError),
                ("clipnorm", NAN, ValueError),
                ("clipnorm", 0, ValueError),
                ("clipvalue", "1", TypeError),
                ("global_clipnorm", -1.0, ValueError),
                ("use_ema", "yes", TypeError),
                ("ema_momentum", NAN, ValueError),
                ("loss_scale_factor", NAN, ValueError),
                ("gradient_accumulation_steps", 2.5, TypeError),
            ]
            for kwargs in [{key: value}]
        ],
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_its_repr_names_rule_and_rate():
    by_kernel = update_rules.GroupedRule([("bias", update_rules.SGD(0.1)), ("", lstm())])
    received = repr(l2l_tf.LearnedOptimizer(by_kernel, learning_rate=0.5))
    assert re.search(r"rule=GroupedRule\(SGD, CoordinatewiseLSTM\) learning_rate=0.5>", received)
    schedule = keras.optimizers.schedules.CosineDecay(1.0, 100)
    assert "rate=CosineDecay>" in repr(l2l_tf.LearnedOptimizer(lstm(), schedule))


def test_a_variable_without_a_rule_is_one_clear_error_in_fit():
    rule = update_rules.GroupedRule([("bias", update_rules.SGD(0.1))])
    with pytest.raises(ValueError) as caught:
        fit(compiled(l2l_tf.LearnedOptimizer(rule)))
    assert str(caught.value).startswith("No pattern of the GroupedRule matches the variable")
    assert "user code" not in str(caught.value)


def test_a_rule_that_moves_nothing_is_named_once():
    untrained = update_rules.CoordinatewiseLSTM((4,), name="untrained")
    rule = update_rules.GroupedRule([("bias", untrained), ("", update_rules.SGD(0.1))])
    model = compiled(l2l_tf.LearnedOptimizer(rule))
    with pytest.warns(
        UserWarning, match="'untrained' .CoordinatewiseLSTM. moves no weight"
    ) as warned:
        fit(model)
        model.train_on_batch(*next(iter(conftest.image_data())))
    assert sum("moves no weight" in str(w.message) for w in warned) == 1


@pytest.mark.parametrize("make_rule", [lstm, update_rules.Momentum, update_rules.SGD])
def test_a_rule_that_moves_is_not_warned_of(make_rule):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fit(compiled(l2l_tf.LearnedOptimizer(make_rule())), epochs=1)


def test_a_second_model_on_a_built_optimizer():
    optimizer = l2l_tf.LearnedOptimizer(lstm())
    fit(compiled(optimizer), epochs=1)
    second = compiled(optimizer)
    second.run_eagerly = True  # in a graph, Keras before 3.13 fails to print its message
    with pytest.raises(ValueError, match="recreate a new optimizer"):
        second.fit(conftest.image_data(), verbose=0)


RULES = {
    "sgd": lambda: update_rules.SGD(0.1),
    "momentum": lambda: update_rules.Momentum(0.1),
    "rmsprop": lambda: update_rules.RMSprop(0.1),
    "adam": lambda: update_rules.Adam(0.1),
    "lstm": lstm,
    "rnnprop": lambda: update_rules.RNNprop((4,), zero_head=False, seed=1),
    "averaging": lambda: update_rules.GlobalAveragingLSTM((4,), 2, zero_head=False, seed=1),
    "grouped": lambda: update_rules.GroupedRule(
        [
            ("conv", update_rules.KernelwiseLSTM((3, 3), (4,), zero_head=False, seed=1)),
            ("", update_rules.RNNprop((4,), zero_head=False, seed=1)),
        ]
    ),
}
SHIPPED = {name: lambda name=name: l2l_tf.load(name) for name in l2l_tf.pretrained_names()}


@pytest.fixture
def check_numerics():
    yield tf.debugging.enable_check_numerics
    tf.debugging.disable_check_numerics()


@pytest.fixture
def dump_debug_info(tmp_path):
    directory = str(tmp_path / "debug")
    yield lambda: tf.debugging.experimental.enable_dump_debug_info(directory)
    tf.debugging.experimental.disable_dump_debug_info()


@pytest.fixture
def run_functions_eagerly():
    yield lambda: tf.config.run_functions_eagerly(True)
    tf.config.run_functions_eagerly(False)


def three_steps(rule):
    """Weights after three steps, as `fit` makes them; one variable has chunks of XLA's size."""
    shapes = {"conv": (3, 3, 1, 2), "bias": (5,), "table": (700, 100)}
    variables = [keras.Variable(np.ones(shape), name=name) for name, shape in shapes.items()]
    optimizer = l2l_tf.LearnedOptimizer(rule)
    step = tf.function(lambda *gradients: optimizer.apply(gradients, variables))
    for seed in range(3):
        step(*gradients_like(variables, seed))
    assert optimizer.skipped_steps == 0
    return np.concatenate([v.numpy().ravel() for v in variables])


AIDS = ("check_numerics", "dump_debug_info", "run_functions_eagerly")
BY_DEFAULT = {("check_numerics", name) for name in RULES} | {(aid, "lstm") for aid in AIDS}


@pytest.mark.parametrize(
    "aid, name",
    [
        pytest.param(aid, name, marks=[] if (aid, name) in BY_DEFAULT else pytest.mark.slow)
        for aid in AIDS
        for name in (*RULES, *SHIPPED)
    ],
)
def test_debugging_aids_change_nothing(name, aid, request):
    make_rule = {**RULES, **SHIPPED}[name]
    expected = three_steps(make_rule())
    request.getfixturevalue(aid)()
    received = three_steps(make_rule())
    np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-5)


def test_a_nan_of_the_model_is_found(check_numerics):
    def model_with_nan():
        model = conftest.mlp()
        model.add(keras.layers.Lambda(lambda x: tf.math.log(x - 1e6)))
        return model

    check_numerics()
    assert np.isfinite(fit(compiled(l2l_tf.LearnedOptimizer(lstm())))).all()
    with pytest.raises(tf.errors.InvalidArgumentError, match="op .*Log"):
        fit(compiled(l2l_tf.LearnedOptimizer(lstm()), model_with_nan))


def test_what_is_made_while_numbers_are_checked_is_not_for_later(check_numerics):
    check_numerics()
    three_steps(lstm())
    tf.debugging.disable_check_numerics()
    variable = tf.Variable(tf.ones([3]))
    rule = update_rules.SGD(0.1)
    optimizer = l2l_tf.LearnedOptimizer(rule)
    rule.learning_rate.assign(np.inf)
    optimizer.apply([tf.ones([3])], [variable])  # divergence as without the aid
    assert not np.isfinite(variable.numpy()).any()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lstm", "rnnprop", "averaging"])
@pytest.mark.parametrize("aid", ["check_numerics", "dump_debug_info"])
def test_meta_training_and_evaluation_with_debugging_aids(name, aid, request):
    request.getfixturevalue(aid)()
    problem, rule = conftest.keras_problem(), RULES[name]()
    trainer = l2l_tf.MetaTrainer(rule, problem, 5, 10)
    trainer.compile(optimizer=keras.optimizers.Adam(1e-3))
    loss = trainer.fit(trainer.dataset(0, 1), verbose=0).history["loss"]
    assert np.isfinite(loss).all()
    result = l2l_tf.evaluate(problem, {"rule": rule}, baselines=(), num_steps=5, num_seeds=2)
    assert np.isfinite(result.losses["rule"]).all()


def what_a_fit_leaves(rule):
    """How many rules and functions of TensorFlow are alive after a model is gone."""
    fit(compiled(l2l_tf.LearnedOptimizer(rule)), epochs=1)
    del rule
    keras.utils.clear_session()
    gc.collect()
    alive = gc.get_objects()
    rules = [x for x in alive if isinstance(x, update_rules.UpdateRule)]
    functions = [x for x in alive if isinstance(x, tf.types.experimental.PolymorphicFunction)]
    return len(rules), len(functions)


@pytest.mark.slow
def test_a_model_that_is_gone_leaves_no_rule_and_no_program():
    counts = [what_a_fit_leaves(lstm()) for _ in range(4)]
    assert counts[1] == counts[3]


def test_rules_alike_in_all_but_weights_share_programs():
    class Ours(update_rules.CoordinatewiseLSTM):
        """A rule whose config may not tell all."""

    def program_of(rule):
        return Program(rule)._compiled

    rule, trained = lstm(), update_rules.CoordinatewiseLSTM((4,), name="trained")
    assert program_of(rule) is program_of(trained)
    assert program_of(update_rules.SGD(0.1)) is program_of(update_rules.SGD(0.2))
    assert program_of(rule) is not program_of(lstm((5,)))
    assert program_of(Ours((4,))) is not program_of(Ours((4,)))


def test_rules_of_other_settings_do_not_share_programs():
    ends = []
    for scale in (0.1, 0.5):
        rule = update_rules.CoordinatewiseLSTM((4,), output_scale=scale, zero_head=False, seed=1)
        ends.append(three_steps(rule) - 1.0)
    np.testing.assert_allclose(ends[1], 5 * ends[0], rtol=1e-3, atol=1e-6)
