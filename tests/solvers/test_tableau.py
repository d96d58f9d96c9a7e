import pytest
import torch

from scoreline.commands.certify import maker
from scoreline.errors import InputError
from scoreline.networks.exact import GaussianMixture
from scoreline.sampling import integrate
from scoreline.schedules.base import grid
from scoreline.schedules.spacings import Power
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.runge_kutta import RungeKutta, heun
from scoreline.solvers.tableau import Tableau, build, denoise_last


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.float64)


def test_heun_is_edms_algorithm() -> None:
    """Algorithm 1 of Karras et al. with 18 levels: NFE 35, written out as a plain loop."""
    table = build(heun(), Power(7), (80.0, 0.002), nfe=35, final="denoise")
    assert table.nfe == 35

    def eps(x: float, rho: float) -> float:
        return rho * x / (0.25 + rho**2) + 0.1 * rho / (1 + rho)

    t = [*grid(Power(7), 80, 0.002, 17).tolist(), 0.0]
    x = 80.0
    for i in range(18):
        d = eps(x, t[i])
        trial = x + (t[i + 1] - t[i]) * d
        x = trial if t[i + 1] == 0 else x + (t[i + 1] - t[i]) * (d + eps(trial, t[i + 1])) / 2
    states = [80.0]
    estimates: list[float] = []
    for k in range(len(table.B)):
        estimates.append(eps(states[k], float(table.rho[k])) if table.calls[k] else 0.0)
        states.append(
            sum(float(s) * v for s, v in zip(table.S[k], states, strict=False))
            + sum(float(n) * e for n, e in zip(table.N[k], estimates, strict=False))
        )
    assert states[-1] == pytest.approx(x, rel=1e-12)


@pytest.mark.parametrize("solver", [DDIM(), heun()], ids=repr)
@pytest.mark.parametrize("nfe", [1, 2, 3, 4, 9, 10])
@pytest.mark.parametrize("final", ["none", "denoise"])
def test_budget_is_exact(solver: DDIM | RungeKutta, nfe: int, final: str) -> None:
    if nfe == 1 and final == "denoise":
        with pytest.raises(InputError, match="nfe=1"):
            build(solver, Power(7), (80.0, 0.002), nfe, final)
        return
    table = build(solver, Power(7), (80.0, 0.002), nfe, final)
    assert table.nfe == nfe
    assert table.residual < 1e-14
    assert float(table.rho[-1]) == (0.0 if final == "denoise" else 0.002)


def test_denoise_last_refuses_a_second_time() -> None:
    table = build(DDIM(), Power(7), (80.0, 0.002), 3, "denoise")
    with pytest.raises(ValueError, match="rho = 0"):
        denoise_last(table)


def test_unknown_final_names_the_choices() -> None:
    with pytest.raises(InputError, match="final=zero: choose none"):
        build(DDIM(), Power(7), (80.0, 0.002), 3, "zero")


@pytest.mark.parametrize(
    ("S", "N", "message"),
    [
        ([[1, 0], [0.5, 0.4]], [[1, 0], [0, 1]], "sum to one"),
        ([[0, 1], [0, 1]], [[1, 0], [0, 1]], "does not exist yet"),
        ([[1, 0], [0, 1]], [[1, 2], [0, 1]], "does not exist yet"),
        ([[1, 0], [0, 1]], [[float("nan"), 0], [0, 1]], "finite"),
        ([[1]], [[1]], "rho has"),
    ],
)
def test_an_impossible_table_is_refused(S: list, N: list, message: str) -> None:
    rho = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        Tableau(rho, torch.tensor(S, dtype=torch.float64), torch.tensor(N, dtype=torch.float64), zeros(2))


UNROLLED = [
    *("ddim", "heun", "edm", "deis_tab3", "deis_rho_rk4", "ipndm4", "lms", "dpm_solver_2", "dpm_solver_3"),
    *("dpm_solver_fast", "dpmpp_2m", "dpmpp_3m", "dpmpp_2s", "unipc_2", "unipc_3", "unipc_3_noise", "scire_v1_2_fd"),
    *("scire_v1_3", "scire_v2_3", "scire_multistep_3"),
]


@pytest.mark.parametrize("name", UNROLLED)
@pytest.mark.parametrize("nfe", [6, 9])
def test_unrolled_is_the_same_method(name: str, nfe: int, mixture: GaussianMixture) -> None:
    final = "none" if name == "edm" else "denoise"
    table = build(maker(name, [])(LinearVP()), Power(7), (20.0, 0.05), nfe, final)
    plain = table.unrolled()
    assert len(plain.B) == plain.nfe == table.nfe
    assert torch.equal(plain.S, torch.eye(table.nfe, dtype=torch.float64))
    assert plain.residual < 1e-12
    assert torch.equal(plain.rho[[0, -1]], table.rho[[0, -1]])
    assert torch.equal(plain.rho[:-1], table.rho[:-1][torch.tensor(table.calls)])
    x = torch.randn(16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 20
    torch.testing.assert_close(integrate(mixture.eps, x, plain), integrate(mixture.eps, x, table), rtol=0, atol=1e-10)


def test_a_stochastic_table_is_not_unrolled() -> None:
    table = build(maker("euler_ancestral", [])(LinearVP()), Power(7), (20.0, 0.05), 4, "none")
    with pytest.raises(ValueError, match="stochastic"):
        table.unrolled()
