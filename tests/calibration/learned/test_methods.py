"""Published methods as choices of `calibration`, which restrict the family: what each moves and what it leaves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from learned_models import SPAN, solver, subject

from scoreline.calibration.learned.family import ClosedForm
from scoreline.calibration.learned.learned_tableau import LearnedTableau
from scoreline.calibration.ranking import Families
from scoreline.config import run_names
from scoreline.schedules.spacings import Power
from scoreline.solvers.learned import tableau_in
from scoreline.solvers.tableau import Tableau, build_tableau

CONF = Path(__file__).parents[3] / "conf"
KARRAS = Power(7)
BUDGETS = [3, 5]


def method(name: str, *overrides: str) -> LearnedTableau:
    """The estimator of conf/calibration/NAME.yaml, with the first of its solvers on one schedule and a few steps."""
    run_names.register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("calibrate", [f"calibration={name}", *overrides])
    options = {key: value for key, value in cfg.calibration.items() if key not in ("solvers", "schedules")}
    chosen = cfg.calibration.solvers[0]
    few = {"budgets": BUDGETS, "sigma_data": 0.7, "starts": 1, "evaluations": 800, "batch": 8, "memory": 0.0}
    families = Families({chosen: solver(chosen)}, {"karras": KARRAS})
    found: LearnedTableau = instantiate({**options, **few, "_partial_": True}, _convert_="all")(families=families)
    return found


def learned(name: str, *overrides: str) -> dict[int, tuple[Tableau, Tableau, Any]]:
    """By budget the learned tableau, its start, and the solver."""
    estimator = method(name, *overrides)
    values = estimator(subject(range(24)))
    assert values["seconds"] > 0
    (its_solver,) = estimator.families.solvers.values()
    starts = {nfe: build_tableau(its_solver, KARRAS, SPAN, nfe, "none").unrolled() for nfe in BUDGETS}  # type: ignore[arg-type]
    return {nfe: (tableau_in(values, nfe), starts[nfe], its_solver) for nfe in BUDGETS}


def moved(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def check(found: Tableau, start: Tableau, its_solver: Any, nodes: bool, query: bool, weights: bool) -> None:
    """The ends stay; levels, query levels and weights differ from those of the closed form where they are learned."""
    assert torch.equal(found.rho[[0, -1]], start.rho[[0, -1]])
    assert torch.equal(found.rho, start.rho) != nodes
    assert (found.query is not None) == query
    if found.query is not None:
        assert float(found.query.max()) <= SPAN[0]
        assert moved(found.query[1:], found.rho[1:-1]) > 1e-4
    theory = ClosedForm(its_solver, found.nfe)(found.rho)
    assert (moved(found.in_frame()[1], theory) > 1e-6) == weights


@pytest.mark.parametrize(
    ("name", "overrides", "free"),
    [
        ("ld3", (), {"nodes": True, "query": True, "weights": False}),
        ("s4s", (), {"nodes": True, "query": False, "weights": True}),
        ("s4s", ("calibration.nodes=false",), {"nodes": False, "query": False, "weights": True}),
        ("gs", (), {"nodes": True, "query": True, "weights": True}),
        ("dyweight", (), {"nodes": False, "query": True, "weights": True}),
        ("bezier_flow", (), {"nodes": True, "query": False, "weights": False}),
        ("tableau", ("calibration.solvers=[deis_tab3]",), {"nodes": True, "query": True, "weights": True}),
    ],
)
def test_a_method_moves_what_it_learns_alone(name: str, overrides: tuple[str, ...], free: dict[str, bool]) -> None:
    for found, start, its_solver in learned(name, *overrides).values():
        check(found, start, its_solver, **free)


def test_weights_of_s4s_keep_their_share_of_the_steps_and_those_of_gs_follow_the_closed_form() -> None:
    follows = {}
    for name in ("s4s", "gs"):
        estimator = method(name)
        ((chosen, its_solver),) = estimator.families.solvers.items()
        run = build_tableau(its_solver, KARRAS, SPAN, 5, "none")  # type: ignore[arg-type]
        family = estimator.family(run, chosen)
        theta = torch.zeros(family.size, dtype=torch.float64)
        theta[1] = 0.5  # the second gap
        there, start = family(theta), run.unrolled()
        shares = [each.N / each.rho.diff()[:, None] for each in (there, start)]
        follows[name] = moved(*shares) > 1e-3
    assert follows == {"s4s": False, "gs": True}


def test_a_soft_target_is_of_ld3_and_s4s_alone() -> None:
    soft = {name: method(name).radius > 0 for name in ("ld3", "s4s", "gs", "dyweight", "bezier_flow")}
    assert soft == {"ld3": True, "s4s": True, "gs": False, "dyweight": False, "bezier_flow": False}


def test_one_curve_serves_every_budget_of_bezier_flow() -> None:
    assert method("bezier_flow").curve
    assert not any(method(name).curve for name in ("ld3", "s4s", "gs", "dyweight"))
