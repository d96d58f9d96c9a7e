"""docs/cluster.md: its batch files, and what they do on a real SLURM of two nodes.

Tests that need SLURM are slow, and left out where `sinfo` names no two nodes.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "docs/cluster").glob("*.sbatch"))
COMMAND = re.compile(r"^srun .*scoreline (\w+)(.*) \"\$@\"$", re.M)
USAGE = re.compile(r"^#   sbatch (\S+\.sbatch) (.+)$", re.M)
SMALL = ("checkpoint=digits_vp", "metrics=none", "batch_size=8", "network_batch=8")

TABLE = """
title: Two nodes
metric: frechet_distance
base: [checkpoint=digits_vp, metrics=digits, batch_size=16, network_batch=16]
budgets: {smoke: {ranges: ["0-63", "64-127"]}}
columns: {label: NFE, key: nfe, values: [6, 60]}
rows:
  - {name: DDIM, overrides: [solver=ddim]}
  - {name: iPNDM, overrides: [solver=ipndm4]}
"""


def two_nodes() -> bool:
    if shutil.which("sinfo") is None:
        return False
    found = subprocess.run(["sinfo", "-hN", "-o", "%N"], capture_output=True, text=True, check=False, timeout=30)
    return len(set(found.stdout.split())) > 1


on_slurm = pytest.mark.skipif(not two_nodes(), reason="needs SLURM with two nodes")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_batch_files_are_as_the_page_shows_them(path: Path) -> None:
    """And bash reads them, and every word of theirs is a key or a choice."""
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
    text = path.read_text()
    assert f"```bash\n{text}```" in (ROOT / "docs/cluster.md").read_text()
    (script, own), (name, words) = COMMAND.findall(text)[0], USAGE.findall(text)[0]
    assert name == path.name
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose(script, shlex.split(f"{own} {words}"))
    assert cfg.get("lock", "refuse") == ("share" if "table=" in words else "refuse")


def test_the_page_names_every_batch_file() -> None:
    page = (ROOT / "docs/cluster.md").read_text()
    assert set(re.findall(r"\(cluster/(\S+)\)", page)) == {path.name for path in FILES}
    assert len(FILES) == 3


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory whose jobs find our program; they are cancelled at the end."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    yield tmp_path
    subprocess.run(["scancel", f"--user={os.getuid()}", f"--name={tmp_path.name}"], check=False)


def submit(file: str, *words: str, options: tuple[str, ...] = ()) -> str:
    """The number of a job of a batch file, with as little for each task as our two nodes have."""
    own = [f"--job-name={Path.cwd().name}", "--cpus-per-task=1", *options]
    done = subprocess.run(
        ["sbatch", "--parsable", *own, str(ROOT / "docs/cluster" / file), *words],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def until(condition: Callable[[], object], seconds: float = 400) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "\n".join(path.read_text() for path in Path.cwd().glob("*.log"))
        time.sleep(0.1)


def states(job: str) -> list[str]:
    """The state of every task of a job."""
    done = subprocess.run(["scontrol", "-o", "show", "job", job], capture_output=True, text=True, check=True)
    return re.findall(r"JobState=(\w+)", done.stdout)


def restarts(job: str) -> int:
    done = subprocess.run(["scontrol", "-o", "show", "job", job], capture_output=True, text=True, check=True)
    return sum(map(int, re.findall(r"Restarts=(\d+)", done.stdout)))


def ended(job: str) -> bool:
    return not set(states(job)) & {"PENDING", "RUNNING", "COMPLETING", "SUSPENDED", "CONFIGURING", "REQUEUED"}


def alone(*words: str) -> None:
    """The same run in one process without SLURM."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    done = subprocess.run(["scoreline", *words], env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def processes(text: str) -> list[int]:
    """The processes of tasks of srun whose command line holds a text; a batch file is no task."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words, parent = (entry / "cmdline").read_text(), (entry / "stat").read_text().split()[3]
            above = Path("/proc", parent, "comm").read_text()
        except OSError:
            continue
        if text in words and "scoreline\0sample" in words and above.startswith("slurmstepd"):
            found.append(int(entry.name))
    return found


@on_slurm
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_table_on_two_nodes_is_killed_twice_and_finished(where: Path) -> None:
    """USR1 to both tasks, which are requeued; SIGKILL to one, whose cells the other takes; the table of one process."""
    (where / "conf/table").mkdir(parents=True)
    (where / "conf/table/two_nodes.yaml").write_text(TABLE)
    words = ("--config-dir", "conf", "table=two_nodes", "budget=smoke")
    job = submit("table.sbatch", *words, "hydra.run.dir=out", options=("--array=0-1",))

    def finished() -> int:
        return len(list(where.glob("out/cells/*/*/*/metrics.json")))

    until(lambda: finished() >= 1)
    subprocess.run(["scancel", "--signal=USR1", job], check=True)
    until(lambda: restarts(job) == 2)
    assert finished() < 6
    until(lambda: finished() >= 3 and len(processes("two_nodes")) == 2)
    os.kill(processes("two_nodes")[0], signal.SIGKILL)
    until(lambda: ended(job))
    assert sorted(states(job)) == ["COMPLETED", "FAILED"]
    logs = "\n".join(path.read_text() for path in where.glob("table-*.log"))
    assert len(re.findall(r"^SIGUSR1: \d of 8 runs are finished; the same command continues$", logs, re.M)) == 2
    alone("sample", *words, "hydra.run.dir=whole")
    assert (where / "out/table.csv").read_bytes() == (where / "whole/table.csv").read_bytes()
    assert finished() == 8


@on_slurm
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_images_of_two_nodes_are_requeued_and_equal(where: Path) -> None:
    words = (*SMALL, "nfe=100", "seeds=0-127")
    options = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1")
    job = submit("images.sbatch", *words, "hydra.run.dir=out", options=options)
    until(lambda: len(list(where.glob("out/shards/*.safetensors"))) > 1)
    subprocess.run(["scancel", "--signal=USR1", job], check=True)
    until(lambda: restarts(job) == 1)
    assert not (where / "out/metrics.json").exists()
    until(lambda: ended(job))
    assert states(job) == ["COMPLETED"], (where / "images.log").read_text()
    alone("sample", *words, "hydra.run.dir=whole")
    for name in ("samples.npz", "manifest.csv", "grid.png"):
        assert (where / "out" / name).read_bytes() == (where / "whole" / name).read_bytes()


@on_slurm
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_training_on_two_nodes_is_requeued_and_equal(where: Path) -> None:
    words = ("dataset=digits", "trainer.accelerator=cpu", "batch_size=32", "duration_kimg=3.2", "checkpoint_kimg=1000")
    options = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1")

    def models(folder: str, kill: bool) -> dict[str, object]:
        job = submit("train.sbatch", *words, f"hydra.run.dir={folder}", options=options)
        if kill:
            until(lambda: (where / folder / "metrics.jsonl").is_file())
            subprocess.run(["scancel", "--signal=USR1", job], check=True)
            until(lambda: restarts(job) == 1)
        until(lambda: ended(job))
        assert states(job) == ["COMPLETED"], (where / "train.log").read_text()
        return dict(load_file(where / folder / "model.safetensors"))

    one, two = models("whole", kill=False), models("out", kill=True)
    assert "SIGUSR1: stopped at " in (where / "train.log").read_text()
    assert all((value == two[name]).all() for name, value in one.items())  # type: ignore[attr-defined]


@on_slurm
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_cancelled_sweep_ends_with_a_line(where: Path) -> None:
    """With and without accounting."""
    words = ["scoreline", "sample", "-m", "hydra/launcher=slurm", *SMALL, "nfe=200,201", "seeds=0-999", "device=cpu"]
    keys = ["cpus_per_task=1", "gpus_per_node=null", f"name={where.name}"]
    command = [*words, *(f"hydra.launcher.{key}" for key in keys), "hydra.sweep.dir=sweep"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    until(lambda: list(where.glob("sweep/*/shards/*.safetensors")))
    subprocess.run(["scancel", f"--name={where.name}"], check=True)
    said = process.communicate(timeout=200)[1].splitlines()
    assert process.returncode == 2
    assert re.search(r"job \d+_0: ended without a result \(state \w+\); see .*; the same command resumes$", said[-1])
    assert not [line for line in said if "Traceback" in line or "Bypassing" in line]
