"""sample.py by several processes, killed and started again: the same bytes, no image made twice."""

import csv
import hashlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import forks
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from scoreline.checkpoints import Card, save_model

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "sample.py")
VP = {"_target_": "scoreline.schedules.vp.LinearVP", "beta_min": 0.1, "beta_max": 20.0}
COUNT, NFE, UNIT = 300, 3, 16

PACKAGE = '''
import os
import time

import torch
from torch import nn


class Counted(nn.Module):
    """Writes down each of its calls: process, then the labels of its rows, which are the numbers of the images."""

    def __init__(self, log: str, pause: float) -> None:
        super().__init__()
        self.log, self.pause = log, pause
        self.convolution = nn.Conv2d(1, 1, 3, padding=1)
        self.embedding = nn.Embedding(300, 1)

    def forward(self, x, noise, label=None):
        time.sleep(self.pause)
        with open(self.log, "a") as file:
            file.write(" ".join(map(str, [os.getpid(), *label.tolist()])) + "\\\\n")
        return torch.tanh(self.convolution(x) + self.embedding(label)[:, :, None, None])
'''.replace("\\\\n", "\\n")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A network that counts, of a package outside scoreline, and the label i for image i."""
    package = tmp_path / "counting"
    package.mkdir()
    (package / "__init__.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    torch.manual_seed(0)
    weights = {
        "convolution.weight": torch.randn(1, 1, 3, 3),
        "convolution.bias": torch.zeros(1),
        "embedding.weight": torch.randn(COUNT, 1),
    }
    model = {
        "network": {"_target_": "counting.Counted", "log": str(tmp_path / "calls"), "pause": 0.03},
        "noise_schedule": VP,
        "parameterisation": {"_target_": "scoreline.parameterisations.NoisePrediction", "noise_schedule": VP},
    }
    save_model(tmp_path / "counted.safetensors", weights, Card(model, (1, 8, 8), COUNT, {}, {}))
    (tmp_path / "classes.txt").write_text("\n".join(map(str, range(COUNT))))
    yield tmp_path
    sys.modules.pop("counting", None)


ASKED = (
    *("checkpoint=counted.safetensors", "trust=[counting]", "labels=classes.txt", f"seeds=7-{6 + COUNT}"),
    *(f"nfe={NFE}", f"network_batch={UNIT}", "device=cpu", "solver=ddim", "metrics=none"),
)


def kept(run: Path) -> set[int]:
    """Images that lie in whole shards."""
    return {int(i) for path in (run / "shards").glob("[0-9]*.safetensors") for i in load_file(path)["index"]}


def whole_shards(run: Path) -> int:
    return len(list((run / "shards").glob("[0-9]*.safetensors")))


def wait(until: Callable[[], bool], children: list[int], where: Path) -> None:
    began = time.monotonic()
    while not until():
        assert os.waitpid(children[0], os.WNOHANG) == (0, 0), (where / "said-0").read_text()
        assert time.monotonic() - began < 60
        time.sleep(0.001)


def calls(where: Path) -> list[tuple[int, list[int]]]:
    """(process, its rows) of every call so far, in order; the rows that fill a batch up repeat the last one."""
    lines = [list(map(int, line.split())) for line in (where / "calls").read_text().splitlines()]
    return [(line[0], line[1:]) for line in lines]


def final_files(run: Path) -> dict[str, str]:
    return {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in ("samples.npz", "manifest.csv")}


def torchrun(where: Path, *arguments: str) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", SCRIPT]
    done = subprocess.run([*launcher, *arguments], cwd=where, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


KILLS = [(1, 48, 1), (2, 16, 3), (1, 20, 2)]
"""Processes, batch size, and how many new shards there are when all are killed."""


def test_three_kills_leave_the_same_bytes(workplace: Path) -> None:
    [alone] = forks.start(SCRIPT, workplace, *ASKED, "batch_size=64", "hydra.run.dir=alone")
    assert forks.ended(alone) == 0, (workplace / "said-0").read_text()
    assert len(calls(workplace)) == NFE * sum(math.ceil(n / UNIT) for n in (64, 64, 64, 64, 44))
    (workplace / "calls").unlink()
    run, rounds = workplace / "run", []
    for size, batch_size, shards in KILLS:
        before = kept(run)
        there = whole_shards(run)
        children = forks.start(SCRIPT, workplace, *ASKED, f"batch_size={batch_size}", "hydra.run.dir=run", size=size)
        wait(
            lambda wanted=there + shards: whole_shards(run) >= wanted,  # type: ignore[misc]
            *(children, workplace),
        )
        assert forks.killed(children) == [-9] * size
        assert not (run / "manifest.csv").exists()
        rounds.append((before, children))
    before = kept(run)
    assert 48 + 48 + 40 <= len(before) < COUNT, "each start kept some and none made all"
    made = len(calls(workplace))
    torchrun(workplace, *ASKED, "batch_size=333", "hydra.run.dir=run")
    last = calls(workplace)[made:]
    assert len(last) == NFE * math.ceil((COUNT - len(before)) / UNIT), "batches of the network were shared whole"
    assert len({process for process, _ in last}) == 2
    rounds.append((before, list({process for process, _ in last})))
    for whole, children in rounds:
        seen = {row for process, rows in calls(workplace) if process in children for row in rows}
        assert seen
        assert not seen & whole, "no image is made twice"
    once = [row for process, rows in last for row in dict.fromkeys(rows)]
    assert sorted(once) == sorted(NFE * [i for i in range(COUNT) if i not in before])
    assert final_files(run) == final_files(workplace / "alone")
    assert not (run / "shards").exists()
    result, other = (json.loads((workplace / name / "metrics.json").read_text()) for name in ("run", "alone"))
    assert (result["images"], result["images_made"], result["processes"]) == (COUNT, COUNT - len(before), 2)
    assert (other["images"], other["images_made"], other["processes"]) == (COUNT, COUNT, 1)
    assert result["nfe"] == result["network_calls"] == NFE
    assert result["manifest"] == other["manifest"] == final_files(run)["manifest.csv"]
    check_manifest(run, list(range(7, 7 + COUNT)), list(range(COUNT)))
    assert result["labels"].startswith("classes.txt:")
    (workplace / "classes.txt").write_text("\n".join(map(str, reversed(range(COUNT)))))
    [other_labels] = forks.start(SCRIPT, workplace, *ASKED, "hydra.run.dir=run")
    assert forks.ended(other_labels) == 2
    assert "hydra.run.dir=run: holds run" in (workplace / "said-0").read_text()


def check_manifest(run: Path, seeds: list[int], labels: list[int] | None) -> None:
    """Exact count, order, seeds, labels, and the digest of every image of samples.npz."""
    with open(run / "manifest.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    arrays = np.load(run / "samples.npz", allow_pickle=False)
    assert [int(line["index"]) for line in lines] == list(range(len(seeds)))
    assert [int(line["seed"]) for line in lines] == seeds
    assert [line["label"] for line in lines] == ([""] * len(seeds) if labels is None else list(map(str, labels)))
    assert [line["sha256"] for line in lines] == [
        hashlib.sha256(image.tobytes()).hexdigest() for image in arrays["arr_0"]
    ]


def test_ctrl_c_keeps_images_and_resumes(workplace: Path) -> None:
    run = workplace / "run"
    children = forks.start(SCRIPT, workplace, *ASKED, "batch_size=16", "hydra.run.dir=run")
    wait(lambda: whole_shards(run) >= 2, children, workplace)
    assert forks.killed(children, signal.SIGINT) == [130]
    there = len(kept(run))
    assert 32 <= there < COUNT
    said = (workplace / "said-0").read_text()
    assert f"interrupted: {there} of {COUNT} images are kept; the same command resumes" in said
    assert "Traceback" not in said
    [again] = forks.start(SCRIPT, workplace, *ASKED, "hydra.run.dir=run")
    assert forks.ended(again) == 0
    assert json.loads((run / "metrics.json").read_text())["images_made"] == COUNT - there
    (run / "shards").mkdir()
    made = len(calls(workplace))
    [shown] = forks.start(SCRIPT, workplace, *ASKED, "hydra.run.dir=run", size=1)
    assert forks.ended(shown) == 0
    assert "this run was finished before" in (workplace / "said-0").read_text()
    assert len(calls(workplace)) == made
    assert not (run / "shards").exists(), "what a kill at the very end left behind is cleared"


def test_a_mistake_in_two_processes_is_said_once(workplace: Path) -> None:
    children = forks.start(SCRIPT, workplace, *ASKED, "format=npx", "hydra.run.dir=run", size=2)
    assert [forks.ended(child) for child in children] == [2, 2]
    said = [(workplace / f"said-{rank}").read_text() for rank in (0, 1)]
    assert said == ["sample.py: format=npx: there is no such choice; did you mean 'npz'?\n", ""]


def test_two_processes_measure_what_one_measures(tmp_path: Path) -> None:
    """The shipped model with its metrics, format=none: images live until they are measured."""
    asked = ("checkpoint=digits_vp", "seeds=0-39", "nfe=2", "device=cpu", "format=none", "trajectories='3,5'")
    [alone] = forks.start(SCRIPT, tmp_path, *asked, "batch_size=7", "hydra.run.dir=alone")
    assert forks.ended(alone) == 0, (tmp_path / "said-0").read_text()
    children = forks.start(SCRIPT, tmp_path, *asked, "hydra.run.dir=two", size=2)
    assert [forks.ended(child) for child in children] == [0, 0], (tmp_path / "said-0").read_text()
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("alone", "two"))
    assert one["metrics"] == two["metrics"]
    assert set(one["metrics"]) >= {"frechet_distance", "kid"}
    differing = {key for key in one if one[key] != two[key]}
    assert differing <= {"processes", "seconds", "images_per_second", "peak_memory_mib"}
    names = {path.name for path in (tmp_path / "two").iterdir()}
    trajectories = {f"trajectories.{kind}" for kind in ("npz", "png", "gif")}
    assert names == {"config.yaml", "metrics.json", "manifest.csv", "grid.png", *trajectories}
    assert (tmp_path / "two/manifest.csv").read_bytes() == (tmp_path / "alone/manifest.csv").read_bytes()
    assert (tmp_path / "two/trajectories.npz").read_bytes() == (tmp_path / "alone/trajectories.npz").read_bytes()
    assert (tmp_path / "said-1").read_text() == ""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_five_thousand_digits_survive_three_kills(tmp_path: Path) -> None:
    asked = ("seeds=0-4999", "metrics=none", "device=cpu")
    [alone] = forks.start(SCRIPT, tmp_path, *asked, "batch_size=64", "hydra.run.dir=alone")
    assert forks.ended(alone, 900) == 0
    run, lucky = tmp_path / "run", random.Random(0)
    for size, batch_size in ((1, 64), (2, 64), (2, 333)):
        before = len(kept(run))
        children = forks.start(SCRIPT, tmp_path, *asked, f"batch_size={batch_size}", "hydra.run.dir=run", size=size)
        wait(lambda least=before + 300: len(list((run / "shards").glob("[0-9]*"))) > 0 and len(kept(run)) >= least,  # type: ignore[misc]
             children, tmp_path)  # fmt: skip
        time.sleep(lucky.uniform(0, 1))
        assert forks.killed(children) == [-9] * size
        assert before < len(kept(run)) < 5000
    before = len(kept(run))
    torchrun(tmp_path, *asked, "batch_size=333", "hydra.run.dir=run")
    assert final_files(run) == final_files(tmp_path / "alone")
    assert json.loads((run / "metrics.json").read_text())["images_made"] == 5000 - before
    check_manifest(run, list(range(5000)), None)
    shutil.rmtree(run)
