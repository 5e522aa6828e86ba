"""Labelled images by TensorFlow Datasets."""

import os

from l2l_tf import paths
from l2l_tf.problems.online import is_online


def load_tfds(name, splits, data_dir, may_fetch=True):
    """``tfds.load`` of ``(image, label)``, which looks before it leaps.

    Without the data and without a network, TFDS itself retries for minutes before it fails.

    Args:
        name, splits, data_dir: as for ``tfds.load``.
        may_fetch: whether data that are not there may be downloaded.

    Raises:
        TypeError: `data_dir` is no path.
        NotADirectoryError: `data_dir` is a file.
        FileNotFoundError: the data are not in `data_dir`, and cannot or may not be fetched.
    """
    import tensorflow_datasets as tfds  # seconds, so only where it is needed

    if data_dir is not None:
        data_dir = paths.from_user("data_dir", data_dir)
        if os.path.isfile(data_dir):
            raise NotADirectoryError(f"data_dir={data_dir!r} is a file. Expected a directory.")
    builder = tfds.builder(name, data_dir=data_dir)
    if not builder.is_prepared() and not (may_fetch and is_online()):
        why = "and no network to fetch it" if may_fetch else "and it is not fetched here"
        raise FileNotFoundError(
            f"No dataset '{name}' in data_dir={str(builder.data_dir_root)!r}, {why}. "
            f"Expected {str(builder.data_path)!r}, as prepared by TFDS. On a machine with a "
            f"network: tfds build {name} --data_dir=DIR; then pass that DIR as data_dir."
        )
    # The data are read once, into memory: another copy in TFDS' cache would be of no use.
    once = tfds.ReadConfig(try_autocache=False)
    return tfds.load(name, split=splits, data_dir=data_dir, as_supervised=True, read_config=once)
