"""The general suite of problems unlike those that a rule for any model is meta-trained on.

Other data and other architectures: ``names.NAMES`` lists them. Nothing is downloaded: the data come
with scikit-learn and Python, or are drawn; MNIST is taken where TensorFlow Datasets has it already.
"""

from l2l_tf.problems.suite import (
    functions_of_space,
    graphs,
    images,
    representations,
    synthetic,
    tabular,
    text,
)
from l2l_tf.problems.suite.names import NAMES, READ_FROM_TFDS

_MODULES = tabular, synthetic, text, images, representations, functions_of_space, graphs


def get(name, data_dir=None):
    """The ``SuiteProblem`` of this name.

    Args:
        name: one of ``NAMES``.
        data_dir: directory of TensorFlow Datasets, for MNIST; None takes TFDS' default.

    Raises:
        ValueError: there is no such problem.
        FileNotFoundError: its data are not there.

    >>> get("graph").num_steps
    500
    """
    if name not in NAMES:
        raise ValueError(f"Unknown suite problem {name!r}. Expected one of {', '.join(NAMES)}.")
    (make,) = (getattr(module, name) for module in _MODULES if hasattr(module, name))
    return make(data_dir) if name in READ_FROM_TFDS else make()
