"""Memory of a process: its peak, and freed memory that stays with it."""

import ctypes
import sys

import torch

MIB = 2**20

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX, ARENA_MAX = -1, -2, -4, -8
"""Names of glibc's options in malloc.h."""


def peak_memory() -> dict[str, float]:
    """MiB of this process at its peak: `cpu` resident, `gpu` what PyTorch held on its GPU, 0 without one."""
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"cpu": _resident() / MIB, "gpu": gpu / MIB}


def _resident() -> int:
    """Bytes. Linux tells them of this program; getrusage counts what the process was before it, its parent's copy."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))
    except (OSError, StopIteration, ValueError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def keep_freed_memory() -> bool:
    """Let malloc give no memory back to the system, and say whether it agreed; glibc only, elsewhere nothing happens.

    A network on a CPU asks for the same megabytes at every layer. By default glibc maps each such block afresh, and the
    kernel fills it with zeros page by page: 39,000 page faults in one call of a small U-Net. Memory then stays at the
    most that was ever in use at a time, in one heap for all threads.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    options = {ARENA_MAX: 1, MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 64 * MIB}
    return mallopt is not None and all(mallopt(name, value) for name, value in options.items())
