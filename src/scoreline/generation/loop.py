"""The loop that samples missing images in one of several processes and writes them as shards."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from scoreline.errors import InputError
from scoreline.generation.batches import Batch, Sampler, check_finite
from scoreline.generation.shards import ShardIndex, Shards
from scoreline.runtime.collectives import from_first, share
from scoreline.runtime.device import to_host
from scoreline.runtime.distributed import Group
from scoreline.runtime.progress import ImageProgress
from scoreline.runtime.threads import beside
from scoreline.storage.pictures import to_uint8

WRITERS = 2
"""Threads that write finished batches while the next ones are computed; at most so many batches wait in memory."""


class Sampled(NamedTuple):
    """What a call sampled: the number of images, the seconds, the processes, and the peak memory of those elsewhere."""

    images: int
    seconds: float
    processes: int
    memory: Mapping[str, float] = MappingProxyType({})


Sampling = Callable[[Sampler, Shards, Group], Sampled]
"""Samples the missing images of shards, as `sample_missing` does."""


def sample_missing(sampler: Sampler, shards: Shards, group: Group) -> Sampled:
    """Sample every image that is in no shard yet, together with the other processes of the group.

    Image i is the image of seed i that `generation.batches.generate` yields on the device of the denoiser's parameters.
    It is equal to the bit for any number of processes and threads, any `batch_size` and any number of kills and
    restarts, as long as `network_batch` is a number and a thread of a CPU uses as many cores. With `network_batch` None
    or an adaptive solver, images depend on their batch by rounding or by the tolerance. A kill loses the batches in
    flight only: a thread writes each finished batch as a shard at once, while the next ones are computed.

    Returns:
        What all processes sampled in this call.
    """
    # 1. the first process lists the missing images, each process takes its share
    missing = from_first(shards.find().missing if group.first else None, group)
    own = share(missing.tolist(), group, sampler.network_batch or 1)
    seeds = [shards.seeds[i] for i in own]
    labels = None if shards.labels is None else shards.labels[torch.tensor(own, dtype=torch.int64)]

    # 2. batches of images on the device, copied to the host while the next ones are computed, then shards
    began, whole = time.perf_counter(), len(missing) / max(1, len(own))
    total, done = len(shards.seeds), len(shards.seeds) - len(missing)
    with ImageProgress(total, "sampling", done=done, enabled=group.first) as progress:
        batches = sampler.batches(shards.state_shape, seeds, labels, lambda images: progress.update(images * whole))
        _write_shards(shards, own, batches)
    group.barrier()
    return Sampled(len(missing), time.perf_counter() - began, group.size)


def _write_shards(shards: Shards, indices: Sequence[int], batches: Iterator[Batch]) -> None:
    def placed() -> Iterator[tuple[Sequence[int], Callable[[], Tensor], int, int]]:
        start = 0
        for batch in batches:
            end = start + len(batch.seeds)
            yield indices[start:end], images_on_host(batch, shards.dtype), batch.nfe, batch.network_calls
            start = end

    beside(lambda item: shards.write(item[0], item[1](), *item[2:]), placed(), WRITERS)


def images_on_host(batch: Batch, dtype: torch.dtype = torch.uint8) -> Callable[[], Tensor]:
    """Start the copy of a batch to the CPU, and return a function that waits for the images (n, C, H, W) of `dtype`.

    That function raises NotFiniteError if a sample is not finite.
    """
    x = to_uint8(batch.x) if dtype == torch.uint8 else batch.x.to(dtype)
    seeds, copies = batch.seeds, to_host(x, batch.x.isfinite().all())

    def images() -> Tensor:
        pixels, finite = copies()
        check_finite(seeds, finite)
        return pixels

    return images


def find_all(shards: Shards, group: Group) -> ShardIndex:
    """Return the places of all images, after the first process has compared every image with its SHA-256.

    Raises:
        InputError: if an image is missing or damaged, as happens if the processes do not share the folder.
    """
    places = shards.find(check=group.first)
    if missing := len(places.missing):
        raise InputError(
            f"hydra.run.dir={shards.folder.parent}: {missing} of {len(shards.seeds)} images are missing or damaged "
            "after sampling; repeat the command in a directory that all processes share"
        )
    return places
