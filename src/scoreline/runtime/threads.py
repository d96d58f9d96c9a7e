"""Map a function over items in several threads."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from scoreline.runtime.cores import usable_cores

T = TypeVar("T")
R = TypeVar("R")


def in_order(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """Yield function(item) for every item in order, computing up to `threads` of them at a time.

    Unlike `Executor.map` it takes items lazily: one for each free thread and one more, so that no thread idles while
    the caller works. An exception of `function` is raised in the place of its result. One thread means plain calls.
    Each thread uses as many cores as the caller's thread (torch.set_num_threads); set one if the threads are to share
    the cores.
    """
    if threads == 1:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(threads, "scoreline", torch.set_num_threads, (torch.get_num_threads(),))
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            if len(waiting) > threads:
                yield waiting.popleft().result()
            waiting.append(pool.submit(function, item))
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def beside(function: Callable[[T], object], items: Iterable[T], threads: int) -> None:
    """Call function(item) for every item while the next ones are being produced; hold up to `threads` items.

    Calls that have begun are finished even if producing an item raises an exception.
    """
    futures: deque[Future[object]] = deque()
    with ThreadPoolExecutor(threads, "scoreline") as pool:
        for item in items:
            if len(futures) == threads:
                futures.popleft().result()
            futures.append(pool.submit(function, item))
        for future in futures:
            future.result()


class AbandonedError(Exception):
    """The caller no longer needs the work of this thread."""


@contextmanager
def until_left(report: Callable[[float], object]) -> Iterator[Callable[[float], None]]:
    """Yield `report` for use in several threads; after the context, its next call in each thread stops that thread."""
    lock, over = threading.Lock(), threading.Event()

    def guarded(amount: float) -> None:
        if over.is_set():
            raise AbandonedError
        with lock:
            report(amount)

    try:
        yield guarded
    finally:
        over.set()


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
