from dataclasses import replace

import pytest
import torch

from scoreline.errors import InputError
from scoreline.schedules.spacings import LogSNR, Power
from scoreline.solvers.deis import DEIS
from scoreline.solvers.measured_frame import MeasuredFrame
from scoreline.solvers.runge_kutta import heun

UNEVEN = MeasuredFrame((0.05, 0.2, 0.3, 4.0), (0.1, 0.7, 0.4, 0.9))


def gaussian(deviation: float, count: int) -> MeasuredFrame:
    """p = rho^2 / (rho^2 + s^2) at levels even in ln rho."""
    levels = torch.logspace(-2.5, 2, count, dtype=torch.float64)
    return MeasuredFrame(tuple(levels.tolist()), tuple((levels**2 / (levels**2 + deviation**2)).tolist()))


def test_the_amplitude_solves_the_equation_of_the_gain() -> None:
    """a' = l a between, below and above the levels, at the levels from both sides, and a is finite at zero."""
    rho = torch.tensor([0.0, 0.01, 0.049999, 0.050001, 0.1, 0.25, 1.0, 3.9999, 4.0001, 80.0], dtype=torch.float64)
    rho.requires_grad_()
    (slope,) = torch.autograd.grad(UNEVEN.amplitude(rho).log().sum(), rho)
    torch.testing.assert_close(slope, UNEVEN.gain(rho).detach(), rtol=1e-12, atol=1e-12)
    levels = torch.tensor(UNEVEN.levels, dtype=torch.float64)
    assert (levels * UNEVEN.gain(levels)).tolist() == pytest.approx(UNEVEN.powers, rel=1e-14)


def test_a_gaussian_s_table_has_its_amplitude() -> None:
    rho = torch.logspace(-4, 2, 200, dtype=torch.float64)
    a = gaussian(0.5, 2000).amplitude(rho)
    torch.testing.assert_close(a / a[-1], ((rho**2 + 0.25) / (rho[-1] ** 2 + 0.25)).sqrt(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("order", [0, 3])
def test_adams_bashforth_keeps_states_whose_slope_vanishes(order: int) -> None:
    table = DEIS(order, LogSNR(), frame=UNEVEN)(Power(7), 80.0, 0.002, 9)
    assert table.residual < 1e-14
    assert float((table.S.sum(1) - 1).abs().max()) > 0.01


def test_runge_kutta_keeps_states_whose_slope_vanishes() -> None:
    assert replace(heun(), frame=UNEVEN)(Power(7), 80.0, 0.002, 10).residual < 1e-13


@pytest.mark.parametrize(
    ("levels", "powers"),
    [
        ((1.0,), (1.0,)),
        ((1.0, 0.5), (1.0, 1.0)),
        ((0.0, 0.5), (1.0, 1.0)),
        ((0.5, 1.0), (1.0, 2.1)),
        ((0.5, 1.0), (1.0,)),
    ],
)
def test_refuses_what_is_no_table(levels: tuple[float, ...], powers: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match=r"solver\.frame"):
        MeasuredFrame(levels, powers)
