"""Several processes of one job: rank and size, barriers, and how all leave with one message."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from scoreline.errors import InputError

T = TypeVar("T")

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
"""Only srun sets the number of tasks of a step: a script that sbatch runs without srun is one process."""

PATIENCE = timedelta(days=30)
"""A barrier waits for as long as the others work; it fails at once if one of them dies."""

MOMENT = timedelta(seconds=10)
"""A process that leaves with a mistake waits so long to learn whether the others make it too."""


@dataclass(frozen=True)
class Group:
    """One process among `size` of them.

    Attributes:
        rank: its number, 0 .. size - 1; the first one, 0, prints and writes.
        size: number of processes.
        local: its number on this machine, which picks its GPU.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this process prints and writes for all."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all processes; a process alone returns at once."""
        if self.size > 1:
            import torch.distributed

            torch.distributed.barrier()


def current(environment: Mapping[str, str] = os.environ) -> Group:
    """The rank of this process among those that torchrun or srun started; without them it is alone.

    Raises:
        InputError: if one of their variables is no whole number, or they disagree.
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


def run(main: Callable[[], None]) -> None:
    """Run a Hydra script as one process of its group; a process alone just calls `main()`.

    Every process runs `main` with the same arguments. Only the first one writes Hydra's files and prints.
    """
    group = _or_leave(current)
    asks_help = bool({"--help", "-h"} & set(sys.argv[1:]))
    if group.size == 1 or (asks_help and group.first):
        main()
    elif not asks_help:
        _or_leave(refuse_no_meeting_point)
        with _joined(group) as store:
            _speak_at_the_end(main, group, lambda: _all_leave(store, group))


def alike(main: Callable[[], None]) -> None:
    """Run a Hydra script that makes its own process group, in each process that torchrun or srun started.

    All processes find the same mistakes in the config, so only the first one prints them and writes Hydra's files.
    """
    _speak_at_the_end(main, _or_leave(current), lambda: True)


def _or_leave(check: Callable[..., T], *arguments: Any) -> T:
    """The result of a check; an InputError becomes one line and exit code 2."""
    from scoreline.entry import leave

    try:
        return check(*arguments)
    except InputError as error:
        leave(error)


def _speak_at_the_end(main: Callable[[], None], group: Group, all_leave: Callable[[], bool]) -> None:
    """Hold what a process other than the first writes to stderr until it ends; drop a mistake that all make."""
    held = io.StringIO()
    try:
        with contextlib.nullcontext() if group.first else contextlib.redirect_stderr(held):
            if group.size > 1:
                _or_leave(refuse_sweep, sys.argv[1:])
            main()
    except SystemExit as leaving:
        if leaving.code == 2 and all_leave():
            held.truncate(0)
        raise
    finally:
        sys.stderr.write(held.getvalue())


def refuse_sweep(arguments: list[str]) -> None:
    """Raises InputError if the command line asks for a sweep, whose jobs run one after another in one process."""
    asked = [word for word in arguments if word == "-m" or word.startswith("--m") or word == "hydra.mode=MULTIRUN"]
    if asked:
        raise InputError(f"{asked[0]}: a sweep runs in one process; start it without torchrun and srun")


@contextlib.contextmanager
def _joined(group: Group) -> Iterator[Any]:
    """The store of the processes, within a gloo group for barriers and short lists."""
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    for name, value in _meeting_point(os.environ).items():
        os.environ.setdefault(name, value)
    store, rank, size = next(rendezvous("env://", group.rank, group.size))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield store
    finally:
        dist.destroy_process_group()


def refuse_no_meeting_point(environment: Mapping[str, str] = os.environ) -> None:
    """Raises InputError if the environment names no place where the processes meet."""
    told = {**_meeting_point(environment), **environment}
    for name, pattern in (("MASTER_ADDR", ".+"), ("MASTER_PORT", "[0-9]{1,5}")):
        if not re.fullmatch(pattern, told.get(name, "")):
            raise InputError(f"{name}={told.get(name, '')}: says no place to meet; start all with torchrun or srun")


def _meeting_point(environment: Mapping[str, str]) -> dict[str, str]:
    """MASTER_ADDR, MASTER_PORT for a step of srun: its first node, and a port that belongs to the job and step."""
    node = re.match(r"([^,\[]+)(?:\[(\d+))?", environment.get("SLURM_STEP_NODELIST", ""))
    if node is None:
        return {}
    job, step = (int(environment.get(key, 0)) for key in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return {"MASTER_ADDR": node[1] + (node[2] or ""), "MASTER_PORT": str(15000 + (31 * job + step) % 15000)}


def _all_leave(store: Any, group: Group) -> bool:
    """Whether every process leaves with a mistake; the second step keeps the store alive until all have heard."""
    for step in ("mistake", "heard"):
        try:
            store.set(f"{step}/{group.rank}", "")
            store.wait([f"{step}/{rank}" for rank in range(group.size)], MOMENT)
        except RuntimeError:
            return step == "heard"
    return True
