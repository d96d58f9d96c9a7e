from itertools import pairwise

import pytest
import torch

from scoreline.errors import InputError
from scoreline.schedules.spacings import Polynomial, Power
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.ipndm import IPNDM
from scoreline.solvers.rho_ab import RhoAB

VP = LinearVP()
SPAN = (VP.sigma_max, VP.sigma_min)


def test_native_update_of_the_released_code() -> None:
    """x_{i-1} = sqrt(a'/a) x + (sqrt(1 - a') - sqrt(a'/a) sqrt(1 - a)) ehat, written in native coordinates."""
    table = IPNDM(4)(Polynomial(VP, 2), *SPAN, 7)
    t = VP(table.rho)
    e = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).tolist()
    hats = [
        e[0],
        (3 * e[1] - e[0]) / 2,
        (23 * e[2] - 16 * e[1] + 5 * e[0]) / 12,
        *[(55 * e[i] - 59 * e[i - 1] + 37 * e[i - 2] - 9 * e[i - 3]) / 24 for i in range(3, 7)],
    ]
    x, ours = 0.7, 0.7 / float(VP.alpha(t[0]))
    alphas = VP.alpha(t).tolist()
    for i, (alpha, after) in enumerate(pairwise(alphas)):
        ratio = after / alpha
        x = ratio * x + ((1 - after**2) ** 0.5 - ratio * (1 - alpha**2) ** 0.5) * hats[i]
        ours += float(table.N[i] @ torch.tensor(e, dtype=torch.float64))
        assert ours * after == pytest.approx(x, rel=1e-9)


def test_even_steps_in_rho_make_it_rho_ab() -> None:
    """There the weights are the classical ones from the fourth step on, and in the shorter first steps too."""
    for order in (1, 2, 3, 4):
        ours, theirs = IPNDM(order)(Power(1), 10.0, 1.0, 9), RhoAB(order - 1)(Power(1), 10.0, 1.0, 9)
        torch.testing.assert_close(ours.N, theirs.N, rtol=1e-12, atol=1e-13)


def test_order_one_is_ddim_and_others_are_refused() -> None:
    assert torch.equal(IPNDM(1)(Power(7), *SPAN, 5).N, DDIM()(Power(7), *SPAN, 5).N)
    for order in (0, 5):
        with pytest.raises(InputError, match=f"solver.order={order}"):
            IPNDM(order)
    with pytest.raises(InputError, match=r"solver\.order=4"):
        RhoAB(4)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("nfe", [1, 2, 3, 4, 11])
def test_budget_and_consistency(order: int, nfe: int) -> None:
    table = IPNDM(order)(Polynomial(VP, 2), *SPAN, nfe)
    assert table.nfe == nfe
    assert table.residual < 1e-14
