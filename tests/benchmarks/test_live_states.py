"""How many tensors of the state's size the loop holds at once."""

import sys
from pathlib import Path

import pytest
import torch

from scoreline.sampling import integrate, trajectory
from scoreline.solvers.frames import NOISE
from scoreline.solvers.rows import Rows
from scoreline.solvers.tableau import Tableau

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from memory import NUMBERS, Live, live_states, order, solvers, table_of


@pytest.mark.parametrize("name", solvers())
def test_states_alive_are_at_most_order_plus_two(name: str) -> None:
    """Order is the number of estimates that a step combines: terms of a multistep method, stages of a single-step one;
    where a corrector adds the predicted point (UniPC) the order is one higher too. Fresh noise is one tensor more. In
    frames whose slope is a sum of a state and an estimate, each former slope is two tensors."""
    solver, table = table_of(name)
    if not isinstance(table, Tableau):
        pytest.skip("SciPy holds the stages of adaptive pairs")
    slopes = order(name, solver)
    most = slopes + 2 + bool(table.B.any()) if table.frame == NOISE else 2 * slopes + 1
    assert live_states(table) <= most


@pytest.mark.parametrize(
    ("name", "most"),
    [("ddim", 3), ("deis_tab3", 5), ("ipndm4", 5), ("dpmpp_3m", 5), ("deis_rho_rk4", 6), ("unipc_3", 6), ("edm", 4)],
)
def test_what_they_hold(name: str, most: int) -> None:
    """DDIM: x_0, which is not written to, its estimate and x_1. Multistep methods of p terms: p estimates and the
    state, which is written in place. Data prediction: p clean images, the state, an estimate. RK4: the state, its
    stage and 4 estimates."""
    assert live_states(table_of(name)[1]) == most


def test_an_owned_initial_state_counts() -> None:
    table = table_of("deis_tab3")[1]
    assert table.sums
    with torch.inference_mode():
        x = torch.ones(NUMBERS)
        with Live(x) as live:
            integrate(lambda x, rho: torch.neg(x), x, table)
    assert live.most == live_states(table) + 1


def test_storages_are_counted_once_while_they_are_alive() -> None:
    x = torch.ones(NUMBERS)
    with Live(x) as live:
        assert live.most == 1
        views = [x[1:], x.flip(0)[:5], torch.ones(NUMBERS + 1)]
        assert live.most == 2
        views.pop(1)
        for _ in range(5):
            torch.neg(x)
        x.add_(1)
        assert live.most == 2
        held = [torch.neg(x) for _ in range(3)]
    assert live.most == 1 + len(held)


def test_states_and_estimates_release_each_other() -> None:
    """A row that reads an old estimate does not keep the state where it was made, and the other way round."""
    rows = Rows(4.0)
    rows.add(3.0, {0: 1.0}, {0: -1.0})
    rows.add(2.0, {0: 0.5, 1: 0.5}, {1: -1.5})
    rows.add(1.0, {2: 1.0}, {0: -1.0})
    dead = [row.dead for row in rows.tableau().sums]
    assert [sorted(row) for row in dead] == [[], [(False, 1), (True, 0), (True, 1)], [(False, 0), (True, 2)]]


def test_an_unread_state_is_released_at_once() -> None:
    rows = Rows(4.0)
    rows.add(3.0, {0: 1.0}, {0: -1.0})
    rows.add(2.0, {0: 1.0}, {0: -2.0})
    assert rows.tableau().sums[1].dead == [(True, 0), (True, 1), (False, 0)]
    with torch.inference_mode():
        found = integrate(lambda x, rho: torch.ones_like(x), torch.zeros(NUMBERS), rows.tableau())
    assert torch.equal(found, torch.full((NUMBERS,), -2.0))


def test_a_copied_state_has_memory_of_its_own() -> None:
    """A row that only copies the initial state must not hand the caller's memory to a later row."""
    rows = Rows(4.0)
    rows.add(4.0, {0: 1.0})
    rows.add(3.0, {1: 1.0}, {1: -1.0})
    x = torch.zeros(NUMBERS)
    with torch.inference_mode():
        states = [state.x for state in trajectory(lambda x, rho: torch.ones_like(x), x, rows.tableau(), reuse=True)]
    assert torch.equal(x, torch.zeros(NUMBERS))
    assert torch.equal(states[-1], torch.full((NUMBERS,), -1.0))
