"""Independent pieces of work on all cores, each on one, so that their bits do not depend on how many there are."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from scoreline.cores import usable_cores
from scoreline.in_order import in_order

T = TypeVar("T")
R = TypeVar("R")

MOST = 16
"""Pieces at a time, which bounds the memory that they take."""


def one_core_each(work: Callable[[T], R], pieces: Sequence[T], most: int = MOST) -> list[R]:
    """[work(piece) for piece in pieces], see `in_turn`."""
    return list(in_turn(work, pieces, most))


def in_turn(work: Callable[[T], R], pieces: Sequence[T], most: int = MOST) -> Iterator[R]:
    """work(piece) for every piece in order, on all usable cores, PyTorch on one thread in each piece.

    Kernels add in another order on another number of threads; so results are equal to the bit for any number of cores
    and whatever `torch.get_num_threads()` is, which is left as it was. Gradient modes belong to a thread: `work` says
    itself where it needs one.

    Args:
        most: pieces at a time.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from in_order(work, pieces, max(1, min(usable_cores(), len(pieces), most)))
    finally:
        torch.set_num_threads(before)
