import math

import pytest
import torch
from torch import Tensor

from scoreline.errors import InputError
from scoreline.objective import LogNormal, UniformTime
from scoreline.schedules.base import NoiseSchedule, Schedule, grid
from scoreline.schedules.discrete import DiscreteVP
from scoreline.schedules.spacings import LogSNR, Polynomial, Power
from scoreline.schedules.ve import EDM, VE
from scoreline.schedules.vp import CosineVP, LinearVP

NOISE = [LinearVP(), CosineVP(), DiscreteVP(), DiscreteVP(betas="cosine"), VE(), EDM()]
MAPS: list[Schedule] = [
    *NOISE,
    *(Polynomial(schedule, power) for schedule in (LinearVP(), DiscreteVP(), CosineVP()) for power in (1, 2, 3)),
    Power(7),
    Power(1),
    LogSNR(),
    LogNormal(),
    UniformTime(LinearVP()),
]


def levels(first: float, last: float, count: int = 401) -> Tensor:
    return torch.logspace(math.log10(first), math.log10(last), count, dtype=torch.float64)


@pytest.mark.parametrize("schedule", MAPS, ids=repr)
def test_map_is_strictly_increasing_and_inverts(schedule: Schedule) -> None:
    rho = levels(0.02, 100)
    u = schedule(rho)
    assert u.dtype == torch.float64
    assert (u.diff() > 0).all()
    # a quantile near one has lost the digits that would tell noise levels of the far tail apart
    tail = 40.0 if isinstance(schedule, LogNormal) else 100.0
    kept = rho <= tail
    torch.testing.assert_close(schedule.inverse(u)[kept], rho[kept], rtol=2e-9, atol=0)


@pytest.mark.parametrize("schedule", NOISE, ids=repr)
def test_noise_schedule_is_its_own_definition(schedule: NoiseSchedule) -> None:
    t = torch.linspace(schedule.t_min, schedule.t_max, 50, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    torch.testing.assert_close(sigma / alpha, schedule.inverse(t))
    if isinstance(schedule, LinearVP | CosineVP | DiscreteVP):
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t))
    else:
        assert (alpha == 1).all()
    assert schedule.sigma_min < schedule.sigma_max


def test_linear_vp_against_quadrature_of_its_beta() -> None:
    t = torch.linspace(0, 0.7, 200_001, dtype=torch.float64)
    integral = torch.trapezoid(0.1 + 19.9 * t, t)
    assert float(LinearVP().alpha(t[-1:])) == pytest.approx(math.exp(-float(integral) / 2), rel=1e-12)


def test_published_end_points() -> None:
    assert LinearVP().sigma_max == pytest.approx(152.16697, abs=5e-6)
    assert LinearVP().sigma_min == pytest.approx(0.0104860, abs=5e-8)
    assert LinearVP(t_min=1e-4).sigma_min == pytest.approx(0.00317798, abs=5e-9)


def test_discrete_knots_are_the_cumulative_product() -> None:
    schedule = DiscreteVP(beta_min=1e-4, beta_max=0.02, steps=1000)
    alpha2, beta = 1.0, torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).tolist()
    for k in range(1000):
        alpha2 *= 1 - beta[k]
        if k in (0, 1, 499, 999):
            t = torch.tensor(float(k), dtype=torch.float64)
            assert float(schedule.alpha(t)) ** 2 == pytest.approx(alpha2, rel=1e-12)
    assert float(schedule.inverse(torch.tensor(-1.0, dtype=torch.float64))) == 0.0
    assert len(schedule.knots()) == 1001


def test_discrete_is_linear_in_alpha_squared_between_knots() -> None:
    schedule = DiscreteVP()
    t = torch.tensor([10.0, 10.25, 11.0], dtype=torch.float64)
    a = schedule.alpha(t) ** 2
    assert float(a[1]) == pytest.approx(float(0.75 * a[0] + 0.25 * a[2]), rel=1e-12)


def test_time_quadratic_grid_of_the_specification() -> None:
    vp = LinearVP()
    t = vp(grid(Polynomial(vp, 2), vp.sigma_max, vp.sigma_min, 10))
    published = [1, 0.815702, 0.650159, 0.503372, 0.375339, 0.266061, 0.175539, 0.103772, 0.050759, 0.016502, 0.001]
    torch.testing.assert_close(t, torch.tensor(published, dtype=torch.float64), atol=6e-7, rtol=0)


@pytest.mark.parametrize(
    ("schedule", "published"),
    [
        (
            LogSNR(),
            [1, 0.899124, 0.785571, 0.653444, 0.493449, 0.304644, 0.140646, 0.053609, 0.018097, 0.004993, 0.001],
        ),
        (
            Power(7),
            [1, 0.944214, 0.879786, 0.803653, 0.710759, 0.592145, 0.432861, 0.232682, 0.077715, 0.015675, 0.001],
        ),
    ],
)
def test_other_grids_of_the_specification(schedule: Schedule, published: list[float]) -> None:
    """These figures come from a float32 program whose rho(1e-3) is off by 3.6e-4: hence 2e-5 and not six digits."""
    vp = LinearVP()
    t = vp(grid(schedule, vp.sigma_max, vp.sigma_min, 10))
    torch.testing.assert_close(t, torch.tensor(published, dtype=torch.float64), atol=2e-5, rtol=0)


def test_edm_ladder() -> None:
    published = [80, 57.585985, 40.785574, 28.374585, 19.352453, 12.910082, 8.400935, 5.315195, 3.256822, 1.923340]
    published += [1.088171, 0.585348, 0.296442, 0.139516, 0.059947, 0.022935, 0.007528, 0.002]
    ladder = grid(Power(7), 80, 0.002, 17)
    torch.testing.assert_close(ladder, torch.tensor(published, dtype=torch.float64), atol=6e-7, rtol=0)


@pytest.mark.parametrize("schedule", [s for s in MAPS if not isinstance(s, LogNormal | UniformTime)], ids=repr)
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_grid_has_its_ends_pinned(schedule: Schedule, steps: int) -> None:
    rho = grid(schedule, 50.0, 0.05, steps)
    assert rho.shape == (steps + 1,)
    assert (float(rho[0]), float(rho[-1])) == (50.0, 0.05)
    assert (rho.diff() < 0).all()
    u = schedule(rho)
    torch.testing.assert_close(u.diff(), (u[-1] - u[0]).expand(steps) / steps, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("span", [(1.0, 1.0), (1.0, -0.1), (-1.0, 0.1), (1.0, float("inf")), (float("nan"), 1.0)])
def test_grid_refuses_an_impossible_range(span: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="sigma_min="):
        grid(Power(7), *span, 5)


def test_grid_refuses_what_cannot_be_reached() -> None:
    with pytest.raises(InputError, match="LogSNR"):
        grid(LogSNR(), 80, 0.0, 5)
    with pytest.raises(InputError, match="at least one step"):
        grid(Power(7), 80, 0.002, 0)


def test_densities_are_quantile_functions() -> None:
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    log = LogNormal(-1.2, 1.2).inverse(u).log()
    assert float(log.mean()) == pytest.approx(-1.2, abs=1e-9)
    assert float(log.std()) == pytest.approx(1.2, rel=1e-3)
    t = LinearVP()(UniformTime(LinearVP(), 1e-5, 1).inverse(u))
    torch.testing.assert_close(t, 1e-5 + (1 - 1e-5) * u, rtol=1e-9, atol=1e-12)


def test_density_refuses_an_empty_interval() -> None:
    with pytest.raises(ValueError, match="start < stop"):
        UniformTime(LinearVP(), 1.0, 0.5)
