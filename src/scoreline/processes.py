"""Several processes that do one job: who each of them is, how they wait, and how they leave together."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from scoreline.errors import InputError

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
"""The step's number of tasks is set by srun only: a script that sbatch runs without srun is one process."""

PATIENCE = timedelta(days=30)
"""A barrier waits for as long as the others work; one that died is noticed at once."""

MOMENT = timedelta(seconds=10)
"""For how long a process that leaves with a mistake waits to hear whether the first one made it too."""


@dataclass(frozen=True)
class Group:
    """One process among `size` of them.

    Attributes:
        rank: its number, 0 .. size - 1; the first one, 0, prints and writes.
        size: how many there are.
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
        """Wait until every process is here; nothing for a process alone."""
        if self.size > 1:
            import torch.distributed

            torch.distributed.barrier()


def current(environment: Mapping[str, str] = os.environ) -> Group:
    """This process among those that torchrun or srun started; one alone where neither did.

    Raises:
        InputError: if the variables that they set are no whole numbers or disagree.
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
    """Run a Hydra script as one process of its group; alone, `main()` and nothing else.

    Every process runs `main` with the same arguments. The first one only writes Hydra's own files and prints; what
    another one has to say waits until it ends, and is dropped if the first one makes the same mistake (exit code 2).
    """
    from scoreline.entry import leave

    try:
        group = current()
    except InputError as error:
        leave(error)
    if group.size == 1:
        main()
    elif not {"--help", "-h"} & set(sys.argv[1:]):
        try:
            refuse_no_meeting_point()
        except InputError as error:
            leave(error)
        _run_in_group(main, group)
    elif group.first:
        main()


def alike(main: Callable[[], None]) -> None:
    """Run a Hydra script that makes its own process group, in each process that torchrun or srun started.

    Only the first one writes Hydra's files and says what is wrong with the config: all have the same.
    """
    from scoreline.entry import leave

    try:
        group = current()
        if group.size > 1:
            refuse_sweep(sys.argv[1:])
    except InputError as error:
        leave(error)
    if group.first:
        main()
        return
    with _speaking(group) as held:
        try:
            main()
        except SystemExit as leaving:
            if leaving.code == 2:
                held.truncate(0)
            raise


def _run_in_group(main: Callable[[], None], group: Group) -> None:
    with _joined(group) as store, _speaking(group) as held:
        try:
            _run_unless_sweep(main)
        except SystemExit as leaving:
            if leaving.code == 2 and _all_leave(store, group):
                held.truncate(0)
            raise


def _run_unless_sweep(main: Callable[[], None]) -> None:
    from scoreline.entry import leave

    try:
        refuse_sweep(sys.argv[1:])
    except InputError as error:
        leave(error)
    main()


def refuse_sweep(arguments: list[str]) -> None:
    """A sweep's jobs follow one another in one process.

    Raises:
        InputError: if the command line asks for one.
    """
    asked = [word for word in arguments if word == "-m" or word.startswith("--m") or word == "hydra.mode=MULTIRUN"]
    if asked:
        raise InputError(f"{asked[0]}: a sweep runs in one process; start it without torchrun and srun")


@contextlib.contextmanager
def _speaking(group: Group) -> Iterator[io.StringIO]:
    """What a process other than the first writes to stderr is held, and said when it ends."""
    held = io.StringIO()
    if group.first:
        yield held
        return
    try:
        with contextlib.redirect_stderr(held):
            yield held
    finally:
        sys.stderr.write(held.getvalue())


@contextlib.contextmanager
def _joined(group: Group) -> Iterator[Any]:
    """The store that the processes share, within a gloo group, which carries barriers and short lists."""
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
    """Raises InputError if nothing says where the processes of a group find each other."""
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
