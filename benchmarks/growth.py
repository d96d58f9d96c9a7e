"""How things grow: `python benchmarks/growth.py [batch] [processes] [setup]`, all three if none is named.

batch: images/s of the shipped digits model over the images of a network call, 1 to 1,024, at NFE 10, beside the bare
network called as often on as many images; both in turns, the least CPU time (on a GPU the least time) of the repeats.

processes: images/s of `sample.py` in one process and in two that torchrun starts, as its metrics.json says, each on one
core.

setup: milliseconds to make a tableau over NFE 5 to 1,000, the least of the repeats, and how fast they grow from 100 to
1,000: 1 is linearly, 2 with the square, as the table itself does. Target: under 10 ms at NFE 50.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from scoreline.checkpoints import load_model
from scoreline.commands.certify import maker
from scoreline.config import run_names
from scoreline.generation.batches import generate
from scoreline.runtime.memory import keep_freed_memory
from scoreline.schedules.spacings import Polynomial
from scoreline.schedules.vp import LinearVP
from scoreline.verification.certification import SPAN

ROOT = Path(__file__).parents[1]
WORKS = ("batch", "processes", "setup")
BATCHES = (1, 4, 16, 64, 256, 1024)
NFE = 10
BUDGETS = (5, 10, 20, 50, 100, 200, 500, 1000)
SOLVERS = ("ddim", "deis_tab3", "deis_rhoab3", "deis_sn", "dpmpp_3m", "unipc_3", "scire_v1_3", "edm", "ipndm4")
PROCESSES = (1, 2)


def least(works: Sequence[Callable[[], Any]], repeats: int, device: str) -> list[float]:
    """Seconds of each, in turns: the least over the repeats, after one turn that is not counted."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    times = []
    for _ in range(repeats + 1):
        turn = []
        for work in works:
            began = clock()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            turn.append(clock() - began)
        times.append(turn)
    return [min(column) for column in zip(*times[1:], strict=True)]


def batch_table(device: str, batches: Sequence[int], images: int, repeats: int) -> list[str]:
    """Lines of Markdown. At least `images` images a repeat; malloc keeps its memory, as in sample.py."""
    keep_freed_memory()
    denoiser = load_model(run_names.ASSETS / "digits_vp.safetensors").denoiser.to(device)
    shape = (1, 8, 8)
    run = maker("deis_tab3", [])(LinearVP())(Polynomial(LinearVP(), 2), *SPAN, NFE)
    lines = ["| images per call | images/s | bare network, images/s | ratio of times |", "|--|--|--|--|"]
    for size in batches:
        count = size * max(1, images // size)
        x, noise = torch.zeros(size, *shape, device=device), torch.zeros(size, device=device)

        def sampling(size: int = size, count: int = count) -> None:
            for made in generate(denoiser, run, shape, range(count), size, network_batch=size):
                made.x.cpu()

        @torch.inference_mode()
        def bare(x: torch.Tensor = x, noise: torch.Tensor = noise, calls: int = NFE * count // size) -> None:
            for _ in range(calls):
                denoiser.network(x, noise)

        ours, theirs = least([sampling, bare], repeats, device)
        lines.append(f"| {size:,} | {count / ours:,.0f} | {count / theirs:,.0f} | {ours / theirs:.3f} |")
    return lines


def launched(processes: int, images: int, device: str) -> dict[str, Any]:
    """metrics.json of `sample.py` in so many processes.

    Raises:
        RuntimeError: if it fails.
    """
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    keys = ["checkpoint=digits_vp", f"seeds=0-{images - 1}", f"nfe={NFE}", "metrics=none", "format=none"]
    keys += ["solver=deis_tab3", "schedule=time_quadratic"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *(torchrun if processes > 1 else []), str(ROOT / "sample.py"), *keys]
        command += [f"device={device}", f"hydra.run.dir={folder}/run"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr[-500:]}")
        found: dict[str, Any] = json.loads((Path(folder) / "run" / "metrics.json").read_text())
    return found


def processes_table(device: str, images: int, repeats: int) -> list[str]:
    """Lines of Markdown; the runs take turns, the best of each counts."""
    best = dict.fromkeys(PROCESSES, 0.0)
    for _ in range(repeats):
        for processes in PROCESSES:
            best[processes] = max(best[processes], launched(processes, images, device)["images_per_second"])
    lines = [f"{images:,} images, {os.cpu_count()} cores\n", "| processes | images/s | times one |", "|--|--|--|"]
    return [*lines, *(f"| {count} | {speed:,.0f} | {speed / best[1]:.2f} |" for count, speed in best.items())]


def milliseconds(solver: Any, nfe: int, repeats: int) -> float:
    """CPU time of the tableau and of its rows as the loop evaluates them, on the quadratic time grid of linear VP."""
    native = LinearVP()
    spacing, times = Polynomial(native, 2), []
    for _ in range(repeats + 1):
        began = time.process_time()
        table = solver(spacing, native.sigma_max, native.sigma_min, nfe)
        assert table.sums
        times.append(1000 * (time.process_time() - began))
    return min(times[1:])


def setup_table(names: Sequence[str], budgets: Sequence[int], repeats: int) -> list[str]:
    """Lines of Markdown."""
    heads = " | ".join(f"{nfe:,}" for nfe in budgets)
    lines = [f"| solver, ms at NFE | {heads} | power |", "|--" * (len(budgets) + 2) + "|"]
    for name in names:
        solver = maker(name, [])(LinearVP())
        times = [milliseconds(solver, nfe, repeats) for nfe in budgets]
        base = max(0, len(budgets) - 4)
        power = math.log(times[-1] / times[base]) / math.log(budgets[-1] / budgets[base])
        lines.append(f"| {name} | {' | '.join(f'{ms:.1f}' for ms in times)} | {power:.2f} |")
    return lines


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", choices=[[], *WORKS], metavar="work", help="batch, processes, setup")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--images", type=int, help="of a repeat; of a run in processes four times as many")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--self-check", action="store_true", help="the same on a few images and steps")
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    small = given.self_check
    images, repeats = given.images or (8 if small else 1024), 1 if small else given.repeats
    parts = {
        "batch": lambda: batch_table(given.device, BATCHES[:2] if small else BATCHES, images, repeats),
        "processes": lambda: processes_table(given.device, 4 * images, 1 if small else 3),
        "setup": lambda: setup_table(SOLVERS, BUDGETS[:3] if small else BUDGETS, repeats),
    }
    for work in given.works or WORKS:
        print("\n".join(parts[work]()) + "\n", flush=True)


if __name__ == "__main__":
    main()
