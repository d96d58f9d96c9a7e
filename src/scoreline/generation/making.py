"""The loop that makes what is missing, as one of several processes."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from scoreline.denoiser import Denoising
from scoreline.errors import InputError
from scoreline.generation.batches import Batch, Record, check_finite, launch
from scoreline.generation.shards import Counts, Found, Shards
from scoreline.generation.sharing import from_first, share
from scoreline.in_order import beside
from scoreline.pictures import to_uint8
from scoreline.processes import Group
from scoreline.progress import ImageProgress
from scoreline.sampling import Progress
from scoreline.solvers.adaptive import AdaptiveRun
from scoreline.solvers.tableau import Tableau

WRITERS = 2
"""Threads that write what is done, while the next batches are computed: so many batches are held at most."""


@dataclass(frozen=True)
class Recipe:
    """What images are made with; the numbers are those of `generation.batches.generate`.

    Attributes:
        record: as in `generation.batches.launch`.
    """

    denoiser: Denoising
    run: Tableau | AdaptiveRun
    batch_size: int
    network_batch: int | None
    threads: int = 1
    record: Record | None = None


class Made(NamedTuple):
    """What one start made: images of all processes together, and the seconds that took."""

    images: int
    seconds: float


def make(recipe: Recipe, shards: Shards, group: Group) -> Made:
    """Make every image that is in no shard yet, together with the other processes of the group.

    Image i is what `generation.batches.generate` makes of seed i on the device of the denoiser's parameters: to the
    bit the same for any number of processes and threads, any `batch_size` and any number of kills and restarts, as long
    as `network_batch` is a number and a thread of a CPU computes with as many cores. Where it is None, and with an
    adaptive solver, images depend on their batch by rounding or by the tolerance. A kill loses the batches in flight
    and nothing else: a batch becomes a shard as soon as it is done, written beside the computing of the next ones.

    Noise and labels are drawn on the CPU, so that devices differ in the network's arithmetic alone. What that moves is
    the distance between the shipped model's images (NFE 10, in [-1, 1]) and those of its network in float64: float32
    rms 8e-7, at most 4e-5, no uint8 value in 16,000 changed; float16 rms 2e-3, at most 0.05 (TF32 has as short a
    mantissa); bfloat16 rms 1e-2, at most 0.3, where an image falls towards another mode.
    """
    missing = from_first(shards.find().missing if group.first else None, group)
    own = share(missing.tolist(), group, recipe.network_batch or 1)
    began, whole = time.perf_counter(), len(missing) / max(1, len(own))
    done = len(shards.seeds) - len(missing)
    with ImageProgress(len(shards.seeds), "sampling", done=done, enabled=group.first) as progress:
        _make(recipe, shards, own, lambda images: progress.update(images * whole))
    group.barrier()
    return Made(len(missing), time.perf_counter() - began)


def _make(recipe: Recipe, shards: Shards, own: Sequence[int], progress: Progress) -> None:
    seeds, labels = [shards.seeds[i] for i in own], None
    if shards.labels is not None:
        labels = shards.labels[torch.tensor(own, dtype=torch.int64)]
    batches = launch(
        *(recipe.denoiser, recipe.run, shards.shape, seeds, recipe.batch_size),
        *(labels, recipe.network_batch, progress, recipe.threads, recipe.record),
    )
    placed = ((own[start : start + len(batch.seeds)], fetched(batch)) for start, batch in _counted(batches))

    def write(item: tuple[Sequence[int], Fetched]) -> None:
        indices, batch = item
        shards.write(indices, batch.images(), Counts(batch.nfe, batch.network_calls))

    beside(write, placed, WRITERS)


def _counted(batches: Iterator[Batch]) -> Iterator[tuple[int, Batch]]:
    """Batches, and the images before each."""
    start = 0
    for batch in batches:
        yield start, batch
        start += len(batch.seeds)


@dataclass(frozen=True)
class Fetched:
    """A batch on its way from the device to the host, as bytes; see `images`."""

    seeds: list[int]
    nfe: int
    network_calls: int
    pixels: Tensor
    finite: Tensor
    arrived: torch.cuda.Event | None

    def images(self) -> Tensor:
        """Images uint8 (n, C, H, W) on the CPU, once they are there.

        Raises:
            NotFiniteError: if a sample is not finite.
        """
        if self.arrived is not None:
            self.arrived.synchronize()
        check_finite(self.seeds, self.finite)
        return self.pixels


def fetched(batch: Batch) -> Fetched:
    """The batch's images as bytes; those of a GPU are sent, in the order of its work, without waiting for them."""
    pixels, finite = to_uint8(batch.x), batch.x.isfinite().all()
    arrived = None
    if batch.x.is_cuda:
        pixels, finite = _sent_to_host(pixels), _sent_to_host(finite)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
    return Fetched(batch.seeds, batch.nfe, batch.network_calls, pixels, finite, arrived)


def _sent_to_host(values: Tensor) -> Tensor:
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return host.copy_(values, non_blocking=True)


def complete(shards: Shards, group: Group) -> Found:
    """Where all images lie; the first process compares every one with its SHA-256.

    Raises:
        InputError: if one is missing or damaged, which happens where the processes do not share the folder.
    """
    found = shards.find(check=group.first)
    if missing := len(found.missing):
        raise InputError(
            f"hydra.run.dir={shards.folder.parent}: {missing} of {len(shards.seeds)} images are missing or damaged "
            "when all should be there; start the same command again, in a directory that all processes share"
        )
    return found
