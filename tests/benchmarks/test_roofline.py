"""benchmarks/roofline.py: operations are counted, not guessed, and its table holds what it says."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import roofline
from peers.models import Model

from scoreline.denoiser import Denoiser
from scoreline.parameterisations import EDMPreconditioning
from scoreline.schedules.spacings import Power
from scoreline.schedules.ve import EDM


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 5, 3, padding=1)
        self.back = nn.Conv2d(5, 3, 1)

    def forward(self, x: torch.Tensor, noise: torch.Tensor, label: None = None) -> torch.Tensor:
        return self.back(self.layer(x))


def test_operation_count_equals_a_hand_count() -> None:
    model = Model("two", Denoiser(Convolution(), EDMPreconditioning()), EDM(), (3, 8, 8), Power(7))
    assert roofline.flops(model) == 2 * 64 * (3 * 5 * 9 + 5 * 3)


def test_self_check_prints_every_mode(capsys: pytest.CaptureFixture[str]) -> None:
    roofline.main(["--self-check", "--model", "unet32", "--profile"])
    said = capsys.readouterr().out
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in said.splitlines() if line.startswith("| ")
    ]
    head, plain, threads = rows
    assert [plain[0], threads[0]] == ["plain", "layout+threads"]
    for cells in (plain, threads):
        named = dict(zip(head, cells, strict=True))
        rate, share = float(named["images/s"]), float(named["of matrix products"].rstrip(" %"))
        assert rate > 0
        assert float(named["50000 images in s"]) == pytest.approx(50_000 / rate, rel=0.02, abs=1)
        ratio = float(named["GFLOP/s"]) / float(named["GFLOP/s of those"])
        assert ratio == pytest.approx(share / 100, rel=0.1, abs=1e-3)
    assert "convolution" in said
