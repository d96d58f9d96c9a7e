"""How near sampling comes to what the device can do: `python benchmarks/roofline.py --device cuda --seconds 60`.

Beside each mode: images a second, floating-point operations a second (counted, two for a multiplication and its
addition) as a share of those of a large matrix product in the same precision, the time of the solver's updates and of
the noise, and 50,000 images projected from a steady run. `--profile` lists what the time went into.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count, islice

import torch
from peers.models import MODELS, Model
from peers.modes import MODES, Mode
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from scoreline.execution import DTYPES
from scoreline.generation.batches import Batch, Sampler
from scoreline.generation.cuda_graphs import Replayed
from scoreline.generation.loop import images_on_host
from scoreline.runtime import seeded_noise
from scoreline.runtime.threads import beside
from scoreline.sampling import integrate
from scoreline.solvers.deis import DEIS
from scoreline.solvers.tableau import Tableau

IMAGES = 50_000
SIDE = {"cuda": 8192, "cpu": 1024}
REPEATS = 20


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], device: str) -> float:
    wait(device)
    began = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - began


def throughput(device: str, dtype: torch.dtype, side: int, cores: int) -> float:
    """FLOP/s of a product of two square matrices: the best of many."""
    before = torch.get_num_threads()
    torch.set_num_threads(cores)
    a = torch.randn(side, side, device=device).to(dtype)
    spent = min(seconds(lambda: a @ a, device) for _ in range(REPEATS))
    torch.set_num_threads(before)
    return 2 * side**3 / spent


def flops(model: Model) -> float:
    """Of one network call on one image."""
    x = torch.zeros(1, *model.shape, device=next(model.denoiser.parameters()).device)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.denoiser(x, 1.0)
    return float(counter.get_total_flops())


def endless(model: Model, mode: Mode, run: Tableau, batch: int) -> Iterator[Batch]:
    """Batches of seeds 0, 1, 2, .. as `sample.py` makes them."""
    denoiser = mode.apply(model)
    record = Replayed if mode.graphs else None
    return Sampler(denoiser, run, batch, batch, mode.threads, record).batches(model.shape, range(2**31))


def steady(batches: Iterator[Batch], device: str, length: float) -> float:
    """Images a second, as bytes on the host, over at least `length` seconds after the first batches."""
    beside(lambda images: images(), map(images_on_host, islice(batches, 3)), 2)
    made, began = 0, 0.0

    def until_time_is_up() -> Iterator[Batch]:
        nonlocal made, began
        wait(device)
        began = time.perf_counter()
        for _ in count():
            batch = next(batches)
            made += len(batch.seeds)
            yield batch
            if time.perf_counter() - began > length:
                return

    beside(lambda images: images(), map(images_on_host, until_time_is_up()), 2)
    return made / (time.perf_counter() - began)


@torch.inference_mode()
def beside_the_network(model: Model, run: Tableau, batch: int, device: str) -> tuple[float, float]:
    """Seconds that the updates of a batch and the drawing of its noise take, medians."""
    x = torch.randn(batch, *model.shape, device=device)
    updates = [seconds(lambda: integrate(lambda x, rho: x, x, run), device) for _ in range(REPEATS)]
    draws = [seconds(lambda: seeded_noise.normal(range(batch), model.shape, "initial"), "cpu") for _ in range(REPEATS)]
    return statistics.median(updates), statistics.median(draws)


def row(model: Model, name: str, batch: int, asked: argparse.Namespace, cost: float) -> str:
    mode = MODES[name]
    run = DEIS(3, model.spacing)(model.spacing, *model.ends, asked.nfe)
    torch.set_num_threads(1 if mode.threads > 1 else asked.cores)
    batches = endless(model, mode, run, batch)
    rate = steady(batches, asked.device, asked.seconds)
    batches.close()  # type: ignore[attr-defined]
    dtype = DTYPES[mode.execution.precision] or torch.float32
    most = throughput(asked.device, dtype, asked.side, asked.cores)
    updates, draws = beside_the_network(model, run, batch, asked.device)
    done = rate * run.nfe * cost
    cells = [name, batch, f"{rate:.4g}", f"{done / 1e9:.4g}", f"{100 * done / most:.1f} %", f"{most / 1e9:.4g}"]
    shares = [f"{100 * part * rate / batch:.2f} %" for part in (updates, draws)]
    return "| " + " | ".join(map(str, [*cells, *shares, f"{IMAGES / rate:.0f}"])) + " |"


def profiled(model: Model, name: str, batch: int, asked: argparse.Namespace) -> str:
    """What one batch's time goes into on one thread, the largest first."""
    run = DEIS(3, model.spacing)(model.spacing, *model.ends, asked.nfe)
    batches = endless(model, replace(MODES[name], threads=1), run, batch)
    next(batches)
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (asked.device == "cuda")
    with profile(activities=kinds) as found:
        next(batches)
        wait(asked.device)
    key = "self_cuda_time_total" if asked.device == "cuda" else "self_cpu_time_total"
    return str(found.key_averages().table(sort_by=key, row_limit=15, max_name_column_width=60))


def arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), default="ddpmpp")
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=None)
    parser.add_argument("--batch", nargs="+", type=int, default=None, help="images a network call")
    parser.add_argument("--nfe", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each steady run")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--side", type=int, default=None, help="of the matrices")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--self-check", action="store_true", help="the same code at tiny sizes on the CPU")
    asked = parser.parse_args(words)
    if asked.self_check:
        asked.device, asked.batch, asked.seconds, asked.side, asked.nfe = "cpu", [2], 0.01, 64, 4
        asked.modes = ["plain", "layout+threads"]
    if asked.modes is None:
        graphs = ["plain", "layout", "bf16", "graphs", "bf16+graphs", "bf16+compiled", "bf16+compiled+graphs"]
        asked.modes = graphs if asked.device == "cuda" else ["plain", "layout+threads"]
    asked.batch = asked.batch or ([64, 256, 512, 1024] if asked.device == "cuda" else [16])
    asked.side = asked.side or SIDE[asked.device]
    asked.cores = torch.get_num_threads()
    return asked


def main(words: list[str] | None = None) -> None:
    asked = arguments(words)
    model = MODELS[asked.model](asked.self_check).on(asked.device)
    cost = flops(model)
    device = torch.cuda.get_device_name() if asked.device == "cuda" else f"CPU, {asked.cores} cores"
    print(f"{model.name} on {device}, torch {torch.__version__}, NFE {asked.nfe}, {cost / 1e9:.4g} GFLOP a call\n")
    head = ["mode", "batch", "images/s", "GFLOP/s", "of matrix products", "GFLOP/s of those", "updates", "noise"]
    print("| " + " | ".join([*head, f"{IMAGES} images in s"]) + " |\n|" + (len(head) + 1) * "--|")
    for name in asked.modes:
        for batch in asked.batch:
            print(row(model, name, batch, asked, cost), flush=True)
    if asked.profile:
        print(f"\n{profiled(model, asked.modes[-1], asked.batch[-1], asked)}")


if __name__ == "__main__":
    main()
