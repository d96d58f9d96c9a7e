"""The record of tableaus, which every way of learning them makes: its tensors, its summary and its plot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from scoreline.calibration.learned.seed_groups import SeedGroup
from scoreline.calibration.ranking import Candidate
from scoreline.records import Record
from scoreline.schedules.base import NoiseSchedule
from scoreline.solvers.learned import tableau_in
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
            before, error, after, left, median = (values[name][place] for name in ROW)
            lines.append(
                f"NFE {nfe}: {' / '.join(values['starts'][place])} {before:.4g} +- {error:.1g} -> learned {after:.4g} "
                f"+- {left:.1g} on held-out noise, ratio of means {after / before:.2f}, of medians {median:.2f}"
            )
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


def record_values(held: SeedGroup, pools: dict[int, list[Candidate]], found: Sequence[Tensors]) -> dict[str, Any]:
    """Return the tensors of a record: the tableaus, and both distances on held-out seeds."""
    values: dict[str, Any] = {"budgets": torch.tensor(list(pools)), "starts": []}
    rows = []
    for (nfe, pool), tensors in zip(pools.items(), found, strict=True):
        start = pool[int(tensors["start"])]
        table = {name: value for name, value in tensors.items() if name != "start"}
        values |= table
        values["starts"].append(start.names[0])
        rows.append(held_out_row(held, start.tableau.unrolled(), tableau_in(table, nfe)))
    return values | dict(zip(ROW, torch.tensor(rows, dtype=torch.float64).unbind(1), strict=True))


def held_out_row(held: SeedGroup, start: Tableau, learned: Tableau) -> list[float]:
    """Return the numbers of `ROW` for the start and the learned tableau of a budget on these seeds."""
    before, after = (held.distances(tableau) for tableau in (start, learned))
    root = len(before) ** 0.5
    ratio = float(after.median() / before.median())
    return [*(float(v) for d in (before, after) for v in (d.mean(), d.std() / root)), ratio]
