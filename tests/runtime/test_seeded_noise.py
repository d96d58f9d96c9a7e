"""torch's generators by key: MT19937 seeded with all bits, as NumPy seeds it from an array."""

import itertools
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

from scoreline.runtime.seeded_noise import seed_default, seed_generator
from scoreline.training.module import step_key

STEPS = 250_000


def words(generator: Generator, count: int = 2) -> tuple[int, ...]:
    """The second of every two words of the stream: torch takes 64 bits for a number."""
    return tuple(torch.randint(2**32, (count,), generator=generator).tolist())


def drawn(key: int) -> Tensor:
    """All kinds of numbers that training takes, one after another, as float64."""
    generator = seed_generator(Generator(), key)
    uniform = torch.rand(5, dtype=torch.float64, generator=generator)
    normal = torch.randn(40, generator=generator).double()
    order = torch.randperm(40, generator=generator).double()
    return torch.cat([uniform, normal, order, torch.randn(3, generator=generator).double()])


@pytest.mark.parametrize("key", [2**32, 2**32 + 1, 0x0123456789ABCDEF, 2**63, 2**64 - 1])
def test_a_wide_key_seeds_as_numpy_does(key: int) -> None:
    """More numbers than the state has words, and after other numbers were drawn."""
    generator = Generator().manual_seed(1)
    torch.randn(3, generator=generator)
    expected = np.random.RandomState([key % 2**32, key // 2**32]).randint(2**32, size=3000, dtype=np.uint32)
    assert list(words(seed_generator(generator, key), 1500)) == expected[1::2].tolist()


@pytest.mark.parametrize("key", [0, 7, 2**32 - 1])
def test_short_keys_are_the_streams_of_torch(key: int) -> None:
    assert words(seed_generator(Generator(), key), 1500) == words(Generator().manual_seed(key), 1500)


def test_every_bit_of_a_key_counts() -> None:
    """Keys that differ in one bit anywhere, or in one half only, which torch's seeding merges."""
    assert words(Generator().manual_seed(5)) == words(Generator().manual_seed(5 + 2**32)), "torch has mended it"
    key = 0x9E3779B97F4A7C15
    assert (
        len(
            {words(seed_generator(Generator(), key ^ 1 << bit)) for bit in range(64)}
            | {words(seed_generator(Generator(), key))}
        )
        == 65
    )
    streams = [drawn(5 + (high << 32)) for high in range(1, 30)]
    assert all(not bool((one == other)[:45].any()) for one, other in itertools.pairwise(streams))
    assert torch.equal(drawn(key), drawn(key))


def test_default_generators_are_seeded_alike() -> None:
    """Dropout's masks come from them."""
    layer, x = nn.Dropout(0.5), torch.ones(256)
    masks = []
    for key in (3 + 2**32, 3 + 2**33, 3 + 2**32):
        seed_default(key)
        masks.append(layer(x))
    assert torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0], masks[1])
    seed_default(3 + 2**32)
    assert words(torch.default_generator) == words(seed_generator(Generator(), 3 + 2**32))


def grouped(keys: list[int], shift: int) -> Iterable[list[int]]:
    """Keys with the same 32 bits from `shift` on."""
    found = defaultdict(list)
    for key in keys:
        found[key >> shift & 0xFFFFFFFF].append(key)
    return found.values()


def test_keys_with_equal_low_bits_differ() -> None:
    """Of 250,000 steps some 7 pairs of keys agree in either half; as seeds of 32 bits they were one stream."""
    keys = [step_key(0, step, 0, "noise") for step in range(STEPS)]
    assert len(set(keys)) == STEPS
    shared = [group for shift in (0, 32) for group in grouped(keys, shift) if len(group) > 1]
    assert len(shared) > 8
    for group in shared:
        assert len({words(seed_generator(Generator(), key)) for key in group}) == len(group)


@pytest.mark.slow
def test_no_two_of_many_steps_begin_alike() -> None:
    """A birthday test: 250,000 streams by 64 bits of their first four words."""
    generator = Generator()
    begun = {words(seed_generator(generator, step_key(0, step, 0, "noise"))) for step in range(STEPS)}
    assert len(begun) == STEPS
