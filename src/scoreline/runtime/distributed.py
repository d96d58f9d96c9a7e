"""The processes of one job: rank, size and barrier."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from scoreline.errors import InputError

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
"""Environment variables of rank, size and local rank that torchrun sets."""

SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
"""Those of srun, which alone sets the number of tasks: a script that sbatch runs without srun is one process."""


@dataclass(frozen=True)
class Group:
    """One process among `size` of them.

    Attributes:
        rank: number of the process, 0 .. size - 1; number 0 prints and writes.
        size: number of processes.
        local: number of the process on its machine, which selects its GPU.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this process prints and writes for all of them."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all processes; a process alone returns at once."""
        if self.size > 1:
            import torch.distributed

            torch.distributed.barrier()


def current(environment: Mapping[str, str] = os.environ) -> Group:
    """Return the rank of this process among those that torchrun or srun started; without them it is alone.

    Args:
        environment: the environment variables.

    Raises:
        InputError: if one of their variables is no whole number, or the rank is not below the size.
    """
    for names in (TORCHRUN, SRUN):
        if names[0] in environment and names[1] in environment:
            rank, size, local = (_number(environment, name) for name in names)
            if rank >= size:
                raise InputError(f"{names[0]}={rank}: must be below {names[1]}={size}; start all with torchrun or srun")
            return Group(rank, size, local)
    return Group()


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    if not value.isdecimal():
        raise InputError(f"{name}={value}: must be a whole number; start all processes with torchrun or srun")
    return int(value)
