"""The recipe of docs/foreign.md for denoising-diffusion-pytorch, run with stand-ins of its classes and its files."""

import contextlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

PAGE = (Path(__file__).parents[2] / "docs" / "foreign.md").read_text()
BLOCKS = re.findall(r"<!-- not run: needs denoising-diffusion-pytorch .*?-->\n```python\n(.*?)^```$", PAGE, re.S | re.M)


class Unet(nn.Module):
    """Called as theirs: network(x, time, self_cond=None)."""

    def __init__(self, dim: int, dim_mults: tuple[int, ...], learned_sinusoidal_cond: bool = False) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, time: Tensor, x_self_cond: Tensor | None = None) -> Tensor:
        assert x.shape == (16, 3, 32, 32)
        assert time.shape == (16,)
        return self.gain * x


class ElucidatedDiffusion(nn.Module):
    sigma_data, sigma_max, channels = 0.5, 80, 3

    def __init__(self, net: Unet, *, image_size: int) -> None:
        super().__init__()
        self.net = net


def averaged(model: nn.Module, gain: float) -> dict[str, Any]:
    """Their Trainer's file: raw weights, and an average with the raw weights beside it."""
    raw = model.state_dict()
    average = {name: torch.full_like(value, gain) if name.endswith("gain") else value for name, value in raw.items()}
    ema = {f"ema_model.{name}": value for name, value in average.items()}
    online = {f"online_model.{name}": value for name, value in raw.items()}
    state = {**ema, **online, "initted": torch.tensor(True), "step": torch.tensor(9)}
    return {"step": 9, "model": raw, "ema": state, "scaler": None, "version": "2.3.4"}


def test_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The averages are what is sampled."""
    theirs: Any = ModuleType("denoising_diffusion_pytorch")
    theirs.Unet, theirs.ElucidatedDiffusion = Unet, ElucidatedDiffusion
    monkeypatch.setitem(sys.modules, "denoising_diffusion_pytorch", theirs)
    (tmp_path / "results").mkdir()
    (elucidated,) = BLOCKS
    space: dict[str, Any] = {}
    with contextlib.chdir(tmp_path):
        torch.save(averaged(ElucidatedDiffusion(Unet(1, (1,)), image_size=32), 0.0), "results/model-10.pt")
        exec(compile(elucidated, "elucidated", "exec"), space)
        assert float(space["model"].net.gain.detach()) == 0
        shrunk = ((0.002**2 + 0.25) / (80**2 + 0.25)) ** 0.5  # F = 0 is Gaussian data of deviation 0.5
        exact = shrunk * space["x"]
        torch.testing.assert_close(2 * space["images"] - 1, exact, rtol=1e-5, atol=1e-5)
