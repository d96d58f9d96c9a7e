"""The legacy format of torch.save, which is also the format of a storage inside a pickle.

It has five pickles (a magic number, the protocol, facts of the machine, the object, the keys of its storages), and
then for each key the number of its elements (int64) and its bytes.
"""

import struct
from collections.abc import Collection
from typing import Any

from scoreline.safe_pickle.limits import Budget, FileError, excerpt
from scoreline.safe_pickle.machine import Machine, Name, no_persistent
from scoreline.safe_pickle.rebuild import Rebuild
from scoreline.safe_pickle.storages import Root, Storage, raw
from scoreline.safe_pickle.torch_zip import parsed
from scoreline.safe_pickle.window import Window

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001


class Storages:
    """The storages of the object, whose bytes follow later."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.roots: dict[str, tuple[Root, Any]] = {}

    def persistent(self, identity: Any) -> Any:
        """Return the storage of a persistent id, or a view of it; for ('module', class, ..) the name of the class."""
        if type(identity) is tuple and len(identity) == 4 and identity[0] == "module" and type(identity[1]) is Name:
            return identity[1]
        kind, size, key = parsed(identity, 6)
        root, known = self.roots.setdefault(key, (Root(size), kind))
        if (root.size, known) != (size, kind):
            raise FileError(f"storage {excerpt(key)} has two sizes or types; get the file anew")
        return Storage(root, *_part(identity[5], size, kind.itemsize if kind else 1), kind)

    def fill(self, window: Window, keys: Any) -> None:
        """Read the bytes of each storage, in the order of the keys."""
        if type(keys) is not list or not all(type(key) is str for key in keys) or {*keys} != self.roots.keys():
            raise FileError("its list of storages is not that of its tensors; get the file anew")
        for key in keys:
            root, kind = self.roots[key]
            (count,) = struct.unpack("<q", window.slice(8))
            if count * (kind.itemsize if kind else 1) != root.size or root.bytes is not None:
                raise FileError(f"storage {excerpt(key)} has {count:,} numbers or is there twice; get the file anew")
            root.bind(raw(window.slice(root.size), kind.itemsize if kind else 8, self.budget))


def _part(view: Any, size: int, width: int) -> tuple[int, int]:
    """Return first byte and size of a view (key, offset, numel), or of the whole storage."""
    if view is None:
        return 0, size
    if type(view) is not tuple or len(view) != 3 or not all(type(n) is int and n >= 0 for n in view[1:]):
        raise FileError(f"a storage has view {excerpt(view)}; get the file anew")
    start, length = view[1] * width, view[2] * width
    if start + length > size:
        raise FileError(
            f"a storage has view {excerpt(view)}, which is not inside of its {size:,} bytes; get the file anew"
        )
    return start, length


def load(view: memoryview, rebuild: Rebuild, budget: Budget) -> Any:
    """Read the tree in a file.

    Raises:
        FileError: for anything that torch.save does not write.
    """
    window, storages = Window(view), Storages(budget)
    plain = Machine(rebuild.resolve, no_persistent, budget)
    _check_head([plain.run(window) for _ in range(3)])
    tree = Machine(rebuild.resolve, storages.persistent, budget).run(window)
    storages.fill(window, plain.run(window))
    if window.left():
        raise FileError(
            f"{window.left():,} bytes follow its storages, which torch.save does not write; get the file anew"
        )
    return tree


def _check_head(head: list[Any]) -> None:
    """Check the first three pickles.

    Raises:
        FileError: if magic number, protocol or facts of the machine are not those of the format.
    """
    magic, protocol, facts = head
    if magic != MAGIC or type(protocol) is not int or protocol != PROTOCOL:
        raise FileError(
            f"its magic number is {excerpt(magic)} with protocol {excerpt(protocol)}, not torch's; get it anew"
        )
    if type(facts) is not dict or facts.get("little_endian") is not True:
        raise FileError("its numbers are not little-endian; save it on a little-endian machine")


def load_nested(view: memoryview, inert: Collection[str], budget: Budget) -> Any:
    """Read the storage in the bytes that a pickle passes to `torch.storage._load_from_bytes`."""
    return load(view, Rebuild(inert, _too_deep, budget), budget)


def _too_deep(_: Any) -> Any:
    """Refuse a torch file inside a torch file inside a pickle.

    Raises:
        FileError: always.
    """
    raise FileError("its pickle holds a file of torch inside another inside another, which no checkpoint needs")
