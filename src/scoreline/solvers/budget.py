"""How a single-step method of order p spends a budget of network evaluations, and where its steps lie."""

import torch
from torch import Tensor

from scoreline.errors import InputError, did_you_mean
from scoreline.schedules.base import Schedule, grid
from scoreline.schedules.spacings import LogSNR

BUDGETS = ("fixed", "agile")


def check_budget(budget: str) -> None:
    """Refuse an unknown rule.

    Raises:
        InputError: naming the choices.
    """
    if budget not in BUDGETS:
        raise InputError(f"solver.budget={budget}: there is no such rule{did_you_mean(budget, BUDGETS)}")


def check_inner(inner: str) -> None:
    """Refuse an unknown choice of inner nodes.

    Raises:
        InputError: naming the choices.
    """
    choices = ("fixed", "schedule")
    if inner not in choices:
        raise InputError(f"solver.inner={inner}: there is no such choice{did_you_mean(inner, choices)}")


def step_orders(nfe: int, order: int, budget: str) -> list[int]:
    """Order, hence number of evaluations, of every step.

    `fixed`: nfe // order steps of the full order, what is left over stays unspent (the tables that mark such entries
    with a dagger). `agile`: exactly nfe evaluations, the last steps of lower order: for order 3, nfe = 3k is spent as
    k - 1 steps of order 3, then 2 and 1; 3k + 1 as k of order 3, then 1; 3k + 2 as k of order 3, then 2.

    Source: Lu et al. (2022), arXiv:2206.00927, App. D (DPM-Solver-fast); Li et al. (2023), arXiv:2308.07896.

    Raises:
        InputError: if `fixed` cannot make one step.
    """
    steps, rest = divmod(nfe, order)
    if budget == "fixed":
        if steps == 0:
            raise InputError(f"nfe={nfe}: one step takes {order} evaluations; use a larger nfe or solver.budget=agile")
        return [order] * steps
    if order == 3 and rest == 0:
        return [3] * (steps - 1) + [2, 1]
    return [order] * steps + [rest] * (rest > 0)


def step_levels(schedule: Schedule, sigma_max: float, sigma_min: float, orders: list[int]) -> Tensor:
    """Noise levels (len(orders) + 1,) between which steps of these orders run.

    Steps of one order are even in the schedule's coordinate. Otherwise a grid of sum(orders) intervals is made and the
    nodes at the running sums of the orders are kept, so that a step is as long as the evaluations it spends; but on
    the log-SNR grid all steps are even, as in the released codes of both papers.
    """
    if len(set(orders)) == 1 or isinstance(schedule, LogSNR):
        return grid(schedule, sigma_max, sigma_min, len(orders))
    fine = grid(schedule, sigma_max, sigma_min, sum(orders))
    return fine[torch.tensor([0, *orders]).cumsum(0)]
