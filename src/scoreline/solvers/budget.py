"""The order of every step of a solver, and the noise levels between which single-step methods step."""

from functools import partial

import torch
from torch import Tensor

from scoreline.errors import InputError
from scoreline.schedules.base import Schedule, grid
from scoreline.schedules.spacings import LogSNR
from scoreline.values import check_choice

NODES: dict[int, tuple[float, ...]] = {1: (), 2: (1 / 2,), 3: (1 / 3, 2 / 3)}
"""The published positions of the intermediate states of single steps of order 1, 2 and 3, as fractions of the step."""

check_budget = partial(check_choice, "solver.budget", ("fixed", "agile"))
check_inner = partial(check_choice, "solver.inner", ("fixed", "schedule"))


def check_order(method: str, order: int, orders: range) -> None:
    """Refuse an order that a method does not have.

    Raises:
        InputError: naming the orders it has.
    """
    if order not in orders:
        raise InputError(f"solver.order={order}: {method} has the orders {', '.join(map(str, orders))}")


def multistep_orders(nfe: int, order: int, lower_order_final: bool) -> list[int]:
    """Return the order of every step of a multistep method with one call a step.

    The first steps use the estimates there are: order 1, then 2, .. With `lower_order_final` the orders fall the same
    way at the end, so the last step is of order 1.
    """
    steps = range(1, nfe + 1)
    return [min(order, step, nfe + 1 - step if lower_order_final else order) for step in steps]


def step_orders(nfe: int, order: int, budget: str) -> list[int]:
    """Return the order, hence the number of evaluations, of every step of a single-step method.

    `fixed` makes nfe // order steps of the full order and leaves the remainder unspent (papers mark such table entries
    with a dagger). `agile` spends exactly nfe evaluations by last steps of lower order: for order 3, nfe = 3k becomes
    k - 1 steps of order 3, then 2 and 1; 3k + 1 becomes k of order 3, then 1; 3k + 2 becomes k of order 3, then 2.

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
    """Return the noise levels (len(orders) + 1,) between which steps of these orders run.

    Steps of equal order are even in the schedule's coordinate. For mixed orders, the levels are those of a grid of
    sum(orders) intervals at the running sums of the orders, so that a step is as long as the evaluations it spends; on
    the log-SNR grid, however, all steps are even, as in the released code of DPM-Solver and SciRE.
    """
    if len(set(orders)) == 1 or isinstance(schedule, LogSNR):
        return grid(schedule, sigma_max, sigma_min, len(orders))
    fine = grid(schedule, sigma_max, sigma_min, sum(orders))
    return fine[torch.tensor([0, *orders]).cumsum(0)]
