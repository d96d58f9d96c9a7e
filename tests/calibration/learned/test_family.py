"""The family of tableaus around a closed form: what theta = 0 is, what every member keeps, and its derivatives."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learned_models import SPAN, solver, start, zeros
from torch import Tensor

from scoreline.calibration.learned.family import ClosedForm, Family, Fixed, Free, theory_of
from scoreline.errors import InputError
from scoreline.schedules.tabulated import Tabulated
from scoreline.solvers.frames import Velocity
from scoreline.solvers.learned import tableau_in, tensors_of

MOVING = ("ddim", "deis_tab3", "dpmpp_3m", "unipc_3", "ipndm4", "velocity")
STARTS = (*MOVING, "dpm_solver_3", "scire_v1_2", "deis_sn")


def family(name: str, nfe: int = 6, **free: object) -> Family:
    table = start(name, nfe)
    return Family(table, theory_of(solver(name), table), Free(**free), 0.7)  # type: ignore[arg-type]


def parameters(of: Family, seed: int = 0, size: float = 0.1) -> Tensor:
    return size * torch.randn(of.size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", STARTS)
@pytest.mark.parametrize("rows", ["free", "bound"])
def test_theta_zero_is_the_start(name: str, rows: str) -> None:
    here, table = family(name, rows=rows)(zeros(family(name, rows=rows).size)), start(name)
    for ours, theirs in ((here.rho, table.rho), (here.query_levels, table.rho[:-1]), (here.S, table.S)):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(here.N, table.N, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", STARTS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([1e-3, 0.1, 0.5]), history=st.integers(1, 6))
def test_every_member_keeps_ends_order_and_invariant(name: str, seed: int, size: float, history: int) -> None:
    """Free rows keep the Gaussian of velocity prediction; a point in noise prediction is kept by bound rows alone."""
    of, table = family(name, history=history, rows="bound"), start(name)
    there = of(parameters(of, seed, size))
    assert torch.equal(there.rho[[0, -1]], table.rho[[0, -1]])
    assert bool((there.rho.diff() < 0).all())
    assert there.nfe == len(there.B) == table.nfe
    assert float(there.query_levels.max()) <= float(table.rho[0])
    if name != "deis_sn":  # which is exact for constant eps / w
        plain = Family(table, of.theory, Free(query=False, history=history, rows="bound"), 0.7)
        assert plain(parameters(plain, seed, size)).residual < 1e-11


def test_free_rows_keep_the_gaussian_of_velocity_prediction_alone() -> None:
    free = family("velocity")
    assert free(parameters(free)).residual < 1e-12
    noise = family("deis_tab3", query=False)
    assert noise(parameters(noise)).residual > 1e-3


@pytest.mark.parametrize("name", MOVING)
def test_weights_are_those_of_the_closed_form_on_the_levels(name: str) -> None:
    of = family(name, query=False, weights=False)
    assert isinstance(of.theory, ClosedForm)
    there = of(parameters(of, 1, 0.5))
    assert float((there.rho.log() - start(name).rho.log()).abs().max()) > 0.1
    levels = tuple(there.rho.tolist())
    direct = solver(name)(Tabulated(levels), *SPAN, 6).unrolled()
    torch.testing.assert_close(there.N, direct.N, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(there.S, direct.S, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["dpm_solver_3", "scire_v1_2"])
def test_inner_steps_keep_their_shares_of_the_step(name: str) -> None:
    of = family(name, query=False, weights=False)
    assert isinstance(of.theory, Fixed)
    there = of(parameters(of, 1, 0.5))
    shares = [table.N / table.rho.diff()[:, None] for table in (there, start(name))]
    torch.testing.assert_close(*shares, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["deis_tab3", "dpmpp_3m", "velocity", "velocity, first slope free", "dpm_solver_3"])
@pytest.mark.parametrize("rows", ["free", "bound"])
def test_derivatives_are_those_of_central_differences(name: str, rows: str) -> None:
    of = family(name, nfe=4 if name != "dpm_solver_3" else 6, rows=rows)
    theta, h = parameters(of), 1e-5
    drawn = torch.Generator().manual_seed(9)

    def number(theta: Tensor) -> Tensor:
        table = of(theta)
        drawn.manual_seed(9)
        return sum(  # type: ignore[return-value]
            (part * torch.randn(part.shape, dtype=torch.float64, generator=drawn)).sum()
            for part in (table.S, table.N, table.query_levels)
        )

    leaf = theta.clone().requires_grad_()
    (found,) = torch.autograd.grad(number(leaf), leaf)
    for p in range(of.size):
        moved = zeros(of.size)
        moved[p] = h
        difference = float(number(theta + moved) - number(theta - moved)) / (2 * h)
        assert float(found[p]) == pytest.approx(difference, rel=1e-5, abs=1e-5 * float(found.abs().max())), p


@pytest.mark.parametrize(
    ("free", "sizes"),
    [
        ({}, (6, 6, 21, 1)),
        ({"rows": "bound"}, (6, 6, 15, 1)),
        ({"history": 2}, (6, 6, 11, 1)),
        ({"history": 2, "rows": "bound"}, (6, 6, 5, 1)),
        ({"nodes": False}, (0, 6, 21, 1)),
        ({"query": False, "weights": False}, (6, 0, 0, 0)),
    ],
)
def test_parts_that_are_free_have_parameters(free: dict[str, object], sizes: tuple[int, ...]) -> None:
    of = family("velocity", **free)
    assert of.sizes == sizes
    moved, table = of(parameters(of)), start("velocity")
    assert torch.equal(moved.rho, table.rho) == (not sizes[0])
    assert (moved.query is None) == (not sizes[1])
    assert (moved.frame == table.frame) == (not sizes[3])
    correction = moved.in_frame()[1] - of.theory(moved.rho.detach())
    row, column = (correction.abs() > 1e-9).nonzero(as_tuple=True)
    assert len(row) == {0: 0, 21: 21, 15: 20, 11: 11, 5: 10}[sizes[2]]
    assert set((row - column).tolist()) <= set(range(free.get("history") or 6))  # type: ignore[call-overload]


def test_a_first_step_without_a_call_has_a_level_and_no_weight() -> None:
    of = family("velocity, first slope free")
    assert isinstance(of.theory, ClosedForm)
    assert of.sizes == (7, 6, 21, 1)
    assert torch.allclose(of(zeros(of.size)).S, of.start.S, atol=1e-11)
    moved = of(parameters(of))
    assert (moved.nfe, len(moved.B)) == (6, 7)
    assert not moved.calls[0]
    assert float(moved.rho[1]) != pytest.approx(float(of.start.rho[1]), rel=1e-3)
    assert moved.residual < 1e-11
    back = tableau_in(tensors_of(moved), 6)
    for one, other in ((back.rho, moved.rho), (back.S, moved.S), (back.N, moved.N)):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(back.query_levels[1:], moved.query_levels[1:], rtol=0, atol=0)


def test_one_call_has_no_levels_to_learn() -> None:
    assert family("velocity", 1).sizes == (0, 1, 1, 1)
    assert family("deis_tab3", 1, rows="bound", query=False).size == 0


def test_levels_that_coincide_are_refused() -> None:
    of = family("velocity")
    theta = zeros(of.size)
    theta[1] = -80.0
    with pytest.raises(ValueError, match="levels"):
        of(theta)


def test_wrong_parts_are_refused() -> None:
    for wrong, key in (({"rows": "some"}, "rows=some"), ({"history": 0}, "history=0"), ({"history": 1.5}, "history")):
        with pytest.raises(InputError, match=key):
            Free(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="nodes, query or weights"):
        Free(nodes=False, query=False, weights=False)
    with pytest.raises(InputError, match="sigma_data"):
        Velocity(math.inf)


@pytest.mark.parametrize("name", ["deis_tab3", "velocity"])
def test_the_first_call_can_keep_the_level_of_its_state(name: str) -> None:
    of = family(name, first_query=False)
    there, plain = of(parameters(of)), family(name)
    first = there.calls.index(True)
    asked, levels = there.query_levels, there.rho[:-1]
    assert float(asked[first]) == float(levels[first])
    assert bool((asked[first + 1 :] != levels[first + 1 :]).all())
    assert of.size == plain.size - 1
