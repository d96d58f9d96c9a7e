"""Asynchronous copies between a device and the host."""

from collections.abc import Callable

import torch
from torch import Tensor


def computes_apart(device: torch.device) -> bool:
    """Whether a device works off a queue, so that reading a number from it waits for all that was asked of it."""
    return device.type == "cuda"


def moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on a device. From the CPU to a GPU by way of pinned memory, without waiting for the GPU."""
    device = torch.device(device)
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def to_host(*tensors: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """Copies on the CPU, which a GPU sends in the order of its work; calling what is returned waits for them."""
    if not tensors[0].is_cuda:
        return lambda: tensors
    copies = tuple(
        torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
        for tensor in tensors
    )
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()

    def wait() -> tuple[Tensor, ...]:
        arrived.synchronize()
        return copies

    return wait


class LateNumber:
    """A number that a GPU computes at every step, read a step later.

    By then it has been computed, while what the step has asked for since is still waiting: the GPU never runs idle for
    it. All processes of a training read the same number at the same step. On the CPU it is read at once.
    """

    def __init__(self) -> None:
        self._copy: Tensor | None = None
        self._ready: torch.cuda.Event | None = None

    def swap(self, number: Tensor) -> int | None:
        """Hand in this step's number (): that of the step before is given back, None at the first."""
        if not computes_apart(number.device):
            return int(number)
        former = self._read()
        self._copy = torch.empty_like(number, device="cpu", pin_memory=number.is_cuda)
        self._copy.copy_(number, non_blocking=True)
        if number.is_cuda:
            self._ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._ready.record()
        return former

    def _read(self) -> int | None:
        if self._ready is not None:
            self._ready.synchronize()
        return None if self._copy is None else int(self._copy)
