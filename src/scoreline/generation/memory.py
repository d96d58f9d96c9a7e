"""How much memory a process has had at its peak."""

import sys

import torch

MIB = 2**20


def peak_memory() -> dict[str, float]:
    """MiB of this process at its peak: `cpu` resident, `gpu` what PyTorch held on its GPU, 0 without one."""
    import resource

    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"cpu": resident / MIB, "gpu": gpu / MIB}
