"""Memory of a process: its peak, the peak of one computation, and freed memory that stays with it."""

import ctypes
import sys
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scoreline.compat import TorchDispatchMode

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


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages that operations create, until they are freed; inputs count nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors((args, kwargs)):
            self._meet(tensor, 0)
        found = func(*args, **(kwargs or {}))
        for tensor in _tensors(found):
            self._meet(tensor, tensor.untyped_storage().nbytes())
        self.peak = max(self.peak, self.bytes)
        return found

    def _meet(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        name = storage.data_ptr()
        if name not in self.known:
            self.known.add(name)
            self.bytes += size
            weakref.finalize(storage, self._lose, name, size)

    def _lose(self, name: int, size: int) -> None:
        self.known.discard(name)
        self.bytes -= size


def _tensors(tree: Any) -> list[Tensor]:
    """The tensors in nested dictionaries, lists and tuples."""
    if isinstance(tree, Tensor):
        return [tree]
    inside = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return [tensor for part in inside for tensor in _tensors(part)]


def peak_bytes(compute: Callable[[], object], device: torch.device) -> int:
    """The most bytes that `compute` holds at once, beyond those that were allocated before.

    On a CUDA device this is what PyTorch's allocator counts; elsewhere it counts the tensors that operations return,
    without the scratch memory of a kernel.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        compute()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    with _Live() as live:
        compute()
    return int(live.peak)
