import math

import pytest
import torch
from torch import Tensor

from scoreline.networks.exact import GaussianMixture
from scoreline.sampling import integrate
from scoreline.schedules.spacings import Power
from scoreline.schedules.tabulated import Tabulated
from scoreline.solvers.ancestral import EulerAncestral
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.deis import DEIS
from scoreline.solvers.frames import NOISE, Frame, Velocity
from scoreline.solvers.ipndm import IPNDM
from scoreline.solvers.late_start import first_call, late_start
from scoreline.solvers.runge_kutta import heun
from scoreline.solvers.tableau import Tableau, build_tableau
from scoreline.solvers.unipc import UniPC

RANGE = (20.0, 0.05)
SOLVERS = [UniPC(3), IPNDM(4), IPNDM(4, Velocity(0.5)), heun(), heun(Velocity(0.5)), DEIS(2, Power(7))]


def run_of(solver: object, final: str, nfe: int = 8) -> Tableau:
    return build_tableau(solver, Power(7), RANGE, nfe, final)  # type: ignore[arg-type]


@pytest.mark.parametrize("final", ["none", "denoise"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_with_all_calls_it_is_the_run(solver: object, final: str, mixture: GaussianMixture) -> None:
    tableau, x = run_of(solver, final), 20 * torch.randn(16, 2, dtype=torch.float64)
    torch.testing.assert_close(
        integrate(mixture.eps, x, late_start(tableau, 0)), integrate(mixture.eps, x, tableau), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("final", ["none", "denoise"])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("calls", [1, 3, 7])
def test_it_has_the_remaining_calls_and_keeps_the_frame(solver: object, final: str, calls: int) -> None:
    tableau = run_of(solver, final)
    rest = late_start(tableau, calls)
    called, body = tableau.query_levels[torch.tensor(tableau.calls)], 8 - (final == "denoise")
    idle = int(solver == heun() and calls % 2 and calls < body)  # at its second stage, Heun's method is there already
    assert rest.nfe == tableau.nfe - calls - idle
    assert torch.equal(rest.query_levels[torch.tensor(rest.calls)], called[calls + idle :])
    assert rest.residual < 1e-9
    assert float(rest.rho[-1]) == float(tableau.rho[-1])


@pytest.mark.parametrize("frame", [NOISE, Velocity(0.5)])
def test_a_constant_slope_is_followed_exactly(frame: Frame) -> None:
    """Adams-Bashforth weights of any history sum to the step: with constant G the state is that of Euler's rows."""
    rest = late_start(run_of(IPNDM(4, frame), "none"), 3)
    W = rest.in_frame()[1] / frame.unit(rest.query_levels)
    s = torch.tensor([frame.coordinate(float(rho)) for rho in rest.rho], dtype=torch.float64)
    torch.testing.assert_close(W.sum(1), s.diff(), rtol=1e-9, atol=1e-12)


def test_a_method_without_history_goes_on_as_if_it_began_there(mixture: GaussianMixture) -> None:
    tableau = run_of(DDIM(), "denoise")
    levels = tuple(tableau.rho[3:-1].tolist())
    again = build_tableau(DDIM(), Tabulated(levels), (levels[0], levels[-1]), len(levels), "denoise")
    x = levels[0] * torch.randn(16, 2, dtype=torch.float64)
    found = integrate(mixture.eps, x, late_start(tableau, 3))
    torch.testing.assert_close(found, integrate(mixture.eps, x, again), rtol=1e-10, atol=1e-10)


def test_a_run_from_infinite_noise_can_be_entered_later(mixture: GaussianMixture) -> None:
    rho = torch.tensor([math.inf, 5.0, 2.0, 0.8, 0.1], dtype=torch.float64)
    W = torch.zeros(4, 4, dtype=torch.float64)
    for k in range(1, 4):  # two-step Adams-Bashforth in rho, whose first slope is x / rho
        W[k, k - 1 : k + 1] = torch.tensor([-0.25, 1.25], dtype=torch.float64) * (rho[k + 1] - rho[k])
    W[0, 0] = 1.0
    tableau = Tableau.single_term(rho, W)
    rest = late_start(tableau, 1)
    assert rest.rho.tolist() == rho.tolist()[1:]
    assert float(rest.N[0, 0]) == pytest.approx(2.0 - 5.0)  # both weights on the only slope: Euler's step
    assert torch.equal(rest.N[1:, 1:], tableau.N[2:, 2:])
    assert integrate(mixture.eps, 5 * torch.randn(4, 2, dtype=torch.float64), rest).isfinite().all()


def test_refusals() -> None:
    with pytest.raises(ValueError, match="stochastic"):
        late_start(run_of(EulerAncestral(), "denoise"), 2)
    for calls in (-1, 8):
        with pytest.raises(ValueError, match="8 calls"):
            late_start(run_of(DDIM(), "none"), calls)


def test_the_first_call_is_the_start(mixture: GaussianMixture) -> None:
    solver = DEIS(3, Power(7), frame=Velocity(0.1), analytic_first=20)
    tableau = run_of(solver, "none", 5)
    assert not tableau.calls[0]
    rest = first_call(tableau)
    assert rest.calls[0]
    assert rest.nfe == 5

    def eps(x: Tensor, rho: float) -> Tensor:
        return mixture.eps(x, rho)

    x = 20 * torch.randn(4, 2, dtype=torch.float64)
    free = float(tableau.S[0, 0]) * x
    torch.testing.assert_close(integrate(eps, free, rest), integrate(eps, x, tableau), rtol=1e-12, atol=1e-12)
    assert first_call(rest) is not None
