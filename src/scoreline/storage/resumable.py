"""Work in numbered parts, which several processes share and a restart resumes."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from scoreline.errors import InputError
from scoreline.storage.files import write_atomically

Tensors = dict[str, Tensor]
T = TypeVar("T")


def _alone() -> None:
    """Do nothing: a single process has nobody to wait for."""


@dataclass(frozen=True)
class Parts:
    """Parts 0 .. count - 1 of a piece of work; one of `size` processes computes each part once and keeps it in a file.

    Use it for long computations whose result is a reduction over parts. Every process gets all parts in order, so that
    the result does not depend, to the bit, on the number of processes or on restarts.

    Attributes:
        folder: where parts are kept, as 000000.safetensors and so on; the processes share it. None keeps the parts in
            memory, and every process computes all of them.
        stamp: text for everything else that a part depends on; a part with another stamp counts as missing.
        rank: number of this process, which computes the missing ones of the parts rank, rank + size, ..
        size: number of processes.
        barrier: a function that waits for the other processes.
    """

    folder: Path | None = None
    stamp: str = ""
    rank: int = 0
    size: int = 1
    barrier: Callable[[], object] = _alone

    def __call__(self, count: int, make: Callable[[int], Tensors]) -> list[Tensors]:
        """Return all parts in order.

        Args:
            count: number of parts.
            make: computes the part of a number; it is called for missing parts only.

        Raises:
            InputError: if a part of another process is not in the folder after the barrier.
        """
        parts = list(self.lazily(count, make))
        if self.folder is not None:
            self.barrier()
        return parts

    def lazily(self, count: int, make: Callable[[int], Tensors]) -> Sequence[Tensors]:
        """Return all parts in order as a sequence that reads a part from its file at each access.

        Without a folder the parts are in memory. Remove the folder only after every process has read what it needs.

        Raises:
            InputError: on reading a part of another process that is not in the folder.
        """
        if self.folder is None:
            return [make(number) for number in range(count)]
        for number in self.missing(count):
            self._write(number, make(number))
        self.barrier()
        return _Kept(self, count)

    def chain(self, count: int, first: Tensors, make: Callable[[int, Tensors], Tensors]) -> Tensors:
        """Return the last of `count` parts, each made from the one before; a restart goes on after the latest one.

        Only the latest part keeps its file. A chain belongs to one process (`alone`).

        Args:
            count: number of parts.
            first: what the first part is made from.
            make: returns the part of a number, given the one before.
        """
        links = self.links(count)
        part = self._finished(links - 1) if links else first
        for number in range(links, count):
            part = make(number, part)
            if self.folder is not None:
                self._write(number, part)
                self._path(number - 1).unlink(missing_ok=True)
        return part

    def links(self, count: int) -> int:
        """Return how many parts of a chain are made."""
        return max(self.existing(count), default=-1) + 1

    def at(self, folder: Path | None, stamp: str) -> "Parts":
        """Return the same processes with other parts."""
        return replace(self, folder=folder, stamp=stamp)

    def inside(self, name: str) -> "Parts":
        """Return the same processes with parts in a folder of this name inside this one."""
        return replace(self, folder=self.folder and self.folder / name)

    def alone(self, name: str) -> "Parts":
        """Return this process alone, with parts in a folder of this name inside this one."""
        return Parts(self.folder and self.folder / name, self.stamp)

    def missing(self, count: int) -> list[int]:
        """Return the numbers of the parts that this process has to compute."""
        every = range(count) if self.folder is None else range(self.rank, count, self.size)
        return [number for number in every if not self._has(number)]

    def existing(self, count: int) -> list[int]:
        """Return the numbers of the parts that exist."""
        return [number for number in range(count) if self._has(number)]

    def share(self, count: int) -> float:
        """Return the ratio of all missing parts to those of this process, which scales its progress to the whole."""
        if self.folder is None:
            return 1.0
        return (count - len(self.existing(count))) / max(1, len(self.missing(count)))

    def remove(self) -> None:
        """Delete the folder; call it in one process, after the result is saved."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{number:06d}.safetensors"

    def _has(self, number: int) -> bool:
        """Return whether a complete part of this stamp exists, by its header and length."""
        return self._open(number, lambda file: True) is not None

    def _read(self, number: int) -> Tensors | None:
        """Return a part, or None if it is missing, truncated or of another stamp."""
        return self._open(number, lambda file: {name: file.get_tensor(name).clone() for name in file.keys()})  # noqa: SIM118

    def _open(self, number: int, read: Callable[[Any], T]) -> T | None:
        from safetensors import SafetensorError, safe_open

        if self.folder is None:
            return None
        try:
            with safe_open(self._path(number), framework="pt") as file:
                return read(file) if (file.metadata() or {}).get("stamp") == self.stamp else None
        except (SafetensorError, OSError):
            return None

    def _write(self, number: int, part: Tensors) -> None:
        from safetensors.torch import save_file

        tensors = {name: value.contiguous() for name, value in part.items()}
        write_atomically(self._path(number), lambda path: save_file(tensors, path, {"stamp": self.stamp}))

    def _finished(self, number: int) -> Tensors:
        part = self._read(number)
        if part is None:
            raise InputError(
                f"hydra.run.dir: another process made {self._path(number)}, which this one cannot read; choose a "
                "directory that all of them share"
            )
        return part


class _Kept(Sequence[Tensors]):
    def __init__(self, parts: Parts, length: int) -> None:
        self.parts, self.length = parts, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[k] for k in range(*number.indices(self.length))]
        if not -self.length <= number < self.length:
            raise IndexError(number)
        return self.parts._finished(number % self.length)
