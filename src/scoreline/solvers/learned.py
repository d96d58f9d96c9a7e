"""Tableaus learned for one checkpoint by `calibration=tableau`."""

import math
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from scoreline.errors import InputError
from scoreline.records import load_record
from scoreline.schedules.base import Schedule
from scoreline.schedules.tabulated import SAME
from scoreline.solvers.tableau import Tableau


@dataclass(frozen=True)
class Learned:
    """The method whose levels and weights a `tableau` record holds:

        x_{k+1} = x_k + sum_{j<=k} N_kj eps_j.

    It brings its own levels and does not read the schedule. Of order 1 as a family; exact for constant eps. Use this
    for a fixed small budget, where it comes closest to the model's own fine run; a tableau exists only for the budgets
    and the range of noise levels that were learned.

    Attributes:
        tables: for each budget, levels (K + 1,) and weights (K, K), float64.

    Raises:
        InputError: when called with another budget or range.
    """

    tables: dict[int, tuple[Tensor, Tensor]]

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
    values = load_record(path, "tableau", checkpoint, "solver.path").values
    return Learned({nfe: (values[f"rho_{nfe}"], values[f"N_{nfe}"]) for nfe in values["budgets"].tolist()})
