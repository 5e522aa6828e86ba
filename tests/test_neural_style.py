"""Neural style, on a network that has VGG19's layers and few channels."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_command_line import call
from test_problems import check_problem

import l2l_tf
from l2l_tf import problems
from l2l_tf.problems.photographs import Photograph
from l2l_tf.problems.vgg19 import LAYERS, vgg19

SEED = tf.constant([1, 2], tf.int64)
CHANNELS = {"block1": 4, "block2": 5, "block3": 6}
UP_TO_BLOCK3_CONV1 = LAYERS[:5]


def random_weights(layers=UP_TO_BLOCK3_CONV1):
    rng, arrays, num_inputs = np.random.default_rng(0), {}, 3
    for layer in layers:
        num_outputs = CHANNELS[layer[:6]]
        kernel = rng.normal(size=[3, 3, num_inputs, num_outputs]) / np.sqrt(4.5 * num_inputs)
        arrays[f"{layer}__kernel"] = kernel.astype("float32")
        arrays[f"{layer}__bias"] = np.full([num_outputs], 0.1, "float32")
        num_inputs = num_outputs
    return arrays


def photograph(seed, height=40, width=48):
    """A picture of smooth coloured blots."""
    coarse = np.random.default_rng(seed).uniform(0, 255, [1, 5, 5, 3])
    return tf.image.resize(coarse, [height, width], "bicubic")[0].numpy().clip(0, 255).astype("u1")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("vgg19") / "weights.npz"
    np.savez(path, **random_weights())
    return str(path)


@pytest.fixture(scope="module")
def problem(weights):
    content, heldout = [photograph(0), photograph(1)], [photograph(2), photograph(3)]
    return problems.NeuralStyle(
        photograph(4), content, heldout, image_size=16, weights=weights, num_crops=20
    )


def batch(problem, side="heldout", seed=SEED):
    return next(iter(problem.batches(side, seed, 1)))


def test_as_every_problem(problem):
    check_problem(problem)


def test_a_seed_has_one_photograph_and_all_are_used(problem):
    drawn = {side: set() for side in ("train", "heldout")}
    for side, seen in drawn.items():
        for seed in range(25):
            (index,) = {int(index) for index in problem.batches(side, [seed, 0], 3)}
            seen.add(problem.reference_pictures(index)["content"].tobytes())
    assert len(drawn["heldout"]) == 2 and len(drawn["train"]) > 10
    assert not drawn["heldout"] & drawn["train"]


def test_loss_is_that_of_its_formula(problem):
    """With the features as of ``tf.nn``, and the weights as of the file."""
    arrays = random_weights()

    def features(pixels):  # [height, width, 3], RGB
        x = (tf.cast(pixels, tf.float32)[..., ::-1] - [103.939, 116.779, 123.68])[tf.newaxis]
        outputs = {}
        for layer in UP_TO_BLOCK3_CONV1:
            if layer in ("block2_conv1", "block3_conv1"):
                x = tf.nn.max_pool2d(x, 2, 2, "VALID")
            x = tf.nn.conv2d(x, arrays[f"{layer}__kernel"], 1, "SAME")
            x = outputs[layer] = tf.nn.relu(x + arrays[f"{layer}__bias"])
        return outputs

    def relative(a, b):
        return tf.reduce_sum((a - b) ** 2) / tf.reduce_sum(b**2)

    def gram(f):
        return tf.einsum("nhwc,nhwd->cd", f, f) / (f.shape[1] * f.shape[2])

    index = batch(problem)
    (theta,) = problem.sample_parameters(SEED)
    here, style = features(127.5 * (theta + 1)), features(problem._style)
    content = features(problem._contents[index])
    expected = 0.1 * relative(here["block3_conv1"], content["block3_conv1"])
    for layer in ("block1_conv1", "block2_conv1", "block3_conv1"):
        expected += relative(gram(here[layer]), gram(style[layer])) / 3
    differences = [np.abs(np.diff(theta, axis=axis)).sum() for axis in (0, 1)]
    expected += 0.05 * sum(differences) / (16 * 16 * 3)
    loss, _ = problem.loss_and_gradients([theta], index)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_gradients_are_finite_differences(problem):
    index, (theta,) = batch(problem), problem.sample_parameters(SEED)
    _, (gradient,) = problem.loss_and_gradients([theta], index)
    direction = tf.random.stateless_normal(theta.shape, [5, 6])
    above, _ = problem.loss_and_gradients([theta + 1e-3 * direction], index)
    below, _ = problem.loss_and_gradients([theta - 1e-3 * direction], index)
    slope = tf.reduce_sum(gradient * direction)
    np.testing.assert_allclose((above - below) / 2e-3, slope, rtol=0.05)


def test_adam_lowers_the_loss(problem):
    index = batch(problem)
    theta = tf.Variable(problem.sample_parameters(SEED)[0])
    optimizer = keras.optimizers.Adam(0.05)

    @tf.function
    def step():
        loss, gradients = problem.loss_and_gradients([theta.value()], index)
        optimizer.apply_gradients(zip(gradients, [theta]))
        return loss

    losses = [float(step()) for _ in range(60)]
    assert losses[-1] < 0.3 * losses[0]


def test_picture(problem):
    index = batch(problem)
    content = problem.reference_pictures(index)["content"]
    assert content.shape == (16, 16, 3) and content.dtype == np.uint8
    np.testing.assert_array_equal(problem.picture([content / 127.5 - 1.0]), content)
    assert problem.picture([np.full([16, 16, 3], 9.0)]).min() == 255
    assert problem.picture([np.full([16, 16, 3], -9.0)]).max() == 0


def test_settings_know_the_content_and_no_path(problem, weights, tmp_path):
    def settings(name, seed):
        (tmp_path / name).write_bytes(tf.io.encode_png(photograph(seed)).numpy())
        return problems.NeuralStyle(
            tmp_path / name, image_size=16, weights=weights, num_crops=2
        ).settings

    first, again, renamed, other = [
        settings(*pair) for pair in (("a.png", 1), ("a.png", 1), ("b.png", 1), ("b.png", 2))
    ]
    assert first == again and first["content"][0].startswith("china.jpg@")
    assert first["style"].replace("a.png", "b.png") == renamed["style"] != other["style"]
    assert str(tmp_path) not in json.dumps(first)


def test_the_network_of_keras_is_cut_to_what_is_needed(monkeypatch):
    """``keras.applications``' network, with random weights in place of those it would download."""
    whole = keras.applications.VGG19
    monkeypatch.setattr("l2l_tf.problems.vgg19.is_online", lambda: True)
    monkeypatch.setattr(
        keras.applications, "VGG19", lambda weights, include_top: whole(include_top, weights=None)
    )
    model = vgg19(["block1_conv1", "block3_conv1"])
    features = model(tf.zeros([1, 16, 16, 3]))
    assert {layer: tuple(f.shape) for layer, f in features.items()} == {
        "block1_conv1": (1, 16, 16, 64),
        "block3_conv1": (1, 4, 4, 256),
    }
    assert not model.trainable_variables
    assert len(model.weights) == 2 * len(UP_TO_BLOCK3_CONV1)


def test_no_weights_and_no_network(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError

    monkeypatch.setattr("socket.create_connection", no_network)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no network to fetch them.*--vgg19_weights=FILE"):
        problems.get("neural_style")


def test_bad_weights(tmp_path):
    def fails(message, layers=("block3_conv1",), **changed):
        present = {k: v for k, v in {**arrays, **changed}.items() if v is not None}
        np.savez(tmp_path / "w.npz", **present)
        with pytest.raises(ValueError, match=message):
            vgg19(layers, tmp_path / "w.npz")

    arrays = random_weights()
    fails("lacks block2_conv2__bias. Expected", block2_conv2__bias=None)
    fails("lacks block3_conv2__kernel, block3_conv2__bias", layers=["block3_conv2"])
    fails("Unknown layer 'block3_con1'.*Did you mean 'block3_conv1'", layers=["block3_con1"])
    fails(
        r"'block2_conv1' .* do not fit.*\(3, 3, 4, 7\)", block2_conv1__kernel=np.ones([3, 3, 4, 7])
    )
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(ValueError, match="cannot be read as a .npz file"):
        vgg19(["block1_conv1"], tmp_path / "text.npz")
    whole = (tmp_path / "w.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read as a .npz file"):
        vgg19(["block1_conv1"], tmp_path / "cut.npz")
    with pytest.raises(TypeError, match="`layers` must be a list of names"):
        vgg19("block1_conv1", tmp_path / "w.npz")
    with pytest.raises(FileNotFoundError, match="No file of VGG19 weights"):
        vgg19(["block1_conv1"], tmp_path / "none.npz")


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"style": "no/such.jpg"}, FileNotFoundError, "No image file 'no/such.jpg'"),
        ({"style": __file__}, ValueError, "is not an image that can be read"),
        ({"style": np.ones([40, 40, 3])}, ValueError, r"uint8 array .* dtype float64"),
        (
            {"content": "china.jpg", "heldout_content": [photograph(0)]},
            ValueError,
            "`content` must be a list of images",
        ),
        ({"heldout_content": []}, ValueError, "`heldout_content` must be a list"),
        ({"content": [photograph(0)], "image_size": 41}, ValueError, "too small: expected 41"),
        ({"image_size": 8}, ValueError, "`image_size` must be 16 pixels at least"),
        ({"image_size": 64.0}, TypeError, "`image_size` must be an integer"),
        ({"num_crops": 0}, ValueError, "`num_crops` must be an integer, 1 at least"),
        ({"num_crops": 2.0}, TypeError, "`num_crops` must be an integer"),
        ({"initial_scale": -1}, ValueError, "`initial_scale` must be a finite number, at least 0"),
        ({"style_weight": float("nan")}, ValueError, "`style_weight` must be a finite number"),
        (
            {"content_weight": 0, "style_weight": 0, "variation_weight": 0},
            ValueError,
            "must be above 0. Received: 0 for all",
        ),
        ({"style_layers": "block1_conv1"}, ValueError, "`style_layers` must be a list of names"),
        ({"style_layers": [1]}, TypeError, "`style_layers` must be a string"),
        ({"content_layer": None}, TypeError, "`content_layer` must be a string"),
        ({"style": 3}, TypeError, "`image` must be a path or a uint8 array"),
        ({"weights": 3}, TypeError, "`weights` must be a path"),
        ({"learning_rate": 1}, ValueError, "'neural_style' does not take learning_rate"),
    ],
)
def test_bad_input(options, error, message, weights):
    with pytest.raises(error, match=message):
        problems.get("neural_style", **{"image_size": 16, "weights": weights, **options})


def test_other_problems_do_not_take_its_options():
    with pytest.raises(ValueError, match="'digits' does not take image_size. Expected: no opt"):
        problems.get("digits", image_size=16)
    with pytest.raises(ValueError, match="'math:pi' does not take image_size"):
        problems.get("math:pi", image_size=16)


def test_crops_lie_inside_and_vary():
    pixels = np.arange(40 * 48, dtype="float32").reshape(40, 48, 1).repeat(3, axis=2)
    whole = Photograph((pixels / 8).astype("u1"))
    assert whole.whole(20).shape == (20, 24, 3) and whole.square(20).shape == (20, 20, 3)
    generator = np.random.default_rng(0)
    crops = [whole.random_square(20, generator).numpy() for _ in range(20)]
    assert len({crop.tobytes() for crop in crops}) > 15
    assert all(crop.shape == (20, 20, 3) for crop in crops)
    # A crop of `size` itself is not resampled.
    np.testing.assert_array_equal(whole.square(40).numpy(), whole.pixels[:, 4:44])


def test_evaluation_draws_the_pictures(problem, tmp_path):
    rules = {"mine": l2l_tf.update_rules.Adam(0.05)}
    result = l2l_tf.evaluate(problem, rules, ["sgd"], num_steps=3, num_seeds=8)
    assert len(result.pictures) == 2  # as many as there are photographs
    for row in result.pictures:
        titles, images, losses = zip(*row)
        assert titles == ("content", "style", "mine, 3 steps", "sgd, 3 steps")
        assert losses[:2] == (None, None)
        assert losses[2] in result.optimizers["mine"]["loss"][:, -1]
    # The picture is that of the loss beneath it.
    content, _, (_, image, loss), _ = result.pictures[0]
    index = [problem.reference_pictures(i)["content"].tobytes() for i in range(2)].index(
        content[1].tobytes()
    )
    again, _ = problem.loss_and_gradients([tf.constant(image / 127.5 - 1.0, tf.float32)], index)
    np.testing.assert_allclose(again, loss, rtol=0.02)
    result.save(tmp_path)
    assert (tmp_path / "pictures.png").stat().st_size > 5_000
    assert "pictures" not in json.loads((tmp_path / "results.json").read_text())


def flags_of(weights, tmp_path):
    for name, seed in (("style.png", 1), ("held.png", 2)):
        (tmp_path / name).write_bytes(tf.io.encode_png(photograph(seed)).numpy())
    flags = ["--problem=neural_style", f"--vgg19_weights={weights}", "--image_size=16"]
    return [
        *flags,
        f"--style_image={tmp_path / 'style.png'}",
        f"--heldout_images={tmp_path / 'held.png'}",
    ]


@pytest.mark.slow
def test_meta_train_command(weights, tmp_path):
    run = ["--layers=4", "--num_steps=4", "--unroll_length=2", "--num_episodes=2"]
    run += ["--validate_every=2", "--noevaluate", f"--save_dir={tmp_path / 'run'}"]
    done = call("meta_train", *flags_of(weights, tmp_path), *run)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "run" / "card.json").read_text()
    card = json.loads(text)
    assert str(tmp_path) not in text
    assert "--style_image=style.png --heldout_images=held.png --image_size=16" in card["command"]
    assert card["settings"]["image_size"] == 16
    assert card["settings"]["style"].startswith("style.png@")


@pytest.mark.slow
def test_evaluate_command(weights, tmp_path):
    flags = ["--baselines=sgd", "--num_steps=4", "--num_seeds=1", f"--output_dir={tmp_path}"]
    done = call("evaluate", *flags_of(weights, tmp_path), *flags)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "pictures.png").exists() and "pictures.png" in done.stdout
