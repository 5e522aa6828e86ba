"""What the commands of bin/ share: the checks of their flags, and how they end.

The scripts read this file by itself, without ``import l2l_tf``, which would load TensorFlow: --help
and mistyped flags are to answer at once.
"""

import difflib
import importlib
import math
import os
import runpy
import signal
import sys
import threading

from absl import app, flags, logging


def _read(*path):
    """The names in a file of this package that is plain text, by itself."""
    return runpy.run_path(os.path.join(os.path.dirname(__file__), *path))


PROBLEMS = _read("problems", "names.py")["HELP"]
_SUITE = _read("problems", "suite", "names.py")
SUITE_NAMES, SUITE_PROBLEMS = list(_SUITE["NAMES"]), _SUITE["HELP"]
_REGISTRY = _read("update_rules", "registry.py")
RULES, CONV_RULES = _REGISTRY["RULES"], _REGISTRY["CONV_RULES"]
RULES_HELP = _REGISTRY["help_on"](RULES)

# Far more than any machine can do, but nothing overflows.
MAX_COUNT = 10**9
MAX_STEPS = 10**6
MAX_UNITS = 10**4
MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 16, 4096
SEEDS = {"lower_bound": -(2**63), "upper_bound": 2**63 - 1}

# What goes wrong for reasons that a user can see to. Anything else is an error of ours, or of the
# user's own code in the middle of a run: there the traceback is what helps.
ERRORS = (ValueError, TypeError, OSError, ImportError, ArithmeticError, MemoryError, RuntimeError)

# Exit codes, of Ctrl-C as shells have it; and EX_TEMPFAIL of sysexits.h.
INTERRUPTED, START_AGAIN = 128 + signal.SIGINT, 75


def check_real(flag, above=-math.inf, maximum=math.inf, minimum=-math.inf):
    """Of a float flag: a finite number within the bounds that are given. (absl takes nan.)"""
    bounds = [f"above {above}"] if above > -math.inf else []
    bounds += [f"at least {minimum}"] if minimum > -math.inf else []
    bounds += [f"at most {maximum}"] if maximum < math.inf else []

    def is_right(value):
        return math.isfinite(value) and above < value <= maximum and value >= minimum

    _check(flag, f"a finite number {' and '.join(bounds)}", is_right)


def check_integers(flag, minimum, maximum, different=False):
    """Of a list flag: integers within bounds, one at least."""
    expected = f"integers with commas between, each {minimum} at least and {maximum} at most"
    expected += ", no two the same" if different else ""

    def are_right(values):
        try:
            numbers = [int(value) for value in values]
        except ValueError:
            return False
        is_inside = all(minimum <= number <= maximum for number in numbers)
        return bool(numbers) and is_inside and not (different and _repeated(numbers))

    _check(flag, expected, are_right)


def check_names(flag, choices=None):
    """Of a list flag: names or paths, none of them empty or there twice; some of `choices`."""

    def are_right(values):
        return all(values) and not _repeated([value.rstrip("/") for value in values])

    _check(flag, "names with commas between, none of them empty, no two the same", are_right)
    if choices:
        some = f"some of {', '.join(choices)}"
        _check(flag, some, lambda values: set(values) <= set(choices), choices)


def check_different(flag):
    """Of a flag of many values: no two of them are the same."""
    _check(flag, "different values", lambda values: not _repeated(values))


def check_name(flag, choices, form):
    """Of a string flag: one of `choices`, or of a `form` that has a ':'."""
    known = f"known: value should be one of <{'|'.join(choices)}>, or such as {form!r}"
    _check(flag, known, lambda value: ":" in value or value in choices, choices)


def check_multiple(flag, divisor):
    """Of two flags of integers: one is a multiple of the other, where both are given.

    Of a list of integers: each is, of the divisor, or of that in its place.
    """

    def is_multiple(values):
        value, unit = values[flag.name], values[divisor.name]
        if value is None or unit is None:
            return True
        value, unit = (of if isinstance(of, list) else [of] for of in (value, unit))
        unit = unit * len(value) if len(unit) == 1 else unit
        return len(unit) == len(value) and all(int(v) % int(u) == 0 for v, u in zip(value, unit))

    message = f"--{flag.name} must be a multiple of --{divisor.name}"
    if isinstance(divisor.default, list):
        message += ", of one for all or of the one in its place"
    flags.register_multi_flags_validator([flag.name, divisor.name], is_multiple, message)


def check_given(*flags_):
    """Of flags with names and paths: not empty, which would be taken for not given."""
    for flag in flags_:
        _check(flag, "something, not empty", lambda value: bool(value) and all(value))


def refuse(flags_, because):
    """Raises a ``ValueError`` if one of these flags is given: it would be ignored in silence."""
    given = [f"--{flag.name}" for flag in flags_ if flag.present]
    if given:
        raise ValueError(
            f"{because}. Received also: {' and '.join(given)}, to no effect. Leave one or the "
            "other out."
        )


def search_the_working_directory():
    """For modules, as ``python -m`` does: where flags name some, and once l2l_tf is imported."""
    if not sys.flags.safe_path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def import_modules(names):
    """Imports the modules of --modules, which register rule classes."""
    for name in names:
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:
            raise ValueError(
                f"--modules: expected modules to import. Received: {name!r}, which raised "
                f"{type(error).__name__}: {error}"
            ) from error


def run(script, main, at_stop=""):
    """Parses the flags and calls `main`. An error is one line, and so are Ctrl-C and SIGTERM.

    With L2L_TF_TRACEBACK=1 in the environment, these are raised instead.

    Exit codes: 0 done; 1 an error; `INTERRUPTED` by Ctrl-C; `START_AGAIN` by SIGTERM.
    """
    is_traced = bool(os.environ.get("L2L_TF_TRACEBACK"))

    def guarded(argv):
        try:
            if argv[1:]:
                raise ValueError(f"Unexpected arguments: {' '.join(argv[1:])}")
            main()
        except (KeyboardInterrupt, SystemExit) as end:  # of a meta-training, which has said so
            code = INTERRUPTED if isinstance(end, KeyboardInterrupt) else end.code
            if is_traced or code not in (INTERRUPTED, START_AGAIN):
                raise
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # TensorFlow takes seconds to tear down what ends anyway
        except Exception as error:
            if is_traced or not _is_expected(error):
                raise
            sys.exit(f"{script}: {one_line(error)}")

    if not is_traced:
        end_at_signals(script, at_stop)
    logging.set_verbosity(logging.WARNING)  # app.run would make it INFO
    app.run(guarded)


def end_at_signals(script, at_stop):
    """From now on, Ctrl-C (SIGINT) and SIGTERM end the process at once, with a line.

    Python itself would raise a KeyboardInterrupt once TensorFlow returns, which may take minutes,
    and where a library may catch it. To end at any moment is safe: what is written is whole at
    any moment, as after a kill. A meta-training takes the signals over, to save a checkpoint: it
    knows the handler by its `command`.
    """
    ends = {
        signal.SIGINT: ("interrupted", INTERRUPTED),
        signal.SIGTERM: ("stopped by SIGTERM", START_AGAIN),
    }

    def handler(*_):
        pass

    handler.command = script
    usual = (signal.SIG_DFL, signal.default_int_handler)
    # Others are ignored, as Ctrl-C is of a process in the background.
    ends = {number: end for number, end in ends.items() if signal.getsignal(number) in usual}
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    signal.set_wakeup_fd(sender)  # which gets the signal's number when it arrives
    for number in ends:
        signal.signal(number, handler)

    def wait():
        while (number := os.read(receiver, 1)[0]) not in ends:
            pass
        what, code = ends[number]
        # Without a lock that another thread may hold.
        os.write(2, f"\n{script}: {what}{at_stop}\n".encode())
        os._exit(code)

    threading.Thread(target=wait, daemon=True).start()


def one_line(error):
    """An error's message on one line; with its type, where the message alone may not speak."""
    lines = [line.strip() for line in str(error).splitlines()]
    text = " ".join(line for line in lines if line)
    if len(text) > 1500:  # TensorFlow's have the cause at the start or at the end.
        text = f"{text[:700]} … {text[-700:]}"
    speaks = type(error) in (ValueError, TypeError, RuntimeError, FloatingPointError)
    speaks = text and (speaks or isinstance(error, OSError | ImportError))
    return text if speaks else f"{type(error).__name__}: {text}".rstrip(": ")


def _is_expected(error):
    """Whether it is one of ``ERRORS``, or TensorFlow's: a kernel failed, or memory is exhausted."""
    return isinstance(error, ERRORS) or type(error).__module__.startswith("tensorflow.")


def _check(flag, expected, is_right, choices=()):
    """An absl validator. None is right: a flag that is not given."""

    def validator(value):
        if value is None or is_right(value):
            return True
        values = value if isinstance(value, list) else [value]
        unknown = [v for v in values if choices and v not in choices]
        near = difflib.get_close_matches(unknown[0], choices, n=1) if unknown else []
        hint = f". Did you mean {near[0]!r}?" if near else ""
        raise flags.ValidationError(f"--{flag.name} must be {expected}{hint}")

    flags.register_validator(flag.name, validator)


def _repeated(values):
    return len(set(values)) < len(values)
