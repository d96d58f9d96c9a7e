"""Processes of torchrun and srun that cannot meet say so in one line, where torch would wait in silence."""

import os
import socket
import time
from pathlib import Path

import forks
import pytest

from scoreline.config import launch
from scoreline.errors import InputError
from scoreline.runtime.distributed import Group

PAIR = Group(1, 2, 0)
STEP = {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_JOB_ID": "12", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_NODES": "2"}


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Addresses by name; other names do not resolve."""
    known: dict[str, str] = {}

    def resolve(name: str, *_: object, **__: object) -> object:
        if name not in known:
            raise socket.gaierror("Name or service not known")
        return [(2, 1, 6, "", (known[name], 0))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "gethostname", lambda: "n2")
    return known


def test_a_node_that_does_not_resolve(names: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"^MASTER_ADDR=n1: n2 does not resolve the name of the first node; enter it"):
        launch.refuse_unknown_names(PAIR, STEP)
    names |= {"10.0.0.1": "10.0.0.1", "n2": "10.0.0.2"}
    launch.refuse_unknown_names(PAIR, {**STEP, "MASTER_ADDR": "10.0.0.1"})


@pytest.mark.parametrize("own", [{}, {"n2": "127.0.1.1"}])
def test_a_node_that_others_cannot_reach(names: dict[str, str], own: dict[str, str]) -> None:
    """As Debian enters a machine's own name in /etc/hosts: gloo would listen there alone."""
    names |= {"n1": "10.0.0.1", **own}
    with pytest.raises(
        InputError, match=r"^GLOO_SOCKET_IFNAME: the name n2 of this node leads to no address that other"
    ):
        launch.refuse_unknown_names(PAIR, STEP)
    launch.refuse_unknown_names(PAIR, {**STEP, "GLOO_SOCKET_IFNAME": "eth0"})
    launch.refuse_unknown_names(PAIR, {**STEP, "SLURM_STEP_NUM_NODES": "1"})
    launch.refuse_unknown_names(PAIR, {"MASTER_ADDR": "n1", "LOCAL_WORLD_SIZE": "2"})
    with pytest.raises(InputError, match=r"^GLOO_SOCKET_IFNAME"):
        launch.refuse_unknown_names(PAIR, {"MASTER_ADDR": "n1", "LOCAL_WORLD_SIZE": "1"})


@pytest.mark.parametrize("script", ["sample", "train"])
def test_scripts_end_with_the_line(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**STEP, "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "no-such-node.invalid")
    done = forks.call(script, cwd=tmp_path, patience=60)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{script}.py: MASTER_ADDR=no-such-node.invalid: ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_process_that_nobody_meets_ends(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """The other process never starts."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "23456")
    child = os.fork()
    if not child:
        with launch._meeting(Group(0, 2, 0), limit=0.2):
            time.sleep(60)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    assert "process 0 of 2 on " in (said := capfd.readouterr().err)
    assert "not all met at 127.0.0.1:23456 within 0.2 s; see whether each" in said


def test_the_sum_of_tasks_is_refused() -> None:
    step = {"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}
    with pytest.raises(
        InputError, match=r"^--ntasks=2: trainer=slurm needs the tasks of each node; start it with srun"
    ):
        launch.refuse_sum_of_tasks(step)
    launch.refuse_sum_of_tasks({**step, "SLURM_NTASKS_PER_NODE": "1"})
    launch.refuse_sum_of_tasks({"SLURM_NTASKS": "2"})
