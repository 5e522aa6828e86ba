"""Problems with weights, as an ``Ensemble`` and a ``Mixture`` take them, and the command line."""

import math
import numbers
import reprlib

from l2l_tf import arguments
from l2l_tf.problems import base


def checked_pairs(members, whose):
    """The pairs ``(Problem, float)`` of an ensemble or a mixture, of one dtype.

    Args:
        members: what was given for them.
        whose: "an ensemble" or "a mixture".

    Raises:
        ValueError: no members, a weight is not finite and above 0, or the dtypes differ.
        TypeError: `members` is no list, or a member is not such a pair.
    """
    arguments.instance("members", members, (list, tuple), "a list of pairs (problem, weight)")
    if not members:
        raise ValueError("`members` must hold at least one pair (problem, weight). Received: []")
    pairs = [_checked(member, whose) for member in members]
    dtypes = sorted({problem.dtype for problem, _ in pairs})
    if len(dtypes) > 1:
        raise ValueError(
            f"The members of {whose} must be of one dtype. Received: {', '.join(dtypes)}"
        )
    return pairs


def joined_name(pairs, sign):
    """Such as "quadratic+2*rastrigin" for the sign "+"."""
    return sign.join(
        problem.name if weight == 1 else f"{weight:g}*{problem.name}" for problem, weight in pairs
    )


def term(text, kind, example):
    """A name and its weight, of "name" (1) or "weight*name".

    Args:
        text: the term.
        kind: for messages, what it is in, as it was written.
        example: for messages.

    Raises:
        ValueError: the name is empty, or the weight is not a finite number above 0.
    """
    weight, star, name = text.rpartition("*")
    try:
        value = float(weight) if star else 1.0
    except ValueError:
        value = math.nan
    if not name.strip() or not 0.0 < value < math.inf:
        raise ValueError(
            f"{kind}: expected names of problems with '{'|' if '|' in example else '+'}' between, "
            f"each alone or after a finite weight above 0 and '*', such as {example!r}. "
            f"Received the member: {text!r}"
        )
    return name.strip(), value


def _checked(member, whose):
    is_pair = (
        isinstance(member, list | tuple)
        and len(member) == 2
        and isinstance(member[0], base.Problem)
        and isinstance(member[1], numbers.Real)
        and not isinstance(member[1], bool)
    )
    if not is_pair:
        raise TypeError(
            f"Each member of {whose} must be a pair (Problem, number). "
            f"Received: {reprlib.repr(member)}"
        )
    problem, weight = member
    if not 0.0 < weight < math.inf:
        raise ValueError(
            "The weight of a member must be above 0 and finite. "
            f"Received: {weight} for '{problem.name}'"
        )
    return problem, float(weight)
