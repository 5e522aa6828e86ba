"""What a function or class of the user's own returns, named as "package.module:function"."""

import importlib
import inspect

from l2l_tf import arguments


def call(kind, name, expected, what, offered=None):
    """Imports a module, calls its function, and checks what it returns.

    Args:
        kind: what `name` is to stand for, for messages: "Problem", "Rule".
        name: "package.module:function"; in place of the function, a class.
        expected: the class of what is returned.
        what: its name in messages.
        offered: dict of arguments, of which the function gets those that its signature names.

    Raises:
        ValueError: there is no such function, or the module or the function raises; the message
            names both and has what was raised.
        TypeError: it is no function, or returns something else.
    """
    module_name, _, function_name = name.partition(":")
    form = f"{kind} {name!r}: expected 'package.module:function'"
    if not module_name or not function_name:
        raise ValueError(f"{form}. Received no name on one side of the ':'")
    try:
        module = importlib.import_module(module_name)
    # A module that is a script may end the process.
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and _is_part(error.name, module_name):
            raise ValueError(
                f"{form} with an importable module. Received: no module {error.name!r}. It must be "
                "installed, or lie in PYTHONPATH or, for the commands of bin/, in the working "
                "directory"
            ) from error
        raise ValueError(
            f"{form} with an importable module. Received: module {module_name!r}, which "
            f"{_raised(error)}"
        ) from error
    if not hasattr(module, function_name):
        raise ValueError(
            f"{form} with an importable module that has the function. Received: module "
            f"{module_name!r}, which has no {function_name!r}"
        )
    function = getattr(module, function_name)
    arguments.function(name, function, f"that returns {what}")
    try:
        returned = function(**_taken(function, offered or {}))
    except (Exception, SystemExit) as error:
        raise ValueError(f"{kind} {name!r}: the function {_raised(error)}") from error
    if not isinstance(returned, expected):
        raise TypeError(f"{kind} {name!r} must return {what}. Received: {type(returned).__name__}")
    return returned


def takes(name, argument):
    """Whether the function of this name has a parameter `argument`; it must be importable."""
    module_name, _, function_name = name.partition(":")
    function = getattr(importlib.import_module(module_name), function_name)
    return argument in _taken(function, {argument: None})


def _taken(function, offered):
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # of some built-in functions
        return {}
    return {key: value for key, value in offered.items() if key in parameters}


def _is_part(missing, module_name):
    """Whether the missing module is the named one or a package above it."""
    return f"{module_name}.".startswith(f"{missing}.")


def _raised(error):
    return (
        f"raised {type(error).__name__}: {error}. "
        "(With the commands of bin/, L2L_TF_TRACEBACK=1 in the environment shows where.)"
    )
