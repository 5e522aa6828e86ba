"""The one way in which arguments are checked."""

import numpy as np
import pytest

from l2l_tf import arguments


@pytest.mark.parametrize(
    "check, error, message",
    [
        (lambda: arguments.integer("n", 1.0, 1), TypeError, "`n` must be an integer, 1 at least"),
        (lambda: arguments.integer("n", True), TypeError, "Received: n=True of type bool"),
        (lambda: arguments.integer("n", 0, 1), ValueError, "n=0"),
        (lambda: arguments.integer("n", 2**63), ValueError, "of 64 bits"),
        (lambda: arguments.real("x", 10**400), ValueError, "a finite number"),
        (lambda: arguments.real("x", "1"), TypeError, "a finite number. Received: x='1'"),
        (lambda: arguments.real("x", float("nan")), ValueError, "x=nan"),
        (lambda: arguments.real("x", 1, above=0, below=1), ValueError, "above 0 and below 1"),
        (lambda: arguments.real("x", 0, above=0), ValueError, "above 0"),
        (lambda: arguments.real("x", 2, minimum=0, maximum=1), ValueError, "at most 1"),
        (lambda: arguments.boolean("b", 1), TypeError, "`b` must be True or False"),
        (lambda: arguments.choice("c", "d", ("a", "b")), ValueError, r"one of \('a', 'b'\)"),
        (lambda: arguments.choice("c", ["a"], ("a",)), TypeError, r"c=\['a'\] of type list"),
        (lambda: arguments.text("s", ""), ValueError, "`s` must be a string"),
        (lambda: arguments.function("f", 3, "of x"), TypeError, "`f` must be a function of x"),
        (lambda: arguments.instance("d", dict, dict, "a dict"), TypeError, "an instance, dict"),
        (lambda: arguments.instance("d", "x" * 10**4, dict, "a dict"), TypeError, "x{20}"),
    ],
)
def test_what_is_refused(check, error, message):
    with pytest.raises(error, match=message) as caught:
        check()
    assert len(str(caught.value)) < 400


def test_what_is_taken():
    assert arguments.integer("n", np.int64(3), 1) == 3
    assert arguments.real("x", np.float32(0.5), above=0, maximum=0.5) == 0.5
    assert arguments.real("x", 1) == 1.0
    assert arguments.choice("c", "a", {"a": 1}) == "a"
    assert arguments.instance("d", {}, dict, "a dict") == {}
