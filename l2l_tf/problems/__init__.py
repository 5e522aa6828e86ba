"""Problems: what rules are meta-trained and tested on."""

import difflib
import importlib

from l2l_tf.problems.base import Problem
from l2l_tf.problems.classification import digits, mnist
from l2l_tf.problems.functions import Lasso, Quadratic, Rastrigin
from l2l_tf.problems.keras_problem import KerasProblem

__all__ = ["KerasProblem", "Lasso", "Problem", "Quadratic", "Rastrigin", "digits", "get", "mnist"]

_BUILT_IN = {
    "digits": digits,
    "lasso": Lasso,
    "mnist": mnist,
    "quadratic": Quadratic,
    "rastrigin": Rastrigin,
}
_READ_FROM_TFDS = ("mnist",)


def get(name, data_dir=None):
    """A problem by the name that the command line uses.

    Args:
        name: "digits", "lasso", "mnist", "quadratic", "rastrigin", or "package.module:function",
            a function without arguments that returns a ``Problem``.
        data_dir: directory of TensorFlow Datasets, for the problems that read from it.

    Raises:
        ValueError: the name is none of these; or the function cannot be found.
        FileNotFoundError: `data_dir` does not hold the data.

    >>> get("quadratic").layout
    [('theta', (10,))]
    """
    if ":" in name:
        return _from_function(name)
    if name not in _BUILT_IN:
        near = difflib.get_close_matches(name, _BUILT_IN, n=2)
        raise ValueError(
            f"Unknown problem {name!r}."
            + (f" Did you mean {' or '.join(map(repr, near))}?" if near else "")
            + f" Expected one of {', '.join(_BUILT_IN)}, or 'package.module:function'."
        )
    if name in _READ_FROM_TFDS:
        return _BUILT_IN[name](data_dir=data_dir)
    return _BUILT_IN[name]()


def _from_function(name):
    module, _, function = name.partition(":")
    try:
        problem = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"Problem {name!r}: expected 'package.module:function' with an importable module that "
            f"has the function. Received: {error}"
        ) from error
    if not isinstance(problem, Problem):
        raise ValueError(
            f"Problem {name!r} must return an l2l_tf.problems.Problem. "
            f"Received: {type(problem).__name__}"
        )
    return problem
