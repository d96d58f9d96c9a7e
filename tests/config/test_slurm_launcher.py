"""What a cluster lacks is told in one line before a sweep is submitted; small programs stand for those of SLURM."""

import os
import subprocess
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from scoreline.config import explain
from scoreline.config.slurm_launcher import SlurmReady

RUNNING = "JobId=12 ArrayJobId=11 ArrayTaskId=0 JobState=RUNNING NodeList=n1"
WAITING = "JobId=11 ArrayJobId=11 ArrayTaskId=1,3-4%2 JobState=PENDING NodeList="
CANCELLED = "JobId=11 ArrayJobId=11 ArrayTaskId=4294967294 JobState=CANCELLED NodeList="


class Programs:
    """A folder of programs, the first of PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    found = Programs(tmp_path / "bin")
    found.add("sbatch", "exit 0")
    found.add("sinfo", 'echo "gpu:a100:8"')
    found.add("sacct", "exit 0")
    return found


def start(capsys: pytest.CaptureFixture[str], **launcher: object) -> tuple[int | None, str]:
    """The exit code and the line of a sweep with these keys of hydra.launcher."""
    config = OmegaConf.create({"hydra": {"launcher": {"gpus_per_node": 1, "partition": None, **launcher}}})
    try:
        SlurmReady().on_multirun_start(config)
    except SystemExit as left:
        return int(str(left.code)), capsys.readouterr().err
    return None, capsys.readouterr().err


def test_a_whole_cluster_needs_no_word(programs: Programs, capsys: pytest.CaptureFixture[str]) -> None:
    path = os.environ["PATH"]
    assert start(capsys) == (None, "")
    assert os.environ["PATH"] == path


def test_no_sbatch(programs: Programs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    code, line = start(capsys)
    assert code == 2
    assert "hydra/launcher=slurm: there is no sbatch on this machine; start the sweep where there is one" in line


def test_no_gpus(programs: Programs, capsys: pytest.CaptureFixture[str]) -> None:
    programs.add("sinfo", '[ "$3" = --partition=cpu ] && echo "(null)" || echo "gpu:4"')
    assert start(capsys) == (None, "")
    code, line = start(capsys, partition="cpu")
    assert code == 2
    assert "hydra.launcher.gpus_per_node=1: no node of partition cpu offers GPUs (sinfo --format=%G); add " in line
    assert line.endswith("add hydra.launcher.gpus_per_node=null\n")
    assert start(capsys, partition="cpu", gpus_per_node=None) == (None, "")


def test_without_accounting_states_come_from_scontrol(
    programs: Programs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for tasks that wait or that scontrol has forgotten; while it does not answer, no state is given."""
    monkeypatch.setenv("PATH", os.environ["PATH"])
    programs.add("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    _, line = start(capsys)
    assert line == (
        "note: sacct does not answer (Slurm accounting storage is disabled); the states of jobs come from scontrol\n"
    )
    assert asked(programs, f"echo '{RUNNING}'; echo '{WAITING}'") == {
        **{"11_0": "RUNNING", "11_1": "PENDING", "11_2": "FAILED", "11_3": "PENDING", "11_4": "PENDING"}
    }
    assert set(asked(programs, f"echo '{CANCELLED}'").values()) == {"CANCELLED"}
    assert set(asked(programs, "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1").values()) == {
        "FAILED"
    }
    assert set(asked(programs, "echo 'Unable to contact slurm controller' >&2; exit 1").values()) == {None}


def asked(programs: Programs, answer: str) -> dict[str, str | None]:
    """The states that submitit reads of the tasks of job 11, after scontrol's answer."""
    from submitit.slurm.slurm import SlurmInfoWatcher

    programs.add("scontrol", answer)
    said = subprocess.run(["sacct", "-o", "JobID,State", "-j", "11"], capture_output=True, check=True, text=True)
    found = SlurmInfoWatcher().read_info(said.stdout)
    return {task: found.get(task, {}).get("State") for task in (f"11_{k}" for k in range(5))}


def test_what_slurm_refused_or_ended_is_one_line() -> None:
    from submitit.core.utils import FailedJobError, UncompletedJobError

    refused = FailedJobError("sbatch: error: Batch job submission failed: Requested reservation is invalid")
    assert explain.explain(refused) == (
        "hydra/launcher=slurm: Batch job submission failed: Requested reservation is invalid; the keys below "
        "hydra.launcher go to sbatch"
    )
    ended = UncompletedJobError(
        "Job 12_0 (task: 0) with path /s/12_0/r.pkl\nhas not produced any output (state: TIMEOUT)"
    )
    assert explain.explain(ended) == (
        "job 12_0: ended without a result (state TIMEOUT); see /s/12_0; the same command resumes"
    )
    assert explain.explain(FailedJobError("Job (task=0) failed during processing with trace:\nTraceback")) is None
