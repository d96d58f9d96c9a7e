"""Work cut into numbered parts, so that several processes share it and a restart goes on."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from scoreline.errors import InputError
from scoreline.files import write_atomically

Tensors = dict[str, Tensor]
T = TypeVar("T")


def _alone() -> None:
    """One process waits for nobody."""


@dataclass(frozen=True)
class Parts:
    """Parts 0 .. count - 1 of a piece of work, each made once, by one of `size` processes, and kept in a file.

    Every process gets all parts in order: what is computed from them does not depend, to the bit, on the number of
    processes nor on how often the work was killed and started again.

    Attributes:
        folder: where parts are kept, 000000.safetensors and so on; it must be shared by the processes. None keeps them
            in memory, and every process makes all of them.
        stamp: what else a part depends on; one with another stamp counts as missing.
        rank, size: this process makes the parts rank, rank + size, .. that are missing.
        barrier: waits for the other processes.
    """

    folder: Path | None = None
    stamp: str = ""
    rank: int = 0
    size: int = 1
    barrier: Callable[[], object] = _alone

    def __call__(self, count: int, make: Callable[[int], Tensors]) -> list[Tensors]:
        """All parts in order.

        Args:
            make: makes one; a part that was found is not made again.

        Raises:
            InputError: if a part of another process is not in the folder when all are done.
        """
        parts = list(self.lazily(count, make))
        if self.folder is not None:
            self.barrier()
        return parts

    def lazily(self, count: int, make: Callable[[int], Tensors]) -> Sequence[Tensors]:
        """All parts in order, each read from its file whenever it is asked for.

        Without a folder they are in memory. The folder may go when every process has read what it needs.

        Raises:
            InputError: on reading a part of another process that is not in the folder.
        """
        if self.folder is None:
            return [make(number) for number in range(count)]
        for number in range(self.rank, count, self.size):
            if not self._has(number):
                self._write(number, make(number))
        self.barrier()
        return _Kept(self, count)

    def at(self, folder: Path | None, stamp: str) -> "Parts":
        """The same processes with other parts."""
        return replace(self, folder=folder, stamp=stamp)

    def found(self, count: int) -> list[int]:
        """Numbers of the parts that need not be made."""
        return [number for number in range(count) if self._has(number)]

    def share(self, count: int) -> float:
        """All missing parts per missing part of this process: what a unit of its work says of the whole."""
        if self.folder is None:
            return 1.0
        missing = set(range(count)) - set(self.found(count))
        return len(missing) / max(1, len(missing & set(range(self.rank, count, self.size))))

    def remove(self) -> None:
        """Delete the folder; call it in one process, when what became of the parts is safe."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{number:06d}.safetensors"

    def _has(self, number: int) -> bool:
        """Whether a part is there, whole and of this stamp, told by its header and length."""
        return self._open(number, lambda file: True) is not None

    def _read(self, number: int) -> Tensors | None:
        """None for a part that is missing, truncated or of another stamp."""
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
