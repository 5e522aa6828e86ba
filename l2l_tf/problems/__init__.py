"""Problems: what rules are meta-trained and tested on."""

import difflib
import functools
import inspect
import os

from l2l_tf import arguments
from l2l_tf.problems import own_code
from l2l_tf.problems.augmentation import Augmentation
from l2l_tf.problems.base import Problem
from l2l_tf.problems.cifar10 import cifar
from l2l_tf.problems.classification import digits, mnist
from l2l_tf.problems.ensemble import Ensemble, terms
from l2l_tf.problems.functions import Lasso, Quadratic, Rastrigin, Simple
from l2l_tf.problems.general_problems import general
from l2l_tf.problems.keras_problem import KerasProblem
from l2l_tf.problems.mixture import Mixture
from l2l_tf.problems.mixture import terms as terms_of_mixture
from l2l_tf.problems.names import OTHER
from l2l_tf.problems.neural_style import NeuralStyle
from l2l_tf.problems.resampled import FewBatches, NoisyLabels
from l2l_tf.problems.rescaled import ScaledLoss, ScaledParameters

__all__ = [
    "Augmentation",
    "Ensemble",
    "FewBatches",
    "KerasProblem",
    "Lasso",
    "Mixture",
    "NeuralStyle",
    "NoisyLabels",
    "Problem",
    "Quadratic",
    "Rastrigin",
    "ScaledLoss",
    "ScaledParameters",
    "Simple",
    "cifar",
    "digits",
    "get",
    "mnist",
]

# The optimizees to which the paper transfers a rule that was trained on "mnist" (its figure 5) or
# "cifar10" (figure 7).
_VARIANTS = {
    "mnist-40-units": (mnist, {"hidden": (40,)}),
    "mnist-two-layers": (mnist, {"hidden": (20, 20)}),
    "mnist-relu": (mnist, {"activation": "relu"}),
    "cifar2": (cifar, {"labels": range(2)}),
    "cifar5": (cifar, {"labels": range(5)}),
    "cifar5-sub": (cifar, {"labels": range(5, 10)}),
}
_READ_FROM_TFDS = {
    "cifar10": cifar,
    "general": general,
    "mnist": mnist,
    **{n: functools.partial(f, name=n, **kwargs) for n, (f, kwargs) in _VARIANTS.items()},
}
_BUILT_IN = {
    "digits": digits,
    "lasso": Lasso,
    "neural_style": NeuralStyle,
    "quadratic": Quadratic,
    "rastrigin": Rastrigin,
    "simple": Simple,
    "simple-multi": functools.partial(Simple, num_variables=2),
}


def get(name, data_dir=None, **options):
    """A problem by the name that the command line uses.

    Args:
        name: one of ``names.NAMES``; or "package.module:function", a function without arguments
            that returns a ``Problem``; or an ``Ensemble`` of those, with "+" between the members
            and "*" after a weight above 0: "quadratic+2*rastrigin"; or a ``Mixture`` of any of
            those, with "|" between: "digits|2*quadratic". A weight has no "+" of its own: 1e3, not
            1e+3.
        data_dir: directory of TensorFlow Datasets, for the problems that read from it; with an
            ensemble or a mixture, for those of its members that do.
        **options: arguments of the problem, such as `image_size` of ``NeuralStyle``. An ensemble
            or a mixture takes none, and neither does a function of one's own.

    Raises:
        TypeError: `name` is no string, `data_dir` no path, or the function returns no ``Problem``
            or ``Mixture``.
        ValueError: the name is none of these; or the function cannot be found, or it raises; or
            the problem does not take an option or `data_dir`.
        FileNotFoundError: the data are not there.

    >>> get("quadratic").layout
    [('theta', (10,))]
    """
    arguments.instance("name", name, str, "the name of a problem")
    if data_dir is not None:
        arguments.instance("data_dir", data_dir, (str, os.PathLike), "a path")
        if not reads_from_tfds(name):
            raise ValueError(
                f"Problem {name!r} does not take data_dir: it reads nothing from TensorFlow "
                f"Datasets. Expected: None, or one of {', '.join(sorted(_READ_FROM_TFDS))}. "
                f"Received: data_dir={os.fspath(data_dir)!r}"
            )
    if _is_sum(name):
        _check_options(name, options, {})
        pairs = _terms(name)
        data_dirs = {member: data_dir if reads_from_tfds(member) else None for member, _ in pairs}
        problems = {member: get(member, path) for member, path in data_dirs.items()}  # each once
        together = Mixture if "|" in name else Ensemble
        return together([(problems[member], weight) for member, weight in pairs])
    if ":" in name:
        _check_options(name, options, {})
        what = "an l2l_tf.problems.Problem, or a Mixture"
        return own_code.call("Problem", name, (Problem, Mixture), what)
    names = sorted([*_BUILT_IN, *_READ_FROM_TFDS])
    if name not in names:
        near = difflib.get_close_matches(name, names, n=2)
        raise ValueError(
            f"Unknown problem {name!r}."
            + (f" Did you mean {' or '.join(map(repr, near))}?" if near else "")
            + f" Expected one of {', '.join(names)}, or such as {' or '.join(map(repr, OTHER))}."
        )
    make = _BUILT_IN.get(name) or functools.partial(_READ_FROM_TFDS[name], data_dir=data_dir)
    _check_options(name, options, inspect.signature(make).parameters)
    return make(**options)


def reads_from_tfds(name):
    """Whether the problem of this name, or a member of the ensemble, takes `data_dir`."""
    if _is_sum(name):
        return any(reads_from_tfds(member) for member, _ in _terms(name))
    return name in _READ_FROM_TFDS


def _is_sum(name):
    return any(sign in name for sign in "+*|")


def _terms(name):
    return terms_of_mixture(name) if "|" in name else terms(name)


def _check_options(name, options, expected):
    unknown = [option for option in options if option not in expected]
    if unknown:
        raise ValueError(
            f"Problem {name!r} does not take {', '.join(unknown)}. Expected: "
            + (f"some of {', '.join(expected)}." if expected else "no options.")
        )
