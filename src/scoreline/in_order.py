"""Map a function over items in several threads."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

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
    begun: deque[Future[object]] = deque()
    with ThreadPoolExecutor(threads, "scoreline") as pool:
        for item in items:
            if len(begun) == threads:
                begun.popleft().result()
            begun.append(pool.submit(function, item))
        for future in begun:
            future.result()


class AbandonedError(Exception):
    """The caller no longer needs the work of this thread."""


@contextmanager
def until_left(report: Callable[[float], object]) -> Iterator[Callable[[float], None]]:
    """Yield `report` for use in several threads; after the context, its next call in each thread stops that thread."""
    lock, left = threading.Lock(), threading.Event()

    def guarded(amount: float) -> None:
        if left.is_set():
            raise AbandonedError
        with lock:
            report(amount)

    try:
        yield guarded
    finally:
        left.set()
