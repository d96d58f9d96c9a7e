"""The rest of a run, for a program that starts in its middle."""

import torch

from scoreline.solvers.frames import NOISE, finite_unit
from scoreline.solvers.tableau import Tableau, denoise_last


def late_start(tableau: Tableau, calls: int) -> Tableau:
    """Return the run from the state of call number `calls` on, counted from 0, which reads nothing before that state:

        y_{k+1} = y_k + sum_j W_kj G_j,    G_j of a call that is left out = the first G that there is.

    It is exact where the frame's slope G is constant, as the whole run is. Use this for methods whose levels are their
    own, such as `Learned`; a closed form is built again on the remaining levels instead, which makes its first steps
    of the low order that their history allows. The second stage of Heun's method is no call of a run that enters at it,
    whose state is that of the step's end already.

    Args:
        tableau: a deterministic run.
        calls: network calls to leave out.

    Raises:
        ValueError: unless 0 <= calls < tableau.nfe, and for a stochastic tableau.
    """
    if not 0 <= calls < tableau.nfe:
        raise ValueError(f"calls={calls}: the run has {tableau.nfe} calls; leave out fewer")
    if bool(tableau.B.any()):
        raise ValueError("a stochastic tableau has no such form")
    body, clean = _without_clean_end(tableau)
    if calls == body.nfe:  # the final denoising step alone
        rho = tableau.rho[-2:]
        return Tableau.single_term(rho, rho.diff()[:, None], query=tableau.query_levels[-1:])
    whole = body if _single_term(body) else body.unrolled()
    first, W = whole.calls.index(True) + calls, whole.in_frame()[1]
    unit = finite_unit(whole.frame, whole.query_levels)  # G = u F
    rest = W[first:, first:].clone()
    rest[:, 0] += (W[first:, :first] * (unit[first] / unit[:first])).sum(1)
    query = None if whole.query is None else whole.query[first:]
    run = Tableau.single_term(whole.rho[first:], rest, whole.frame, query)
    return denoise_last(run) if clean else run


def _single_term(tableau: Tableau) -> bool:
    return bool(tableau.in_frame()[0].isclose(torch.eye(len(tableau.B), dtype=torch.float64), atol=1e-9).all())


def _without_clean_end(tableau: Tableau) -> tuple[Tableau, bool]:
    """Return the tableau without a last row E[x_0 | x] that its frame does not keep, and whether there is one."""
    if tableau.frame == NOISE or float(tableau.rho[-1]) > 0 or not tableau.calls[-1]:
        return tableau, False
    query = None if tableau.query is None else tableau.query[:-1]
    rows = slice(None, -1)
    parts = (tableau.rho[rows], tableau.S[rows, rows], tableau.N[rows, rows], tableau.B[rows])
    return Tableau(*parts, tableau.frame, query), True


def first_call(tableau: Tableau) -> Tableau:
    """Return the run from its first network call on.

    Use this where a program holds a state at the level that the network is told first.

    Raises:
        ValueError: if a later row reads a state from before that.
    """
    start = tableau.calls.index(True)
    rows = slice(start, None)
    if bool(tableau.S[rows, :start].any()):
        raise ValueError("a row reads a state from before the first call")
    query = None if tableau.query is None else tableau.query[rows]
    parts = (tableau.rho[rows], tableau.S[rows, rows], tableau.N[rows, rows], tableau.B[rows])
    return Tableau(*parts, tableau.frame, query)
