"""Arrays by name as the bytes of an npz file, and as text in a config."""

import base64
import io

import numpy as np

PREFIX = "npz:"  # of the text


def to_bytes(arrays):
    """The bytes of an npz file of a dict of arrays, equal for equal arrays."""
    buffer = io.BytesIO()
    # What an npz file has no dtype for, such as bfloat16, is exact in float32.
    np.savez(buffer, **{k: v.astype("f4") if v.dtype.kind == "V" else v for k, v in arrays.items()})
    return buffer.getvalue()


def from_bytes(data):
    """The arrays of an npz file, a dict in the file's order. Runs no code: nothing is unpickled.

    Raises:
        Exception: of any class, if it is no such file.
    """
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        return dict(file)


def to_text(arrays):
    """The same bytes in base64.

    >>> from_text(to_text({"p": np.float32(0.1)}))
    {'p': array(0.1, dtype=float32)}
    """
    return PREFIX + base64.b64encode(to_bytes(arrays)).decode()


def from_text(text):
    """What ``to_text`` wrote."""
    return from_bytes(base64.b64decode(text.removeprefix(PREFIX), validate=True))


def texts_within(config):
    """Yields the config, and each dict within it, that has "weights" as text; in its order."""
    if isinstance(config, dict):
        if isinstance(config.get("weights"), str) and config["weights"].startswith(PREFIX):
            yield config
        config = list(config.values())
    for value in config if isinstance(config, (list, tuple)) else ():
        yield from texts_within(value)
