"""Problems on text: the help pages that come with Python, by characters and by words."""

import functools
import re

import keras
import numpy as np

from l2l_tf.problems.suite.suite_problem import ACCURACY, ENTROPY, SuiteProblem

layers = keras.layers
NUM_CHARACTERS = 64


def text_gru():
    """Windows of 24 characters: embedding of 16, GRU of 64."""

    def build_model():
        return keras.Sequential(
            [
                keras.Input([24], dtype="int32"),
                layers.Embedding(NUM_CHARACTERS, 16),
                layers.GRU(64, return_sequences=True, unroll=True),
                layers.Dense(NUM_CHARACTERS),
            ]
        )

    return _language_model("text_gru", build_model, _characters(), 24, 32, 500)


def text_lstm():
    """Windows of 12 words, of the 1,000 most frequent: embedding of 32, LSTM of 48."""

    def build_model():
        return keras.Sequential(
            [
                keras.Input([12], dtype="int32"),
                layers.Embedding(1000, 32),
                layers.LSTM(48, return_sequences=True, unroll=True),
                layers.Dense(1000),
            ]
        )

    return _language_model("text_lstm", build_model, _words(1000), 12, 16, 500)


def text_transformer():
    """Windows of 32 characters: two blocks of width 96 with four heads, normalized before."""

    def build_model():
        tokens = keras.Input([32], dtype="int32")
        h = layers.Embedding(NUM_CHARACTERS, 96)(tokens)
        h = Positions()(h)
        for _ in range(2):
            normal = layers.LayerNormalization()(h)
            h += layers.MultiHeadAttention(4, 24)(normal, normal, use_causal_mask=True)
            normal = layers.LayerNormalization()(h)
            h += layers.Dense(96)(layers.Dense(384, "gelu")(normal))
        return keras.Model(tokens, layers.Dense(NUM_CHARACTERS)(layers.LayerNormalization()(h)))

    return _language_model("text_transformer", build_model, _characters(), 32, 8, 400)


class Positions(layers.Layer):
    """Adds a learned vector for each position."""

    def build(self, shape):
        self.table = self.add_weight(shape=shape[1:], initializer="uniform", name="table")

    def call(self, h):
        return h + self.table


def text_topics():
    """Of which of the 12 longest help pages 16 words are: mean of word embeddings."""
    pages = sorted(_pages(), key=len, reverse=True)[:12]
    numbers, length, vocabulary = _numbers(3000), 16, 3000
    sides = [[], []]
    for label, page in enumerate(pages):
        words = np.array([numbers.get(w, 0) for w in _split(page)], "int32")
        cut = len(words) * 3 // 4
        for side, part in zip(sides, (words[:cut], words[cut:])):
            side += [(part[s : s + length], label) for s in range(0, len(part) - length, 4)]
    train, heldout = [tuple(map(np.array, zip(*side))) for side in sides]

    def build_model():
        return keras.Sequential(
            [
                keras.Input([length], dtype="int32"),
                layers.Embedding(vocabulary, 24),
                layers.GlobalAveragePooling1D(),
                layers.Dense(12),
            ]
        )

    return SuiteProblem(
        "text_topics", build_model, _cross_entropy(), train, heldout, 64, 1000, **ACCURACY
    )


def text_cbow():
    """A word from two on either side, of 3,000 (Mikolov et al. 2013), with a full softmax."""
    words, width = _words(3000), 64
    windows = np.lib.stride_tricks.sliding_window_view(words, 5)
    x, y = windows[:, [0, 1, 3, 4]], windows[:, 2]
    cut = len(x) * 9 // 10
    rows = np.random.RandomState(0).permutation(len(x) - cut)[:1024] + cut

    def build_model():
        return keras.Sequential(
            [
                keras.Input([4], dtype="int32"),
                layers.Embedding(3000, width),
                layers.GlobalAveragePooling1D(),
                layers.Dense(3000),
            ]
        )

    return SuiteProblem(
        "text_cbow",
        build_model,
        _cross_entropy(),
        (x[:cut], y[:cut]),
        (x[rows], y[rows]),
        batch_size=64,
        num_steps=500,
        **ENTROPY,
    )


def _language_model(name, build_model, tokens, length, batch_size, num_steps):
    """To say of each token the next one. The last tenth of the text is held out."""
    cut, rng = len(tokens) * 9 // 10, np.random.RandomState(0)

    def windows(first, last, number):
        starts = rng.randint(first, last - length - 1, number)
        rows = tokens[starts[:, None] + np.arange(length + 1)]
        return rows[:, :-1], rows[:, 1:]

    train, heldout = windows(0, cut, 8192), windows(cut, len(tokens), 256)
    return SuiteProblem(
        name, build_model, _cross_entropy(), train, heldout, batch_size, num_steps, **ENTROPY
    )


def _cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _pages():
    from pydoc_data import topics

    return [topics.topics[name].lower() for name in sorted(topics.topics)]


def _split(text):
    return re.findall(r"[a-z_]+|[0-9]+|[^\sa-z0-9]", text)


@functools.cache
def _characters():
    """The text as int32; the most frequent characters have numbers of their own, others 0."""
    text = re.sub(r"[^\S\n]+", " ", "\n".join(_pages()))
    numbers = _by_frequency(text, NUM_CHARACTERS)
    return np.array([numbers.get(c, 0) for c in text], "int32")


@functools.cache
def _numbers(size):
    return _by_frequency(_split("\n".join(_pages())), size)


def _words(size):
    numbers = _numbers(size)
    return np.array([numbers.get(w, 0) for w in _split("\n".join(_pages()))], "int32")


def _by_frequency(tokens, size):
    """Token → number from 1 on, the most frequent first; of those alike, by the alphabet."""
    found, counts = np.unique(np.array(list(tokens)), return_counts=True)
    order = np.lexsort([found, -counts])[: size - 1]
    return {token: number for number, token in enumerate(found[order].tolist(), start=1)}
