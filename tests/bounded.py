"""What a function refuses, in a process of its own with little memory and time."""

import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from scoreline.errors import InputError


def refusal(function: Callable[[], object], room: int = 2**29, seconds: int = 10) -> str:
    """The sentence of the `InputError`; whatever else happens begins with `not refused`.

    Args:
        room: bytes of address space beyond what the process has now.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: of threads, which the child does not use
        child = os.fork()
    if not child:
        os.write(writer, _said(function, room, seconds).encode()[:4000])
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        said = file.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    return said or f"not refused: the process ended with {status}"


def _said(function: Callable[[], object], room: int, seconds: int) -> str:
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + room
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.alarm(seconds)
    try:
        function()
    except InputError as error:
        return str(error)
    except BaseException as error:
        return f"not refused: {error!r}"
    return "not refused: it was read"
