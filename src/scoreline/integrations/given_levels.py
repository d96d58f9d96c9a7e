"""The run of a solver through noise levels that another program chose."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from scoreline.errors import InputError
from scoreline.schedules.tabulated import Tabulated
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.tableau import Solver, Tableau, after_infinity, build_tableau, denoise_last
from scoreline.values import check_final

MOST_CALLS = 8
"""Most network calls of one step of a solver; the largest of the package's own is 4."""


class OtherStepsError(InputError):
    """A solver does not step from each given level to the next at this budget."""


@dataclass(frozen=True)
class GivenLevels(Tabulated):
    """Levels that a run visits one by one: it refuses a grid of more or fewer steps."""

    def inverse(self, u: Tensor) -> Tensor:
        if u.numel() != len(self.levels):
            raise OtherStepsError(f"{u.numel() - 1} steps; these levels have {len(self.levels) - 1} intervals")
        return super().inverse(u)


def tableau_through(solver: Solver, levels: Sequence[float], final: str = "denoise") -> Tableau:
    """Return the tableau whose steps lie between the given noise levels.

    The budget follows from the number of steps: it is the largest NFE at which the solver steps from each level to the
    next, so that a method of s calls a step spends s of them on every one. A solver of agile budget, which spends one
    evaluation on each interval and joins intervals to longer steps, has as many evaluations as there are intervals.

    Args:
        solver: the method.
        levels: noise levels, two or more. The last one may be 0, the first one infinite; rising levels make a run from
            data to noise.
        final: what the last step to 0 is: `denoise` ends with E[x_0 | x] at the last positive level; `none` lets the
            solver step to 0 itself, as Adams-Bashforth methods can.

    Raises:
        InputError: for levels that are not monotone, for a solver that cannot step on them, and for one that goes on to
            0 by itself where they end above.
    """
    clean = levels[-1] == 0 and check_final(final) == "denoise"
    levels = tuple(levels)
    _check(levels)
    if clean and len(levels) == 2:
        return build_tableau(DDIM(), Tabulated(levels), (levels[0], 0.0), 1, "none")
    tableau = _between(solver, levels[:-1] if clean else levels)
    if float(tableau.rho[-1]) == 0 and levels[-1] > 0:
        raise InputError(f"sigmas end at {levels[-1]:g}: this solver goes on to 0 by itself; let them end in 0")
    return denoise_last(tableau) if clean and float(tableau.rho[-1]) > 0 else tableau


def _check(levels: tuple[float, ...]) -> None:
    """Refuse levels that are not monotone.

    Raises:
        InputError: naming the first one that is not.
    """
    try:
        Tabulated(levels)
    except InputError as error:
        raise InputError(str(error).replace("schedule.levels", "sigmas")) from error


def _between(solver: Solver, levels: tuple[float, ...]) -> Tableau:
    """Return the tableau whose steps are the intervals between the levels."""
    span, steps = (levels[0], levels[-1]), len(levels) - 1
    if levels[0] == math.inf and len(levels) > 2 and not getattr(solver, "from_infinity", False):
        return after_infinity(_between(solver, levels[1:]))
    if getattr(solver, "budget", "fixed") == "agile":
        return build_tableau(solver, Tabulated(levels), span, steps, "none")
    for nfe in _budgets(steps):
        try:
            return build_tableau(solver, GivenLevels(levels), span, nfe, "none")
        except OtherStepsError:
            continue
    raise InputError(f"sigmas: {solver} makes no run of {steps} steps from {span[0]:g} to {span[1]:g}; use another one")


def _budgets(steps: int) -> Iterator[int]:
    """Yield the NFE at which a solver may make this number of steps, the largest first.

    A step costs a whole number of calls. One call beyond all steps is EDM's last hop to 0; one below is a first step
    without a call.
    """
    for calls in range(MOST_CALLS, 0, -1):
        yield from (calls * steps + 1, calls * steps)
    if steps > 1:
        yield steps - 1


def first_calls(tableau: Tableau, levels: Sequence[float]) -> dict[int, int]:
    """Return row -> number of the step that begins with its call, for the levels between which the tableau steps.

    A method of one call a step has a step for every call. Otherwise a step begins with the first call from the last
    state at its level on: an inner stage at the level of the next step comes before that step's own state.
    """
    rows = [row for row, call in enumerate(tableau.calls) if call]
    if len(rows) == len(levels) - 1:
        return {row: step for step, row in enumerate(rows)}
    last = {rho: row for row, rho in enumerate(tableau.rho.tolist())}
    begins: dict[int, int] = {}
    for step, level in enumerate(levels[:-1]):
        call = next((row for row in rows if row >= last.get(level, len(tableau.rho))), None)
        if call is not None:
            begins[call] = step
    return begins
