"""What the loop costs per network evaluation beside the network: `python benchmarks/overhead.py`.

In units of one torch.add on 64x3x32x32 float32, measured in turns with it. Targets: 3 for one-step methods, 5 for
third-order multistep methods.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scoreline.commands.certify import maker
from scoreline.config import conf_folder
from scoreline.sampling import integrate
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.tableau import Tableau
from scoreline.verification.certification import SPACING, SPAN

NFE, REPEATS, UNITS = 48, 15, 100
MEASURED = {"auto", "learned"}
"""Solvers that belong to a checkpoint."""


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def unit(x: Tensor, y: Tensor) -> float:
    """Seconds of one torch.add, its result dropped at once so that the allocator can reuse it."""

    def add() -> None:
        for _ in range(UNITS):
            torch.add(x, y)

    return seconds(add) / UNITS


@torch.inference_mode()
def overhead(table: Tableau) -> float:
    """Median over repeats of loop time per NFE / time of a torch.add, with a model that returns a ready tensor."""
    x, out = torch.randn(2, 64, 3, 32, 32)
    ratios = []
    for _ in range(REPEATS):
        loop = seconds(lambda: integrate(lambda x, rho: out, x, table, lambda row: out)) / table.nfe
        ratios.append(loop / unit(x, out))
    return statistics.median(ratios)


def main() -> None:
    torch.set_num_threads(1)
    print("| solver | rows per NFE | torch.add units per NFE |\n|--|--|--|")
    for name in sorted({path.stem for path in conf_folder.conf_dir().glob("solver/*.yaml")} - MEASURED):
        table = maker(name, [])(LinearVP())(SPACING, *SPAN, NFE)
        if isinstance(table, Tableau):
            print(f"| {name} | {len(table.B) / table.nfe:.2f} | {overhead(table):.1f} |", flush=True)


if __name__ == "__main__":
    main()
