"""Start a script as one process of several: a group that meets, speaks with one voice, and leaves together."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, TypeVar

from scoreline.errors import InputError
from scoreline.runtime.distributed import Group, current

T = TypeVar("T")


PATIENCE = timedelta(days=30)
"""Longest wait at a barrier, which fails at once if another process dies."""


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
        with _joined(group) as store:
            _speak_at_the_end(main, group, lambda: _all_leave(store, group))


def alike(main: Callable[[], None]) -> None:
    """Run a Hydra script that makes its own process group, in each process that torchrun or srun started.

    All processes find the same mistakes in the config, so only the first one prints them and writes Hydra's files.
    """
    _speak_at_the_end(main, _or_leave(current), lambda: True)


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
    store, rank, size = next(rendezvous("env://", group.rank, group.size))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield store
    finally:
        dist.destroy_process_group()


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
