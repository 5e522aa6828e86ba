"""Measuring: times that take turns, the arithmetic limit, peak memory."""

import multiprocessing
import pathlib
import time

import numpy as np
import tensorflow as tf


def median_seconds(contestants, num_rounds=15):
    """Median seconds of a call of each of several functions, which take turns.

    The first call of each, which traces and compiles, is reported apart. Those whose calls take a
    second or more have three turns.

    Args:
        contestants: dict of name → function without arguments that returns tensors.

    Returns:
        ``(medians, first calls)``, dicts of name → seconds.
    """
    first = {name: seconds(function) for name, function in contestants.items()}
    times = {name: [] for name in contestants}
    for _ in range(num_rounds):
        for name, function in contestants.items():
            if len(times[name]) < 3 or min(times[name]) < 1.0:
                times[name].append(seconds(function))
    return {name: float(np.median(t)) for name, t in times.items()}, first


def seconds(function):
    """Seconds of one call."""
    start = time.perf_counter()
    for leaf in tf.nest.flatten(function()):
        leaf.numpy()  # waits for it
    return time.perf_counter() - start


def flops_per_second(size=2048):
    """The machine's float32 rate, by the fastest of some large matrix products.

    Not by the median: a limit that is too low would flatter what is measured against it.
    """
    a, b = tf.random.normal([size, size]), tf.random.normal([size, size])
    product = tf.function(lambda: tf.matmul(a, b)[0, 0])
    seconds(product)  # traces
    return 2 * size**3 / min(seconds(product) for _ in range(15))


def lstm_flops(layers, num_features=2):
    """Floating-point operations of the matrix products of one step of one coordinate, forward."""
    widths = [num_features, *layers]
    products = [4 * units * (width + units) for width, units in zip(widths, layers)]
    return 2 * (sum(products) + layers[-1])


def peak_mebibytes(prepare, *args):
    """What a program needs above what it starts with, in a process of its own (Linux).

    Args:
        prepare: a module's function that sets up and returns a function to run.

    Returns:
        ``(MiB, what the function returned)``.
    """
    return alone(_peak, prepare, args)


def alone(function, *args):
    """What a module's function returns, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def _peak(prepare, args):
    run = prepare(*args)
    before = _status("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    result = run()
    return (_status("VmHWM") - before) / 1024, result


def _status(key):
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])  # KiB
    raise KeyError(key)
