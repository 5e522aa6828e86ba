import sys
from unittest import mock

import conftest
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from l2l_tf import problems
from l2l_tf.problems import base, names

PROBLEMS = {
    "digits": lambda: problems.get("digits"),
    "lasso": lambda: problems.get("lasso"),
    "quadratic": lambda: problems.get("quadratic"),
    "rastrigin": lambda: problems.get("rastrigin"),
    "simple": lambda: problems.get("simple"),
    "simple-multi": lambda: problems.get("simple-multi"),
    "ensemble": lambda: problems.get("quadratic+0.5*rastrigin"),
    "mixed ensemble": lambda: problems.Ensemble(
        [(problems.Quadratic(), 2.0), (PROBLEMS["mlp"](), 0.5)]
    ),
    "mlp": lambda: conftest.keras_problem(heldout=conftest.image_data(seed=1)),
    "conv_net": lambda: conftest.keras_problem(
        conftest.conv_net, heldout=conftest.image_data(seed=1)
    ),
    "cifar": lambda: fake_cifar("cifar5"),
}
ALWAYS_THE_SAME_FUNCTION = ("simple", "simple-multi")
SEED = tf.constant([1, 2], tf.int64)
OTHER = tf.constant([1, 3], tf.int64)


def batches(problem, side="train", seed=SEED, count=3):
    return list(problem.batches(side, seed, count))


def assert_equal(a, b):
    tf.nest.map_structure(np.testing.assert_array_equal, a, b)


def differ(a, b):
    return any((x.numpy() != y.numpy()).any() for x, y in zip(*map(tf.nest.flatten, (a, b))))


def fake_cifar(name):
    """A CIFAR problem on images of noise around their label."""

    def images(seed, num_images=800):
        labels = np.arange(num_images) % 10
        noise = np.random.default_rng(seed).integers(0, 20, (num_images, 32, 32, 3))
        images = (20 * labels[:, None, None, None] + noise).astype("uint8")
        return tf.data.Dataset.from_tensor_slices((images, labels))

    with mock.patch("l2l_tf.problems.cifar10.load_tfds", lambda *args: [images(0), images(1)]):
        return problems.get(name)


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_problem(name):
    check_problem(PROBLEMS[name](), is_random=name not in ALWAYS_THE_SAME_FUNCTION)


def check_problem(problem, is_random=True):
    parameters = problem.sample_parameters(SEED)
    assert [tuple(p.shape) for p in parameters] == [shape for _, shape in problem.layout]
    assert_equal(parameters, problem.sample_parameters(SEED))
    assert differ(parameters, problem.sample_parameters(OTHER))

    drawn = batches(problem)
    assert len(drawn) == 3
    assert_equal(drawn, batches(problem))
    if is_random:
        assert differ(drawn, batches(problem, seed=OTHER))
        assert differ(drawn, batches(problem, side="heldout"))
    assert_equal(drawn[:2], batches(problem, count=2))

    loss, gradients = problem.loss_and_gradients(parameters, drawn[0])
    assert loss.shape == ()
    loss_in_graph, _ = tf.function(problem.loss_and_gradients)(parameters, drawn[0])
    np.testing.assert_allclose(loss, loss_in_graph, rtol=1e-5)
    # A small step downhill lowers the loss by what the gradients say.
    norm = tf.linalg.global_norm(gradients)
    step = 1e-3 / norm
    moved = [p - step * g for p, g in zip(parameters, gradients)]
    after, _ = problem.loss_and_gradients(moved, drawn[0])
    np.testing.assert_allclose(loss - after, step * norm**2, rtol=0.1)

    if problem.vectorized:
        twice = tf.nest.map_structure(lambda t: tf.stack([t, t]), (parameters, drawn[0]))
        losses, _ = tf.vectorized_map(lambda pair: problem.loss_and_gradients(*pair), twice)
        np.testing.assert_allclose(losses, [loss, loss], rtol=1e-5)


@pytest.mark.parametrize("name", PROBLEMS)
def test_an_episode_has_a_stream_of_seeds_for_each_of_its_parts(name):
    problem = PROBLEMS[name]()
    parameters, state, drawn = problem.episode("heldout", SEED, 2)
    assert_equal(parameters, problem.sample_parameters(base.fold_in(SEED, 0)))
    assert_equal(state, problem.sample_state(base.fold_in(SEED, 0)))
    assert_equal(list(drawn), batches(problem, "heldout", base.fold_in(SEED, 1), count=2))


def test_quadratic_by_hand():
    theta, w, y = tf.constant([1.0, 2.0]), tf.constant([[1.0, 0.0], [1.0, 1.0]]), tf.ones([2])
    loss, (gradient,) = problems.Quadratic(2).loss_and_gradients([theta], (w, y))
    assert loss == 4.0  # residual (0, 2)
    np.testing.assert_array_equal(gradient, [4.0, 4.0])  # 2 Wᵀ residual


def test_simple_by_hand():
    problem = problems.get("simple-multi")
    assert problem.layout == [("x_0", ()), ("x_1", ())]
    loss, gradients = problem.loss_and_gradients([tf.constant(3.0), tf.constant(-1.0)], 0.0)
    assert loss == 10.0 and [float(g) for g in gradients] == [6.0, -2.0]
    starts = np.array([problem.sample_parameters([0, i]) for i in range(100)])
    np.testing.assert_allclose(starts.mean(), 1.0, atol=0.03)
    np.testing.assert_allclose(starts.std(), 0.1, rtol=0.2)


def test_ensemble_is_the_weighted_sum_of_its_members():
    quadratic, rastrigin = problems.get("quadratic"), problems.get("rastrigin")
    problem = problems.get("2*quadratic+rastrigin+.5*quadratic")
    assert problem.name == "2*quadratic+rastrigin+0.5*quadratic"
    assert problem.layout == [
        ("0/quadratic/theta", (10,)),
        ("1/rastrigin/theta", (2,)),
        ("2/quadratic/theta", (10,)),
    ]
    parameters, (batch, *_) = problem.sample_parameters(SEED), batches(problem)
    assert differ(parameters[0], parameters[2]) and differ(batch[0], batch[2])
    loss, gradients = problem.loss_and_gradients(parameters, batch)
    members = [
        member.loss_and_gradients([theta], coefficients)
        for member, theta, coefficients in zip((quadratic, rastrigin, quadratic), parameters, batch)
    ]
    weights = [2.0, 1.0, 0.5]
    np.testing.assert_allclose(loss, sum(w * f for w, (f, _) in zip(weights, members)), rtol=1e-6)
    for weight, gradient, (_, (of_member,)) in zip(weights, gradients, members):
        np.testing.assert_allclose(gradient, weight * of_member, rtol=1e-6)
    assert problem.vectorized and not PROBLEMS["mixed ensemble"]().vectorized


def test_members_of_one_name_share_one_problem():
    problem = problems.get("digits+3*digits")
    assert problem.members[0][0] is problem.members[1][0]


@pytest.mark.parametrize(
    "name, labels",
    [
        ("cifar10", range(10)),
        ("cifar5", range(5)),
        ("cifar2", range(2)),
        ("cifar5-sub", range(5, 10)),
    ],
)
def test_cifar_has_its_labels_alone_and_numbers_them_anew(name, labels):
    problem = fake_cifar(name)
    assert problem.name == name and problem.layout[-1][1] == (len(labels),)
    for side in ("train", "heldout"):
        (images, new), _ = batches(problem, side, count=1)[0]
        assert images.shape == (128, 32, 32, 3) and images.dtype == tf.uint8
        old = images.numpy()[:, 0, 0, 0] // 20
        assert set(old) == set(labels)
        np.testing.assert_array_equal(new, old - labels[0])


def test_cifar_net_is_the_papers():
    layout = fake_cifar("cifar10").layout
    assert layout[0][0] == "conv_net/conv_0/kernel" and layout[-1][0] == "conv_net/output/bias"
    shapes = [shape for _, shape in layout]
    convolutions = [s for c in (3, 16, 16) for s in ((5, 5, c, 16), (16,), (16,))]
    assert shapes == [*convolutions, (4 * 4 * 16, 32), (32,), (32,), (32, 10), (10,)]


def test_cifar2_as_tfds_has_it():
    if not tfds.builder("cifar10").is_prepared():
        pytest.skip("TFDS' default directory, or TFDS_DATA_DIR, does not hold cifar10")
    problem = problems.get("cifar2")
    for side, num_images in (("train", 10_000), ("heldout", 2_000)):
        drawn = batches(problem, side, count=num_images // 128)
        labels = np.concatenate([y for (_, y), _ in drawn])
        np.testing.assert_allclose(np.bincount(labels), num_images / 2, rtol=0.05)


def test_names_for_help_are_those_that_get_knows():
    assert sorted(names.NAMES) == sorted([*problems._BUILT_IN, *problems._READ_FROM_TFDS])


def test_digits_sides_share_no_image():
    problem = problems.get("digits")
    seen = {}
    for side in ("train", "heldout"):
        images = np.concatenate([x for (x, _), _ in batches(problem, side, count=20)])
        seen[side] = {image.tobytes() for image in images}
    assert len(seen["train"]) > 1000 and len(seen["heldout"]) > 500
    assert not seen["train"] & seen["heldout"]


def test_batches_go_through_the_data_before_they_repeat():
    data = tf.data.Dataset.range(12).map(lambda i: (tf.cast([i], tf.float32), 0.0)).batch(4)
    build = lambda: keras.Sequential([keras.Input([1]), keras.layers.Dense(1)])  # noqa: E731
    problem = problems.KerasProblem(build, data, "mse")
    epochs = [x.numpy()[:, 0] for (x, _), _ in batches(problem, count=6)]
    for epoch in (epochs[:3], epochs[3:]):
        assert sorted(np.concatenate(epoch)) == list(range(12))
    assert list(np.concatenate(epochs[:3])) != list(np.concatenate(epochs[3:]))


def test_loss_is_that_of_keras_with_regularization():
    problem = conftest.keras_problem(
        lambda: keras.Sequential(
            [
                keras.Input([6, 6, 1]),
                keras.layers.Flatten(),
                keras.layers.Dense(3, kernel_regularizer=keras.regularizers.L2(0.1)),
            ]
        )
    )
    (x, y), seed = batches(problem)[0]
    kernel, bias = problem.sample_parameters(SEED)
    logits = tf.reshape(x, [8, -1]) @ kernel + bias
    cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
    expected = tf.reduce_mean(cross_entropy) + 0.1 * tf.reduce_sum(kernel**2)
    loss, _ = problem.loss_and_gradients([kernel, bias], ((x, y), seed))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_dropout_varies_by_step_and_batch_normalization_leaves_no_trace():
    problem = conftest.keras_problem(conftest.conv_net)
    parameters = problem.sample_parameters(SEED)
    (example, seed), (_, other_seed), _ = batches(problem)
    before = [v.numpy() for v in problem._model.non_trainable_variables]
    loss = tf.function(problem.loss_and_gradients)
    first, _ = loss(parameters, (example, seed))
    again, _ = loss(parameters, (example, seed))
    other, _ = loss(parameters, (example, other_seed))
    assert first == again and first != other
    assert_equal(before, [v.numpy() for v in problem._model.non_trainable_variables])


def test_initial_weights_come_from_the_seed_and_leave_global_generators_alone():
    import random

    problem = conftest.keras_problem()
    random.seed(5), np.random.seed(5)
    expected = random.random(), np.random.rand()
    random.seed(5), np.random.seed(5)
    problem.sample_parameters(SEED)
    assert (random.random(), np.random.rand()) == expected


def test_embedding_gradients_and_subclassed_models():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.embedding = keras.layers.Embedding(5, 3)
            self.dense = keras.layers.Dense(1)

        def call(self, x):
            return self.dense(keras.ops.mean(self.embedding(x), axis=1))

    data = tf.data.Dataset.from_tensors((np.array([[0, 1], [2, 2]]), np.ones([2, 1])))
    problem = problems.KerasProblem(Model, data, "mse")
    parameters = problem.sample_parameters(SEED)
    _, gradients = problem.loss_and_gradients(parameters, batches(problem)[0])
    assert gradients[0].shape == (5, 3)
    assert not gradients[0].numpy()[3:].any() and gradients[0].numpy()[:3].any()


def test_streams_leave_out_ragged_batches():
    data = tf.data.Dataset.range(10).map(lambda i: (tf.cast([i], tf.float32), 0.0))
    build = lambda: keras.Sequential([keras.Input([1]), keras.layers.Dense(1)])  # noqa: E731
    problem = problems.KerasProblem(build, data.batch(4).repeat(), "mse")
    assert [x.shape[0] for (x, _), _ in batches(problem, count=5)] == [4] * 5


def _broken(loss="mse", **kwargs):
    build = lambda: keras.Sequential([keras.Input([2]), keras.layers.Dense(1, **kwargs)])  # noqa: E731
    return problems.KerasProblem(build, _regression(), loss)


def _regression():
    return tf.data.Dataset.from_tensors((np.ones([4, 2]), np.ones([4, 1])))


def _unreached():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.used = keras.layers.Dense(1)
            self.unused = keras.layers.Dense(1, name="unused")

        def call(self, x):
            self.unused(x)
            return self.used(x)

    return Model()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: _broken(trainable=False), "no trainable weights"),
        (lambda: _broken(loss=lambda y, p: p * np.nan), "finite scalar. Received: nan"),
        (
            lambda: problems.KerasProblem(_unreached, _regression(), "mse"),
            "does not depend on .*unused/kernel",
        ),
        (lambda: problems.KerasProblem(_unreached(), _regression(), "mse"), None),
        (lambda: problems.KerasProblem(lambda: 3, _regression(), "mse"), "must return a keras.M"),
        (lambda: problems.KerasProblem(_unreached, np.ones(3), "mse"), "tf.data.Dataset"),
        (
            lambda: problems.KerasProblem(_unreached, _regression().unbatch(), "mse"),
            r"call .batch\(128\)",
        ),
        (lambda: problems.KerasProblem(_unreached, _regression().take(0), "mse"), "is empty"),
        (lambda: problems.get("digit"), "Did you mean 'digits'"),
        (lambda: problems.get("quadratic+2*rastrigan"), "Did you mean 'rastrigin'"),
        (lambda: problems.get("quadratic+"), "Received the member: ''"),
        (lambda: problems.get("2*"), r"Received the member: '2\*'"),
        (lambda: problems.get("x*quadratic"), r"finite weight.*Received the member: 'x\*quad"),
        (lambda: problems.get("1e+3*quadratic"), "Unknown problem '1e'"),
        (lambda: problems.get("inf*quadratic"), r"Received the member: 'inf\*quadratic'"),
        (lambda: problems.Ensemble([]), "at least one"),
        (lambda: problems.Ensemble([problems.Lasso()]), "pair .Problem, number"),
        (lambda: problems.Ensemble([("lasso", 1.0)]), "pair .Problem, number"),
        (lambda: problems.Ensemble([(problems.Lasso(), np.nan)]), "finite. Received: nan for 'la"),
        (lambda: problems.get("0*quadratic"), r"above 0.*Received the member: '0\*quadratic'"),
        (lambda: problems.get("-1*quadratic"), r"above 0.*Received the member: '-1\*quadratic'"),
        (lambda: problems.Ensemble([(problems.Lasso(), 0)]), "above 0 and finite. Received: 0 for"),
        (lambda: problems.Ensemble([(problems.Lasso(), "1")]), "pair .Problem, number"),
        (lambda: problems.Ensemble([(problems.Lasso(), True)]), "pair .Problem, number"),
        (lambda: problems.Ensemble([(problems.Lasso, 1.0)]), "pair .Problem, number"),
        (lambda: problems.Ensemble("quadratic+lasso"), "`members` must be a list of pairs"),
        (lambda: problems.Ensemble([(problems.Lasso(), 1.0)], name=3), "`name` must be a string"),
        (lambda: problems.get(3), "`name` must be the name of a problem. Received: name=3"),
        (lambda: problems.get("digits", data_dir="x"), "'digits' does not take data_dir"),
        (lambda: problems.get("digits+lasso", data_dir="x"), "lasso' does not take data_dir"),
        (lambda: problems.get("math:pi", data_dir="x"), "'math:pi' does not take data_dir"),
        (lambda: problems.get("mnist", data_dir=3), "`data_dir` must be a path"),
        (lambda: problems.get("digits+lasso", image_size=3), "does not take image_size"),
        (lambda: problems.Quadratic(10.0), "`num_dimensions` must be an integer, 1 at least"),
        (lambda: problems.Quadratic(0), "num_dimensions=0"),
        (lambda: problems.Lasso(num_observations=0), "`num_observations` must be an integer, 1"),
        (lambda: problems.Lasso(regularization=np.nan), "`regularization` must be a finite"),
        (lambda: problems.Rastrigin(amplitude="10"), "`amplitude` must be a finite number"),
        (lambda: problems.Simple(1.0), "`num_variables` must be an integer"),
        (lambda: problems.cifar(labels="01"), "`labels` must be a list of integers"),
        (lambda: problems.cifar(labels=[0.0, 1.0]), "`labels` must be an integer"),
        (lambda: problems.mnist(hidden=20), "`hidden` must be a list of numbers of units"),
        (lambda: problems.mnist(hidden=(2.5,)), "`hidden` must be an integer, 1 at least"),
        (lambda: problems.mnist(hidden=(0,)), "hidden=0"),
        (lambda: problems.mnist(activation="sigmoit"), "sigmoit"),
        (lambda: problems.mnist(name=""), "`name` must be a string"),
        (lambda: problems.Simple(0), "num_variables=0"),
        (lambda: problems.cifar(labels=[3]), r"labels=\[3\]"),
        (lambda: problems.cifar(labels=[3, 3]), r"labels=\[3, 3\]"),
        (lambda: problems.cifar(labels=[3, 10]), r"labels=\[3, 10\]"),
        (lambda: problems.get("no.module:problem"), "importable module"),
        (lambda: problems.get("math:pi"), None),
        (lambda: problems.get("builtins:dict"), "Received: dict"),
        (lambda: problems.get("quadratic").batches("test", SEED, 1), "side='test'"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_a_file_is_no_data_dir():
    with pytest.raises(NotADirectoryError, match="is a file. Expected a directory"):
        problems.get("mnist", data_dir=__file__)


@pytest.mark.parametrize("name, data", [("mnist", "mnist"), ("cifar5", "cifar10")])
def test_without_data_or_a_network_fails_at_once(name, data, tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError

    monkeypatch.setattr("socket.create_connection", no_network)
    with pytest.raises(FileNotFoundError, match=f"(?s)No dataset '{data}'.*tfds build {data}"):
        problems.get(name, data_dir=str(tmp_path))


OWN = """
import l2l_tf

def problem():
    return l2l_tf.problems.Quadratic(3)

def raises():
    return 1 / 0

def ends():
    raise SystemExit

def takes(what):
    return problem()
"""


@pytest.mark.parametrize(
    "name, message",
    [
        ("own:raises", "'own:raises': the function raised ZeroDivisionError: division by zero"),
        ("own:ends", "'own:ends': the function raised SystemExit"),
        ("own:takes", "'own:takes': the function raised TypeError: takes.. missing 1 required"),
        ("own:nothing", "'own:nothing': .* module 'own', which has no 'nothing'"),
        ("own:", "'own:': expected 'package.module:function'. Received no name"),
        ("own.below:problem", "no module 'own.below'. It must be installed"),
        ("broken:problem", "'broken:problem': .* module 'broken', which raised SyntaxError"),
        ("needs:problem", "module 'needs', which raised ModuleNotFoundError: .*'not_there'"),
        ("ends:problem", "module 'ends', which raised SystemExit"),
    ],
)
def test_a_function_of_ones_own_that_fails_is_named(name, message, tmp_path, monkeypatch):
    for module, text in {
        "own": OWN,
        "broken": "def problem(:",
        "needs": "import not_there",
        "ends": "import sys; sys.exit()",
    }.items():
        (tmp_path / f"{module}.py").write_text(text)
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert problems.get("own:problem").layout == [("theta", (3,))]
    with pytest.raises(ValueError, match=message) as caught:
        problems.get(name)
    assert "\n" not in str(caught.value)


def test_an_ensemble_gives_data_dir_to_those_that_read_from_it():
    assert problems.reads_from_tfds("quadratic+2*mnist")
    assert not problems.reads_from_tfds("quadratic+2*digits")
    read = []
    with mock.patch.dict(
        problems._READ_FROM_TFDS,
        {"mnist": lambda data_dir=None: read.append(data_dir) or problems.Lasso()},
    ):
        problems.get("quadratic+2*mnist", data_dir="there")
    assert read == ["there"]
