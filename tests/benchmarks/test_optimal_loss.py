"""The benchmark of the optimal loss, on models whose loss is known."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import optimal_loss

from scoreline.datasets.digits import Digits
from scoreline.targets import posterior_mean


class Exact(torch.nn.Module):
    """The exact denoiser of the training digits, moved by a constant."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = offset

    def forward(self, x: torch.Tensor, rho: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        return posterior_mean(x, rho, Digits("train").images) + self.offset


def test_the_gap_is_the_distance_from_the_exact_denoiser(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A constant offset c costs c^2 / rho^2 on average; none costs nothing, on training digits."""
    train = Digits("train")
    monkeypatch.setattr(optimal_loss, "LEVELS", optimal_loss.LEVELS[-4:])
    monkeypatch.setattr(optimal_loss, "OBJECTIVE", optimal_loss.objective(optimal_loss.LEVELS))
    best = optimal_loss.optimum(train)
    assert optimal_loss.losses(Exact(0.0), train) == pytest.approx(best, rel=1e-6)
    moved = optimal_loss.losses(Exact(0.5), train)
    expected = [(0.5 / level) ** 2 for level in optimal_loss.LEVELS]
    assert [a - b for a, b in zip(moved, best, strict=True)] == pytest.approx(expected, rel=0.05)
    held_out = optimal_loss.losses(Exact(0.0), Digits("test"))
    assert all(a > b for a, b in zip(held_out, best, strict=True))
    rows = {"train": [best, moved], "test": [held_out, held_out]}
    found = {"kimg": 1, "optimum": best, "dsm": rows, "stf": rows}
    optimal_loss.draw(found, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert optimal_loss.table(found).splitlines()[1].split()[8] == "0.00000"
