"""Sweeps as jobs of submitit, by its local executor: the machinery of SLURM jobs without SLURM."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from runs import PARTS, ROOT, SMALL, environment, flat, script, state
from safetensors.torch import load_file

from scoreline.config.run_names import register_resolvers
from scoreline.training.training_state import list_checkpoints

LOCAL = ["-m", *SMALL, "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10", "hydra.sweep.dir=sweep"]


def sweep(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), *LOCAL, *arguments]


def test_jobs_leave_models_in_the_sweep(tmp_path: Path) -> None:
    script("train.py", tmp_path, *LOCAL, "duration_kimg=0.064", "seed=0,1")
    models = [load_file(path) for path in sorted(tmp_path.rglob("model.safetensors"))]
    assert [path.parent.parent.name for path in tmp_path.rglob("model.safetensors")] == ["sweep", "sweep"]
    assert any(bool((value != models[1][name]).any()) for name, value in models[0].items())


@pytest.mark.parametrize(
    ("name", "more"),
    [("slurm", []), ("submitit_slurm", []), ("slurm", ["hydra.launcher.gpus_per_node=null"])],
)
def test_the_slurm_launcher_composes(name: str, more: list[str]) -> None:
    register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", [f"hydra/launcher={name}", *more], return_hydra_config=True)
    launcher = cfg.hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    if name == "slurm":
        assert launcher.tasks_per_node == 1
        assert launcher.gpus_per_node == (None if more else 1)
        assert launcher.max_num_timeout > 0


@pytest.mark.slow
def test_preempted_job_is_requeued_and_ends_equal(tmp_path: Path) -> None:
    whole = subprocess.run(
        sweep("duration_kimg=6.4", "seed=0", "hydra.sweep.dir=whole"),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=250,
        env=environment(),
    )
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(
        sweep("duration_kimg=6.4", "seed=0", "checkpoint_kimg=1000"), cwd=tmp_path, env=environment()
    )
    limit = time.monotonic() + 100
    while not list(tmp_path.glob("sweep/*/metrics.jsonl")) and time.monotonic() < limit:
        time.sleep(0.05)
    (job,) = _jobs(tmp_path / "sweep")
    os.kill(job, signal.SIGUSR2)
    assert process.wait(timeout=200) == 0
    (a,), (b,) = ([found.parent for found in tmp_path.glob(f"{name}/*/metrics.jsonl")] for name in ("whole", "sweep"))
    assert len(list_checkpoints(b)) == 2
    one, two = (flat({key: state(run)[key] for key in PARTS}) for run in (a, b))
    assert all(
        (value == two[name]).all() if hasattr(value, "shape") else value == two[name] for name, value in one.items()
    )


def _jobs(folder: Path) -> list[int]:
    """Processes that run a job of this sweep."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().decode().split("\0")
        except OSError:
            continue
        if "submitit.core._submit" in words and any(str(folder) in word for word in words):
            found.append(int(entry.parent.name))
    return found
