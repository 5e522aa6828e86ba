"""Pieces: how a vector of coordinates is cut, by device. The one place that decides it.

Nothing here is part of any file's format: what was saved under one policy loads under another.
"""

import itertools
import os
from typing import NamedTuple

import tensorflow as tf

from l2l_tf import hooks


class Policy(NamedTuple):
    """How a device wants its coordinates."""

    side_by_side: int  # pieces that run at once
    least: int  # coordinates that are worth a piece of their own
    most: int  # coordinates of a piece of an optimizer's state of 80 numbers each; see `most`
    kept: int  # coordinates times steps that are backpropagated at once
    chunks: int = 1  # what are backpropagated come by so many, so that cores are done together
    times: int = 1  # how much more than `most` of a smaller state is a piece, at most


# XLA shares an operation among the cores too, but small and many as they are here, whole programs
# side by side are faster, by a sixth. A piece stays in a core's cache. A GPU wants long vectors.
GPU = Policy(side_by_side=1, least=1, most=4_000_000, kept=4_000_000)
# Within a program of XLA's nothing waits for a core: what shares one runs beside it, as a program.
ONE_PROGRAM = Policy(side_by_side=1, least=4096, most=32_768, kept=10_240)
# What a rule needs beside a piece's state grows with it, and few pieces are held at once. Where
# there is little of both, larger ones cost less: each is a call, and is joined and cut.
LARGE_STATE = 80
# Beyond so many, pieces grow instead: each is a part of the program.
MAX_PIECES = 128
# Of a piece of whole tensors, the most coordinates, if it is of several.
WHOLE = 1_000_000
# Pieces but the last are a multiple of it, so that rows of the state begin with a cache line each.
BLOCK = 64


def policy():
    """The ``Policy`` for the devices at hand."""
    if tf.config.list_logical_devices("GPU"):
        return GPU
    if hooks.xla_compiles_this():
        return ONE_PROGRAM
    cores = os.cpu_count() or 1
    return Policy(cores, least=4096, most=32_768, kept=10_240, chunks=4, times=16)


def most(numbers):
    """Coordinates of a piece, at most, of a state with so many numbers a coordinate."""
    of_device = policy()
    return of_device.most * min(of_device.times, max(1, LARGE_STATE // max(1, numbers)))


def cut(total, most=None):
    """Sizes of the pieces of `total` coordinates; one at least.

    Args:
        most: coordinates in a piece, at most; None for as many pieces as run side by side.
    """
    side_by_side, least, *_ = policy()
    count = max(1, min(side_by_side, total // least))
    if most is not None:
        count *= max(1, min(MAX_PIECES // count, -(-total // (count * most))))
    size = max(1, -(-total // (count * BLOCK))) * BLOCK
    sizes = [size] * (total // size)
    return sizes + [total % size] if total % size or not sizes else sizes


def cut_between(sizes_of_tensors):
    """Sizes of pieces of whole tensors, for a step that goes through them without copies.

    Its new state is beside the old one for a piece at a time.
    """
    sizes = [0]
    for size in sizes_of_tensors:
        if size and sizes[-1] and sizes[-1] + size > WHOLE:
            sizes.append(0)
        sizes[-1] += size
    return sizes


class Run(NamedTuple):
    """Coordinates of one tensor that lie in one piece, side by side in both."""

    tensor: int
    start: int  # in the tensor
    piece: int
    place: int  # in the piece
    size: int


def chunks(total, most, least=1, block=1):
    """``(size, number)`` of the chunks of `total` coordinates, of which the last two may overlap.

    Whatever the number of cores: what is added up chunk by chunk does not depend on it.

    Args:
        most: coordinates in a chunk, at most; a block at least.
        least: coordinates that are worth a chunk of their own.
        block: what their size is a multiple of, as `total` is.
    """
    most = max(1, most // block) * block
    at_once = policy().chunks
    number = max(-(-total // most), min(at_once, total // least))
    if number > 1:
        number = -(-number // at_once) * at_once
    size = -(-total // (number * block)) * block
    return size, -(-total // size)


def runs(sizes_of_tensors, sizes_of_pieces):
    """How pieces of a vector overlap with the tensors that it consists of: ``Run``, in order."""
    tensors, pieces = (
        list(itertools.pairwise(itertools.accumulate(sizes, initial=0)))
        for sizes in (sizes_of_tensors, sizes_of_pieces)
    )
    found, piece = [], 0
    for tensor, (first, end) in enumerate(tensors):
        while first < end:
            start_of_piece, end_of_piece = pieces[piece]
            size = min(end, end_of_piece) - first
            if size > 0:
                start = first - tensors[tensor][0]
                found.append(Run(tensor, start, piece, first - start_of_piece, size))
            first += size
            piece += first == end_of_piece
    return found
