"""Tableaus learned for one checkpoint by `calibration=tableau`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from scoreline.errors import InputError
from scoreline.records import Record, load_record
from scoreline.schedules.base import Schedule
from scoreline.schedules.tabulated import SAME
from scoreline.solvers.frames import NOISE, Velocity
from scoreline.solvers.tableau import Tableau


class HeldOut(NamedTuple):
    """What a tableau leaves of the best closed form's mean distance from the fine run, on noise that was held out.

    Attributes:
        solver: the closed form's solver.
        schedule: its schedule.
        ratio: the share of its distance.
        error: at most the standard error of the ratio, since both distances are of the same noise.
    """

    solver: str
    schedule: str
    ratio: float
    error: float


@dataclass(frozen=True)
class Learned:
    """The method whose levels and weights a `tableau` record holds:

        y_{k+1} = y_k + sum_{j<=k} W_kj F(x_j, q_j),    y = x / a(rho),

    in noise prediction (y = x, F = eps) or velocity prediction (`frames`). It brings its own levels rho and q and does
    not read the schedule. A run from infinite noise begins at the first learned level, where x is that level times
    standard normal noise. Of order 1 as a family. Use this for a fixed small budget, where it comes closest to the
    model's own fine run; a tableau exists only for the budgets and the range of noise levels that were learned.

    Attributes:
        tableaus: by budget.
        held_out: for each budget, the comparison with the best closed form; empty for a record without one.
        guidance: the guidance of the model that it was learned for, with its options; None for a record of before 0.10.

    Raises:
        InputError: when called with another budget or range.
    """

    tableaus: dict[int, Tableau]
    held_out: dict[int, HeldOut] = field(default_factory=dict)
    guidance: str | None = None

    convergence = 1.0
    own_levels = True
    from_infinity = True

    def __call__(self, schedule: Schedule, sigma_max: float, sigma_min: float, nfe: int) -> Tableau:
        if nfe not in self.tableaus:
            has = ", ".join(map(str, sorted(self.tableaus)))
            raise InputError(
                f"nfe={nfe}: tables were learned for NFE {has} (final=denoise takes one more); learn this one with: "
                f"python calibrate.py calibration=tableau calibration.budgets=[{nfe}] checkpoint=..."
            )
        tableau = self.tableaus[nfe]
        rho = tableau.rho
        for name, end, has_end in (("sigma_max", sigma_max, rho[0]), ("sigma_min", sigma_min, rho[-1])):
            if end < math.inf and not math.isclose(end, float(has_end), rel_tol=SAME):
                raise InputError(
                    f"{name}={end:.6g}: this tableau was learned from {float(rho[0]):.6g} to {float(rho[-1]):.6g}; "
                    "leave the key out, or learn another with: python calibrate.py calibration=tableau "
                    f"{name}={end:.6g}"
                )
        return tableau


def load_learned(path: str | Path, checkpoint: str) -> Learned:
    """Load the tableaus in a `tableau` record. Use it where `sample` takes a solver.

    Args:
        path: the record.
        checkpoint: SHA-256 of the model that it must belong to.

    Raises:
        InputError: as `load_record`.
    """
    record = load_record(path, "tableau", checkpoint, "solver.path")
    try:
        return learned_in(record)
    except ValueError as error:
        raise InputError(f"solver.path={path}: not a record of tableaus ({error})") from error


def learned_in(record: Record) -> Learned:
    """Return the tableaus in a `tableau` record.

    Raises:
        ValueError: if its tensors make none.
    """
    tableaus = {nfe: tableau_in(record.values, nfe) for nfe in record.values["budgets"].tolist()}
    return Learned(tableaus, _held_out(record), record.provenance.get("guidance"))


TENSORS = ("rho", "N", "query", "sigma_data", "start")
"""Levels and weights of F, and where a tableau has them the network's levels, the deviation of velocity prediction, and
the level from which the first step to rho_0 takes no call."""


def tableau_in(values: Mapping[str, Tensor], nfe: int) -> Tableau:
    """Return the tableau of a budget in the tensors of a record.

    Raises:
        ValueError: if the tensors make none.
    """
    rho, N, query, sigma_data, start = (values.get(f"{name}_{nfe}") for name in TENSORS)
    assert rho is not None
    assert N is not None
    if start is not None:
        rho, N = torch.cat([start, rho]), torch.nn.functional.pad(N, (1, 0, 1, 0))
        query = None if query is None else torch.cat([start, query])
    return Tableau.single_term(rho, N, NOISE if sigma_data is None else Velocity(float(sigma_data)), query)


def tensors_of(tableau: Tableau) -> dict[str, Tensor]:
    """Return the tensors by which a record holds a tableau with one row a call (`Tableau.unrolled`), by `TENSORS`."""
    frame, query, first = tableau.frame, tableau.query, int(not tableau.calls[0])
    tensors = {"rho": tableau.rho[first:].detach(), "N": tableau.in_frame()[1][first:, first:].detach()}
    if query is not None:
        tensors["query"] = query[first:].detach()
    if first:
        tensors["start"] = tableau.rho[:1].detach()
    if isinstance(frame, Velocity):
        tensors["sigma_data"] = torch.tensor([frame.sigma_data], dtype=torch.float64)
    return {f"{name}_{tableau.nfe}": value for name, value in tensors.items()}


COMPARED = ("start", "start_error", "learned", "learned_error")
"""Distances of the best closed forms and of the tableaus on held-out seeds, and their errors."""


def _held_out(record: Record) -> dict[int, HeldOut]:
    """Return the comparisons of a record, none where a number is missing."""
    starts, values = record.provenance.get("starts", []), record.values
    if not set(COMPARED) <= set(values) or len(starts) != len(values["budgets"]):
        return {}
    columns = [values[name].tolist() for name in ("budgets", *COMPARED)]
    return {
        nfe: HeldOut(solver, schedule, learned / start, math.hypot(error, learned / start * start_error) / start)
        for nfe, start, start_error, learned, error, (solver, schedule) in zip(*columns, starts, strict=True)
        if start > 0 and all(map(math.isfinite, (start, start_error, learned, error)))
    }
