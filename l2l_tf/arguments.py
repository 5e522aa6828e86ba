"""Arguments: what is received is checked against what is expected, in one way everywhere.

Each function returns the value that it has checked, or raises a ``TypeError`` (a value of another
kind) or a ``ValueError`` (one out of range) with the argument's name, what is expected, and what
was received.
"""

import inspect
import math
import numbers
import reprlib


def integer(name, value, minimum=None):
    """An integer of at least `minimum`; NumPy's too, but neither a bool nor a float.

    And of 64 bits, as TensorFlow's are.
    """
    expected = "an integer" + ("" if minimum is None else f", {minimum} at least")
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(_message(name, expected, value))
    if minimum is not None and value < minimum:
        raise ValueError(_message(name, expected, value))
    if not -(2**63) <= value < 2**63:
        raise ValueError(_message(name, f"{expected}, of 64 bits", value))
    return int(value)


def real(name, value, *, above=None, minimum=None, below=None, maximum=None):
    """A finite number within the bounds that are given."""
    bounds = {"above": above, "at least": minimum, "below": below, "at most": maximum}
    bounds = [f"{word} {bound}" for word, bound in bounds.items() if bound is not None]
    expected = "a finite number" + (", " + " and ".join(bounds) if bounds else "")
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(_message(name, expected, value))
    try:
        number = float(value)
    except OverflowError:  # of an integer
        number = math.inf
    is_inside = (
        math.isfinite(number)
        and (above is None or value > above)
        and (minimum is None or value >= minimum)
        and (below is None or value < below)
        and (maximum is None or value <= maximum)
    )
    if not is_inside:
        raise ValueError(_message(name, expected, value))
    return number


def interval(name, value, check=real, **bounds):
    """A pair ``(low, high)``, low at most high, of numbers that `check` takes within `bounds`."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise TypeError(_message(name, "a pair (low, high)", value))
    low, high = (check(f"{name}[{i}]", value[i], **bounds) for i in range(2))
    if low > high:
        raise ValueError(_message(name, "a pair (low, high), low at most high", value))
    return low, high


def boolean(name, value):
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(_message(name, "True or False", value))
    return value


def choice(name, value, choices):
    """One of some names."""
    if not isinstance(value, str) or value not in choices:
        error = ValueError if isinstance(value, str) else TypeError
        raise error(_message(name, f"one of {tuple(choices)}", value))
    return value


def text(name, value):
    """A string that is not empty."""
    if not isinstance(value, str) or not value:
        error = ValueError if isinstance(value, str) else TypeError
        raise error(_message(name, "a string, not an empty one", value))
    return value


def function(name, value, what):
    """Something to call; `what` says of what to what, or what it is to return."""
    if not callable(value):
        raise TypeError(_message(name, f"a function {what}", value))
    return value


def instance(name, value, types, what, hint=""):
    """An instance of a class; `what` names it, `hint` says how to come by one."""
    if not isinstance(value, types):
        if inspect.isclass(value) and issubclass(value, types):
            hint = f"That is the class: make an instance, {value.__name__}(...)."
        raise TypeError(_message(name, what, value, hint))
    return value


def few(names):
    """Names in a message: three of them at most."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _message(name, expected, value, hint=""):
    received = f"Received: {name}={_repr(value)} of type {type(value).__name__}"
    return f"`{name}` must be {expected}. {received}" + (f". {hint}" if hint else "")


def _repr(value):
    """A value in a message: never a page of it."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 120
    return short.repr(value)
