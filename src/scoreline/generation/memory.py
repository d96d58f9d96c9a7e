"""How much memory a process has had at its peak."""

import sys

import torch

MIB = 2**20


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
