"""Methods of different papers that are one method."""

import pytest
import torch

from scoreline.networks.exact import GaussianMixture
from scoreline.sampling import integrate
from scoreline.schedules.base import Schedule
from scoreline.schedules.spacings import LogSNR, NSRLog, Polynomial, Power
from scoreline.schedules.vp import CosineVP, LinearVP
from scoreline.solvers.ancestral import EulerAncestral
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.deis import DEIS
from scoreline.solvers.dpm_multistep import DPMMultistep
from scoreline.solvers.dpm_sde import DPMSDE2M
from scoreline.solvers.dpm_solver import DPMSolver
from scoreline.solvers.edm import EDMHeun
from scoreline.solvers.ipndm import IPNDM
from scoreline.solvers.rho_ab import RhoAB
from scoreline.solvers.runge_kutta import EULER, heun, heun3, midpoint
from scoreline.solvers.scire import SciRE
from scoreline.solvers.tableau import Solver, build
from scoreline.solvers.unipc import UniPC

VP = LinearVP()
SPAN = (VP.sigma_max, VP.sigma_min)
FIRST_ORDER: list[Solver] = [
    DEIS(0, VP),
    DEIS(0, LogSNR()),
    RhoAB(0),
    EULER,
    IPNDM(1),
    DPMSolver(1),
    DPMSolver(1, "data"),
    DPMMultistep(1),
    DPMMultistep(1, "data"),
    SciRE(1),
    SciRE(1, "data"),
    UniPC(1, corrector=False),
    UniPC(1, prediction="noise", corrector=False),
    EulerAncestral(eta=0.0),
]
SAME: list[tuple[Solver, Solver]] = [
    (SciRE(2, m=1), midpoint()),
    (SciRE(3, m=1, stage="consistent"), heun3()),
    (DPMSDE2M(eta=0.0), DPMMultistep(2, "data")),
    (DEIS(3, Power(1)), RhoAB(3)),
]


@pytest.fixture(scope="module")
def start() -> torch.Tensor:
    return torch.randn(16, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * SPAN[0]


@pytest.mark.parametrize("spacing", [Polynomial(VP, 2), LogSNR(), Power(7), NSRLog(3.1), CosineVP()], ids=repr)
@pytest.mark.parametrize("solver", FIRST_ORDER, ids=repr)
def test_every_first_order_method_is_ddim(
    solver: Solver, spacing: Schedule, mixture: GaussianMixture, start: torch.Tensor
) -> None:
    ours, ddim = (integrate(mixture.eps, start, s(spacing, *SPAN, 12)) for s in (solver, DDIM()))
    torch.testing.assert_close(ours, ddim, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("one", "other"), SAME, ids=repr)
def test_higher_order_methods_of_two_names(
    one: Solver, other: Solver, mixture: GaussianMixture, start: torch.Tensor
) -> None:
    ends = [integrate(mixture.eps, start, s(Polynomial(VP, 2), *SPAN, 12)) for s in (one, other)]
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-10)


def test_third_order_multistep_is_deis_in_log_rho() -> None:
    """Its second step is the paper's second-order one, where DEIS integrates the line through two points exactly."""
    ours, deis = (s(Polynomial(VP, 2), *SPAN, 12).N for s in (DPMMultistep(3), DEIS(2, LogSNR())))
    torch.testing.assert_close(ours[2:], deis[2:], rtol=1e-9, atol=1e-10)
    assert not torch.allclose(ours[1], deis[1], rtol=1e-3)


@pytest.mark.parametrize("nfe", [3, 9, 35])
def test_heun_with_a_last_hop_is_edms_sampler(nfe: int, mixture: GaussianMixture, start: torch.Tensor) -> None:
    ours = integrate(mixture.eps, start, build(heun(), Power(7), SPAN, nfe, "denoise"))
    torch.testing.assert_close(ours, integrate(mixture.eps, start, EDMHeun()(Power(7), *SPAN, nfe)), rtol=0, atol=1e-12)
