"""Choice of a device, and asynchronous transfers between host and device."""

from collections.abc import Callable

import torch
from torch import Tensor

from scoreline.errors import InputError


def choose_device(name: str, local: int = 0) -> torch.device:
    """Return the device of a name; `auto` is a CUDA GPU if there is one, else the CPU.

    Args:
        name: `auto` or a name of torch, such as `cpu` or `cuda:1`.
        local: rank of this process on its machine. `auto` and `cuda` take the GPU of that number; if there are more
            processes than GPUs, they share them.

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
    """Return the bytes that are free on a device, or None if the system does not report them."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo") as file:
            rows = dict(line.split(":", 1) for line in file)
        return int(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def computes_apart(device: torch.device) -> bool:
    """Return whether a device works through a queue, so that reading a number from it waits for all queued work."""
    return device.type == "cuda"


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return a tensor on a device; from the CPU to a GPU it goes through pinned memory, without waiting for the GPU."""
    device = torch.device(device)
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def to_host(*tensors: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """Start copies to the CPU, in the order of the GPU's work, and return a function that waits for them."""
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
    """A number that a GPU computes at every step and the host reads one step later.

    By then the number is ready while later work is still queued, so the GPU never idles. All processes of a training
    read the same number at the same step. On the CPU the number is read at once.
    """

    def __init__(self) -> None:
        self._copy: Tensor | None = None
        self._ready: torch.cuda.Event | None = None

    def swap(self, number: Tensor) -> int | None:
        """Take this step's number (a scalar tensor) and return that of the step before; None at the first step."""
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
