"""Episodes: initial parameters and batches as a function of problem, seed and episode number."""

import math
import os

import tensorflow as tf

from l2l_tf import arguments
from l2l_tf.problems.base import fold_in
from l2l_tf.update_rules import base

# Streams of seeds that never meet, so that validation, tuning and reports see optimizees and
# orders of batches that meta-training did not.
PURPOSES = {"meta_train": 0, "validate": 1, "tune": 2, "report": 3}


def episode_seed(seed, purpose, episode):
    """The seed ``[2]`` of one episode."""
    seed = tf.stack([tf.cast(seed, tf.int64), PURPOSES[purpose]])
    return fold_in(seed, episode)


def windows(problem, side, seed, num_windows, window_length):
    """One episode as consecutive windows of steps.

    Args:
        problem: a ``Problem``.
        side: "train" or "heldout".
        seed: of ``episode_seed``.
        num_windows, window_length: ints. A window of W steps has W + 1 batches: the last is for
            the loss after its last update.

    Returns:
        ``tf.data.Dataset`` of `num_windows` elements: a dict of "parameters" ``[N]`` (θ_0, the
        same in each), "batches" (leaves ``[W + 1, ...]``), "window" (0, 1, …); and "state"
        where ``problem.sample_state`` has one.
    """
    parameters, state, batches = problem.episode(side, seed, num_windows * (window_length + 1))
    parameters = base.flatten(parameters)
    elements = {
        "parameters": tf.data.Dataset.from_tensors(parameters).repeat(num_windows),
        "batches": batches.batch(window_length + 1, drop_remainder=True),
        "window": tf.data.Dataset.range(num_windows),
    }
    if state:
        elements["state"] = tf.data.Dataset.from_tensors(tuple(state)).repeat(num_windows)
    return tf.data.Dataset.zip(elements)


def episodes(
    problem,
    side,
    seed,
    purpose,
    first,
    num_episodes,
    *,
    num_windows,
    window_length,
    num_parallel,
    num_at_once=1,
):
    """Consecutive episodes as windows, `num_parallel` optimizees side by side.

    Args:
        first: function that returns the number of the first episode; called at the start of each
            pass over the dataset.
        num_episodes: int, a multiple of `num_parallel` times `num_at_once`.
        num_at_once: groups of `num_parallel` whose windows come in turn: the first window of each,
            the second of each, …
        others: as of ``windows`` and ``episode_seed``.

    Returns:
        ``tf.data.Dataset`` of the elements of ``windows``, and "episode", each with a leading
        axis of `num_parallel`.

    Raises:
        TypeError, ValueError: `seed` is not an integer of 64 bits, or there are more steps than
            64 bits count.
        ValueError: what is held at once does not fit the machine's memory; see ``check_memory``.
    """
    seed = arguments.integer("seed", seed)
    if num_episodes * num_windows * (window_length + 1) >= 2**63:
        raise ValueError(
            "All episodes together must have less than 2^63 steps. Received: "
            f"num_episodes={num_episodes}, of {num_windows * window_length} steps each. "
            "Take fewer episodes, or fewer steps."
        )
    # Meta-training takes one window after another. Others keep all episodes, which they see again.
    is_meta_training = purpose == "meta_train"
    num_held = num_parallel * num_at_once if is_meta_training else num_episodes
    check_memory(problem, window_length, num_held)

    start = tf.data.Dataset.from_tensors(0).map(lambda _: first())
    numbers = start.flat_map(lambda n: tf.data.Dataset.range(n, n + num_episodes))
    batched = side_by_side(
        problem,
        side,
        seed,
        purpose,
        numbers,
        num_windows=num_windows,
        window_length=window_length,
        num_parallel=num_parallel,
        num_at_once=num_at_once,
    )
    length = num_episodes // num_parallel * num_windows
    return batched.prefetch(2).apply(tf.data.experimental.assert_cardinality(length))


def side_by_side(
    problem,
    side,
    seed,
    purpose,
    numbers,
    *,
    num_windows,
    window_length,
    num_parallel,
    num_at_once=1,
):
    """As ``episodes``, of the episodes whose numbers are those of a dataset.

    Args:
        numbers: ``tf.data.Dataset`` of int64.
        others: as of ``episodes``.
    """

    def windows_of(episode):
        dataset = windows(
            problem, side, episode_seed(seed, purpose, episode), num_windows, window_length
        )
        return dataset.map(lambda element: {**element, "episode": episode})

    cycle = num_parallel * num_at_once
    interleaved = numbers.interleave(windows_of, cycle_length=cycle, block_length=1)
    return interleaved.batch(num_parallel, drop_remainder=True)


def check_memory(problem, window_length, num_optimizees, is_recorded=False):
    """Refuses a window that does not fit the machine's memory, before any of it is allocated.

    Args:
        problem: a ``Problem``.
        window_length: steps W.
        num_optimizees: M, whose windows are held at once.
        is_recorded: whether the meta-gradient's gradients and cotangents are kept.

    Raises:
        ValueError: the parameters, the W + 1 batches and, if recorded, two vectors a step, of M
            optimizees, take more than the machine has. That is less than what is really needed.
    """
    num_coordinates = base.num_coordinates(problem.layout)
    of_batch = _num_bytes(problem.batches("train", tf.zeros([2], tf.int64), 1).element_spec)
    of_vector = num_coordinates * tf.as_dtype(problem.dtype).size
    num_vectors = 1 + (2 * window_length if is_recorded else 0)
    estimate = num_optimizees * ((window_length + 1) * of_batch + num_vectors * of_vector)
    available = _physical_memory()
    if available is not None and estimate > available:
        raise ValueError(
            f"Windows of {window_length} steps of {num_optimizees} optimizees on '{problem.name}' "
            f"({num_coordinates} coordinates, {of_batch} bytes a batch) must fit this machine's "
            f"memory. Expected: less than {available / 2**30:.3g} GiB. Received: "
            f"{estimate / 2**30:.3g} GiB at least. Take fewer steps or optimizees, or smaller "
            "batches; in meta-training, credit='segment' needs the steps of a segment alone."
        )


def _num_bytes(element_spec):
    """Of an element; an unknown dimension counts as 1."""
    total = 0
    for spec in tf.nest.flatten(element_spec):
        shape = getattr(spec, "shape", None)
        dims = shape.as_list() if isinstance(shape, tf.TensorShape) and shape.rank else []
        total += math.prod(size or 1 for size in dims) * spec.dtype.size
    return total


def _physical_memory():
    """Bytes of memory of this machine, or None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not on Windows, for one
        return None
