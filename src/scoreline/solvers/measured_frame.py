"""A frame whose gain was measured: the linear part that DPM-Solver-v3 takes from statistics of the model."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from scoreline.errors import InputError

if TYPE_CHECKING:
    from scoreline.solvers.rows import Rows, Weights


class _Place(NamedTuple):
    """Where noise levels lie in a table: the entry on the left, ln rho minus its ln rho, and p there."""

    left: Tensor
    after: Tensor
    power: Tensor


@dataclass(frozen=True)
class MeasuredFrame:
    """A frame with the tabulated gain l(rho) = p(rho) / rho, and the amplitude a that solves a' = l a exactly.

    p is linear in u = ln rho between the levels, so that ln a, the integral of p du, is quadratic there. Above the
    table p is constant, a power law; below it p falls with rho^2, as it does near Gaussian data, and a is finite at
    rho = 0. The coordinate is rho, with slope G = F / a. Gaussian data of one variance in all directions is exact up to
    the errors of the table.

    Use this with `SlopeScale`, whose knots are the levels; `load_dpm_solver_v3` makes both from a record.

    Attributes:
        levels: increasing noise levels.
        powers: p = rho l at these levels, from 0 to 2.

    Source: Zheng et al. (2023), DPM-Solver-v3, arXiv:2310.13268, Eq. 4-6, with one gain for all entries of an image.

    Raises:
        InputError: for fewer than two levels, levels that do not increase, or powers outside 0 .. 2.
    """

    levels: tuple[float, ...]
    powers: tuple[float, ...]

    def __post_init__(self) -> None:
        alike = len(self.levels) == len(self.powers) >= 2
        rising = all(map(float.__lt__, (0.0, *self.levels), self.levels))
        if not alike or not rising or min(self.powers) < 0 or max(self.powers) > 2:
            raise InputError("solver.frame: a measured frame needs increasing noise levels and powers from 0 to 2")

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor, Tensor]:
        """u, p and ln a at the levels."""
        u = torch.tensor(self.levels, dtype=torch.float64).log()
        p = torch.tensor(self.powers, dtype=torch.float64)
        return u, p, torch.cat([p.new_zeros(1), ((p[1:] + p[:-1]) / 2 * u.diff()).cumsum(0)])

    def _place(self, rho: Tensor) -> _Place:
        u, p, _ = self._table
        at = rho.clamp(self.levels[0], self.levels[-1]).log()
        right = torch.searchsorted(u, at.contiguous()).clamp(1, len(u) - 1)
        after = at - u[right - 1]
        return _Place(right - 1, after, torch.lerp(p[right - 1], p[right], after / (u[right] - u[right - 1])))

    def amplitude(self, rho: Tensor) -> Tensor:
        _, p, log = self._table
        place = self._place(rho)
        inside = log[place.left] + (p[place.left] + place.power) / 2 * place.after
        above = p[-1] * (rho / self.levels[-1]).clamp(min=1).log()
        below = p[0] / 2 * ((rho / self.levels[0]).clamp(max=1) ** 2 - 1)
        return (inside + above + below).exp()

    def gain(self, rho: Tensor) -> Tensor:
        first = self.levels[0]
        return torch.where(rho < first, self.powers[0] * rho / first**2, self._place(rho).power / rho.clamp(min=first))

    def unit(self, rho: Tensor) -> Tensor:
        return 1 / self.amplitude(rho)

    def exact(self, rho: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        amplitude = self.amplitude(rho)
        return amplitude, self.gain(query) * amplitude[:-1]

    @property
    def limit(self) -> Tensor:
        """Refuse infinite noise, where nothing was measured.

        Raises:
            InputError: always.
        """
        top = self.levels[-1]
        raise InputError(f"sigma_max=inf: this solver's measurements end at {top:.6g}; use sigma_max={top:.6g}")

    def coordinate(self, rho: float) -> float:
        return rho

    def level(self, coordinate: float) -> float:
        return coordinate

    def advance(self, rows: "Rows", start: int, rho: float, weights: "Weights") -> int:
        amplitude, own = self._at(rho), {j: self._at(rows.rho[j]) for j in (start, *weights)}
        states, estimates = {start: amplitude[0] / own[start][0]}, {}
        for j, weight in weights.items():  # G_j = (eps_j - l_j x_j) / a_j
            estimates[j] = amplitude[0] * weight / own[j][0]
            states[j] = states.get(j, 0.0) - estimates[j] * own[j][1]
        return rows.add(rho, states, estimates)

    def _at(self, rho: float) -> tuple[float, float]:
        level = torch.tensor(rho, dtype=torch.float64)
        return float(self.amplitude(level)), float(self.gain(level))
