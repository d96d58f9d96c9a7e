"""The one place where a device is chosen, and asked."""

import torch

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
