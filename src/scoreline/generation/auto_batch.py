"""Images per network call: by the model's card, or with `network_batch=auto` as many as fit in memory."""

from collections.abc import Callable

import torch
from torch import Tensor

from scoreline.checkpoints import Card
from scoreline.denoiser import Denoising
from scoreline.errors import InputError
from scoreline.execution import is_u_net
from scoreline.generation.shards import Shards
from scoreline.runtime.device import free_memory
from scoreline.runtime.memory import peak_bytes
from scoreline.solvers.adaptive import AdaptiveRun
from scoreline.solvers.tableau import Tableau

SHARE = 0.8
"""Share of the free memory to use."""

MOST = {"cuda": 1024, "cpu": 256}
"""Images per call beyond which the measured devices got no faster."""

USUAL = 64
"""Images per call up to which a small job is padded, and those for a model of which nothing better is known."""

PIXELS, FEWEST, LARGEST = 2**13, 16, 128
"""Pixels of a call on a CPU, and the fewest and most images.

A call costs some milliseconds of Python whatever its size, for which other threads wait, so small images need large
calls. A call of 16 images of 32x32 takes no longer for each image than one of 64, and 64 images occupy four cores.
"""


def card_batch(card: Card, device: torch.device) -> int:
    """Return the images per call for a model: 64, and for a U-Net on a CPU `PIXELS` of them, a power of two.

    Neither the number of cores nor that of images counts, so that an image belongs to its seed.
    """
    if device.type != "cpu" or not is_u_net(card.model):
        return USUAL
    images = PIXELS // (card.shape[1] * card.shape[2])
    return min(LARGEST, max(FEWEST, 1 << max(0, images.bit_length() - 1)))


def largest_batch(call: Callable[[int], object], limit: float, device: torch.device, images: int) -> int:
    """Return the largest power of two n, at most `MOST`, with which `call(n)` holds at most `limit` bytes.

    The last call of a job is padded, so n is at most `USUAL` or a quarter of the job's images. Memory is extrapolated
    linearly from calls on 1 and 2 images; on a GPU the resulting size is tried, and halved until it fits. The same
    model, limit, kind of device and number of images give the same size.

    Args:
        call: evaluates the network on a number of images.
        limit: bytes that a call may hold.
        device: the device of the network.
        images: number of images of the job.

    Raises:
        InputError: if a single image does not fit.
    """
    call(1)
    least, most = (peak_bytes(lambda n=n: call(n), device) for n in (1, 2))  # type: ignore[misc]
    each = max(most - least, 1)
    size, largest = 1, most_images(device, images)
    while size * 2 <= largest and least + each * (2 * size - 1) <= limit:
        size *= 2
    while size > 1 and not _fits(call, size, limit, device):
        size //= 2
    if least > limit:
        raise InputError(
            f"network_batch=auto: one image takes {least / 2**20:.0f} MiB of activations, memory_mib allows "
            f"{limit / 2**20:.0f}; raise memory_mib"
        )
    return size


def most_images(device: torch.device, images: int) -> int:
    """Return the size for a job of so many images if memory is no limit, a power of two."""
    largest = min(MOST.get(device.type, MOST["cpu"]), max(USUAL, images // 4))
    return 1 << (largest.bit_length() - 1)


def one_call(
    denoiser: Denoising,
    tableau: Tableau | AdaptiveRun,
    shards: Shards,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> Callable[[int], object]:
    """Return a function that evaluates n images at the first noise level, beside the states that the tableau holds.

    With `decode` it decodes n samples after that.
    """
    device, level = denoiser.device, float(tableau.rho[0])
    states = tableau.peak_tensors

    @torch.inference_mode()
    def call(images: int) -> Tensor:
        x = torch.zeros(images, *shards.state_shape, device=device)
        others = [torch.zeros_like(x) for _ in range(states)]
        label = None if shards.labels is None else torch.zeros(images, dtype=torch.int64, device=device)
        sample = denoiser.estimate(x, level, label=label) + others[0]
        return sample if decode is None else decode(sample)

    return call


def memory_limit(mib: float | None, device: torch.device) -> float:
    """Return the limit in bytes: `mib`, else `SHARE` of the free memory.

    Args:
        mib: the limit in MiB, or None.
        device: the device of the network.

    Raises:
        InputError: if `mib` is None and the system does not report its free memory.
    """
    if mib is not None:
        return mib * 2**20
    free = free_memory(device)
    if free is None:
        raise InputError("memory_mib: this system does not report its free memory; give the key a number")
    return SHARE * free


def _fits(call: Callable[[int], object], size: int, limit: float, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    try:
        return peak_bytes(lambda: call(size), device) <= limit
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return False
