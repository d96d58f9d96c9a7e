"""How a process of ours starts and ends: imports without searches for garbage, which find none; a reader that left."""

import atexit
import functools
import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Import within it what has very many objects: they are neither searched for garbage now nor ever after."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was:
            gc.enable()


def load_torch() -> None:
    """Import torch, which takes a tenth less so, and a quarter less with `end_without_search`."""
    with importing():
        import torch  # noqa: F401


def end_without_search() -> None:
    """At the end of this process nothing is searched for garbage: its memory goes back as a whole."""
    atexit.register(gc.freeze)


def reader_may_leave(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate what prints: where the reader, such as `head`, has seen enough, the process ends with exit code 141."""

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
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # for what is flushed at the very end
            sys.exit(141)

    return guarded
