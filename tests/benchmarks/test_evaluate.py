"""The benchmark of evaluation, on few images and small matrices."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import evaluate

from scoreline.metrics.frechet import frechet_distance
from scoreline.metrics.inception_features import InceptionFeatures
from scoreline.storage.files import sha256


def cells(text: str) -> list[list[str]]:
    """The rows of a table but its head and rule."""
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]


def test_the_features(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    threads = torch.get_num_threads()
    evaluate.main(["features", "--self-check"])
    rows = cells(capsys.readouterr().out)
    assert [row[:3] for row in rows] == [
        ["inception, standin", "128", "1"],
        ["inception, standin", "128", "2"],
        ["digits", "1,024", "1"],
    ]
    assert all(float(row[-1]) > 0 for row in rows)
    assert torch.get_num_threads() == threads


def test_the_stand_in_has_the_published_interface(tmp_path: Path) -> None:
    path = evaluate.write_standin(tmp_path / "standin.pt")
    extractor = InceptionFeatures(str(path), sha256=sha256(path), device="cpu")
    extractor.check((3, 32, 32))
    assert extractor.dimension == 2048


def test_a_pass_makes_everything_anew_every_time(tmp_path: Path) -> None:
    images = evaluate.shards(tmp_path / "shards", 130, (1, 8, 8))
    made: list[int] = []

    def make(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        made.append(len(batch))
        return {"features": batch.flatten(1).double()}

    work = evaluate.passes(images, make, tmp_path / "parts")
    assert (work(), work()) == (130, 130)
    assert made == [130, 130]


def test_the_distances(capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.main(["frechet", "--self-check"])
    rows = cells(capsys.readouterr().out)
    assert [row[0] for row in rows] == ["8", "300"]
    assert all(float(row[5]) < 1e-8 for row in rows)


def test_the_peers_arithmetic_is_the_formula() -> None:
    """Commuting covariances: the distance is that of means and standard deviations."""
    (_, a), (_, b) = evaluate.gaussian(50, 3, 1), evaluate.gaussian(50, 3, 2)
    assert evaluate.by_matrix_root(a, a) == pytest.approx(0, abs=1e-8)
    diagonal = evaluate.GaussianStatistics(
        11, torch.zeros(2).double(), 10 * torch.diag(torch.tensor([4.0, 9.0]).double())
    )
    other = evaluate.GaussianStatistics(11, torch.ones(2).double(), 10 * torch.eye(2).double())
    assert evaluate.by_matrix_root(diagonal, other) == pytest.approx(2 + 1 + 4)
    assert evaluate.by_matrix_root(a, b) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_a_wheel_of_torch_fidelity_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here something of its names that returns what it was given; `utils` is not imported."""
    package = tmp_path / "torch_fidelity"
    package.mkdir()
    (package / "utils.py").write_text("raise ImportError('torchvision')")
    (package / "metric_fid.py").write_text(
        "from torch_fidelity.utils import create_feature_extractor\n"
        "def fid_statistics_to_metric(one, other, verbose):\n"
        "    return {'fid': float((one['mu'] - other['mu']) @ (one['mu'] - other['mu'])) + other['sigma'].trace()}\n"
    )
    for name in ("torch_fidelity", "torch_fidelity.utils", "torch_fidelity.metric_fid"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    (_, a), (_, b) = evaluate.gaussian(50, 3, 1), evaluate.gaussian(50, 3, 2)
    gap = (a.mean - b.mean).numpy()
    assert evaluate.torch_fidelity(tmp_path)(a, b) == pytest.approx(gap @ gap + np.trace(b.covariance.numpy()))
