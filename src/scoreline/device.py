"""The one place where a device is chosen."""

import torch

from scoreline.errors import InputError


def choose_device(name: str) -> torch.device:
    """`auto` is the first CUDA GPU, else the CPU.

    Raises:
        InputError: for an unknown device or one that this machine lacks.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={name}: not available here; use device=auto or device=cpu") from error
    return device
