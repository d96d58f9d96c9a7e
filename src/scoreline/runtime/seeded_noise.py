"""Random numbers: an image's own, counter-based and keyed by (seed, purpose, step), and torch's streams by key."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Generator, Tensor

Noise = Callable[[Sequence[int], tuple[int, ...], str, int], Tensor]
"""(seeds, shape, purpose, step) -> (len(seeds), *shape): the noise of images, as `normal` draws it."""

WORDS = slice(3, 3 + 624)
"""The state of MT19937 within that of torch's CPU generator, in words of 64 bits."""


def normal(seeds: Sequence[int], shape: tuple[int, ...], purpose: str, step: int = 0) -> Tensor:
    """Draw standard normal noise, one independent stream per image.

    Use this for everything random about an image. Image i is a pure function of (seeds[i], purpose, step): it depends
    neither on the other seeds, the batch size and the process, nor on the device and NumPy's version. Bits come from
    Philox4x64-10 with key (seed, SHA-256 of purpose) and counter word 2 = step, normals from the Box-Muller transform
    in float64.

    Args:
        seeds: image seeds, each in 0 .. 2^64 - 1.
        shape: shape of one image.
        purpose: name of the stream, such as `initial` or `solver`.
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
    """Draw one integer in 0 .. high - 1 per image, floor(high u) with u of 53 bits: (len(seeds),) int64.

    It is keyed as `normal` is.
    """
    bits = _Bits(purpose, 0)
    words = np.array([bits(seed, 1)[0] for seed in seeds], dtype=np.uint64)
    return torch.from_numpy((((words >> np.uint64(11)).astype(np.float64) * 2.0**-53) * high).astype(np.int64))


def seed_generator(generator: Generator, key: int) -> Generator:
    """Set a generator to the start of the stream of `key`, 0 .. 2^64 - 1, every bit of which counts; return it.

    Use this instead of `manual_seed`: torch seeds its CPU generator, an MT19937, by the low 32 bits of a key, so two of
    77,000 keys have the same stream at even odds. Here a key beyond 32 bits fills the state as `init_by_array` does
    with its two words, low word first, as NumPy's `RandomState` takes an array; a shorter key gives torch's own stream.
    Generators of other devices are Philox, whose key has 64 bits, and seed themselves.

    Source: Matsumoto & Nishimura (1998), doi:10.1145/272991.272995, seeding of mt19937ar.c (2002).
    """
    generator.manual_seed(key)
    if generator.device.type == "cpu" and key >> 32:
        state = generator.get_state()
        filled = np.random.RandomState([key & 0xFFFFFFFF, key >> 32]).get_state(legacy=False)
        state.numpy().view(np.uint64)[WORDS] = filled["state"]["key"]
        generator.set_state(state)
    return generator


def seed_default(key: int) -> None:
    """Set torch's default generators of all devices to the stream of `key` (`seed_generator`)."""
    torch.manual_seed(key)
    seed_generator(torch.default_generator, key)


class _Bits:
    """(seed, count) -> (count,) uint64. One generator serves every stream: making a new one costs 5 times as much."""

    def __init__(self, purpose: str, step: int) -> None:
        stream = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")
        key, counter = np.array([0, stream], dtype=np.uint64), np.array([0, 0, step, 0], dtype=np.uint64)
        self.generator = np.random.Philox(key=key, counter=counter)
        self.start = self.generator.state

    def __call__(self, seed: int, count: int) -> np.ndarray:
        self.start["state"]["key"][0] = seed
        self.generator.state = self.start
        return np.asarray(self.generator.random_raw(count))
