"""The data of a mixture: for each group of optimizees the windows of its problem."""

import concurrent.futures

import tensorflow as tf

from l2l_tf.engine import episodes as episodes_lib


class MixtureData:
    """An iterable of pairs ``(index, element)``: which problem, and a window of a group on it.

    Group after group, the first window of each of `num_groups`, the second of each, … as those of
    one problem come from ``episodes``. (A ``tf.data.Dataset`` has elements of one kind.)

    Args:
        mixture: ``Mixture``.
        seed: int.
        first: function that returns the number of the first episode, at the start of each pass.
        num_episodes: of a pass.
        num_windows, window_length, num_parallel: as of ``episodes``.
        num_groups: of a meta-step.
        share: range of the optimizees of each group to make.
    """

    def __init__(
        self, mixture, seed, first, num_episodes, *, num_groups, num_parallel, share, **windows
    ):
        self._mixture = mixture
        self._seed = seed
        self._first = first
        self._num_groups = num_groups
        self._num_parallel = num_parallel
        self._share = share
        self._windows = windows
        self._num_in_a_pass = num_episodes // num_parallel
        self._draw = tf.function(lambda number: mixture.draw(seed, number), autograph=False)

    def __len__(self):
        return self._num_in_a_pass * self._windows["num_windows"]

    def __iter__(self):
        # Made one ahead, by a thread: a training step then finds its data.
        elements = self._elements()
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            ahead = thread.submit(next, elements, None)
            while (element := ahead.result()) is not None:
                ahead = thread.submit(next, elements, None)
                yield element

    def _elements(self):
        first = int(self._first()) // self._num_parallel
        # Of a problem, the groups come one after another; where an episode has several windows,
        # those of as many groups at once, each by an iterator of its own.
        num_places = self._num_groups if self._windows["num_windows"] > 1 else 1
        iterators = {}
        for start in range(first, first + self._num_in_a_pass, self._num_groups):
            groups = range(start, start + self._num_groups)
            drawn = [int(self._draw(tf.constant(group, tf.int64))) for group in groups]
            for _ in range(self._windows["num_windows"]):
                for place, index in enumerate(drawn):
                    key = place % num_places, index
                    if key not in iterators:
                        iterators[key] = iter(self._dataset(index, groups[place], num_places))
                    yield index, next(iterators[key])

    def _dataset(self, index, first_group, stride):
        """Of one problem, and of every `stride`-th group."""
        groups = tf.data.Dataset.range(first_group, tf.int64.max, stride)
        groups = groups.filter(lambda group: self._mixture.draw(self._seed, group) == index)
        first, size = self._share.start, len(self._share)
        numbers = groups.flat_map(
            lambda group: tf.data.Dataset.range(size).map(
                lambda place: group * self._num_parallel + first + place
            )
        )
        dataset = episodes_lib.side_by_side(
            self._mixture.problems[index],
            "train",
            self._seed,
            "meta_train",
            numbers,
            num_parallel=size,
            **self._windows,
        )
        # There are many iterators: none keeps windows for later, or has a thread that tunes it.
        options = tf.data.Options()
        options.experimental_optimization.inject_prefetch = False
        options.autotune.enabled = False
        return dataset.with_options(options)


class ValidationOfMixture:
    """Pairs ``(index, element)``: the validation episodes of each problem in turn."""

    def __init__(self, datasets):
        self._datasets = datasets

    def __len__(self):
        return sum(len(dataset) for dataset in self._datasets)

    def __iter__(self):
        for index, dataset in enumerate(self._datasets):
            for element in dataset:
                yield index, element
