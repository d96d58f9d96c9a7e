"""Milliseconds to make the tableau of every solver at NFE 50: `python benchmarks/setup.py`. Target: under 10."""

import statistics
import time
from typing import Any

import torch

from scoreline.commands.certify import maker
from scoreline.config import conf_folder
from scoreline.schedules.base import NoiseSchedule
from scoreline.schedules.discrete import DiscreteVP
from scoreline.schedules.spacings import Polynomial
from scoreline.schedules.vp import LinearVP

NFE, REPEATS = 50, 15


def milliseconds(solver: Any, native: NoiseSchedule) -> float:
    """Median over repeats, on the quadratic time grid of the process, tables of the process made before."""
    spacing, times = Polynomial(native, 2), []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        solver(spacing, native.sigma_max, native.sigma_min, NFE)
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times[1:])


def main() -> None:
    torch.set_num_threads(1)
    print("| solver | continuous VP | discrete betas |\n|--|--|--|")
    for name in sorted(path.stem for path in conf_folder.conf_dir().glob("solver/*.yaml")):
        make = maker(name, [])
        times = [milliseconds(make(native), native) for native in (LinearVP(), DiscreteVP())]
        print(f"| {name} | {times[0]:.1f} ms | {times[1]:.1f} ms |", flush=True)


if __name__ == "__main__":
    main()
