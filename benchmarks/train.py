"""Our training step beside the network alone and EDM's training loop: `python benchmarks/train.py --edm PATH`.

All train SongUNet on the same zip of made images with EDM's recipe: augmentation, preconditioning, loss, Adam, EMA,
dropout; the same number of parameters, batch and precision. They take turns in one process, each in a thread that runs
while the others wait: turns of one step on the CPU, of 20 on a GPU, at whose ends alone the GPU is waited for. The
first turns, with what is made, compiled and tuned in them, do not count. Figures are of the median turn.

- network alone: forward pass, backward pass and optimiser on the same batch again and again, nothing else;
- scoreline: Lightning's loop with our module, averages, progress and data, as train.py makes them, with plain denoising
  (dsm) and with stable targets (stf, n = 1024);
- EDM: `training.training_loop` of a clone of NVlabs/edm, as it stands, one process, one worker for data. Calls to
  `misc.ddp_sync`, with which its step begins, mark the turns. For this PyTorch its sampler may hand its data to the
  base class, which no longer takes them; on the CPU DDP is given no device, and what is asked of CUDA is 0; `psutil` is
  stood in for where it is not installed; what it prints is not shown. Its 16-bit precision is float16 and for GPUs
  only; it is set beside our bfloat16.

`--device cuda` takes DDPM++ of CIFAR-10 (55.7 million parameters). Without `--edm`, EDM's rows are missing. The code of
STF's own loop is not at hand; what its targets cost is in stf_overhead.py. `--self-check` runs every mode on tiny sizes
on the CPU.

Outside the network: the share of a turn that is neither forward nor backward pass (`scoreline.training.network_clock`),
for EDM measured in the same way, by its network's forward and the backward of its loss.
"""

import argparse
import contextlib
import io
import logging
import statistics
import sys
import tempfile
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from lightning import Trainer
from lightning.pytorch import Callback, LightningModule
from peers.clones import imports, revision
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from scoreline.checkpoints import Card
from scoreline.datasets.zip_archive import ZipArchive
from scoreline.denoiser import Denoiser
from scoreline.execution import DTYPES, execute
from scoreline.foreign.edm import OURS
from scoreline.networks.song_unet import SongUNet
from scoreline.objective import DenoisingObjective, EDMWeight, LogNormal
from scoreline.parameterisations import EDMPreconditioning
from scoreline.targets import Denoising, StableTarget
from scoreline.training.augmentation import Augmentation
from scoreline.training.data import DeviceData, ImageDataModule
from scoreline.training.ema_callback import EMACallback
from scoreline.training.gradients import with_fast_step
from scoreline.training.module import DiffusionModule
from scoreline.training.network_clock import NetworkClock
from scoreline.training.stf_references import References
from scoreline.training.training_log import TrainingProgress

SIDE, AUGMENT = 32, 9
COMMON = {"attention": (16,), "dropout": 0.13, "augment_dim": AUGMENT}
TINY = {"width": 32, "multipliers": (1, 2), "blocks": 1, **COMMON}
DDPMPP = {"width": 128, "multipliers": (2, 2, 2), "blocks": 4, **COMMON}
ADAM = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}
UNUSED = ("requests", "PIL", "psutil")


@dataclass(frozen=True)
class Mode:
    """How all are run: names of `scoreline.execution`; EDM's loop knows no compiler."""

    precision: str = "32-true"
    compile: str = "none"


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        network: arguments of SongUNet.
        turns: that count, after `warm` that do not; of `steps` steps each.
        references: n of stable targets.
        workers: processes that read EDM's data ahead, as its train.py has one.
    """

    network: dict[str, Any]
    device: torch.device
    batch: int
    turns: int
    steps: int
    images: int
    references: int
    warm: int = 2
    workers: int = 1

    @property
    def total(self) -> int:
        return (self.warm + self.turns) * self.steps


@dataclass
class Lane:
    """One that takes turns: seconds of each, and seconds of its network in each."""

    name: str
    work: Callable[["Lane"], None]
    turns: "Turns"
    seconds: list[float] = field(default_factory=list)
    network: list[float] = field(default_factory=list)
    clock: NetworkClock = field(default_factory=NetworkClock)
    done: int = 0
    began: float = 0.0

    def step(self) -> None:
        """Called at the beginning of every step, and once after the last: where a turn ends, the others have theirs."""
        plan = self.turns.plan
        if self.done % plan.steps == 0:
            wait(plan.device)
            if self.done:
                self.seconds.append(time.perf_counter() - self.began)
                self.network.append(self.clock.take())
                self.turns.hand_on(self)
            self.clock.take()
            self.began = time.perf_counter()
        self.done += 1


class Turns:
    """Threads that run one at a time, in order. What fails in one ends all, and is raised."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.lanes: list[Lane] = []
        self.active: list[Lane] = []
        self.changed = threading.Condition()
        self.error: BaseException | None = None

    def add(self, name: str, work: Callable[[Lane], None]) -> None:
        self.lanes.append(Lane(name, work, self))

    def hand_on(self, lane: Lane) -> None:
        with self.changed:
            self.active.append(self.active.pop(0))
            self.changed.notify_all()
            self._wait(lane)

    def _wait(self, lane: Lane) -> None:
        self.changed.wait_for(lambda: self.error is not None or self.active[0] is lane)
        if self.error is not None:
            raise SystemExit

    def _run(self, lane: Lane, threads: int) -> None:
        torch.set_num_threads(threads)
        try:
            with self.changed:
                self._wait(lane)
            lane.work(lane)
        except BaseException as error:
            self.error = self.error or error
        with self.changed:
            self.active.remove(lane)
            self.changed.notify_all()

    def run(self) -> list[Lane]:
        self.active = list(self.lanes)
        count = torch.get_num_threads()
        threads = [threading.Thread(target=self._run, args=(lane, count)) for lane in self.lanes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.error is not None:
            raise self.error
        return self.lanes


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def network_of(plan: Plan, mode: Mode) -> SongUNet:
    torch.manual_seed(0)
    network = SongUNet(3, SIDE, **plan.network)
    execute(network, mode.compile, False)
    return network


def alone(plan: Plan, mode: Mode, lane: Lane) -> None:
    """Forward, backward, step."""
    network = network_of(plan, mode).to(plan.device).train()
    optimiser = with_fast_step(partial(torch.optim.Adam, **ADAM), plan.device, mode.precision)(network.parameters())
    x = torch.randn(plan.batch, 3, SIDE, SIDE, device=plan.device)
    noise, augment = torch.randn(plan.batch, device=plan.device), torch.zeros(plan.batch, AUGMENT, device=plan.device)
    half = DTYPES[mode.precision]
    for _ in range(plan.total):
        lane.step()
        optimiser.zero_grad()
        with lane.clock.running(plan.device):
            with torch.autocast(plan.device.type, half) if half else contextlib.nullcontext():
                output = network(x, noise, augment=augment)
            output.square().mean().backward()
        optimiser.step()
    lane.step()


class Marks(Callback):
    """Steps of Lightning's loop; no loss is read before the end."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DiffusionModule)
        pl_module.clock = self.lane.clock
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, TrainingProgress) and callback.bar is not None:
                callback.bar.enabled = False

    def on_train_batch_start(self, *_: Any) -> None:
        self.lane.step()

    def on_train_end(self, *_: Any) -> None:
        self.lane.step()


def ours(plan: Plan, mode: Mode, data: Path, target: Any, lane: Lane) -> None:
    """What train.py makes, without previews, fixed losses and files."""
    source = DeviceData(ZipArchive(str(data)))
    stable = isinstance(target, StableTarget)
    module = DiffusionModule(
        Denoiser(network_of(plan, mode), EDMPreconditioning(0.5)),
        DenoisingObjective(LogNormal(), EDMWeight(0.5), target),
        partial(torch.optim.Adam, **ADAM),
        plan.batch,
        lr_rampup_kimg=10000,
        seed=0,
        card=Card({}, (3, SIDE, SIDE), 0, {}, {}),
        augmentation=Augmentation(),
        references=References(source, target, plan.batch, 0) if stable else None,
    )
    with tempfile.TemporaryDirectory() as root:
        trainer = Trainer(
            accelerator="gpu" if plan.device.type == "cuda" else "cpu",
            devices=1,
            precision=mode.precision,
            benchmark=True,
            max_steps=plan.total,
            max_epochs=-1,
            logger=False,
            callbacks=[EMACallback(500, 0.05), TrainingProgress(1e9, 1e9), Marks(lane)],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=root,
        )
        trainer.fit(module, ImageDataModule(source, plan.batch, 0))


class FinishedError(Exception):
    """Ends EDM's loop, which would go on to its next status line."""


def edm(plan: Plan, mode: Mode, data: Path, loop: ModuleType, lane: Lane) -> None:
    """EDM's loop until all turns are taken. It says what it says into a text that is thrown away."""
    given = {theirs: plan.network[own] for theirs, own in OURS.items() if own in plan.network}
    kinds = {"embedding_type": "positional", "encoder_type": "standard", "decoder_type": "standard"}
    loader: dict[str, Any] = {"num_workers": plan.workers, "pin_memory": plan.device.type == "cuda"}
    if plan.workers:
        loader |= {"prefetch_factor": 2, "multiprocessing_context": "spawn"}
    strengths = dict.fromkeys(("yflip", "scale", "rotate_frac", "aniso", "translate_frac"), 1)
    with tempfile.TemporaryDirectory() as root, patched(loop, plan, lane), contextlib.suppress(FinishedError):
        loop.training_loop(
            run_dir=root,
            dataset_kwargs={"class_name": "training.dataset.ImageFolderDataset", "path": str(data), "cache": True},
            data_loader_kwargs=loader,
            network_kwargs={
                "class_name": "training.networks.EDMPrecond",
                "model_type": "SongUNet",
                "channel_mult_noise": 1,
                "resample_filter": [1, 1],
                "use_fp16": mode.precision != "32-true",
                **kinds,
                **given,
            },
            loss_kwargs={"class_name": "training.loss.EDMLoss"},
            optimizer_kwargs={"class_name": "torch.optim.Adam", **ADAM},
            augment_kwargs={"class_name": "training.augment.AugmentPipe", "p": 0.12, "xflip": 1e8, **strengths},
            batch_size=plan.batch,
            kimg_per_tick=10**6,
            snapshot_ticks=None,
            state_dump_ticks=None,
            device=plan.device,
        )


@contextlib.contextmanager
def patched(loop: ModuleType, plan: Plan, lane: Lane) -> Iterator[None]:
    """EDM's loop with its steps marked and its network timed."""
    sync, wrapper, backward = loop.misc.ddp_sync, nn.parallel.DistributedDataParallel, Tensor.backward
    mine = threading.get_ident()

    def marked(module: nn.Module, last: bool) -> Any:
        lane.step()
        if lane.done > plan.total:
            raise FinishedError
        return sync(module, last)

    def wrapped(net: nn.Module, device_ids: Any = None) -> nn.Module:
        expected = sum(p.numel() for p in network_of(plan, Mode()).parameters())
        if (found := sum(p.numel() for p in net.parameters())) != expected:
            raise RuntimeError(f"EDM's network has {found} parameters, ours {expected}")
        real = net.model.forward  # type: ignore[union-attr]

        def forward(*arguments: Any, **keywords: Any) -> Any:
            with lane.clock.running(plan.device):
                return real(*arguments, **keywords)

        found_ddp = wrapper(net, device_ids=device_ids if plan.device.type == "cuda" else None)
        net.model.forward = forward  # type: ignore[union-attr]
        return found_ddp

    def taking_anything(sampler: Any, *_: Any) -> None:
        pass

    def timed_backward(tensor: Tensor, *arguments: Any, **keywords: Any) -> None:
        if threading.get_ident() != mine:
            return backward(tensor, *arguments, **keywords)
        with lane.clock.running(plan.device):
            return backward(tensor, *arguments, **keywords)

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(loop.misc, "ddp_sync", marked))
        stack.enter_context(mock.patch.object(torch.utils.data.Sampler, "__init__", taking_anything))
        stack.enter_context(mock.patch.object(nn.parallel, "DistributedDataParallel", wrapped))
        stack.enter_context(mock.patch.object(Tensor, "backward", timed_backward))
        stack.enter_context(mock.patch.object(loop.dist, "print0"))
        stack.enter_context(mock.patch.object(loop.misc, "print_module_summary"))
        if plan.device.type != "cuda":
            for name in ("max_memory_allocated", "max_memory_reserved", "reset_peak_memory_stats"):
                stack.enter_context(mock.patch.object(torch.cuda, name, return_value=0))
        yield


@contextlib.contextmanager
def edm_loop(path: Path, device: torch.device) -> Iterator[ModuleType]:
    """The module of EDM's loop, and the process group of one that it wants."""
    with imports(path, UNUSED), tempfile.TemporaryDirectory() as root:
        from importlib import import_module

        if not hasattr(sys.modules.get("psutil"), "__file__"):
            nothing = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=0))
            sys.modules["psutil"].Process = lambda _: nothing  # type: ignore[attr-defined]
        backend = "nccl" if device.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, init_method=f"file://{root}/group", rank=0, world_size=1)
        try:
            yield import_module("training.training_loop")
        finally:
            torch.distributed.destroy_process_group()


def write_images(path: Path, count: int) -> None:
    """Random PNG files in a zip."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
    with zipfile.ZipFile(path, "w") as archive:
        for number, image in enumerate(pixels):
            content = io.BytesIO()
            Image.fromarray(image).save(content, "png")
            archive.writestr(f"img{number:08d}.png", content.getvalue())


def gflop(plan: Plan) -> float:
    """Of the network's forward and backward pass of one image, a multiplication and an addition as two."""
    with torch.device("meta"):
        network = SongUNet(3, SIDE, **plan.network)
        given = torch.empty(1, 3, SIDE, SIDE), torch.empty(1), None, torch.empty(1, AUGMENT)
    with FlopCounterMode(display=False) as counter:
        network(*given).square().mean().backward()
    return counter.get_total_flops() / 1e9


def compare(plan: Plan, mode: Mode, data: Path, clone: Path | None) -> list[Lane]:
    """All that take part in one mode, after their turns."""
    turns = Turns(plan)
    turns.add("network alone", partial(alone, plan, mode))
    turns.add("scoreline, dsm", partial(ours, plan, mode, data, Denoising()))
    name = f"scoreline, stf n = {plan.references}"
    turns.add(name, partial(ours, plan, mode, data, StableTarget(plan.references)))
    with contextlib.ExitStack() as stack:
        if clone is not None:
            loop = stack.enter_context(edm_loop(clone, plan.device))
            turns.add("EDM", partial(edm, plan, mode, data, loop))
        return turns.run()


def rows(plan: Plan, mode: Mode, lanes: list[Lane]) -> list[str]:
    """Lines of Markdown; ratios are medians over turns, each beside that of the same round."""
    each, found = gflop(plan), []
    times = {lane.name: lane.seconds[plan.warm :] for lane in lanes}
    for lane in lanes:
        own = times[lane.name]
        rate = plan.batch * plan.steps / statistics.median(own)
        beside = [ratio(times["network alone"], own), ratio(times["EDM"], own) if "EDM" in times else "-"]
        outside = statistics.median(
            1 - inside / whole for inside, whole in zip(lane.network[plan.warm :], own, strict=True)
        )
        kind = edm_precision(plan, mode) if lane.name == "EDM" else mode.precision
        compiled = "none" if lane.name == "EDM" else mode.compile
        cells = [lane.name, kind, compiled, f"{rate:,.1f}", *beside, f"{100 * outside:.1f} %", f"{each * rate:,.0f}"]
        found.append(f"| {' | '.join(cells)} |")
    return found


def edm_precision(plan: Plan, mode: Mode) -> str:
    return "float16" if plan.device.type == "cuda" and mode.precision != "32-true" else "32-true"


def ratio(others: list[float], own: list[float]) -> str:
    return f"{statistics.median(other / mine for other, mine in zip(others, own, strict=True)):.3f}"


HEAD = (
    "| training | precision | compile | images/s | of the network alone | of EDM | outside the network | GFLOP/s |\n"
    "|--|--|--|--|--|--|--|--|"
)


def report(plan: Plan, modes: list[Mode], clone: Path | None) -> list[str]:
    """Lines of Markdown."""
    parameters = sum(p.numel() for p in SongUNet(3, SIDE, **plan.network).parameters())
    peer = f"EDM at {revision(clone)}" if clone else "no clone of EDM was given"
    where = torch.cuda.get_device_name() if plan.device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    lines = [
        f"SongUNet of {parameters:,} parameters, {gflop(plan):.2f} GFLOP an image (forward and backward), batch "
        f"{plan.batch}, {where}, PyTorch {torch.__version__}; {peer}; {plan.turns} turns of {plan.steps} step(s).",
        "",
        HEAD,
    ]
    with tempfile.TemporaryDirectory() as root:
        data = Path(root) / "images.zip"
        write_images(data, plan.images)
        for mode in modes:
            lines += rows(plan, mode, compare(plan, mode, data, clone))
    return lines


def plan_of(options: argparse.Namespace) -> tuple[Plan, list[Mode]]:
    cuda = torch.device(options.device).type == "cuda"
    plan = Plan(
        DDPMPP if cuda else TINY,
        torch.device(options.device, 0) if cuda else torch.device("cpu"),
        options.batch or (64 if cuda else 16),
        turns=options.turns,
        steps=20 if cuda else 1,
        images=2048,
        references=1024,
    )
    chosen = [Mode(p, c) for p in ("32-true", "bf16-mixed") for c in ("none", "default")] if cuda else [Mode()]
    if options.quick or options.self_check:
        plan = replace(plan, network=TINY | {"width": 8}, device=torch.device("cpu"), batch=4, turns=2, steps=1)
        plan = replace(plan, images=32, references=8, warm=1, workers=0)
        chosen = [Mode(), Mode("bf16-mixed")] if options.self_check else [Mode()]
    return plan, chosen


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edm", type=Path, help="a clone of NVlabs/edm")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, help="images a step; 16 on the CPU, 64 on a GPU")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, for a test")
    parser.add_argument("--self-check", action="store_true", help="tiny sizes on the CPU, in both precisions")
    options = parser.parse_args(words)
    plan, modes = plan_of(options)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        print("\n".join(report(plan, modes, options.edm)))


if __name__ == "__main__":
    main(sys.argv[1:])
