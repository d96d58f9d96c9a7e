"""Number of CPU cores that a process may use."""

import os
import re
from collections.abc import Mapping

from scoreline.errors import InputError
from scoreline.values import MOST_THREADS, is_whole


def usable_cores(environment: Mapping[str, str] = os.environ) -> int:
    """Return OMP_NUM_THREADS if it is set, else the number of cores that the system lets this process run on.

    torchrun sets the variable to 1 if it starts several processes; sweeps and tables set it to each job's share.
    """
    setting = environment.get("OMP_NUM_THREADS", "")
    if setting.isdecimal() and len(setting) < 10 and int(setting):
        return min(int(setting), MOST_THREADS)
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def refuse_unreadable(environment: Mapping[str, str] = os.environ) -> None:
    """Refuse an OMP_NUM_THREADS that OpenMP would complain about when torch is imported.

    Raises:
        InputError: naming the variable.
    """
    setting = environment.get("OMP_NUM_THREADS", "")
    if setting and not re.fullmatch(r"\s*[0-9]{1,9}(\s*,\s*[0-9]{1,9})*\s*", setting):
        raise InputError(f"OMP_NUM_THREADS={setting}: must be a whole number; unset it, or give one")


def threads_of(value: object, key: str = "threads") -> int:
    """Return the number of threads that a config asks for; `auto` means one for every usable core.

    Raises:
        InputError: naming the key if the value is neither `auto` nor a whole number from 1 to `MOST_THREADS`.
    """
    if value == "auto":
        return usable_cores()
    if not is_whole(value) or value > MOST_THREADS:
        raise InputError(f"{key}={value}: must be auto or a whole number, at least 1 and at most {MOST_THREADS}")
    return value
