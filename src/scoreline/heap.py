"""Freed memory that stays with the process."""

import ctypes
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX, ARENA_MAX = -1, -2, -4, -8
"""Names of glibc's options in malloc.h."""

MIB = 1 << 20


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
