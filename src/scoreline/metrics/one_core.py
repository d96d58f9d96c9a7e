"""Independent pieces of work, each on one core, so that their bits do not depend on the number of cores."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from scoreline.cores import usable_cores
from scoreline.in_order import in_order

T = TypeVar("T")
R = TypeVar("R")

MOST = 16
"""Pieces at a time; this bounds the memory."""


def one_core_each(work: Callable[[T], R], pieces: Sequence[T], most: int = MOST) -> list[R]:
    """Return [work(piece) for piece in pieces], computed as `in_turn` does."""
    return list(in_turn(work, pieces, most))


def in_turn(work: Callable[[T], R], pieces: Sequence[T], most: int = MOST) -> Iterator[R]:
    """Yield work(piece) for every piece in order, on all usable cores, with PyTorch on one thread a piece.

    Kernels add in another order on another number of threads. Results are therefore equal to the bit for any number
    of cores and any `torch.get_num_threads()`, which is restored. Gradient modes belong to a thread: `work` sets the
    mode that it needs.

    Args:
        work: a function of one piece.
        pieces: the pieces.
        most: pieces at a time.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from in_order(work, pieces, max(1, min(usable_cores(), len(pieces), most)))
    finally:
        torch.set_num_threads(before)
