"""Random numbers that belong to an image, not to a batch: counter-based, keyed by (seed, purpose, step)."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def normal(seeds: Sequence[int], shape: tuple[int, ...], purpose: str, step: int = 0) -> Tensor:
    """Standard normal noise, one independent stream per image.

    Image i is a pure function of (seeds[i], purpose, step): not of the other seeds, the batch size, the process or
    the device. Bits come from Philox4x64-10 with key (seed, SHA-256 of purpose) and counter word 2 = step; normals
    from the Box-Muller transform in float64, so NumPy's version does not matter either.

    Args:
        seeds: image seeds, each in 0 .. 2^64 - 1.
        shape: shape of one image.
        purpose: what the noise is for, such as `initial` or `solver`.
        step: number of the draw within its purpose.

    Returns:
        (len(seeds), *shape) float32 on the CPU.

    Source: Salmon et al. (2011), doi:10.1145/2063384.2063405; Box & Muller (1958), doi:10.1214/aoms/1177706645.
    """
    count = int(np.prod(shape))
    bits = _Bits(purpose, step)
    words = np.stack([bits(seed, count + count % 2) for seed in seeds])
    uniform = ((words >> np.uint64(11)).astype(np.float64) + 1) * 2.0**-53
    radius, angle = np.sqrt(-2 * np.log(uniform[:, 0::2])), 2 * np.pi * uniform[:, 1::2]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return torch.from_numpy(pairs.reshape(len(seeds), -1)[:, :count].astype(np.float32)).reshape(-1, *shape)


def integers(seeds: Sequence[int], high: int, purpose: str) -> Tensor:
    """One integer in 0 .. high - 1 per image, (len(seeds),) int64, keyed as `normal`; floor(high u), u of 53 bits."""
    bits = _Bits(purpose, 0)
    words = np.array([bits(seed, 1)[0] for seed in seeds], dtype=np.uint64)
    return torch.from_numpy((((words >> np.uint64(11)).astype(np.float64) * 2.0**-53) * high).astype(np.int64))


class _Bits:
    """(seed, count) -> (count,) uint64. One generator is set to every stream: to make one is 5 times as dear."""

    def __init__(self, purpose: str, step: int) -> None:
        stream = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")
        key, counter = np.array([0, stream], dtype=np.uint64), np.array([0, 0, step, 0], dtype=np.uint64)
        self.generator = np.random.Philox(key=key, counter=counter)
        self.start = self.generator.state

    def __call__(self, seed: int, count: int) -> np.ndarray:
        self.start["state"]["key"][0] = seed
        self.generator.state = self.start
        return np.asarray(self.generator.random_raw(count))
