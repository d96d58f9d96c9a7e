"""Tableaus learned for one checkpoint by `calibration=tableau`."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from scoreline.errors import InputError
from scoreline.records import Record, load_record
from scoreline.schedules.base import Schedule
from scoreline.schedules.tabulated import SAME
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

        x_{k+1} = x_k + sum_{j<=k} N_kj eps_j.

    It brings its own levels and does not read the schedule. Of order 1 as a family; exact for constant eps. Use this
    for a fixed small budget, where it comes closest to the model's own fine run; a tableau exists only for the budgets
    and the range of noise levels that were learned.

    Attributes:
        tables: for each budget, levels (K + 1,) and weights (K, K), float64.
        held_out: for each budget, the comparison with the best closed form; empty for a record without one.
        guidance: the guidance of the model that it was learned for, with its options; None for a record of before 0.10.

    Raises:
        InputError: when called with another budget or range.
    """

    tables: dict[int, tuple[Tensor, Tensor]]
    held_out: dict[int, HeldOut] = field(default_factory=dict)
    guidance: str | None = None

    convergence = 1.0
    own_levels = True

    def __call__(self, schedule: Schedule, sigma_max: float, sigma_min: float, nfe: int) -> Tableau:
        if nfe not in self.tables:
            has = ", ".join(map(str, sorted(self.tables)))
            raise InputError(
                f"nfe={nfe}: tables were learned for NFE {has} (final=denoise takes one more); learn this one with: "
                f"python calibrate.py calibration=tableau calibration.budgets=[{nfe}] checkpoint=..."
            )
        rho, N = self.tables[nfe]
        for name, end, has_end in (("sigma_max", sigma_max, rho[0]), ("sigma_min", sigma_min, rho[-1])):
            if not math.isclose(end, float(has_end), rel_tol=SAME):
                raise InputError(
                    f"{name}={end:.6g}: this tableau was learned from {float(rho[0]):.6g} to {float(rho[-1]):.6g}; "
                    "leave the key out, or learn another with: python calibrate.py calibration=tableau "
                    f"{name}={end:.6g}"
                )
        return Tableau.single_term(rho, N)


def load_learned(path: str | Path, checkpoint: str) -> Learned:
    """Load the tableaus in a `tableau` record. Use it where `sample` takes a solver.

    Args:
        path: the record.
        checkpoint: SHA-256 of the model that it must belong to.

    Raises:
        InputError: as `load_record`.
    """
    record = load_record(path, "tableau", checkpoint, "solver.path")
    values = record.values
    tables = {nfe: (values[f"rho_{nfe}"], values[f"N_{nfe}"]) for nfe in values["budgets"].tolist()}
    return Learned(tables, _held_out(record), record.provenance.get("guidance"))


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
