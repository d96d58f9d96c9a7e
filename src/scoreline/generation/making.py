"""The loop that makes what is missing, as one of several processes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from scoreline.denoiser import Denoising
from scoreline.errors import InputError
from scoreline.generation.shards import Counts, Found, Shards
from scoreline.generation.sharing import from_first, share
from scoreline.pixels import to_uint8
from scoreline.processes import Group
from scoreline.progress import ImageProgress
from scoreline.sampling import Progress, generate
from scoreline.solvers.adaptive import AdaptiveRun
from scoreline.solvers.tableau import Tableau


@dataclass(frozen=True)
class Recipe:
    """What images are made with; `batch_size` and `network_batch` are those of `sampling.generate`."""

    denoiser: Denoising
    run: Tableau | AdaptiveRun
    batch_size: int
    network_batch: int | None


class Made(NamedTuple):
    """What one start made: images of all processes together, and the seconds that took."""

    images: int
    seconds: float


def make(recipe: Recipe, shards: Shards, group: Group) -> Made:
    """Make every image that is in no shard yet, together with the other processes of the group.

    Image i is what `sampling.generate` makes of seed i on the device of the denoiser's parameters: to the bit the
    same for any number of processes, any `batch_size` and any number of kills and restarts, as long as `network_batch`
    is a number and a CPU computes with as many threads. Where it is None, and with an adaptive solver, images depend
    on their batch by rounding or by the tolerance. A kill loses the batches in flight and nothing else: a batch becomes
    a shard as soon as it is done.

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
    batches = generate(
        *(recipe.denoiser, recipe.run, shards.shape, seeds, recipe.batch_size),
        *(labels, recipe.network_batch, progress),
    )
    start = 0
    for batch in batches:
        indices = own[start : start + len(batch.seeds)]
        shards.write(indices, to_uint8(batch.x).cpu(), Counts(batch.nfe, batch.network_calls))
        start += len(batch.seeds)


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
