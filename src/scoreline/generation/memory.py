"""Memory of a process: its peak, and freed memory that stays with it."""

import ctypes
import sys

import torch

MIB = 2**20

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX, ARENA_MAX = -1, -2, -4, -8
"""Names of glibc's options in malloc.h."""


def peak_memory() -> dict[str, float]:
    """Return the peak memory of this process in MiB: `cpu`, resident, and `gpu`, held by PyTorch (0 without a GPU)."""
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"cpu": _resident() / MIB, "gpu": gpu / MIB}


def _resident() -> int:
    """Return the peak in bytes. On Linux getrusage would count the parent's copy before exec, too; /proc does not."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))
    except (OSError, StopIteration, ValueError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def keep_freed_memory() -> bool:
    """Stop glibc's malloc from returning freed memory to the system; use it before running a network on a CPU.

    A network on a CPU allocates the same megabytes at every layer. By default glibc maps each such block anew, and the
    kernel zeroes it page by page: 39,000 page faults in one call of a small U-Net. Afterwards the process keeps its
    peak memory, in one heap for all threads.

    Returns:
        Whether malloc accepted the options; False without glibc, where nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    options = {ARENA_MAX: 1, MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 64 * MIB}
    return mallopt is not None and all(mallopt(name, value) for name, value in options.items())
