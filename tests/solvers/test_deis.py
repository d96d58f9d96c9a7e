import pytest
import torch
from torch import Tensor

from scoreline.errors import InputError
from scoreline.sampling import integrate
from scoreline.schedules.base import grid
from scoreline.schedules.discrete import DiscreteVP
from scoreline.schedules.spacings import Polynomial, Power
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.deis import DEIS, adams_bashforth

VP = LinearVP()
GOLDEN = [
    (-4.33395595,),
    (-3.19585922, 0.81885952),
    (-2.22016868, 1.18315951, -0.32457551),
    (-1.53873339, 1.22367395, -0.63281967, 0.12856644),
    (-0.99421021, 0.78999201, -0.39980107, 0.07947623),
    (-0.67346591, 0.52505730, -0.25770204, 0.04975216),
    (-0.46464571, 0.34684082, -0.16283952, 0.03018876),
    (-0.30993287, 0.21334933, -0.09362631, 0.01636187),
    (-0.18248990, 0.10774879, -0.04224746, 0.00672685),
    (-0.08006978, 0.03357126, -0.01053260, 0.00141946),
]


def tableau(order: int, nfe: int = 10, variable: object = VP):
    return DEIS(order, variable)(Polynomial(VP, 2), VP.sigma_max, VP.sigma_min, nfe)


def test_golden_coefficients_of_tab3() -> None:
    """VP 0.1/20, t0 = 1e-3, quadratic time, N = 10: C_ij = alpha_{i+1} b_ij to the eight digits given."""
    table = tableau(3)
    C = VP.alpha(VP(table.rho[1:]))[:, None] * table.N
    for i, row in enumerate(GOLDEN):
        ours = C[i, : i + 1].flip(0)[: len(row)]
        torch.testing.assert_close(ours, torch.tensor(row, dtype=torch.float64), rtol=0, atol=1e-7)
        assert not C[i, : max(0, i - 3)].any()


def closed_form_rho_ab3(rho: Tensor, i: int) -> list[float]:
    h = float(rho[i + 1] - rho[i])
    d = [float(rho[i - k] - rho[i]) for k in (1, 2, 3)]
    e1, e2, e3 = sum(d), d[0] * d[1] + d[0] * d[2] + d[1] * d[2], d[0] * d[1] * d[2]
    weights = [-(h**4 / 4 - e1 * h**3 / 3 + e2 * h**2 / 2 - e3 * h) / e3]
    for j in range(3):
        p, q = (d[k] for k in range(3) if k != j)
        weights.append((h**4 / 4 - (p + q) * h**3 / 3 + p * q * h**2 / 2) / (d[j] * (d[j] - p) * (d[j] - q)))
    return weights


def test_rho_ab3_equals_its_closed_form() -> None:
    table = tableau(3, variable=Power(1))
    for i in range(3, 10):
        ours = table.N[i, i - 3 : i + 1].flip(0)
        torch.testing.assert_close(
            ours, torch.tensor(closed_form_rho_ab3(table.rho, i), dtype=torch.float64), rtol=1e-10, atol=1e-13
        )


def test_equal_steps_give_classical_adams_bashforth_weights() -> None:
    rho = torch.linspace(10, 5, 11, dtype=torch.float64)
    N = adams_bashforth(rho, 3, Power(1), None) / -0.5
    expected = torch.tensor([55, -59, 37, -9], dtype=torch.float64) / 24
    torch.testing.assert_close(N[7, 4:8].flip(0), expected, rtol=1e-11, atol=0)


@pytest.mark.parametrize("variable", [VP, Power(1), Power(7), DiscreteVP()], ids=repr)
def test_order_zero_is_ddim(variable: object) -> None:
    ddim = DDIM()(Polynomial(VP, 2), VP.sigma_max, VP.sigma_min, 7)
    torch.testing.assert_close(tableau(0, 7, variable).N, ddim.N, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("nfe", [1, 2, 3, 10, 50])
def test_rows_are_consistent_and_the_budget_exact(order: int, nfe: int) -> None:
    table = tableau(order, nfe)
    assert table.nfe == nfe
    assert table.residual < 1e-14


@pytest.mark.parametrize("order", [1, 2, 3])
def test_polynomials_in_the_variable_are_integrated_exactly(order: int) -> None:
    """eps = t^order along the trajectory: every full row must give the exact integral."""
    table = tableau(order, 12)
    t = VP(table.rho[:-1])
    fine = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    for i in range(order, 12):
        rho = torch.lerp(table.rho[i], table.rho[i + 1], fine)
        truth = torch.trapezoid(VP(rho) ** order, rho)
        assert float(table.N[i] @ t**order) == pytest.approx(float(truth), rel=1e-8)


def test_constant_scales_cancel() -> None:
    class Constant:
        def __init__(self, value: float) -> None:
            self.value = value

        def __call__(self, rho: Tensor) -> Tensor:
            return torch.full_like(rho, self.value)

        def knots(self) -> Tensor:
            return torch.tensor([0.1, 1.0], dtype=torch.float64)

    for value in (1.0, 37.0):
        scaled = DEIS(3, VP, Constant(value))(Polynomial(VP, 2), VP.sigma_max, VP.sigma_min, 9)
        torch.testing.assert_close(scaled.N, tableau(3, 9).N, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("nfe", [1, 3, 10])
def test_score_normalisation_is_exact_on_a_gaussian(order: int, nfe: int) -> None:
    """On N(0, c^2) |eps| is proportional to w = rho / sqrt(c^2 + rho^2) at any time: no error at any budget."""
    c = 0.5

    class Exact:
        def __call__(self, rho: Tensor) -> Tensor:
            return rho / (c**2 + rho**2).sqrt()

        def knots(self) -> Tensor:
            return torch.empty(0, dtype=torch.float64)

    table = DEIS(order, VP, Exact())(Polynomial(VP, 2), VP.sigma_max, VP.sigma_min, nfe)
    x = integrate(lambda x, rho: rho * x / (c**2 + rho**2), torch.ones(1, dtype=torch.float64), table)
    truth = ((c**2 + VP.sigma_min**2) / (c**2 + VP.sigma_max**2)) ** 0.5
    assert float(x) == pytest.approx(truth, rel=1e-11)


def test_refuses_orders_and_scales_that_make_no_sense() -> None:
    class Negative:
        def __call__(self, rho: Tensor) -> Tensor:
            return 0.5 - rho

        def knots(self) -> Tensor:
            return torch.empty(0, dtype=torch.float64)

    with pytest.raises(InputError, match=r"solver\.order=4"):
        DEIS(4, VP)
    with pytest.raises(InputError, match="positive"):
        adams_bashforth(grid(Power(7), 10, 0.1, 4), 2, VP, Negative())
