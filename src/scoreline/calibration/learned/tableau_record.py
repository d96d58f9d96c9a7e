"""The record of tableaus, which every way of learning them makes: its tensors, its summary and its plot."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from scoreline.calibration.learned.seed_groups import SeedGroup
from scoreline.calibration.ranking import Candidate, place_of
from scoreline.records import Record
from scoreline.schedules.base import NoiseSchedule
from scoreline.solvers.learned import tableau_in, tensors_of
from scoreline.solvers.tableau import Tableau
from scoreline.storage.figures import PAGE, figure, plain_ticks
from scoreline.storage.resumable import Tensors

ROW = ("start", "start_error", "learned", "learned_error", "ratio_of_medians")
"""Numbers of each budget: mean distances of the closed form and of the learned tableau, and what `summary` shows."""


class TableauEstimator:
    """What all estimators of `tableau` records have in common."""

    kind = "tableau"
    key = "solver.path"
    states = "trajectory"

    def summary(self, values: dict[str, Any]) -> str:
        """Return a line for each budget: held-out distance of the start and of the learned tableau."""
        lines = []
        for place, nfe in enumerate(values["budgets"].tolist()):
            lines.append(budget_line(nfe, values["starts"][place], [float(values[name][place]) for name in ROW]))
        return "\n".join(lines)

    def plot(self, record: Record, path: Path, noise_schedule: NoiseSchedule | None = None) -> None:
        """Plot the held-out distances, and the learned levels."""
        values, budgets = record.values, record.values["budgets"].tolist()
        with figure(path, 1, 2, figsize=(PAGE, 2.6)) as (_, (left, right)):
            for name, label in (("start", "best closed form"), ("learned", "learned")):
                left.errorbar(budgets, values[name], values[f"{name}_error"], label=label, marker="o")
            left.set(xlabel="NFE", ylabel="RMS distance to the fine run, held-out noise", yscale="log")
            left.legend()
            for nfe in budgets:
                rho = values[f"rho_{nfe}"]
                right.plot([nfe] * len(rho), rho, "o", markersize=2)
            right.set(xlabel="NFE", ylabel="learned noise levels", yscale="log")
            for axes in (left, right):
                axes.set_xscale("log")
                axes.set_xticks(budgets, map(str, budgets))
                axes.xaxis.minorticks_off()
                plain_ticks(axes.yaxis)


def record_values(pools: Mapping[int, list[Candidate]], found: Sequence[Tensors]) -> dict[str, Any]:
    """Return the values of a record.

    Args:
        pools: the closed forms of each budget.
        found: for each budget the tensors of its tableau, the place `start` of its closed form in the pool, and the
            numbers `row` of both on held-out seeds.
    """
    values: dict[str, Any] = {"budgets": torch.tensor(list(pools)), "starts": []}
    for pool, part in zip(pools.values(), found, strict=True):
        values |= {name: value for name, value in part.items() if name not in ("start", "row")}
        values["starts"].append(pool[int(part["start"])].names[0])
    return values | dict(zip(ROW, torch.stack([part["row"] for part in found]).unbind(1), strict=True))


def budget_line(nfe: int, start: tuple[str, str], row: Sequence[float]) -> str:
    """Return a line on the closed form and the learned tableau of a budget, from the numbers of `ROW`."""
    before, error, after, left, median = row
    ratio = after / before if before else math.nan
    return (
        f"NFE {nfe}: {' / '.join(start)} {before:.4g} +- {error:.1g} -> learned {after:.4g} "
        f"+- {left:.1g} on held-out noise, ratio of means {ratio:.2f}, of medians {median:.2f}"
    )


def found_tableau(held: SeedGroup, pool: list[Candidate], closed: Candidate, learned: Tableau) -> Tensors:
    """Return what `record_values` needs of a budget: tableau, place of the closed form, both on held-out seeds."""
    table, place = tensors_of(learned), place_of(pool, closed)
    row = held_out_row(held, closed.tableau.unrolled(), tableau_in(table, learned.nfe))
    return table | {"start": place, "row": torch.tensor(row, dtype=torch.float64)}


def held_out_row(held: SeedGroup, start: Tableau, learned: Tableau) -> list[float]:
    """Return the numbers of `ROW` for the start and the learned tableau of a budget on these seeds."""
    before, after = (held.distances(tableau) for tableau in (start, learned))
    root = len(before) ** 0.5
    ratio = float(after.median() / before.median())
    return [*(float(v) for d in (before, after) for v in (d.mean(), d.std() / root)), ratio]
