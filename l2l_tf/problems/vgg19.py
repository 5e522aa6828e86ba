"""VGG19's convolutional features (Simonyan and Zisserman, 2015), as far as they are needed."""

import difflib
import os
import zipfile

import keras
import numpy as np

from l2l_tf import arguments, paths
from l2l_tf.problems.online import is_online

_BLOCKS = (2, 2, 4, 4, 4)  # convolutions in each; a pooling stands before the next
LAYERS = [f"block{b + 1}_conv{c + 1}" for b, num in enumerate(_BLOCKS) for c in range(num)]
_DOWNLOAD = "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5"


def vgg19(layers, weights=None):
    """A frozen Keras model of the features after some of VGG19's convolutions.

    Only what these layers need is built.

    Args:
        layers: names, some of ``LAYERS``: "block1_conv1" to "block5_conv4".
        weights: None takes ``keras.applications``' ImageNet weights, which are downloaded once; or
            the path of a ``.npz`` file with the arrays ``LAYER__kernel`` ``[3, 3, channels in,
            channels out]`` and ``LAYER__bias`` of all layers up to the last of `layers`.

    Returns:
        ``keras.Model``: images ``[batch, height, width, 3]``, preprocessed as by
        ``keras.applications.vgg19.preprocess_input`` → dict of layer → features
        ``[batch, height, width, channels]``.

    Raises:
        ValueError: a layer is unknown, or the file lacks it, or its arrays do not fit.
        FileNotFoundError: no such file; or no weights to be had, and no network.
    """
    arguments.instance("layers", layers, (list, tuple), "a list of names of layers")
    for layer in layers:
        arguments.text("layer", layer)
        if layer not in LAYERS:
            near = difflib.get_close_matches(layer, LAYERS, n=1)
            raise ValueError(
                f"Unknown layer {layer!r} of VGG19."
                + (f" Did you mean {near[0]!r}?" if near else "")
                + f" Expected one of {LAYERS[0]} … {LAYERS[-1]}."
            )
    network = _downloaded() if weights is None else _from_file(weights, layers)
    outputs = {layer: network.get_layer(layer).output for layer in layers}
    model = keras.Model(network.inputs[0], outputs, name="vgg19")
    model.trainable = False
    return model


def _from_file(path, layers):
    path = paths.from_user("weights", path)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"No file of VGG19 weights {path!r}. Expected a .npz file with arrays such as "
            f"{LAYERS[0]}__kernel."
        )
    needed = LAYERS[: 1 + max(LAYERS.index(layer) for layer in layers)]
    arrays = _read(path, needed)
    image = features = keras.Input([None, None, 3], dtype="float32")
    for layer in needed:
        kernel, bias = arrays[f"{layer}__kernel"], arrays[f"{layer}__bias"]
        expected = (3, 3, features.shape[-1], *bias.shape)
        if bias.ndim != 1 or kernel.shape != expected:
            raise ValueError(
                f"The arrays of layer '{layer}' in {path!r} do not fit. Expected: a bias "
                "[channels], and a kernel [3, 3, channels of the layer before, channels]. "
                f"Received: kernel {kernel.shape}, bias {bias.shape}"
            )
        if layer.endswith("conv1") and layer != LAYERS[0]:
            features = keras.layers.MaxPooling2D(dtype="float32")(features)
        convolution = keras.layers.Conv2D(
            bias.size, 3, padding="same", activation="relu", name=layer, dtype="float32"
        )
        features = convolution(features)
        convolution.set_weights([kernel, bias])
    return keras.Model(image, features)


def _read(path, layers):
    names = [f"{layer}__{part}" for layer in layers for part in ("kernel", "bias")]
    try:
        with np.load(path) as file:
            missing = [name for name in names if name not in file]
            if not missing:
                return {name: file[name] for name in names}
    except (ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path!r} cannot be read as a .npz file of VGG19 weights.") from error
    raise ValueError(
        f"{path!r} lacks {', '.join(missing)}. Expected the weights of all layers from "
        f"{layers[0]} to {layers[-1]}: take another file, or layers that it has."
    )


def _downloaded():
    """``keras.applications.VGG19``, after a look whether its weights can be had at all."""
    home = os.environ.get("KERAS_HOME", os.path.join(os.path.expanduser("~"), ".keras"))
    file = os.path.join(home, "models", _DOWNLOAD)
    if not os.path.isfile(file) and not is_online():
        raise FileNotFoundError(
            f"No VGG19 weights at {file!r}, and no network to fetch them. On a machine with a "
            'network: python -c "import keras; keras.applications.VGG19(include_top=False)"; then '
            "copy that file from there. Or pass a .npz file as `weights`, --vgg19_weights=FILE on "
            "the command line."
        )
    return keras.applications.VGG19(weights="imagenet", include_top=False)
