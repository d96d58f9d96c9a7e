"""Splits by base picture: all variants of a picture are in one split, so that held-out pictures are new."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TypeVar

TEST_SHARE = 10  # one base picture in ten is held out

Base = TypeVar("Base", str, tuple[int, ...])


def belongs(name: str, split: str) -> bool:
    """Return whether a base picture is in a split: it is held out if SHA-256(name) mod 10 = 0."""
    held_out = int.from_bytes(hashlib.sha256(name.encode()).digest()) % TEST_SHARE == 0
    return split == "all" or held_out == (split == "test")


def unique(bases: Sequence[Sequence[Base]], fingerprints: Iterable[bytes]) -> dict[int, Base]:
    """Map the first index of each distinct picture to its base; variants that share a picture share a base.

    Args:
        bases: the bases that each picture has by itself.
        fingerprints: equal for equal pictures.
    """
    same: dict[bytes, list[int]] = defaultdict(list)
    for index, fingerprint in enumerate(fingerprints):
        same[fingerprint].append(index)
    linked = [[base for index in indices for base in bases[index]] for indices in same.values()]
    merged = merge(linked)
    return {indices[0]: merged[names[0]] for indices, names in zip(same.values(), linked, strict=True)}


def merge(linked: Iterable[Iterable[Base]]) -> dict[Base, Base]:
    """Map each base to the least member of its component, if the bases of each item of `linked` belong together."""
    parent: dict[Base, Base] = {}

    def root(base: Base) -> Base:
        while parent.setdefault(base, base) != base:
            base = parent[base]
        return base

    for bases in linked:
        roots = sorted({root(base) for base in bases})
        parent.update(dict.fromkeys(roots, roots[0]))
    return {base: root(base) for base in parent}
