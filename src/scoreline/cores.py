"""CPU cores that a process may use."""

import os
import re
from collections.abc import Mapping

from scoreline.errors import InputError

MOST = 1024
"""Threads of a process."""


def usable_cores(environment: Mapping[str, str] = os.environ) -> int:
    """OMP_NUM_THREADS if it is set, else the cores that the system lets this process run on.

    torchrun sets the variable to 1 where it starts several processes, and so do a sweep's and a table's jobs that share
    a machine to their part.
    """
    told = environment.get("OMP_NUM_THREADS", "")
    if told.isdecimal() and len(told) < 10 and int(told):
        return min(int(told), MOST)
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def refuse_unreadable(environment: Mapping[str, str] = os.environ) -> None:
    """Raises InputError for an OMP_NUM_THREADS of which OpenMP, when torch is imported, would complain by itself."""
    told = environment.get("OMP_NUM_THREADS", "")
    if told and not re.fullmatch(r"\s*[0-9]{1,9}(\s*,\s*[0-9]{1,9})*\s*", told):
        raise InputError(f"OMP_NUM_THREADS={told}: must be a whole number; unset it, or give one")


def threads_of(value: object, key: str = "threads") -> int:
    """A number of threads from the config; auto is one for every usable core.

    Raises:
        InputError: naming the key if it is neither, or more than `MOST`.
    """
    if value == "auto":
        return usable_cores()
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST:
        raise InputError(f"{key}={value}: must be auto or a whole number, at least 1 and at most {MOST}")
    return value
