"""Images of seeds: noise, units of a network call each, batches."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from scoreline import noise
from scoreline.copies import moved
from scoreline.denoiser import Denoising
from scoreline.errors import NotFiniteError
from scoreline.in_order import in_order
from scoreline.sampling import Calls, Progress, count_calls, integrate
from scoreline.solvers.adaptive import AdaptiveRun
from scoreline.solvers.tableau import Tableau


class Batch(NamedTuple):
    """Samples of a few seeds: x (B, C, H, W) float32 in unit-signal coordinates.

    An image took `nfe` evaluations of the denoiser and `network_calls` calls of networks; guidance makes them differ.
    """

    seeds: list[int]
    x: Tensor
    nfe: int
    network_calls: int


@torch.inference_mode()
def generate(
    denoiser: Denoising,
    run: Tableau | AdaptiveRun,
    shape: tuple[int, int, int],
    seeds: Sequence[int],
    batch_size: int,
    labels: Tensor | None = None,
    network_batch: int | None = 64,
    progress: Progress = lambda images: None,
    threads: int = 1,
) -> Iterator[Batch]:
    """Sample one image per seed, batch by batch, on the device of the denoiser's parameters.

    x_0 = rho_0 z, z = `noise.normal(seed, "initial")`; the signal that x_0 would carry at the first level is left out,
    as all samplers do. Image of seed s depends on s, its label, the denoiser and the tableau only, to the bit on one
    kind of processor or GPU, because the network always sees `network_batch` images at a time. An adaptive run chooses
    the steps of a batch together, so its images depend on the batch by the tolerance.

    Args:
        shape, batch_size: (C, H, W); images that are handed over at a time.
        labels: class labels (len(seeds),) int64 in the order of the seeds, or None.
        network_batch: images of a unit, which the network is called on and whose states are held at a time; the last
            unit is filled up. With None it is `batch_size`, nothing is filled up, and images then depend on their batch
            by float32 rounding.
        progress: called after every evaluation with the images' worth of work it did.
        threads: units that are computed at a time, on a CPU; see `in_order` for the cores each of them takes.

    Raises:
        RuntimeError: if the counts measured are not those of `Tableau.nfe` and `Denoising.calls`.
        NotFiniteError: if a sample is not finite.
    """
    for batch in launch(denoiser, run, shape, seeds, batch_size, labels, network_batch, progress, threads):
        check_finite(batch.seeds, batch.x.isfinite().all())
        yield batch


def check_finite(seeds: Sequence[int], finite: Tensor) -> None:
    """Raises: NotFiniteError naming the seeds unless their samples are `finite`, of shape ()."""
    if not bool(finite):
        raise NotFiniteError(f"seeds {seeds[0]}-{seeds[-1]}: their samples are")


@torch.inference_mode()
def launch(
    denoiser: Denoising,
    run: Tableau | AdaptiveRun,
    shape: tuple[int, int, int],
    seeds: Sequence[int],
    batch_size: int,
    labels: Tensor | None = None,
    network_batch: int | None = 64,
    progress: Progress = lambda images: None,
    threads: int = 1,
    record: "Record | None" = None,
) -> Iterator[Batch]:
    """As `generate`, without waiting for the device and looking at the samples: a GPU may still be at work on them.

    Args:
        record: makes a function of tensors into one that is replayed, such as `graphs.Replayed`; for tableaus without
            noise of their own.

    Raises:
        RuntimeError: as `generate`.
    """
    size = batch_size if network_batch is None or isinstance(run, AdaptiveRun) else network_batch
    device = next(denoiser.parameters()).device
    starts = range(0, len(seeds), size)
    with count_calls(denoiser) as calls, _progressing(progress) as told:
        work = _Work(denoiser, run, shape, network_batch, device, calls, told, record)
        units = (
            _Unit(list(seeds[start : start + size]), None if labels is None else labels[start : start + size])
            for start in starts
        )
        yield from _regrouped(in_order(work, units, threads), batch_size)


Record = Callable[[Callable[..., Tensor], Sequence[Tensor]], Callable[..., Tensor]]
"""(function, examples of its arguments) -> a function of the same values."""


class _Unit(NamedTuple):
    seeds: list[int]
    label: Tensor | None


class _AbandonedError(Exception):
    """Nobody waits for this work any more."""


@contextmanager
def _progressing(progress: Progress) -> Iterator[Progress]:
    """`progress` for several threads, which stops them at their next evaluation when the context is left."""
    lock, left = threading.Lock(), threading.Event()

    def told(images: float) -> None:
        if left.is_set():
            raise _AbandonedError
        with lock:
            progress(images)

    try:
        yield told
    finally:
        left.set()


@dataclass
class _Work:
    """What is done with a unit; one object serves all threads."""

    denoiser: Denoising
    run: Tableau | AdaptiveRun
    shape: tuple[int, int, int]
    size: int | None
    device: torch.device
    calls: Calls
    progress: Progress
    record: Record | None
    recorded: "_Recorded | None" = None

    @torch.inference_mode()
    def __call__(self, unit: _Unit) -> Batch:
        if isinstance(self.run, AdaptiveRun):
            x, nfe, calls = self._adaptive(unit, self.run)
        elif self.record is None:
            x, nfe, calls = self._tableau(unit, self.run)
        else:
            x, nfe, calls = self._replayed(unit, self.run, self.record)
        return Batch(unit.seeds, x[: len(unit.seeds)], nfe, calls)

    def _drawn(self, unit: _Unit, purpose: str, step: int = 0) -> Tensor:
        """Noise of the unit, filled up with copies of its last image's."""
        return self._filled(moved(noise.normal(unit.seeds, self.shape, purpose, step), self.device))

    def _filled(self, rows: Tensor) -> Tensor:
        missing = (self.size or 0) - len(rows)
        return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])]) if missing > 0 else rows

    def _label(self, unit: _Unit) -> Tensor | None:
        return None if unit.label is None else moved(unit.label, self.device)

    def _tableau(self, unit: _Unit, run: Tableau) -> tuple[Tensor, int, int]:
        label = self._label(unit)
        label = None if label is None else self._filled(label)
        start = partial(self._start, unit, run)
        return self._integrated(run, start, label, len(unit.seeds), partial(self._drawn, unit, "solver"))

    def _start(self, unit: _Unit, run: Tableau) -> Tensor:
        return self._drawn(unit, "initial") * float(run.rho[0])

    def _integrated(
        self,
        run: Tableau,
        start: Callable[[], Tensor],
        label: Tensor | None,
        images: int,
        draw: Callable[[int], Tensor],
    ) -> tuple[Tensor, int, int]:
        """`start` makes the initial state, which nobody keeps while the steps are made."""
        levels: list[float] = []
        before = self.calls.count

        def eps(x: Tensor, rho: float) -> Tensor:
            levels.append(rho)
            estimate = self.denoiser.eps(x, rho, label=label)
            self.progress(images / run.nfe)
            return estimate

        x = integrate(eps, start(), run, draw)
        if len(levels) != run.nfe:
            raise RuntimeError(f"the denoiser was evaluated {len(levels)} times, the tableau says {run.nfe}")
        return x, len(levels), self._checked(self.calls.count - before, levels)

    def _checked(self, network_calls: float, levels: list[float]) -> int:
        expected = sum(map(self.denoiser.calls, levels))
        if network_calls != expected:
            raise RuntimeError(
                f"networks were called {network_calls:g} times an image, {len(levels)} evaluations take {expected}"
            )
        return expected

    def _replayed(self, unit: _Unit, run: Tableau, record: Record) -> tuple[Tensor, int, int]:
        """All steps as one recorded function of the initial state; the counts are those of the recording."""
        label = self._label(unit)
        x = self._start(unit, run)
        inputs = [x] if label is None else [x, self._filled(label)]
        if self.recorded is None:
            self.recorded = self._recording(run, inputs, record)
        found = self.recorded.function(*inputs)
        self.progress(len(unit.seeds))
        return found, self.recorded.nfe, self.recorded.network_calls

    def _recording(self, run: Tableau, inputs: Sequence[Tensor], record: Record) -> "_Recorded":
        counts: list[tuple[int, int]] = []

        def whole(x: Tensor, label: Tensor | None = None) -> Tensor:
            found, nfe, network_calls = self._integrated(run, lambda: x, label, 0, _no_noise)
            counts.append((nfe, network_calls))
            return found

        return _Recorded(record(whole, inputs), *counts[-1])

    def _adaptive(self, unit: _Unit, run: AdaptiveRun) -> tuple[Tensor, int, int]:
        """A batch whose steps are chosen together, while the network is called on `size` images of it at a time."""
        label, images = self._label(unit), len(unit.seeds)
        x = moved(noise.normal(unit.seeds, self.shape, "initial"), self.device) * float(run.rho[0])
        levels: list[float] = []
        furthest, before, size = 0.0, self.calls.count, self.size or images

        def eps(x: Tensor, rho: float) -> Tensor:
            nonlocal furthest
            levels.append(rho)
            estimate = _in_fixed_batches(self.denoiser, x, rho, label, size)
            reached = max(furthest, run.covered(rho))
            self.progress(images * (reached - furthest))
            furthest = reached
            return estimate

        x = integrate(eps, x, run)
        return x, len(levels), self._checked((self.calls.count - before) / -(-images // size), levels)


class _Recorded(NamedTuple):
    function: Callable[..., Tensor]
    nfe: int
    network_calls: int


def _no_noise(row: int) -> Tensor:
    raise ValueError(f"row {row} of the tableau draws noise, which a recording would repeat")


def _in_fixed_batches(denoiser: Denoising, x: Tensor, rho: float, label: Tensor | None, size: int) -> Tensor:
    """eps of x (B, *) from calls on exactly `size` rows: matrix kernels round differently for other shapes."""
    parts = []
    for start in range(0, len(x), size):
        rows = torch.arange(start, start + size, device=x.device).clamp(max=len(x) - 1)
        whole = size == len(x)
        state, condition = (x, label) if whole else (x[rows], None if label is None else label[rows])
        parts.append(denoiser.eps(state, rho, label=condition)[: len(x) - start])
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _regrouped(units: Iterator[Batch], batch_size: int) -> Iterator[Batch]:
    """The same images, `batch_size` at a time."""
    held: list[Batch] = []
    for unit in units:
        held.append(unit)
        while sum(len(part.seeds) for part in held) >= batch_size:
            whole = _joined(held)
            yield Batch(whole.seeds[:batch_size], whole.x[:batch_size], whole.nfe, whole.network_calls)
            rest = whole.seeds[batch_size:]
            held = [Batch(rest, whole.x[batch_size:], whole.nfe, whole.network_calls)] if rest else []
    if held:
        yield _joined(held)


def _joined(parts: list[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    return parts[0]._replace(
        seeds=[seed for part in parts for seed in part.seeds], x=torch.cat([part.x for part in parts])
    )
