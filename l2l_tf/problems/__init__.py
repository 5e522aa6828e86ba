"""Problems: what rules are meta-trained and tested on."""

import difflib
import functools
import importlib
import inspect

from l2l_tf.problems.base import Problem
from l2l_tf.problems.classification import digits, mnist
from l2l_tf.problems.functions import Lasso, Quadratic, Rastrigin
from l2l_tf.problems.keras_problem import KerasProblem
from l2l_tf.problems.neural_style import NeuralStyle

__all__ = [
    "KerasProblem",
    "Lasso",
    "NeuralStyle",
    "Problem",
    "Quadratic",
    "Rastrigin",
    "digits",
    "get",
    "mnist",
]

# The optimizees to which the paper transfers a rule that was trained on "mnist" (its figure 5).
_MNIST_VARIANTS = {
    "mnist-40-units": {"hidden": (40,)},
    "mnist-two-layers": {"hidden": (20, 20)},
    "mnist-relu": {"activation": "relu"},
}
_READ_FROM_TFDS = {
    "mnist": mnist,
    **{n: functools.partial(mnist, name=n, **kwargs) for n, kwargs in _MNIST_VARIANTS.items()},
}
_BUILT_IN = {
    "digits": digits,
    "lasso": Lasso,
    "neural_style": NeuralStyle,
    "quadratic": Quadratic,
    "rastrigin": Rastrigin,
}


def get(name, data_dir=None, **options):
    """A problem by the name that the command line uses.

    Args:
        name: "digits", "lasso", "mnist", "mnist-40-units", "mnist-two-layers", "mnist-relu",
            "neural_style", "quadratic", "rastrigin", or "package.module:function", a function
            without arguments that returns a ``Problem``.
        data_dir: directory of TensorFlow Datasets, for the problems that read from it.
        **options: arguments of the problem, such as `image_size` of ``NeuralStyle``.

    Raises:
        ValueError: the name is none of these; or the function cannot be found; or the problem
            does not take an option.
        FileNotFoundError: the data are not there.

    >>> get("quadratic").layout
    [('theta', (10,))]
    """
    if ":" in name:
        _check_options(name, options, {})
        return _from_function(name)
    names = sorted([*_BUILT_IN, *_READ_FROM_TFDS])
    if name not in names:
        near = difflib.get_close_matches(name, names, n=2)
        raise ValueError(
            f"Unknown problem {name!r}."
            + (f" Did you mean {' or '.join(map(repr, near))}?" if near else "")
            + f" Expected one of {', '.join(names)}, or 'package.module:function'."
        )
    make = _BUILT_IN.get(name) or functools.partial(_READ_FROM_TFDS[name], data_dir=data_dir)
    _check_options(name, options, inspect.signature(make).parameters)
    return make(**options)


def _check_options(name, options, expected):
    unknown = [option for option in options if option not in expected]
    if unknown:
        raise ValueError(
            f"Problem {name!r} does not take {', '.join(unknown)}. Expected: "
            + (f"some of {', '.join(expected)}." if expected else "no options.")
        )


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
