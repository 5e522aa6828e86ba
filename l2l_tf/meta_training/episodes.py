"""Episodes: initial parameters and batches as a function of problem, seed and episode number."""

import tensorflow as tf

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
    parameters = base.flatten(problem.sample_parameters(fold_in(seed, 0)))
    state = problem.sample_state(fold_in(seed, 0))
    batches = problem.batches(side, fold_in(seed, 1), num_windows * (window_length + 1))
    elements = {
        "parameters": tf.data.Dataset.from_tensors(parameters).repeat(num_windows),
        "batches": batches.batch(window_length + 1, drop_remainder=True),
        "window": tf.data.Dataset.range(num_windows),
    }
    if state:
        elements["state"] = tf.data.Dataset.from_tensors(tuple(state)).repeat(num_windows)
    return tf.data.Dataset.zip(elements)


def episodes(
    problem, side, seed, purpose, first, num_episodes, *, num_windows, window_length, num_parallel
):
    """Consecutive episodes as windows, `num_parallel` optimizees side by side.

    Args:
        first: function that returns the number of the first episode; called at the start of each
            pass over the dataset.
        num_episodes: int, a multiple of `num_parallel`.
        others: as of ``windows`` and ``episode_seed``.

    Returns:
        ``tf.data.Dataset`` of the elements of ``windows``, and "episode", each with a leading
        axis of `num_parallel`.
    """

    def windows_of(episode):
        dataset = windows(
            problem, side, episode_seed(seed, purpose, episode), num_windows, window_length
        )
        return dataset.map(lambda element: {**element, "episode": episode})

    start = tf.data.Dataset.from_tensors(0).map(lambda _: first())
    numbers = start.flat_map(lambda n: tf.data.Dataset.range(n, n + num_episodes))
    interleaved = numbers.interleave(windows_of, cycle_length=num_parallel, block_length=1)
    batched = interleaved.batch(num_parallel, drop_remainder=True).prefetch(2)
    # Keras must know the length: it finds the end of a dataset of unknown length by a step too
    # many, in which a metric's count already goes up.
    length = num_episodes // num_parallel * num_windows
    return batched.apply(tf.data.experimental.assert_cardinality(length))
