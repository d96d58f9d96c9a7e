"""What a stable target costs beside a training step of DDPM++: `python benchmarks/stf_overhead.py`.

FLOPs are counted, a multiplication and an addition as two, on tensors without content: of the target's distances and of
its mean, (3 + 2) m n d in float64, and of forward and backward passes. Memory is what the CPU's allocator was asked for
during one call; the reference itself, n d bytes, was there before. Where there is a CUDA device both are timed, a step
in plain float32.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from scoreline.networks.song_unet import SongUNet
from scoreline.targets import posterior_mean

BATCH, SIDE, AUGMENT = 64, 32, 9
REFERENCES = (1024, 4096)
HELD = [*((n, d) for n in (256, 1024, 4096) for d in (192, 768, 3072)), (16384, 3072)]
REPEATS = 10


class Memory(NamedTuple):
    """Bytes: the largest block, and the most that was held at once, apart from what there was before."""

    largest: int
    peak: int


def ddpmpp(device: str) -> SongUNet:
    """DDPM++ of CIFAR-10, 55.7 million parameters."""
    with torch.device(device):
        return SongUNet(3, SIDE, width=128, multipliers=(2, 2, 2), blocks=4, attention=(16,), augment_dim=AUGMENT)


def step(network: nn.Module, images: int, device: str) -> Callable[[], Any]:
    """Forward and backward pass of so many images."""
    x, noise = torch.zeros(images, 3, SIDE, SIDE, device=device), torch.zeros(images, device=device)
    augment = torch.zeros(images, AUGMENT, device=device)
    return lambda: network(x, noise, augment=augment).square().mean().backward()


def target(m: int, n: int, d: int, device: str) -> Callable[[], Tensor]:
    """The targets of m noisy images over n of d pixels."""
    data = torch.arange(n * d, device=device).remainder(251).to(torch.uint8).reshape(n, d)
    x = data[:m] / 127.5 - 1 + torch.linspace(-2, 2, d, device=device)
    return lambda: posterior_mean(x, 1.0, data)


def flops(work: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten._cdist_forward: distance_flops}) as counter:
        work()
    return int(counter.get_total_flops())


def distance_flops(x: Sequence[int], y: Sequence[int], *_: Any, **__: Any) -> int:
    """A difference, its square and its sum for every pixel of every pair, of shapes (m, d) and (n, d)."""
    return 3 * x[0] * y[0] * x[1]


def memory(work: Callable[[], Any]) -> Memory:
    """Of the CPU's memory."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        work()
    blocks = [event for event in watched.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for block in sorted(blocks, key=lambda event: event.start_ns()):
        held += block.nbytes()
        peak = max(peak, held)
    return Memory(max(block.nbytes() for block in blocks), peak)


def seconds(work: Callable[[], Any], device: str) -> float:
    """Least of the repeats, after one that is not counted."""
    times = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times[1:])


def flop_rows() -> list[str]:
    """Lines of Markdown: FLOPs of a target and of a step."""
    network = ddpmpp("meta")
    with torch.no_grad():
        forward = flops(lambda: network(torch.empty(1, 3, SIDE, SIDE, device="meta"), torch.empty(1, device="meta")))
    whole, d = flops(step(network, 1, "meta")) * BATCH, 3 * SIDE**2
    lines = [
        f"DDPM++, one image: forward {forward / 1e9:.2f} GFLOP; forward and backward {whole / BATCH / forward:.2f} "
        f"times that; a step of {BATCH}: {whole / 1e9:,.0f} GFLOP",
        "",
        "| n | counted GFLOP of the target | 5 m n d | share of a step |",
        "|--|--|--|--|",
    ]
    for n in REFERENCES:
        counted = flops(target(BATCH, n, d, "meta"))
        formula = 5 * BATCH * n * d
        lines.append(f"| {n} | {counted / 1e9:.3f} | {formula / 1e9:.3f} | {100 * counted / whole:.4f} % |")
    return lines


def memory_rows() -> list[str]:
    """Lines of Markdown: memory of a target, and what m n d numbers would take."""
    lines = ["| n | d | largest block, MiB | held at once, MiB | m n d of float32, MiB |", "|--|--|--|--|--|"]
    for n, d in HELD:
        found = memory(target(BATCH, n, d, "cpu"))
        cells = (f"{part / 2**20:.1f}" for part in (*found, 4 * BATCH * n * d))
        lines.append(f"| {n} | {d} | {' | '.join(cells)} |")
    return lines


def time_rows(device: str) -> list[str]:
    """Lines of Markdown: milliseconds of a target and of a step."""
    whole = seconds(step(ddpmpp(device), BATCH, device), device)
    lines = ["| n | target, ms | step, ms | target / step |", "|--|--|--|--|"]
    for n in REFERENCES:
        own = seconds(target(BATCH, n, 3 * SIDE**2, device), device)
        lines.append(f"| {n} | {1000 * own:.2f} | {1000 * whole:.1f} | {100 * own / whole:.2f} % |")
    return lines


def main() -> None:
    tables = [flop_rows(), memory_rows()]
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
        tables.append([torch.cuda.get_device_name(), "", *time_rows("cuda")])
    print("\n\n".join("\n".join(table) for table in tables))


if __name__ == "__main__":
    main()
