"""Making, writing and measuring within one process: what stops it on the way, and what it says at its end."""

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from images import images_of
from safetensors import SafetensorError
from torch import Tensor

from scoreline.checkpoints import Card, Checkpoint
from scoreline.datasets.base import ImageDataset
from scoreline.denoiser import Denoiser, Denoising
from scoreline.errors import InputError
from scoreline.generation import interruptions, loop, run, run_results
from scoreline.generation.batches import Sampler
from scoreline.generation.loop import find_all, sample_missing
from scoreline.generation.shards import Shards
from scoreline.metrics.base import Metrics, Score
from scoreline.metrics.no_metrics import NoMetrics
from scoreline.numerics import NUMERICS_VERSION
from scoreline.parameterisations import NoisePrediction
from scoreline.runtime.distributed import Group
from scoreline.runtime.memory import peak_memory
from scoreline.sampling import Progress
from scoreline.schedules.spacings import Power
from scoreline.schedules.vp import LinearVP
from scoreline.scripts.sample import describe
from scoreline.solvers.adaptive import Adaptive
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.tableau import build
from scoreline.storage import files
from scoreline.storage.resumable import Parts

SHAPE, COUNT, NFE = (1, 4, 4), 50, 3
SPAN = (10.0, 0.1)


class Gaussian(Denoising):
    """Data N(0.1 label, 0.4^2) in closed form. `stop` runs before every evaluation."""

    def __init__(self, stop: Callable[[int], object] = lambda calls: None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
        self.rows, self.evaluations, self.stop = 0, 0, stop

    def forward(self, x: Tensor, rho: Tensor | float, **condition: Tensor | None) -> Tensor:
        return x - float(rho) * self.eps(x, rho, **condition)

    def eps(self, x: Tensor, rho: Tensor | float, **condition: Tensor | None) -> Tensor:
        self.evaluations += 1
        self.stop(self.evaluations)
        self.rows += len(x)
        label = condition.get("label")
        mean = 0.0 if label is None else 0.1 * label.reshape(-1, 1, 1, 1)
        return float(rho) * (x - mean) / (0.16 + float(rho) ** 2)

    def calls(self, rho: float) -> int:
        return 0


class Witness(Metrics):
    """Keeps what it was given; its score is the mean pixel."""

    def __init__(self, fail: Exception | None = None) -> None:
        self.images: Tensor | None = None
        self.labels: Tensor | None = None
        self.parts: Parts | None = None
        self.fail = fail

    @property
    def protocol(self) -> dict[str, str | int]:
        return {"witness": 1}

    def check(self, shape: tuple[int, int, int], n: int) -> None:
        """Any will do."""

    def __call__(
        self, images: ImageDataset, parts: Parts | None = None, progress: Progress = lambda images: None
    ) -> dict[str, Score]:
        if self.fail is not None:
            raise self.fail
        self.images, self.labels = images.read(range(len(images)))
        self.parts = parts
        progress(len(images))
        return {"mean": Score(value=float(self.images.double().mean()), error=0.5, n=len(images))}

    def warnings(self, n: int) -> list[str]:
        return [f"{n} are few"]


def sampler(denoiser: Denoising | None = None, batch_size: int = 8, solver: Any = None) -> Sampler:
    tableau = build(solver or DDIM(), Power(7), SPAN, NFE if solver is None else 200, "none")
    return Sampler(denoiser or Gaussian(), tableau, batch_size, 4)


def shards(out: Path, labels: bool = True) -> Shards:
    chosen = torch.arange(COUNT) % 3 if labels else None
    return Shards(out / run.SHARDS, "stamp", list(range(COUNT)), chosen, SHAPE)


def outputs(choice: str = "npz", metrics: Metrics | None = None) -> run.Outputs:
    return run.Outputs(choice, metrics or NoMetrics(), num_classes=3)


def contents(out: Path) -> dict[str, bytes]:
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def finished(out: Path, choice: str = "npz", **options: Any) -> run_results.Result:
    """A whole run as sample.py does it."""
    found = run.finish(sampler(**options), shards(out), outputs(choice), Group())
    run.clear(out)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole")
    finished(out)
    return contents(out)


def test_images_are_those_that_are_drawn_in_memory(whole: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "samples.npz").write_bytes(whole["samples.npz"])
    read = np.load(tmp_path / "samples.npz")
    checkpoint = Checkpoint(Path("x"), "", Card({}, SHAPE, 3, {}, {}), None, None)  # type: ignore[arg-type]
    one = sampler()
    images = images_of(checkpoint, one.tableau, range(COUNT), torch.arange(COUNT) % 3, 50, one.denoiser)
    assert np.array_equal(read["arr_0"], images.permute(0, 2, 3, 1).numpy())
    assert read["arr_1"].tolist() == [i % 3 for i in range(COUNT)]
    assert set(whole) == {"samples.npz", "manifest.csv", "grid.png"}


@pytest.mark.parametrize("batch_size", [1, 7, 333])
def test_any_batch_size_leaves_the_same_bytes(batch_size: int, whole: dict[str, bytes], tmp_path: Path) -> None:
    assert finished(tmp_path, batch_size=batch_size)["images_made"] == COUNT
    assert contents(tmp_path) == whole


@pytest.mark.parametrize("choice", ["npz", "png", "zip", "webdataset", "none"])
def test_any_format_has_the_same_manifest(choice: str, whole: dict[str, bytes], tmp_path: Path) -> None:
    result = finished(tmp_path, choice)
    assert contents(tmp_path)["manifest.csv"] == whole["manifest.csv"]
    assert result["format"] == choice
    names = {path.name for path in tmp_path.iterdir()} - {"manifest.csv", "grid.png"}
    kind = {"npz": "samples.npz", "png": "images", "zip": "samples.zip", "webdataset": "samples.tar"}
    assert names == ({kind[choice]} if choice in kind else set())


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def full_quota(*_: object) -> None:
    raise OSError(errno.EDQUOT, "Disk quota exceeded")


def large_file(*_: object) -> None:
    raise OSError(errno.EFBIG, "File too large")


@pytest.mark.parametrize("fail", [full_disk, full_quota, large_file])
def test_disk_full_during_sampling(
    fail: Callable[..., None], whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = Path.write_bytes, []

    def write_bytes(path: Path, content: bytes) -> int:
        if len(written) == 3:
            real(path, content[: len(content) // 2])
            fail()
        written.append(path)
        return real(path, content)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(InputError) as error:
        run.finish(sampler(), shards(tmp_path), outputs(), Group())
    said = f"hydra.run.dir={tmp_path}: no space is left on its disk; 24 of 50 images are kept, free some space"
    assert str(error.value).startswith(said)
    kept = {path.name for path in (tmp_path / "shards").iterdir()}
    assert len(kept) == 3, "two threads write: which of the first four is cut short is left to them"
    assert kept < {f"{first:09d}.safetensors" for first in (0, 8, 16, 24)}
    monkeypatch.undo()
    denoiser = Gaussian()
    assert finished(tmp_path, denoiser=denoiser, batch_size=16)["images_made"] == 26
    assert denoiser.rows == NFE * 4 * 7, "26 images in calls of four"
    assert contents(tmp_path) == whole


@pytest.mark.parametrize("name", ["manifest.csv", "samples.npz"])
def test_disk_full_during_export(
    name: str, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = files.os.replace

    def replace(source: Path, target: Path) -> None:
        if Path(target).name == name:
            full_disk()
        real(source, target)

    monkeypatch.setattr(files.os, "replace", replace)
    with pytest.raises(InputError, match="no space is left on its disk; 50 of 50 images are kept"):
        run.finish(sampler(), shards(tmp_path), outputs(), Group())
    assert not (tmp_path / name).exists()
    assert not list(tmp_path.glob(".*"))
    monkeypatch.undo()
    denoiser = Gaussian()
    assert finished(tmp_path, denoiser=denoiser)["images_made"] == 0
    assert denoiser.rows == 0
    assert contents(tmp_path) == whole


def test_disk_full_during_feature_storage(tmp_path: Path) -> None:
    error = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(InputError, match="50 of 50 images are kept"):
        run.finish(sampler(), shards(tmp_path), outputs(metrics=Witness(error)), Group())


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "no"), SafetensorError("a defect"), ValueError("a defect")])
def test_other_failures_are_not_called_a_full_disk(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as raised:
        run.finish(sampler(), shards(tmp_path), outputs(metrics=Witness(error)), Group())
    assert raised.value is error


def test_ctrl_c_leaves_what_can_go_on(
    whole: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(calls: int) -> None:
        if calls == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.finish(sampler(Gaussian(stop)), shards(tmp_path), outputs(), Group())
    said = capsys.readouterr().err
    assert said == "\ninterrupted: 16 of 50 images are kept; the same command resumes\n"
    assert finished(tmp_path)["images_made"] == 34
    assert contents(tmp_path) == whole


def test_other_processes_stay_quiet_at_ctrl_c(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), interruptions.report_kept(shards(tmp_path), speaks=False):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == ""


def test_damaged_images_are_made_again(whole: dict[str, bytes], tmp_path: Path) -> None:
    sample_missing(sampler(), shards(tmp_path), Group())
    path = tmp_path / "shards" / "000000008.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert finished(tmp_path)["images_made"] == 8
    assert contents(tmp_path) == whole


def test_shard_of_another_process_is_missed(tmp_path: Path) -> None:
    kept = shards(tmp_path)
    sample_missing(sampler(), kept, Group())
    (tmp_path / "shards" / "000000008.safetensors").unlink()
    with pytest.raises(InputError, match=r"8 of 50 images are missing or damaged after sampling; repeat the"):
        find_all(kept, Group())


@pytest.mark.parametrize("size", [2, 3])
def test_processes_one_after_the_other_make_all_once(
    size: int, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without waiting for one another: the first tells what is missing."""
    told = shards(tmp_path).find().missing
    monkeypatch.setattr(loop, "from_first", lambda values, group: told)
    monkeypatch.setattr(Group, "barrier", lambda group: None)
    evaluated = []
    for rank in range(size):
        denoiser = Gaussian()
        sample_missing(sampler(denoiser), shards(tmp_path), Group(rank, size))
        evaluated.append(denoiser.rows)
    assert sum(evaluated) == NFE * 4 * 13, "50 images in calls of four"
    assert max(evaluated) - min(evaluated) <= NFE * 4
    monkeypatch.undo()
    assert finished(tmp_path)["images_made"] == 0
    assert contents(tmp_path) == whole


def test_metrics_see_images_in_seed_order(tmp_path: Path) -> None:
    witness = Witness()
    found = run.finish(sampler(batch_size=9), shards(tmp_path), outputs(metrics=witness), Group())
    arrays = np.load(tmp_path / "samples.npz")
    assert witness.images is not None
    assert witness.labels is not None
    assert witness.parts is not None
    assert np.array_equal(witness.images.permute(0, 2, 3, 1).numpy(), arrays["arr_0"])
    assert witness.labels.tolist() == arrays["arr_1"].tolist()
    assert witness.parts.folder == tmp_path / "features"
    assert found["metrics"]["mean"]["value"] == pytest.approx(float(arrays["arr_0"].mean()))


def test_what_is_said_of_a_run(tmp_path: Path) -> None:
    process = LinearVP(0.1, 20.0)
    network = torch.nn.Identity()
    checkpoint = Checkpoint(
        *(Path("there/model.safetensors"), "abc", Card({}, SHAPE, 3, {}, {})),
        *(Denoiser(network, NoisePrediction(process)), process),
    )
    asked, how = outputs(metrics=Witness()), sampler()
    sample_missing(sampler(), shards(tmp_path), Group())
    found = run.finish(how, shards(tmp_path), asked, Group())
    choices = {"solver": "ddim", "schedule": "karras", "seeds": f"100-{99 + COUNT}", "labels": "random"}
    result = describe(choices, checkpoint, how, asked, found)
    run_results.write(tmp_path, result)
    (tmp_path / "config.yaml").write_text("identity: '0'\n")
    read, again = run_results.former_result(tmp_path)
    assert read is not None
    assert again == ""
    assert read == json.loads((tmp_path / "metrics.json").read_text()) == result
    assert {
        "solver": "ddim",
        "labels": "random",
        "nfe": NFE,
        "network_calls": 0,
        "images": COUNT,
    }.items() <= read.items()
    assert (read["images_made"], read["images_per_second"], read["processes"]) == (0, 0.0, 1)
    assert read["checkpoint"] == {"name": "model.safetensors", "sha256": "abc"}
    assert (read["sigma_max"], read["sigma_end"]) == SPAN
    assert read["protocol"] == {"witness": 1}
    assert read["warnings"] == ["50 are few"]
    assert read["manifest"] == files.sha256(tmp_path / "manifest.csv")
    assert read["peak_memory_mib"]["cpu"] > 50
    assert run_results.summary(read, tmp_path) == (
        "50 images, NFE 3 (0 network calls), all reused, "
        f"mean {read['metrics']['mean']['value']:.4g} +- 0.5 -> {tmp_path}"
    )
    assert read["numerics_version"] == NUMERICS_VERSION
    assert run_results.former_result(tmp_path / "elsewhere") == (None, "")


def test_adaptive_counts_are_means_over_all_images(tmp_path: Path) -> None:
    """Also over those of an earlier start."""
    solver = Adaptive("RK45", rtol=1e-3, atol=1e-3)
    result = finished(tmp_path / "whole", solver=solver, batch_size=50)
    enough = 1.5 * (20 / 4) * result["nfe"]
    denoiser = Gaussian(lambda calls: calls > enough and full_disk())
    with pytest.raises(InputError):
        run.finish(sampler(denoiser, 20, solver), shards(tmp_path), outputs(), Group())
    counts = shards(tmp_path).find().counts[:, 0]
    assert 0 < int((counts > 0).sum()) < COUNT
    again = run.finish(sampler(None, 20, solver), shards(tmp_path), outputs(), Group())
    counts = shards(tmp_path).find().counts[:, 0].double()
    assert again["nfe"] == pytest.approx(float(counts.mean()), abs=0.06)
    assert 5 < result["nfe"] < 200


def test_peak_memory_excludes_the_parent_process() -> None:
    """getrusage gives a program the memory of the process that forked it."""
    ballast = np.ones(60 * 2**20)
    code = "from scoreline.runtime.memory import peak_memory; print(peak_memory()['cpu'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 50 < float(done.stdout) < peak_memory()["cpu"] - 100
    del ballast


def test_peak_memory_sees_what_was_allocated() -> None:
    before = peak_memory()["cpu"]
    ones = np.ones(int(before) * 2**20 // 8 + 2**24)
    assert peak_memory()["cpu"] >= ones.nbytes / 2**20
    assert peak_memory()["gpu"] >= 0
