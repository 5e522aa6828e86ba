"""Neural style: the optimizee is an image; section 3.4 of the 2016 paper."""

import hashlib
import pathlib

import keras
import numpy as np
import tensorflow as tf

from l2l_tf import arguments
from l2l_tf.problems import base
from l2l_tf.problems.photographs import Photograph
from l2l_tf.problems.vgg19 import vgg19

# Van Gogh, "The Starry Night", 1889: a photograph of a painting in the public domain.
_PAINTING = pathlib.Path(__file__).parent / "images" / "starry_night.jpg"
MIN_IMAGE_SIZE = 16


class NeuralStyle(base.Problem):
    """An image with the content of a photograph in the style of a painting (Gatys et al., 2015).

    f(θ) = α L_content + β L_style + γ L_variation, over features F of VGG19:

    - L_content = ‖F - F_c‖² / ‖F_c‖² at the content layer, F_c of the photograph;
    - L_style = ‖G - G_s‖² / ‖G_s‖², mean over the style layers. G = FᵀF / (number of positions) is
      the Gram matrix ``[channels, channels]``, G_s of the painting;
    - L_variation = Σ|differences of neighbouring pixels of θ| / (number of values of θ).

    Their denominators are constants of an episode, by which f(θ_0) is of order 1 for any style and
    content. θ is one tensor "image" ``[image_size, image_size, 3]``, a pixel being 127.5 (θ + 1);
    θ_0 is noise N(0, initial_scale²) around mid-grey.

    An episode has one photograph. Those of meta-training are random square crops, of random scale,
    of the training photographs; those of reports are the held-out photographs' largest squares.
    A batch is the index of the photograph, whose features are computed once, here.

    Deviations: Gatys et al. take style layers from blocks 1 to 5 and a content layer from block 4;
    here all are of blocks 1 to 3, as at 64×64 pixels block 5 would have 4×4 positions, and the
    losses are relative to their targets. The 2016 paper takes 1,800 photographs of ImageNet.

    Args:
        style: the painting: a path, or an array ``[height, width, 3]``, uint8. None takes Van
            Gogh's "The Starry Night", which comes with the package. It is resized so that its
            shorter side is `image_size`.
        content: photographs to meta-train on: a list of such. None takes scikit-learn's "china".
        heldout_content: photographs for reports. None takes `content`; if that is None too,
            scikit-learn's "flower".
        image_size: height and width of the image, in pixels.
        weights: of VGG19: None downloads them by ``keras.applications``, or the path of a ``.npz``
            file with ``LAYER__kernel`` and ``LAYER__bias``.
        style_layers, content_layer: names of VGG19's convolutions.
        content_weight, style_weight, variation_weight: α, β, γ.
        num_crops: crops of the training photographs in all, the same number (±1) of each and at
            least one of each. Their features are kept: 64 MB at 64×64 pixels, four times that at
            128×128.
        initial_scale: standard deviation of θ_0.

    Raises:
        FileNotFoundError: an image or the weights are missing.
        ValueError: an image cannot be read or is too small, the weights lack a layer, or a number
            is out of range.
        TypeError: an argument of another kind.

    Example, of a network that is too small to be of use::

    >>> import os, tempfile
    >>> file = os.path.join(tempfile.mkdtemp(), "weights.npz")
    >>> np.savez(file, block1_conv1__kernel=np.ones([3, 3, 3, 2]), block1_conv1__bias=[0, 0])
    >>> layer = "block1_conv1"
    >>> problem = NeuralStyle(
    ...     image_size=16, weights=file, style_layers=[layer], content_layer=layer, num_crops=4)
    >>> problem.layout
    [('image', (16, 16, 3))]
    """

    name = "neural_style"

    def __init__(
        self,
        style=None,
        content=None,
        heldout_content=None,
        *,
        image_size=64,
        weights=None,
        style_layers=("block1_conv1", "block2_conv1", "block3_conv1"),
        content_layer="block3_conv1",
        content_weight=0.1,
        style_weight=1.0,
        variation_weight=0.05,
        num_crops=256,
        initial_scale=0.2,
    ):
        image_size = arguments.integer("image_size", image_size)
        if image_size < MIN_IMAGE_SIZE:
            raise ValueError(
                f"`image_size` must be {MIN_IMAGE_SIZE} pixels at least. "
                f"Received: image_size={image_size}"
            )
        num_crops = arguments.integer("num_crops", num_crops, 1)
        initial_scale = arguments.real("initial_scale", initial_scale, minimum=0)
        loss_weights = [
            arguments.real("content_weight", content_weight, minimum=0),
            arguments.real("style_weight", style_weight, minimum=0),
            arguments.real("variation_weight", variation_weight, minimum=0),
        ]
        if not any(loss_weights):
            raise ValueError(
                "One of `content_weight`, `style_weight` and `variation_weight` must be above 0. "
                "Received: 0 for all"
            )
        style_layers = _list("style_layers", style_layers, "names of layers")
        for layer in style_layers:
            arguments.text("style_layers", layer)
        arguments.text("content_layer", content_layer)
        if heldout_content is None:
            heldout_content = [_photograph("flower.jpg")] if content is None else content
        content = [_photograph("china.jpg")] if content is None else content
        style = Photograph(_PAINTING if style is None else style, image_size)
        train = _photographs("content", content, image_size)
        heldout = _photographs("heldout_content", heldout_content, image_size)
        network = vgg19(sorted({*style_layers, content_layer}), weights)

        self.layout = [("image", (image_size, image_size, 3))]
        self.settings = {
            "style": style.fingerprint,
            "content": [photograph.fingerprint for photograph in train],
            "image_size": image_size,
            "vgg19": _fingerprint(network),
            "style_layers": list(style_layers),
            "content_layer": content_layer,
            "loss_weights": loss_weights,
            "num_crops": num_crops,
            "initial_scale": initial_scale,
        }
        self._network = network
        features = tf.function(self._features)

        self._style = style.whole(image_size)
        style_features = features(self._style[tf.newaxis])
        self._grams = {name: _gram_matrix(style_features[name]) for name in style_layers}

        generator = np.random.default_rng(0)
        crops = [
            train[index % len(train)].random_square(image_size, generator)
            for index in range(max(num_crops, len(train)))
        ]
        contents = [photograph.square(image_size) for photograph in heldout] + crops
        self._ranges = {"heldout": (0, len(heldout)), "train": (len(heldout), len(contents))}
        self._contents = tf.stack(contents)
        # One at a time: the features of all layers of all at once would be gigabytes.
        targets = [features(c[tf.newaxis])[content_layer][0] for c in self._contents]
        self._targets = tf.stack(targets)  # [photographs, height, width, channels]

    def sample_parameters(self, seed):
        ((_, shape),) = self.layout
        return [self.settings["initial_scale"] * tf.random.stateless_normal(shape, seed)]

    def batches(self, side, seed, num_batches):
        seed = base.fold_in(seed, base.check_side(side))
        low, high = self._ranges[side]
        index = tf.random.stateless_uniform([], seed, low, high, tf.int64)
        return tf.data.Dataset.from_tensors(index).repeat(num_batches)

    def loss_and_gradients(self, parameters, batch):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(parameters)
            loss = self._loss(parameters[0], batch)
        return loss, tape.gradient(loss, parameters)

    def picture(self, parameters):
        return _as_bytes(_pixels(parameters[0]))

    def reference_pictures(self, batch):
        return {"content": _as_bytes(self._contents[batch]), "style": _as_bytes(self._style)}

    def _loss(self, image, index):
        features = self._features(_pixels(image)[tf.newaxis])
        content_features = features[self.settings["content_layer"]][0]
        content = _relative_distance(content_features, tf.gather(self._targets, index))
        style = [
            _relative_distance(_gram_matrix(features[name]), gram)
            for name, gram in self._grams.items()
        ]
        variation = tf.image.total_variation(image) / image.shape.num_elements()
        alpha, beta, gamma = self.settings["loss_weights"]
        return alpha * content + beta * tf.add_n(style) / len(style) + gamma * variation

    def _features(self, pixels):
        """Pixels ``[1, height, width, 3]`` → dict of layer → ``[1, height, width, channels]``."""
        return self._network(keras.applications.vgg19.preprocess_input(pixels))


def _photograph(name):
    """The path of one of scikit-learn's two photographs."""
    import sklearn.datasets

    return pathlib.Path(sklearn.datasets.__file__).parent / "images" / name


def _pixels(image):
    return 127.5 * (image + 1.0)


def _as_bytes(pixels):
    return tf.cast(tf.clip_by_value(tf.round(pixels), 0.0, 255.0), tf.uint8).numpy()


def _gram_matrix(features):
    """``[1, height, width, channels]`` → ``[channels, channels]``: FᵀF / (number of positions)."""
    positions = tf.reshape(features, [-1, features.shape[-1]])
    num_positions = tf.cast(tf.shape(positions)[0], positions.dtype)
    return tf.matmul(positions, positions, transpose_a=True) / num_positions


def _relative_distance(values, target):
    return tf.reduce_sum(tf.square(values - target)) / tf.reduce_sum(tf.square(target))


def _photographs(argument, sources, min_size):
    return [Photograph(source, min_size) for source in _list(argument, sources, "images")]


def _list(argument, values, what):
    """A list that is not empty: a string would be a list of letters."""
    if not isinstance(values, list | tuple) or not values:
        raise ValueError(f"`{argument}` must be a list of {what}. Received: {values!r}")
    return list(values)


def _fingerprint(network):
    digest = hashlib.sha256()
    for weight in network.get_weights():
        digest.update(weight.tobytes())
    return digest.hexdigest()[:8]
