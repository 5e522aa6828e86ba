"""Blocks: a vector of coordinates in rows of one size, each of one tensor, filled up with zeros.

What a rule's control says to a tensor's coordinates is then one number for a whole row, and sums
by tensor are sums of rows first: in an XLA program both cost next to nothing, where an index for
each coordinate would keep the loop around it from being vectorized.
"""

import itertools
import math

import numpy as np
import tensorflow as tf

from l2l_tf import hooks


class Blocks:
    """How tensors' coordinates, one after another, lie in blocks.

    Args:
        sizes: number of coordinates of each tensor.
        size: coordinates in a block; with 1, nothing is filled up.

    Attributes:
        padded: for each tensor the number of coordinates that its blocks have.
        owners: the tensor of each block, int32 ``[blocks]``.
        counts: its coordinates that are not filled up, int32 ``[blocks]``.
    """

    def __init__(self, sizes, size):
        self.size = size
        self.padded = [-(-of_tensor // size) * size for of_tensor in sizes]
        numbers = [padded // size for padded in self.padded]
        self.owners = np.repeat(np.arange(len(sizes), dtype=np.int32), numbers)
        self.counts = np.full([sum(numbers)], size, np.int32)
        for last, of_tensor in zip(itertools.accumulate(numbers), sizes):
            if of_tensor:
                self.counts[last - 1] -= -of_tensor % size
        is_there = np.arange(size) < self.counts[:, None]
        self._is_there = is_there.reshape(-1)
        # Coordinates and zeros, in turn.
        self._sizes = [n for of, padded in zip(sizes, self.padded) for n in (of, padded - of)]

    @property
    def total(self):
        """Number of coordinates of all blocks."""
        return sum(self.padded)

    def split(self, sizes):
        """The blocks of consecutive pieces, of each as few as there can be, all of one size.

        Args:
            sizes: coordinates of each piece, multiples of the blocks' size.

        Returns:
            For each piece the owners and counts of its blocks; None for counts if none is filled
            up.
        """
        pieces, first = [], 0
        for size in sizes:
            of_piece = slice(first, first + size // self.size)
            owners, counts = self.owners[of_piece], self.counts[of_piece]
            joined = math.gcd(*[len(list(run)) for _, run in itertools.groupby(owners)]) or 1
            is_full = np.all(counts == self.size)
            counts = np.sum(counts.reshape([-1, joined]), axis=1, dtype=np.int32)
            pieces.append((owners[::joined], None if is_full else counts))
            first = of_piece.stop
        return pieces

    def pad(self, vectors):
        """``[..., N]`` to ``[..., total]``."""
        if np.all(self._is_there):
            return vectors
        if _is_fused(vectors):
            places = np.maximum(np.cumsum(self._is_there) - 1, 0)
            return tf.where(self._is_there, tf.gather(vectors, places), 0.0)
        parts = tf.split(vectors, self._sizes[::2], axis=-1)
        zeros = [tf.zeros([*vectors.shape[:-1], n], vectors.dtype) for n in self._sizes[1::2]]
        return tf.concat(list(itertools.chain(*zip(parts, zeros))), axis=-1)

    def unpad(self, vectors):
        """The inverse of ``pad``."""
        if np.all(self._is_there):
            return vectors
        if _is_fused(vectors):
            return tf.gather(vectors, np.flatnonzero(self._is_there))
        return tf.concat(tf.split(vectors, self._sizes, axis=-1)[::2], axis=-1)


def _is_fused(vectors):
    """Whether XLA would fuse a concatenation with what it is part of: a loop for each of its parts.

    An index for each coordinate is as good there as anywhere, and three times faster.
    """
    return vectors.shape.rank == 1 and hooks.xla_compiles_this()
