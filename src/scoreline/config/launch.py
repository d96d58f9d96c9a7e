"""Start a script as one process of several: a group that meets, speaks with one voice, and leaves together."""

import contextlib
import io
import ipaddress
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, TypeVar

from scoreline.errors import InputError
from scoreline.runtime.distributed import Group, current

T = TypeVar("T")


PATIENCE = timedelta(days=30)
"""Longest wait at a barrier, which fails at once if another process dies."""


MEETING = 600.0
"""Seconds that the processes have to find each other. torch itself tries again in silence, some of it without end."""

MOMENT = timedelta(seconds=10)
"""Wait of a process with a mistake in its config to learn whether the others have the same."""


def run(main: Callable[[], None]) -> None:
    """Run a Hydra script as one process of its group; a process alone just calls `main()`.

    Every process runs `main` with the same arguments. Only the first one writes Hydra's files and prints.
    """
    group = _or_leave(current)
    asks_help = bool({"--help", "-h"} & set(sys.argv[1:]))
    if group.size == 1 or (asks_help and group.first):
        main()
    elif not asks_help:
        _or_leave(_refuse_no_meeting_point)
        _or_leave(refuse_unknown_names, group)
        with _joined(group) as store:
            _speak_at_the_end(main, group, lambda: _all_leave(store, group))


def alike(main: Callable[[], None]) -> None:
    """Run a Hydra script that makes its own process group, in each process that torchrun or srun started.

    All processes find the same mistakes in the config, so only the first one prints them and writes Hydra's files.
    """
    group = _or_leave(current)
    if group.size > 1:
        _or_leave(refuse_unknown_names, group)

    def start() -> None:
        _or_leave(refuse_sum_of_tasks)
        main()

    _speak_at_the_end(start, group, lambda: True)


def refuse_sum_of_tasks(environment: Mapping[str, str] = os.environ) -> None:
    """Refuse a step of srun that gives the number of all tasks alone, from which Lightning cannot tell those of a node.

    Args:
        environment: the environment variables.

    Raises:
        InputError: naming the option.
    """
    count = environment.get("SLURM_NTASKS", "1")
    if "SLURM_PROCID" in environment and count != "1" and "SLURM_NTASKS_PER_NODE" not in environment:
        raise InputError(
            f"--ntasks={count}: trainer=slurm needs the tasks of each node; start it with srun --nodes=.. "
            "--ntasks-per-node=.. (sbatch takes the same options)"
        )


def _or_leave(check: Callable[..., T], *arguments: Any) -> T:
    """Return the result of a check; report an InputError in one line and exit with code 2."""
    from scoreline.config.script import leave

    try:
        return check(*arguments)
    except InputError as error:
        leave(error)


def _speak_at_the_end(main: Callable[[], None], group: Group, all_leave: Callable[[], bool]) -> None:
    """Delay the stderr of all processes but the first until they end; drop it if all have the same mistake."""
    buffer = io.StringIO()
    try:
        with contextlib.nullcontext() if group.first else contextlib.redirect_stderr(buffer):
            if group.size > 1:
                _or_leave(refuse_sweep, sys.argv[1:])
            main()
    except SystemExit as leaving:
        if leaving.code == 2 and all_leave():
            buffer.truncate(0)
        raise
    finally:
        sys.stderr.write(buffer.getvalue())


def refuse_sweep(arguments: list[str]) -> None:
    """Refuse a sweep, whose jobs run one after another in one process.

    Raises:
        InputError: naming the word that starts a sweep.
    """
    words = [word for word in arguments if word == "-m" or word.startswith("--m") or word == "hydra.mode=MULTIRUN"]
    if words:
        raise InputError(f"{words[0]}: a sweep runs in one process; start it without torchrun and srun")


@contextlib.contextmanager
def _joined(group: Group) -> Iterator[Any]:
    """Join a gloo group for barriers and short lists, and yield its store."""
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    for name, value in _meeting_point(os.environ).items():
        os.environ.setdefault(name, value)
    with _meeting(group):
        store, rank, size = next(rendezvous("env://", group.rank, group.size))
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield store
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _meeting(group: Group, limit: float = MEETING) -> Iterator[None]:
    """End this process with one line and code 2 if the block takes longer than `limit` seconds."""
    place = ":".join(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))

    def leave() -> None:
        print(
            f"process {group.rank} of {group.size} on {socket.gethostname()}: not all met at {place} within "
            f"{limit:g} s; see whether each of them started, and whether the nodes reach each other there",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)  # the wait is torch's, which no exception ends

    timer = threading.Timer(limit, leave)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def refuse_unknown_names(group: Group, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse names of machines with which the processes would wait for each other in silence.

    Args:
        group: the processes.
        environment: the environment variables.

    Raises:
        InputError: if this machine cannot resolve the address of the first process, or, among several machines, its own
            name leads to itself alone, so that the others could not reach it by gloo.
    """
    host, name = socket.gethostname(), {**_meeting_point(environment), **environment}.get("MASTER_ADDR", "")
    if not name:
        return
    first = _addresses(name)
    if not first:
        raise InputError(
            f"MASTER_ADDR={name}: {host} does not resolve the name of the first node; enter it in DNS or /etc/hosts, "
            "or export MASTER_ADDR with an address of that node"
        )
    away = _several_machines(group, environment) and not any(map(_loops, first))
    if away and "GLOO_SOCKET_IFNAME" not in environment and all(map(_loops, _addresses(host))):
        raise InputError(
            f"GLOO_SOCKET_IFNAME: the name {host} of this node leads to no address that other nodes reach; enter it in "
            "DNS or /etc/hosts, or export GLOO_SOCKET_IFNAME with the interface of the network (`ip addr` lists them)"
        )


def _several_machines(group: Group, environment: Mapping[str, str]) -> bool:
    """Return whether torchrun or srun started processes on other machines too."""
    here = environment.get("LOCAL_WORLD_SIZE", str(group.size))
    return here != str(group.size) or environment.get("SLURM_STEP_NUM_NODES", "1") != "1"


def _addresses(name: str) -> list[str]:
    """Return the addresses of a machine, none if its name does not resolve."""
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]
    except OSError:
        return []


def _loops(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _refuse_no_meeting_point(environment: Mapping[str, str] = os.environ) -> None:
    """Refuse an environment without the address at which the processes meet.

    Args:
        environment: the environment variables.

    Raises:
        InputError: naming the variable.
    """
    settings = {**_meeting_point(environment), **environment}
    for name, pattern in (("MASTER_ADDR", ".+"), ("MASTER_PORT", "[0-9]{1,5}")):
        if not re.fullmatch(pattern, settings.get(name, "")):
            raise InputError(
                f"{name}={settings.get(name, '')}: no address for the processes to meet; "
                "start all with torchrun or srun"
            )


def _meeting_point(environment: Mapping[str, str]) -> dict[str, str]:
    """Return MASTER_ADDR and MASTER_PORT for a step of srun: its first node, and a port derived from job and step."""
    node = re.match(r"([^,\[]+)(?:\[(\d+))?", environment.get("SLURM_STEP_NODELIST", ""))
    if node is None:
        return {}
    job, step = (int(environment.get(key, 0)) for key in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return {"MASTER_ADDR": node[1] + (node[2] or ""), "MASTER_PORT": str(15000 + (31 * job + step) % 15000)}


def _all_leave(store: Any, group: Group) -> bool:
    """Return whether every process fails; the second step keeps the store alive until all know."""
    for step in ("mistake", "heard"):
        try:
            store.set(f"{step}/{group.rank}", "")
            store.wait([f"{step}/{rank}" for rank in range(group.size)], MOMENT)
        except RuntimeError:
            return step == "heard"
    return True
