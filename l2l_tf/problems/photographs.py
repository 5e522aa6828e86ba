"""Photographs and paintings: read, checked, cropped and resized."""

import hashlib
import os

import numpy as np
import tensorflow as tf

from l2l_tf import arguments, paths


class Photograph:
    """An image in memory.

    Args:
        source: path of a JPEG, PNG, BMP or GIF file (of an animation the first picture), or an
            array ``[height, width, 3]``, uint8.
        min_size: pixels that its shorter side must have.

    Attributes:
        pixels: ``[height, width, 3]``, uint8, RGB.
        fingerprint: name, without directories, and eight hex digits of the content.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an image, or too small.

    >>> Photograph(np.zeros([48, 64, 3], "uint8"), min_size=32).square(32).shape
    TensorShape([32, 32, 3])
    """

    def __init__(self, source, min_size=1):
        arguments.integer("min_size", min_size, 1)
        if isinstance(source, str | os.PathLike):
            path = paths.from_user("source", source)
            name, content, self.pixels = os.path.basename(path), *_read(path)
        else:
            what = "a path or a uint8 array [height, width, 3]"
            arguments.instance("image", source, (np.ndarray, tf.Tensor), what)
            name, self.pixels = "array", np.asarray(source)
            content = self.pixels.tobytes()
        if self.pixels.dtype != np.uint8 or self.pixels.ndim != 3 or self.pixels.shape[2] != 3:
            raise ValueError(
                "An image must be a path or a uint8 array [height, width, 3]. "
                f"Received: shape {self.pixels.shape}, dtype {self.pixels.dtype}"
            )
        if min(self.pixels.shape[:2]) < min_size:
            height, width = self.pixels.shape[:2]
            raise ValueError(
                f"Image '{name}' is too small: expected {min_size} pixels at least on its shorter "
                f"side. Received: {width}×{height}. Take a larger image or a smaller image_size."
            )
        self.fingerprint = f"{name}@{hashlib.sha256(content).hexdigest()[:8]}"

    def whole(self, size):
        """All of it, with `size` pixels on the shorter side: float32, 0 … 255."""
        height, width = self.pixels.shape[:2]
        scale = size / min(height, width)
        return _resize(self.pixels, [round(height * scale), round(width * scale)])

    def square(self, size):
        """The largest square in its middle: ``[size, size, 3]``, float32, 0 … 255."""
        height, width = self.pixels.shape[:2]
        side = min(height, width)
        return self._crop((height - side) // 2, (width - side) // 2, side, size)

    def random_square(self, size, generator):
        """A random square of random scale, half of the shorter side at least, as of ``square``."""
        height, width = self.pixels.shape[:2]
        longest = min(height, width)
        side = generator.integers(max(size, longest // 2), longest, endpoint=True)
        top = generator.integers(height - side, endpoint=True)
        left = generator.integers(width - side, endpoint=True)
        return self._crop(top, left, side, size)

    def _crop(self, top, left, side, size):
        return _resize(self.pixels[top : top + side, left : left + side], [size, size])


def _read(path):
    """The file's bytes, and its pixels."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"No image file {path!r}. Expected: a JPEG, PNG, BMP or GIF file.")
    with open(path, "rb") as file:
        content = file.read()
    try:
        pixels = tf.io.decode_image(content, channels=3, expand_animations=False)
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(
            f"{path!r} is not an image that can be read. Expected: a JPEG, PNG, BMP or GIF file."
        ) from error
    return content, pixels.numpy()


def _resize(pixels, size):
    # Smaller images alias without it: its noise would be taken for texture.
    resized = tf.image.resize(pixels, size, antialias=True)
    return tf.clip_by_value(resized, 0.0, 255.0)
