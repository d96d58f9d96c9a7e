"""Memory of a process: its peak, the peak of one computation, and the reuse of freed memory."""

import ctypes
import sys
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scoreline.runtime.compat import TorchDispatchMode

MIB = 2**20

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX, ARENA_MAX = -1, -2, -4, -8
"""Numbers of glibc's options in malloc.h."""


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

    A network on a CPU allocates the same megabytes in every layer. By default glibc maps each such block anew, and the
    kernel zeroes it page by page: 39,000 page faults in one call of a small U-Net. With these options the process keeps
    its peak memory, in one heap for all threads.

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
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._meet(tensor, tensor.untyped_storage().nbytes())
        self.peak = max(self.peak, self.bytes)
        return result

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
    """Return the tensors in nested dictionaries, lists and tuples."""
    if isinstance(tree, Tensor):
        return [tree]
    inside = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return [tensor for part in inside for tensor in _tensors(part)]


def peak_bytes(compute: Callable[[], object], device: torch.device) -> int:
    """Return the most bytes that `compute` allocates at a time.

    On a CUDA device PyTorch's allocator counts them; elsewhere only the tensors that operations return count, without
    the scratch memory of kernels.

    Args:
        compute: a function without arguments.
        device: the device of its tensors.
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
