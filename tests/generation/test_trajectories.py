"""Trajectories against closed forms: data N(m_label, s^2), for which the ODE's states are known."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from scoreline.denoiser import Denoising
from scoreline.errors import InputError
from scoreline.generation.batches import Sampler, generate
from scoreline.generation.shards import Shards
from scoreline.generation.trajectories import COLUMNS, Trajectories, check_trajectories, fine_states, record, save
from scoreline.runtime import seeded_noise
from scoreline.schedules.spacings import Power
from scoreline.solvers.adaptive import Adaptive, AdaptiveRun
from scoreline.solvers.ancestral import EulerAncestral
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.dpm_multistep import DPMMultistep
from scoreline.solvers.runge_kutta import heun
from scoreline.solvers.tableau import Tableau, build
from scoreline.solvers.unipc import UniPC

SHAPE = (1, 3, 4)
S = 0.4
SPAN = (20.0, 0.05)


class Gaussian(Denoising):
    """D(x, rho) = m + s^2 (x - m) / (s^2 + rho^2), m = 0.1 label - 0.2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
        self.shapes: list[int] = []

    def mean(self, label: Tensor | None) -> Tensor | float:
        return -0.2 if label is None else (0.1 * label - 0.2).reshape(-1, 1, 1, 1)

    def forward(self, x: Tensor, rho: Tensor | float, **condition: Tensor | None) -> Tensor:
        m = self.mean(condition.get("label"))
        return m + S**2 * (x - m) / (S**2 + float(rho) ** 2)

    def eps(self, x: Tensor, rho: Tensor | float, **condition: Tensor | None) -> Tensor:
        self.shapes.append(len(x))
        return float(rho) * (x - self.mean(condition.get("label"))) / (S**2 + float(rho) ** 2)

    def calls(self, rho: float) -> int:
        return 0

    def flow(self, x: Tensor, start: float, end: float, label: Tensor | None) -> Tensor:
        m = self.mean(label)
        return m + (x.double() - m) * ((S**2 + end**2) / (S**2 + start**2)) ** 0.5


def table(solver: object = None, nfe: int = 6, final: str = "none") -> Tableau:
    run = build(solver or DDIM(), Power(7), SPAN, nfe, final)  # type: ignore[arg-type]
    assert isinstance(run, Tableau)
    return run


def shards(labels: Tensor | None = None, count: int = 9) -> Shards:
    return Shards(Path("nowhere/shards"), "", range(30, 30 + count), labels, SHAPE)


def shown(run: Tableau, seeds: Sequence[int], labels: Tensor | None = None, network_batch: int | None = 4,
          fine: int = 400) -> Trajectories:  # fmt: skip
    return record(Sampler(Gaussian(), run, 3, network_batch), shards(labels), list(seeds), fine)


SOLVERS = {"ddim": DDIM(), "heun": heun(), "dpmpp": DPMMultistep(2, "data"), "unipc": UniPC(2)}


@pytest.mark.parametrize("final", ["none", "denoise"])
@pytest.mark.parametrize("name", SOLVERS)
def test_trajectory_equals_the_closed_form(name: str, final: str) -> None:
    labels = torch.arange(9) % 5
    run = table(SOLVERS[name], nfe=8 + (final == "denoise"), final=final)
    seeds, label = [38, 31, 33, 34, 37], torch.tensor([3, 1, 3, 4, 2])
    found = shown(run, seeds, labels)
    assert found.seeds.tolist() == seeds
    assert found.labels.tolist() == label.tolist()
    assert found.x.shape == (5, run.nfe + 1, *SHAPE)
    assert found.denoised.shape == (5, run.nfe, *SHAPE)
    assert found.rho[0] == SPAN[0]
    assert found.rho[-1] == (0 if final == "denoise" else run.rho[-1])
    exact = Gaussian()
    assert torch.equal(found.x[:, 0], seeded_noise.normal(seeds, SHAPE, "initial") * SPAN[0])
    for k, rho in enumerate(found.rho.tolist()):
        if k < run.nfe:
            torch.testing.assert_close(found.denoised[:, k], exact(found.x[:, k], rho, label=label), rtol=0, atol=2e-5)
        if rho > 0:
            truth = exact.flow(found.x[:, 0], SPAN[0], rho, label)
        else:
            end = float(found.rho[-2])
            truth = exact(exact.flow(found.x[:, 0], SPAN[0], end, label), end, label=label)
        error = (found.x[:, k] - truth).flatten(1).square().mean(1).sqrt()
        torch.testing.assert_close(found.error[:, k], error.double(), rtol=0, atol=3e-3 * max(rho, 0.1))
    assert found.error[:, 0].tolist() == [0.0] * 5
    assert float(found.error[:, 1:].min()) > 1e-4, "the run is coarse enough for its errors to be seen"


def test_last_state_is_the_sample_exactly() -> None:
    for run in (table(heun(), 8), table(EulerAncestral(), 7)):
        found = shown(run, [34, 30, 38, 31, 32])
        batches = list(generate(Gaussian(), run, SHAPE, list(range(30, 39)), 5, None, 4))
        samples = torch.cat([batch.x for batch in batches])
        assert torch.equal(found.x[:, -1], samples[[4, 0, 8, 1, 2]])


def test_the_network_sees_its_usual_batch() -> None:
    denoiser = Gaussian()
    record(Sampler(denoiser, table(nfe=2), 3, 4), shards(), [30, 31, 32, 33], 4)
    assert denoiser.shapes[:4] == [4, 4, 4, 4]


def test_stochastic_methods_have_no_error() -> None:
    found = shown(table(EulerAncestral()), [30, 31])
    assert bool(found.error.isnan().all())
    assert found.labels.tolist() == [-1, -1]


def test_fine_run_is_of_second_order() -> None:
    exact, x = Gaussian(), seeded_noise.normal(range(4), SHAPE, "initial").double() * 20
    gaps = []
    for nfe in (200, 400, 800):
        states = fine_states(exact, x, [20.0, 7.0, 0.9, 0.05], None, nfe)
        gaps.append(float((states[-1] - exact.flow(x, 20.0, 0.05, None)).abs().max()))
        torch.testing.assert_close(states[1].double(), exact.flow(x, 20.0, 7.0, None), rtol=1e-3, atol=0)
    assert 3 < gaps[0] / gaps[1] < 5
    assert 3 < gaps[1] / gaps[2] < 5


def test_what_cannot_be_shown_is_refused() -> None:
    run = table(nfe=10)
    check_trajectories([30, 38], shards(), run, 20)
    with pytest.raises(InputError, match="trajectories: seed 39 is not among seeds"):
        check_trajectories([30, 39], shards(), run, 200)
    with pytest.raises(InputError, match="trajectory_nfe=19: must be at least twice the run's 10"):
        check_trajectories([30], shards(), run, 19)
    adaptive = build(Adaptive(), Power(7), SPAN, 100, "none")
    assert isinstance(adaptive, AdaptiveRun)
    with pytest.raises(InputError, match="trajectories: an adaptive solver has no fixed noise levels"):
        check_trajectories([30], shards(), adaptive, 200)


@pytest.mark.parametrize(("nfe", "columns"), [(5, 6), (30, COLUMNS)])
def test_files(nfe: int, columns: int, tmp_path: Path) -> None:
    found = shown(table(nfe=nfe), [33, 30])
    save(tmp_path, found)
    assert {path.name for path in tmp_path.iterdir()} == {f"trajectories.{kind}" for kind in ("npz", "png", "gif")}
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with np.load(tmp_path / "trajectories.npz", allow_pickle=False) as arrays:
        assert set(arrays.files) == {"seeds", "rho", "x", "denoised", "error", "labels"}
        assert arrays["x"].dtype == np.float32
        assert np.array_equal(arrays["x"], found.x.numpy())
        assert np.array_equal(arrays["error"], found.error.numpy())
    scale = 48 // 4
    with Image.open(tmp_path / "trajectories.png") as strip:
        assert strip.size == (columns * 5 * scale, 4 * 4 * scale)
        pixels = np.asarray(strip)[::scale, ::scale]
    noisy = found.x[:, 0] / (1 + SPAN[0] ** 2) ** 0.5
    expected = (noisy * 127.5 + 128).clip(0, 255).to(torch.uint8)
    assert np.array_equal(pixels[0:3, 0:4], expected[0, 0].numpy())
    assert np.array_equal(pixels[8:11, 0:4], expected[1, 0].numpy())
    clean = (found.denoised[1, 0] * 127.5 + 128).clip(0, 255).to(torch.uint8)
    assert np.array_equal(pixels[12:15, 0:4], clean[0].numpy())
    last = slice(5 * (columns - 1), 5 * columns - 1)
    sample = (found.x[0, -1] * 127.5 + 128).clip(0, 255).to(torch.uint8)
    assert np.array_equal(pixels[0:3, last], sample[0].numpy())
    assert np.array_equal(pixels[4:7, last], sample[0].numpy())
    with Image.open(tmp_path / "trajectories.gif") as film:
        assert film.n_frames == nfe + 1
        assert film.size == (2 * 5 * scale, 2 * 4 * scale)
    save(tmp_path, found)
    assert first == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
