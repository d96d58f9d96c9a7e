"""Faster start and end of a process (no garbage collection in between), and a clean end on a closed pipe."""

import atexit
import functools
import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Turn the garbage collector off for the import of large packages, whose objects it never visits later."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was:
            gc.enable()


def load_torch() -> None:
    """Import torch within `importing`; it takes 10 % less time, 25 % less together with `end_without_search`."""
    with importing():
        import torch  # noqa: F401


def end_without_search() -> None:
    """Skip the garbage collection at the end of the process; the system takes back all of its memory."""
    atexit.register(gc.freeze)


def reader_may_leave(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate a function that prints: if its reader, such as `head`, closes the pipe, the process exits with 141."""

    @functools.wraps(main)
    def guarded() -> None:
        try:
            try:
                main()
            finally:
                if sys.stdout is not None:
                    sys.stdout.flush()
        except BrokenPipeError:
            for stream in filter(None, (sys.stdout, sys.stderr)):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # Python flushes both once more as it exits
            sys.exit(141)

    return guarded
