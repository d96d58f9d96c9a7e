"""The choice of a device, and its free memory."""

import torch

from scoreline.errors import InputError


def choose_device(name: str, local: int = 0) -> torch.device:
    """The torch device of a name; `auto` is a CUDA GPU if there is one, else the CPU.

    Args:
        name: `auto`, or a name that torch.device takes.
        local: number of this process on its machine; with `auto` and `cuda` each process takes the GPU of its number,
            and processes beyond the last GPU share them.

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
    """Free memory of a device in bytes; None if the system does not report it."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo") as file:
            rows = dict(line.split(":", 1) for line in file)
        return int(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
