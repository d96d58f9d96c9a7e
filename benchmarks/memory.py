"""How much memory sampling takes: `python benchmarks/memory.py [states] [network] [images]`, of all three by default.

states: the most tensors of the state's size that the loop holds at once, for every solver: states, estimates of the
network, fresh noise and memory waiting to be used again, the initial state as long as anybody keeps it. Counted, by
storage, on a loop whose network is one operation. Target: order + 2, and one more where there is fresh noise.

network: peak memory of sampling with DDPM++ (55.7 million random weights) beside bare forward passes of the same
network on the same batch. Asked of the allocator to the byte, and in units of a state: on the CPU what PyTorch's
allocator was asked for, and the anonymous memory of a process of its own (RssAnon, seen every 2 ms) above what it had
before; with --device cuda max_memory_allocated.

images: peak memory of `python sample.py` on the CPU, in a process of its own, for more and more images. Target: a few
numbers an image. Processes are measured where there is /proc of Linux.
"""

import argparse
import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from import_memory import INTERVAL, anonymous
from stf_overhead import memory
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scoreline.commands.certify import BOUND, maker
from scoreline.config import conf_folder
from scoreline.denoiser import Denoiser
from scoreline.generation.batches import generate
from scoreline.networks.song_unet import SongUNet
from scoreline.parameterisations import EDMPreconditioning
from scoreline.runtime.memory import MIB
from scoreline.sampling import integrate
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.tableau import Tableau
from scoreline.verification.certification import SPACING, SPAN

WORKS = ("states", "network", "images")
ROOT = Path(__file__).parents[1]
NUMBERS = 1013
"""Size of a state that no other tensor of the loop has."""

NFE = 24
ORDERS = {"edm_stochastic": 2, "scire_ei_2": 2}
"""Orders of the methods whose object names none: Heun's, and the 2 calls of a step of SciREI-2."""

DDPMPP = {"width": 128, "multipliers": (2, 2, 2), "blocks": 4, "attention": (16,)}
TINY = {"width": 16, "multipliers": (1, 1), "blocks": 1, "attention": ()}
SIDE = 32
SOLVER, BUDGET = "deis_tab3", 5
IMAGES = (1_000, 5_000, 50_000)


class Live(TorchDispatchMode):
    """Counts the storages of one size that are alive at the same time, and keeps the most in `most`."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.size, self.most = like.nbytes, 0
        self.seen: dict[int, StorageWeakRef] = {}
        self.note(like)

    def note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.nbytes() == self.size:
            self.seen[storage._cdata] = StorageWeakRef(storage)
        self.seen = {place: storage for place, storage in self.seen.items() if not storage.expired()}
        self.most = max(self.most, len(self.seen))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self.note(leaf)
        return made


@torch.inference_mode()
def live_states(table: Tableau) -> int:
    """The most tensors of the state's size at once, the caller keeping none."""
    assert table.sums
    x = torch.ones(NUMBERS)
    handed = [x]
    with Live(x) as live:
        del x
        integrate(lambda x, rho: torch.neg(x), handed.pop(), table, lambda row: torch.ones(NUMBERS))
    return live.most


def table_of(name: str) -> tuple[Any, Any]:
    """A solver of conf/solver and its run at NFE 24."""
    solver = maker(name, [])(LinearVP())
    return solver, solver(SPACING, *SPAN, NFE)


def order(name: str, solver: Any) -> int:
    """What a solver declares: `order`, its stages or terms, or the order of convergence where that is higher."""
    return ORDERS.get(name) or int(max(getattr(solver, "order", 0), solver.convergence))


def solvers() -> list[str]:
    """All of conf/solver that are not bound to a checkpoint."""
    return sorted(path.stem for path in conf_folder.conf_dir().glob("solver/*.yaml") if path.stem not in BOUND)


def states_table(names: Sequence[str]) -> list[str]:
    """Lines of Markdown."""
    lines = ["| solver | order | fresh noise | live states | order + 2 |", "|--|--|--|--|--|"]
    for name in names:
        solver, table = table_of(name)
        if isinstance(table, Tableau):
            p, noisy = order(name, solver), "yes" if bool(table.B.any()) else ""
            lines.append(f"| {name} | {p} | {noisy} | {live_states(table)} | {p + 2} |")
    return lines


@functools.cache
def denoiser(device: str, tiny: bool) -> Denoiser:
    """DDPM++ of CIFAR-10 with random weights, or something like it that is quick."""
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)
        network: nn.Module = SongUNet(3, SIDE, **(TINY if tiny else DDPMPP))  # type: ignore[arg-type]
    return Denoiser(network.eval().requires_grad_(False), EDMPreconditioning(0.5))


@torch.inference_mode()
def forward(device: str, batch: int, tiny: bool) -> None:
    """As many calls of the network as sampling makes, each output let go."""
    x, noise = torch.zeros(batch, 3, SIDE, SIDE, device=device), torch.zeros(batch, device=device)
    for _ in range(BUDGET):
        denoiser(device, tiny).network(x, noise)


def sampling(device: str, batch: int, tiny: bool) -> None:
    """A batch of images, the whole of it in every call."""
    run = maker(SOLVER, [])(LinearVP())(SPACING, *SPAN, BUDGET)
    for made in generate(denoiser(device, tiny), run, (3, SIDE, SIDE), range(batch), batch, network_batch=None):
        assert len(made.x) == batch


FORWARD = f"{BUDGET} bare forward passes"
PASSES: dict[str, Callable[[str, int, bool], None]] = {
    FORWARD: forward,
    f"sampling, {SOLVER}, NFE {BUDGET}": sampling,
}


def asked(work: Callable[[], None], device: str) -> int:
    """Bytes that PyTorch's allocator held at the most, above what it held before."""
    if device == "cpu":
        return memory(work).peak
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


class Peak(NamedTuple):
    """Of a process, bytes: anonymous ones at the most and before its work, resident ones at the most."""

    most: int
    before: int
    resident: int


def watched(command: Sequence[str], **how: Any) -> Peak:
    """Run a command to its end. One whose first line is `ready` counts from there on, and waits for a line until then.

    Raises:
        RuntimeError: if it fails.
    """
    with subprocess.Popen(
        list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, **how
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        first = process.stdout.readline()
        before = most = anonymous(process.pid) if first == "ready\n" else 0
        resident = 0
        process.stdin.close()
        while process.poll() is None:
            now, highest = held(process.pid)
            most, resident = max(most, now), max(resident, highest)
            time.sleep(INTERVAL)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: failed with exit code {process.returncode}")
    return Peak(most, before, resident)


def held(process: int) -> tuple[int, int]:
    """Bytes of a process now: RssAnon and VmHWM (ru_maxrss would count its parent's too); 0 when it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    found = {key: int(value.split()[0]) * 1024 for key, value in (line.split(":") for line in lines) if "kB" in value}
    return found.get("RssAnon", 0), found.get("VmHWM", 0)


def child(name: str, batch: int, tiny: bool) -> None:
    """One pass in this process; its network was made before, and all that is imported on the way."""
    torch.set_num_threads(1)
    denoiser("cpu", tiny)
    for work in PASSES.values():
        work("cpu", 1, True)
    print("ready", flush=True)
    sys.stdin.readline()
    PASSES[name]("cpu", batch, tiny)


def network_table(device: str, batch: int, tiny: bool) -> list[str]:
    """Lines of Markdown; bytes above the network's weights."""
    weights = sum(weight.nbytes for weight in denoiser(device, tiny).parameters())
    state = batch * 3 * SIDE**2 * 4
    exact = {name: asked(functools.partial(work, device, batch, tiny), device) for name, work in PASSES.items()}
    seen = dict.fromkeys(PASSES, "-")
    if device == "cpu" and sys.platform == "linux":
        words = [sys.executable, __file__, "--batch", str(batch), *(["--self-check"] if tiny else []), "--child"]
        peaks = {name: watched([*words, name]) for name in PASSES}
        seen = {name: f"{(peak.most - peak.before) / MIB:.1f}" for name, peak in peaks.items()}
    lines = [
        f"weights {weights / MIB:.1f} MiB, batch {batch}, a state {state / MIB:.3f} MiB, {device}\n",
        "| work | allocator, MiB | beside forward passes | in states more | process, MiB |",
        "|--|--|--|--|--|",
    ]
    least = exact[FORWARD]
    for name, most in exact.items():
        more = f"{most / least:.4f} | {(most - least) / state:.2f}"
        lines.append(f"| {name} | {most / MIB:.2f} | {more} | {seen[name]} |")
    return lines


def images_table(counts: Sequence[int]) -> list[str]:
    """Lines of Markdown; runs `sample.py` in a temporary folder."""
    lines = ["| images | peak resident, MiB | peak anonymous, MiB | more bytes per image |", "|--|--|--|--|"]
    before: tuple[int, int] | None = None
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            keys = [
                "checkpoint=digits_vp",
                f"seeds=0-{count - 1}",
                "metrics=none",
                "nfe=2",
                "solver=ddim",
                "device=cpu",
            ]
            keys += ["format=npz", "batch_size=512", f"hydra.run.dir={folder}/run"]
            peak = watched([sys.executable, str(ROOT / "sample.py"), *keys], cwd=folder, env=environment)
        more = "-" if before is None else f"{(peak.resident - before[1]) / (count - before[0]):.0f}"
        lines.append(f"| {count:,} | {peak.resident / MIB:.1f} | {peak.most / MIB:.1f} | {more} |")
        before = before or (count, peak.resident)
    return lines


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", choices=[[], *WORKS], metavar="work", help="states, network, images")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--batch", type=int, default=4, help="of the network")
    parser.add_argument("--images", type=int, nargs="+", default=list(IMAGES))
    parser.add_argument("--self-check", action="store_true", help="the same on a small network and few images")
    parser.add_argument("--child", metavar="WORK", help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.child:
        child(given.child, given.batch, given.self_check)
        return
    torch.set_num_threads(1)
    works = given.works or WORKS
    parts = {
        "states": lambda: states_table(["ddim", "dpmpp_3m"] if given.self_check else solvers()),
        "network": lambda: network_table(given.device, given.batch, given.self_check),
        "images": lambda: images_table([64, 128] if given.self_check else given.images),
    }
    for work in works:
        print("\n".join(parts[work]()) + "\n", flush=True)


if __name__ == "__main__":
    main()
