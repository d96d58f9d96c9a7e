"""Adaptive pairs against a closed form, against another method in another variable, and at their ceiling."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from scipy.integrate import solve_ivp
from torch import Tensor

from scoreline.errors import InputError, NotFiniteError
from scoreline.networks.exact import GaussianMixture
from scoreline.schedules.spacings import LogSNR
from scoreline.solvers.adaptive import Adaptive

CONF = Path(__file__).parents[2] / "conf" / "solver"
MEAN = torch.tensor([[0.3, -0.8]], dtype=torch.float64)
GAUSSIAN = GaussianMixture(MEAN, torch.tensor([0.5], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64))


def states(sigma: float, count: int = 8) -> Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64) * sigma


def on_gaussian(x: Tensor, start: float, end: float) -> Tensor:
    """x(rho) = m + (x - m) sqrt((s^2 + end^2) / (s^2 + start^2))."""
    return MEAN + (x - MEAN) * math.sqrt((0.25 + end**2) / (0.25 + start**2))


@pytest.mark.parametrize("method", ["RK45", "DOP853"])
def test_error_on_a_gaussian_follows_the_tolerance(method: str) -> None:
    x, errors = states(80.0), []
    for rtol in (1e-3, 1e-6, 1e-9):
        end = Adaptive(method, rtol, rtol)(LogSNR(), 80.0, 0.002, 10_000)(GAUSSIAN.eps, x)
        errors.append(float((end - on_gaussian(x, 80.0, 0.002)).abs().max()))
        assert errors[-1] < 100 * rtol
    assert all(finer < coarser / 10 for coarser, finer in pairwise(errors)), errors


def test_agrees_with_another_method_on_a_mixture(mixture: GaussianMixture) -> None:
    x = states(20.0)

    def in_root(v: float, y: np.ndarray) -> np.ndarray:
        return 2 * v * mixture.eps(torch.from_numpy(y).reshape(-1, 2), v**2).numpy().ravel()

    truth = solve_ivp(in_root, (20**0.5, 0.01**0.5), x.numpy().ravel(), method="LSODA", rtol=1e-12, atol=1e-12)
    for method, rtol in (("RK45", 1e-6), ("DOP853", 1e-6), ("DOP853", 1e-10)):
        end = Adaptive(method, rtol, rtol).between(20.0, 0.01, 10_000)(mixture.eps, x)
        assert float((end.ravel() - torch.from_numpy(truth.y[:, -1])).abs().max()) < 100 * rtol


class Counted:
    """eps of a mixture, with the levels at which it was asked."""

    def __init__(self, model: GaussianMixture) -> None:
        self.model, self.levels = model, list[float]()

    def __call__(self, x: Tensor, rho: float) -> Tensor:
        assert x.dtype == torch.float64
        self.levels.append(rho)
        return self.model.eps(x, rho)


def test_calls_stay_within_range_and_ceiling(
    mixture: GaussianMixture,
) -> None:
    x, solver = states(20.0), Adaptive("RK45", 1e-5, 1e-5)
    free = Counted(mixture)
    end = solver.between(20.0, 0.01, 10_000)(free, x)
    needed = len(free.levels)
    assert 0.01 <= min(free.levels) < max(free.levels) <= 20.0
    assert (max(free.levels), min(free.levels)) == pytest.approx((20.0, 0.01), rel=1e-14)
    exactly = Counted(mixture)
    assert solver.between(20.0, 0.01, needed)(exactly, x).equal(end)
    assert len(exactly.levels) == needed
    short = Counted(mixture)
    with pytest.raises(InputError, match=f"nfe={needed - 1}: the adaptive solver needs more"):
        solver.between(20.0, 0.01, needed - 1)(short, x)
    assert len(short.levels) == needed - 1


def test_a_run_leaves_its_input_alone(mixture: GaussianMixture) -> None:
    run, counted, x = Adaptive().between(20.0, 0.01, 500), Counted(mixture), states(20.0)
    before = x.clone()

    def slope(state: np.ndarray, rho: float) -> np.ndarray:
        return counted(torch.from_numpy(state).reshape(-1, 2), rho).numpy().ravel()

    _, nfe = run.solve(slope, x.numpy().ravel(), 20.0, 0.01)
    assert nfe == len(counted.levels) > 12
    first, second = run(mixture.eps, x), run(mixture.eps, x)
    assert first.equal(second)
    assert x.equal(before)
    assert run.rho.tolist() == [20.0, 0.01]
    assert run.nfe == 500


def test_up_and_down_again_is_the_identity(mixture: GaussianMixture) -> None:
    run, x = Adaptive("DOP853", 1e-11, 1e-11).between(20.0, 0.01, 5000), states(1.0)

    def slope(state: np.ndarray, rho: float) -> np.ndarray:
        return mixture.eps(torch.from_numpy(state).reshape(-1, 2), rho).numpy().ravel()

    up, _ = run.solve(slope, x.numpy().ravel(), 0.01, 20.0)
    down, _ = run.solve(slope, up, 20.0, 0.01)
    assert np.abs(up).max() > 5
    np.testing.assert_allclose(down, x.numpy().ravel(), atol=1e-7)


def test_images_depend_on_their_batch_by_the_tolerance() -> None:
    flat = states(80.0)
    x = flat.reshape(8, 1, 2, 1).float()

    def eps(x: Tensor, rho: float) -> Tensor:
        return GAUSSIAN.eps(x.reshape(-1, 2), rho).reshape(x.shape)

    run = Adaptive("RK45", 1e-5, 1e-5).between(80.0, 0.002, 1000)
    with torch.inference_mode():
        whole, alone = run(eps, x), run(eps, x[:1])
    assert (whole.shape, whole.dtype) == (x.shape, torch.float32)
    truth = on_gaussian(flat, 80.0, 0.002).reshape(x.shape).float()
    torch.testing.assert_close(whole, truth, rtol=0, atol=1e-3)
    torch.testing.assert_close(alone, truth[:1], rtol=0, atol=1e-3)


@pytest.mark.parametrize(("name", "method", "rtol"), [("rk45", "RK45", 1e-5), ("dop853", "DOP853", 1e-5)])
def test_configs(name: str, method: str, rtol: float) -> None:
    solver = instantiate(OmegaConf.load(CONF / f"{name}.yaml"))
    assert solver == Adaptive(method, rtol, rtol)
    assert math.isnan(solver.convergence)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("RK54", 1e-5, 1e-5), "solver.method=RK54.*did you mean 'RK45'"),
        (("RK45", 1e-14, 1e-5), "solver.rtol=1e-14"),
        (("RK45", 1.0, 1e-5), "solver.rtol=1:"),
        (("RK45", math.nan, 1e-5), "solver.rtol=nan"),
        (("RK45", 1e-5, 0.0), "solver.atol=0"),
    ],
)
def test_impossible_options(options: tuple[str, float, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Adaptive(*options)


@pytest.mark.parametrize(
    ("span", "nfe", "message"),
    [
        ((80.0, 0.0), 100, "sigma_min=0: eps is not defined"),
        ((0.1, 0.1), 100, "sigma_min=0.1 and sigma_max=0.1"),
        ((80.0, -1.0), 100, "sigma_min=-1"),
        ((math.inf, 1.0), 100, "sigma_max=inf"),
        ((80.0, 0.1), 0, "nfe=0"),
    ],
)
def test_impossible_runs(span: tuple[float, float], nfe: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Adaptive()(LogSNR(), *span, nfe)


def test_a_tolerance_that_no_step_meets_is_refused() -> None:
    """x' = -x^2 downwards from x(3) = 1: x = 1 / (rho - 2) has a pole at 2."""
    run = Adaptive("RK45", 1e-5, 1e-5).between(3.0, 1.0, 10_000)
    with pytest.raises(InputError, match=r"solver\.rtol=1e-05: no step is short enough"):
        run(lambda x, rho: -x.square(), torch.ones(1, 1, dtype=torch.float64))


def test_eps_that_is_not_finite_stops_at_once() -> None:
    asked = []

    def eps(x: Tensor, rho: float) -> Tensor:
        asked.append(rho)
        return x * (math.nan if rho < 1 else 0.1)

    with pytest.raises(NotFiniteError, match=r"rho=0\."):
        Adaptive().between(2.0, 0.1, 1000)(eps, torch.ones(2, 3))
    assert asked[-1] < 1 <= min(asked[:-1])
