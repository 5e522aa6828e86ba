"""Labelled images by TensorFlow Datasets."""

import os

from l2l_tf import paths
from l2l_tf.problems.online import is_online


def load_tfds(name, splits, data_dir):
    """``tfds.load`` of ``(image, label)``, which looks before it leaps.

    Without the data and without a network, TFDS itself retries for minutes before it fails.

    Raises:
        TypeError: `data_dir` is no path.
        NotADirectoryError: `data_dir` is a file.
        FileNotFoundError: the data are not in `data_dir`, and there is no network to get them.
    """
    import tensorflow_datasets as tfds  # seconds, so only where it is needed

    if data_dir is not None:
        data_dir = paths.from_user("data_dir", data_dir)
        if os.path.isfile(data_dir):
            raise NotADirectoryError(f"data_dir={data_dir!r} is a file. Expected a directory.")
    builder = tfds.builder(name, data_dir=data_dir)
    if not builder.is_prepared() and not is_online():
        raise FileNotFoundError(
            f"No dataset '{name}' in data_dir={str(builder.data_dir_root)!r}, and no network to "
            f"fetch it. Expected {str(builder.data_path)!r}, as prepared by TFDS. On a machine "
            f"with a network: tfds build {name} --data_dir=DIR; then pass that DIR as data_dir."
        )
    # The data are read once, into memory: another copy in TFDS' cache would be of no use.
    once = tfds.ReadConfig(try_autocache=False)
    return tfds.load(name, split=splits, data_dir=data_dir, as_supervised=True, read_config=once)
