"""The sub-VP process against its differential equation and its published transition kernel."""

import math

import pytest
import torch
from scipy.integrate import solve_ivp

from scoreline.schedules.sub_vp import SubVP
from scoreline.schedules.vp import LinearVP


def test_moments_are_those_of_the_differential_equation() -> None:
    """dx = -beta / 2 x dt + sqrt(beta (1 - exp(-2 int beta))) dw from x_0: mean alpha x_0, variance sigma^2."""
    schedule = SubVP(0.1, 20.0)

    def rates(t: float, moments: list[float]) -> list[float]:
        beta, integral = 0.1 + 19.9 * t, 0.1 * t + 19.9 * t**2 / 2
        return [-beta / 2 * moments[0], -beta * moments[1] + beta * -math.expm1(-2 * integral)]

    times = [0.01, 0.2, 0.5, 1.0]
    found = solve_ivp(rates, (0, 1), [1.0, 0.0], t_eval=times, rtol=1e-10, atol=1e-14).y
    t = torch.tensor(times, dtype=torch.float64)
    assert schedule.alpha(t).tolist() == pytest.approx(found[0], rel=1e-7)
    assert (schedule.sigma(t) ** 2).tolist() == pytest.approx(found[1], rel=1e-6)


def test_signal_of_the_vp_process_and_less_noise() -> None:
    t = torch.linspace(1e-3, 1, 40, dtype=torch.float64)
    sub, vp = SubVP(0.2, 15.0), LinearVP(0.2, 15.0)
    torch.testing.assert_close(sub.alpha(t), vp.alpha(t))
    torch.testing.assert_close(sub.sigma(t), vp.sigma(t) ** 2)


def test_map_is_strictly_increasing_and_inverts() -> None:
    schedule = SubVP()
    rho = torch.logspace(-4, math.log10(schedule.sigma_max), 400, dtype=torch.float64)
    u = schedule(rho)
    assert u.dtype == torch.float64
    assert bool((u.diff() > 0).all())
    torch.testing.assert_close(schedule.inverse(u), rho, rtol=1e-12, atol=0)
    assert float(u[-1]) == pytest.approx(1.0, rel=1e-12)
    assert schedule.sigma_min == pytest.approx(
        1 / float(schedule.alpha(torch.tensor(1e-3).double())) * (-math.expm1(-0.1e-3 - 19.9e-6 / 2)), rel=1e-9
    )
