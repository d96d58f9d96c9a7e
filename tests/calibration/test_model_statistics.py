from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from scoreline.calibration.model_statistics import GAINS, SlopeScale, load_dpm_solver_v3
from scoreline.calibration.score_norm import ScoreNorm
from scoreline.calibration.subject import Subject
from scoreline.denoiser import Denoiser
from scoreline.errors import InputError
from scoreline.networks.exact import GaussianMixture
from scoreline.networks.gaussian_mixture import GaussianMixtureScore
from scoreline.parameterisations import VarianceExploding
from scoreline.records import Record
from scoreline.runtime.seeded_noise import normal
from scoreline.sampling import integrate
from scoreline.schedules.spacings import LogSNR, Polynomial, Power
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.deis import DEIS, scaled_residual
from scoreline.solvers.frames import Velocity

DIGEST = "ab" * 32
SPAN = (80.0, 0.01)
SHAPE = (2, 2, 2)
WIDE = Polynomial(LinearVP(), 1.2)


def mixture(components: int = 5, std: float = 0.2, seed: int = 1) -> GaussianMixture:
    means = torch.randn(components, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return GaussianMixture(means, torch.full((components,), std, dtype=torch.float64), torch.ones(components).double())


def point(std: float) -> GaussianMixture:
    return GaussianMixture(torch.zeros(1, 8).double(), torch.tensor([std]).double(), torch.ones(1).double())


def measure(model: GaussianMixture, count: int = 300, nfe: int = 120, batch: int = 100) -> dict[str, Tensor]:
    network = GaussianMixtureScore(len(model.means), 2, 2)
    network.load_state_dict({"means": model.means, "stds": model.stds, "weights": model.weights})
    run = DEIS(3, LinearVP())(Polynomial(LinearVP(), 2), *SPAN, nfe)
    return ScoreNorm()(Subject(Denoiser(network, VarianceExploding()), run, SHAPE, range(count), batch))


def load(values: dict[str, Tensor], path: Path, gain: str, order: int = 3) -> DEIS:
    Record("score_norm", values, {"checkpoint": DIGEST}).save(path)
    return load_dpm_solver_v3(path, DIGEST, order, WIDE, gain)


def test_second_moments_as_numpy_has_them() -> None:
    """Means over all images and entries, their covariance that of the images' own means; any batch size."""
    model, found = mixture(), measure(mixture(), count=40, nfe=6, batch=7)
    x, own = [seeded(40) * SPAN[0]], []
    run = DEIS(3, LinearVP())(Polynomial(LinearVP(), 2), *SPAN, 6)
    eps = [model.eps(x[0], SPAN[0])]
    for k in range(1, 6):
        x.append(x[-1] + sum(float(run.N[k - 1, j]) * eps[j] for j in range(k)))
        eps.append(model.eps(x[k], float(run.rho[k])))
    for state, estimate in zip(x, eps, strict=True):
        own.append([(estimate**2).mean(1), (state * estimate).mean(1), (state**2).mean(1)])
    per_image = np.array([[part.numpy() for part in level] for level in own[::-1]])
    assert found["second_moments"].numpy() == pytest.approx(per_image.mean(2), rel=1e-5)
    expected = np.stack([np.cov(level) for level in per_image]) / 40
    error = np.sqrt(np.diagonal(expected, axis1=1, axis2=2))
    off = (found["second_moments_covariance"].numpy() - expected) / (error[:, :, None] * error[:, None, :])
    assert np.abs(off).max() < 1e-3


def seeded(count: int) -> Tensor:
    return normal(range(count), SHAPE, "initial").double().flatten(1)


@pytest.mark.parametrize("gain", GAINS)
def test_gains_of_a_gaussian_are_closed_form(gain: str, tmp_path: Path) -> None:
    """l = rho / (rho^2 + c^2), to rounding at any number of images."""
    values = measure(point(0.5), count=10)
    rho = values["rho"]
    torch.testing.assert_close(
        load(values, tmp_path / "r", gain).frame.gain(rho), rho / (rho**2 + 0.25), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("rho", [0.2, 0.5, 1.0, 5.0])
def test_the_gain_of_dpm_solver_v3_needs_no_jacobian(rho: float) -> None:
    """E tr(d eps / dx) / d = E eps^2 / E(x eps) for states of p_rho, by exact Jacobians of a mixture."""
    model, generator = mixture(), torch.Generator().manual_seed(3)
    x = model.draw(4000, generator)
    x = x + rho * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda one: model.eps(one[None], rho)[0]))(x)
    trace, eps = jacobian.diagonal(dim1=1, dim2=2).mean(1), model.eps(x, rho)
    square, product = eps.square().mean(1), (x * eps).mean(1)
    ratio = square.mean() / product.mean()
    error = float((trace - (square - ratio * product) / rho).std()) / 4000**0.5
    assert abs(float(trace.mean() - ratio)) < 4 * error < 0.1 * float(ratio)


def test_the_slope_of_a_gaussian_vanishes_and_every_budget_is_exact(tmp_path: Path) -> None:
    solver = load(measure(point(0.5)), tmp_path / "r", "regression")
    x = seeded(5) * SPAN[0]
    exact = x * ((0.25 + SPAN[1] ** 2) / (0.25 + SPAN[0] ** 2)) ** 0.5
    for nfe in (1, 5):
        end = integrate(point(0.5).eps, x, solver(Power(7), *SPAN, nfe))
        torch.testing.assert_close(end, exact, rtol=1e-3, atol=0)


def test_the_scale_is_the_size_of_the_slope() -> None:
    """u sqrt(E F^2), by the moments of states themselves; where F vanishes it stays a little above zero.

    Below the first level it follows the gain, with E(x eps) proportional to rho.
    """
    model, frame, generator = mixture(), Velocity(0.8), torch.Generator().manual_seed(4)
    levels, moments, size = (0.1, 0.5, 2.0), [], []
    clean = model.draw(50, generator)
    for rho in levels:
        x = clean + rho * torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
        eps = model.eps(x, rho)
        moments.append(tuple(float((a * b).mean()) for a, b in ((eps, eps), (x, eps), (x, x))))
        level = torch.tensor(rho, dtype=torch.float64)
        slope = frame.unit(level) * (eps - frame.gain(level) * x)
        size.append(float(slope.square().mean().sqrt()))
    scale = SlopeScale(levels, tuple(moments), frame)
    assert scale(torch.tensor(levels, dtype=torch.float64)).tolist() == pytest.approx(size, rel=1e-9)
    assert scale.knots().tolist() == list(levels)
    table = DEIS(3, LogSNR(), scale, frame)(Power(7), *SPAN, 7)
    assert scaled_residual(table, scale) < 1e-14
    assert table.residual < 1e-14
    below = SlopeScale((0.1, 1.0), ((1.0, 0.1, 4.0), (1.0, 1.0, 4.0)), frame)
    half = torch.tensor([0.05], dtype=torch.float64)
    root = (1 - 2 * frame.gain(half) * 0.05 + frame.gain(half) ** 2 * 4).sqrt()
    assert below(half).item() == pytest.approx((frame.unit(half) * root).item(), rel=1e-12)
    still = SlopeScale((0.1, 1.0), ((0.04, 0.1, 0.25), (0.04, 0.1, 0.25)), Constant(0.4))
    assert still(torch.tensor([0.5]).double()).item() == pytest.approx(2e-5)


@dataclass(frozen=True)
class Constant(Velocity):
    """A gain that does not depend on the level."""

    def gain(self, rho: Tensor) -> Tensor:
        return torch.full_like(rho, self.sigma_data)

    def unit(self, rho: Tensor) -> Tensor:
        return torch.ones_like(rho)


@pytest.fixture(scope="module")
def distances(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Median distance to a fine run at NFE 10 on a mixture, from fresh noise."""
    model, path = mixture(12, 0.1, seed=7), tmp_path_factory.mktemp("measured") / "r"
    steps, values = Polynomial(LinearVP(), 2), measure(mixture(12, 0.1, seed=7))
    x = normal(range(5000, 5300), SHAPE, "initial").double().flatten(1) * SPAN[0]
    fine = integrate(model.eps, x, DEIS(3, LinearVP())(steps, *SPAN, 400))
    solvers = {"deis_tab3": DEIS(3, LinearVP()), **{gain: load(values, path, gain) for gain in GAINS}}
    mean, covariance = model.moments()
    size = float((covariance.trace() + mean @ mean) / 8) ** 0.5
    solvers["velocity"] = DEIS(3, WIDE, frame=Velocity(size))
    return {
        name: float((integrate(model.eps, x, solver(steps, *SPAN, 10)) - fine).square().mean(1).sqrt().median())
        for name, solver in solvers.items()
    }


def test_the_normalised_slope_is_closer_than_noise_and_velocity_prediction(distances: dict[str, float]) -> None:
    assert distances["regression"] < 0.8 * distances["deis_tab3"]
    assert distances["regression"] < 0.9 * distances["velocity"], distances


def test_refuses_another_gain_and_records_without_moments(tmp_path: Path) -> None:
    values = measure(mixture(), count=4, nfe=5)
    with pytest.raises(InputError, match=r"solver\.gain=jacobi.*'jacobian'"):
        load(values, tmp_path / "r", "jacobi")
    old = {name: values[name] for name in ("rho", "mean_abs_eps", "standard_error")}
    with pytest.raises(InputError, match=r"record=.*no second moments.*python calibrate\.py calibration=score_norm"):
        load(old, tmp_path / "r", "regression")
