"""GITS: the cheapest path against all paths, its costs against their definition, and the record that it makes."""

from itertools import combinations, pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learned_models import SPAN, solver, subject
from torch import Tensor

from scoreline.calibration.learned.gits import GITS, cheapest_path, pairwise_costs
from scoreline.calibration.ranking import Families
from scoreline.errors import InputError
from scoreline.records import Record
from scoreline.sampling import trajectory
from scoreline.schedules.spacings import Power
from scoreline.solvers.learned import load_learned

KARRAS = {"karras": Power(7)}


def costs(count: int, seed: int) -> Tensor:
    """Random ones, some below zero, as steps that bring a run nearer to the line have."""
    found = torch.randn(count, count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return found.masked_fill(torch.ones(count, count, dtype=torch.bool).tril(), torch.inf)


@given(seed=st.integers(0, 10**6), steps=st.integers(1, 7), weight=st.sampled_from([0.5, 1.0, 1.15]))
def test_the_cheapest_path_is_that_of_brute_force(seed: int, steps: int, weight: float) -> None:
    cost = costs(8, seed)

    def total(path: tuple[int, ...]) -> float:
        return sum(weight**k * float(cost[i, j]) for k, (i, j) in enumerate(pairwise(path)))

    paths = [(0, *inner, 7) for inner in combinations(range(1, 7), steps - 1)]
    found = tuple(cheapest_path(cost, steps, weight))
    assert found in paths
    assert total(found) == pytest.approx(min(map(total, paths)), abs=1e-12)


def test_a_cost_is_what_an_euler_step_adds_to_the_distance_from_the_line() -> None:
    of = subject(range(5), batch_size=2)
    rho, cost = pairwise_costs(of)
    assert torch.equal(rho, of.run.rho)
    eps = of.eps(None)
    x = of.noise(of.seeds, "initial") * SPAN[0]
    states = [x, *(state.x for state in trajectory(eps, x, of.run))]
    end, along = states[-1], (states[-1] - x).flatten(1)

    def off(point: Tensor) -> Tensor:
        away = (end - point).flatten(1)
        share = (away * along).sum(1) / along.square().sum(1)
        return (away - share[:, None] * along).square().mean(1).sqrt()

    for i, j in ((0, 1), (0, 70), (40, 90), (99, 100)):
        reached = states[i] + (rho[j] - rho[i]).float() * eps(states[i], float(rho[i]))
        expected = float((off(reached) - off(states[j])).mean())
        assert float(cost[i, j]) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert bool(cost[torch.ones_like(cost, dtype=torch.bool).tril()].isinf().all())


def test_its_levels_are_those_of_the_fine_run_and_its_weights_the_solvers(tmp_path: Path) -> None:
    of = subject(range(12))
    values = GITS([3, 5], Families({"ipndm2": solver("ipndm2")}, KARRAS))(of)
    tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
    Record("tableau", tensors, {"checkpoint": "0" * 64}).save(tmp_path / "record.safetensors")
    learned = load_learned(tmp_path / "record.safetensors", "0" * 64)
    for nfe in (3, 5):
        tableau = learned(Power(7), *SPAN, nfe)
        assert set(tableau.rho.tolist()) <= set(of.run.rho.tolist())
        assert (float(tableau.rho[0]), float(tableau.rho[-1])) == SPAN
        assert tableau.residual < 1e-12
        assert tableau.query is None
    assert values["seconds"] >= 0
    assert values["starts"] == [("ipndm2", "karras")] * 2


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"weight": 0.0}, "calibration.weight=0.0"),
        ({"budgets": []}, "budgets"),
        ({"families": Families({"ddim": solver("ddim"), "ipndm2": solver("ipndm2")}, KARRAS)}, "calibration.solvers"),
        ({"families": Families({"ddim": solver("ddim")}, {})}, "calibration.schedules"),
    ],
)
def test_what_it_refuses(options: dict, match: str) -> None:
    with pytest.raises(InputError, match=match):
        GITS(**{"budgets": [5], "families": Families({"ipndm2": solver("ipndm2")}, KARRAS)} | options)


@pytest.mark.parametrize(
    ("name", "nfe", "match"), [("ddim", 101, "nfe=100"), ("dpm_solver_3", 6, "calibration.solvers")]
)
def test_budgets_and_solvers_without_such_steps(name: str, nfe: int, match: str) -> None:
    with pytest.raises(InputError, match=match):
        GITS([nfe], Families({name: solver(name)}, KARRAS))(subject(range(6)))
