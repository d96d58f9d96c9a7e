"""Choice of a device, and asynchronous transfers between host and device."""

import torch
from torch import Tensor

from scoreline.errors import InputError


def choose_device(name: str, local: int = 0) -> torch.device:
    """`auto` is a CUDA GPU where there is one, else the CPU.

    Args:
        local: number of this process on its machine; with `auto` and `cuda` each takes the GPU of that number, and
            processes beyond the last GPU share those there are.

    Raises:
        InputError: for an unknown device or one that this machine lacks.
    """
    refused = InputError(f"device={name}: not available here; use device=auto or device=cpu")
    if not isinstance(name, str) or name.startswith("meta"):
        raise refused
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device == torch.device("cuda"):
            device = torch.device("cuda", local % max(1, torch.cuda.device_count()))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise refused from error
    return device


def free_memory(device: torch.device) -> int | None:
    """Bytes that a job can have on a device; None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo") as file:
            rows = dict(line.split(":", 1) for line in file)
        return int(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def computes_apart(device: torch.device) -> bool:
    """Whether a device works off a queue, so that reading a number from it waits for all that was asked of it."""
    return device.type == "cuda"


def moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on a device. From the CPU to a GPU by way of pinned memory, without waiting for the GPU."""
    device = torch.device(device)
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


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
