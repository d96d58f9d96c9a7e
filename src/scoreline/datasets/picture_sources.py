"""Sources of pictures of any kind: folders, archives, CIFAR-10, npz files and Hugging Face data sets."""

import bz2
import gzip
import lzma
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, cast

from torch import Tensor

from scoreline.datasets import huggingface
from scoreline.datasets.anywhere import SAVED, on_hub
from scoreline.datasets.cifar10 import Cifar10
from scoreline.datasets.class_labels import LABEL_FILE, MAX_LABEL_BYTES
from scoreline.datasets.image_files import MAX_IMAGE_BYTES, is_hidden
from scoreline.datasets.npz_archive import NpzArchive
from scoreline.datasets.picture_conversion import UnusableError
from scoreline.datasets.zip_archive import Entries
from scoreline.errors import InputError
from scoreline.storage import bounded_reading
from scoreline.storage.pictures import png_bytes

BATCH = "data_batch_1"
"""A file that CIFAR-10's archive and no other has."""

PACKERS: Mapping[bytes, Callable[[IO[bytes]], object]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
}
"""Openers of compressed tar archives by the first bytes."""

GROWTH, ROOM = 100, 2**28
"""A compressed tar archive unpacks to at most 100 times its size and 256 MiB."""


@dataclass(frozen=True)
class PictureSource:
    """Files that may be pictures.

    Attributes:
        root: the name of the source in messages.
        names: all files except hidden ones, sorted; a single folder around everything is left out.
        load: reads the bytes of one file, from any thread. It raises UnusableError.
        left_out: files that are not read, each with the reason.
        classes: the class of each file where the source itself has classes.
    """

    root: str
    names: Sequence[str]
    load: Callable[[str], bytes]
    left_out: Mapping[str, str] = field(default_factory=dict)
    classes: Mapping[str, int] | None = None


@contextmanager
def open_source(path: str, split: str | None, room: Path) -> Iterator[PictureSource]:
    """Open a source for the duration of the context.

    Args:
        path: a folder, a zip or tar archive (also compressed by gzip, bzip2 or xz), an npz file of `NpzArchive`,
            CIFAR-10's archive or folder, or what `HuggingFace` reads.
        split: the part of CIFAR-10 or of a set of the Hugging Face library; None stands for `train`.
        room: a folder for an unnamed temporary file, to which a compressed tar archive is unpacked.

    Raises:
        InputError: if nothing is there, for another kind of file, and for a damaged archive.
    """
    place = bounded_reading.place(path, "SRC")
    with ExitStack() as stack:
        if place.suffix == ".parquet" or any((place / name).exists() for name in SAVED) or _on_hub(place, path):
            yield _rows(path, split or "train")
            return
        if place.is_dir():
            source = _folder(place)
        elif not place.is_file():
            raise InputError(f"{path}: nothing is there; give a folder, a zip or a tar archive of pictures")
        elif place.suffix == ".npz":
            source = _images(path, NpzArchive(path))
        else:
            source = _zip(place) if _starts(place, b"PK") else _tar(stack, place, room)
        if any(name.rpartition("/")[2] == BATCH for name in source.names):
            source = _images(path, Cifar10(path, split or "train"))
        elif split is not None:
            raise InputError(f"split={split}: {path} has no splits; leave the key out")
        yield _without_outer_folder(source)


def _starts(place: Path, magic: bytes) -> bool:
    try:
        with bounded_reading.regular(place) as file:
            return file.read(len(magic)) == magic
    except (OSError, ValueError) as error:
        raise InputError(f"{place}: cannot be read ({getattr(error, 'strerror', None) or error}); allow it") from error


def _without_outer_folder(source: PictureSource) -> PictureSource:
    """Leave out a folder around everything, as an archive of a folder has it, unless it holds only loose files."""
    names = source.names
    outer, inner = (names[0].partition("/")[0] + "/", [name.partition("/")[2] for name in names]) if names else ("", [])
    around = all(name.startswith(outer) for name in names) and any("/" in name or name == LABEL_FILE for name in inner)
    if not around:
        return source
    load = source.load
    rest = {name.removeprefix(outer): reason for name, reason in source.left_out.items()}
    moved = replace(
        source, root=f"{source.root}: {outer}", names=inner, load=lambda name: load(outer + name), left_out=rest
    )
    return _without_outer_folder(moved)


def _limit(name: str) -> int:
    return MAX_LABEL_BYTES if name.endswith((".json", ".csv")) else MAX_IMAGE_BYTES


def _folder(root: Path) -> PictureSource:
    """List a folder to any depth. Links to folders may lead in a circle, and links out of it to what is private."""
    names, left_out, inside = [], {}, root.resolve()
    for folder, folders, files in os.walk(root, onerror=_unreadable):
        here = Path(folder)
        for name in (*folders, *files):
            relative = (here / name).relative_to(root).as_posix()
            if is_hidden(relative) or (name in folders and not (here / name).is_symlink()):
                continue
            names.append(relative)
            if (here / name).is_symlink():
                if name in folders:
                    left_out[relative] = "link to a folder"
                elif not (here / name).resolve().is_relative_to(inside):
                    left_out[relative] = "link out of the source (cp -rL makes a copy without links)"

    def load(name: str) -> bytes:
        try:
            return bounded_reading.content(root / name, _limit(name))
        except (OSError, ValueError) as error:
            raise UnusableError("cannot be read", str(getattr(error, "strerror", None) or error)) from error

    return PictureSource(str(root), sorted(names), load, left_out)


def _unreadable(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot be read ({error.strerror}); allow it") from error


def _zip(path: Path) -> PictureSource:
    entries = Entries(path, str(path))

    def load(name: str) -> bytes:
        try:
            return entries(name)
        except InputError as error:
            raise UnusableError("cannot be unpacked", str(error).removeprefix(f"{path}: {name} ")) from error

    return PictureSource(str(path), sorted(name for name in entries.names() if not is_hidden(name)), load)


def _tar(stack: ExitStack, path: Path, room: Path) -> PictureSource:
    """List a tar archive and read its members at their places, since the list may be long and threads share it."""
    try:
        file = stack.enter_context(_unpacked(path, room))
        with tarfile.open(fileobj=file, mode="r:") as archive:
            places, left_out = _members(archive, str(path))
    except (tarfile.TarError, lzma.LZMAError, *bounded_reading.DAMAGE) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: is neither a zip nor a whole tar archive ({error}); give a folder or an archive of pictures"
        ) from error

    def load(name: str) -> bytes:
        start, size = places[name]
        if size > _limit(name):
            raise UnusableError("cannot be read", f"it has {size:,} bytes, more than {_limit(name):,}")
        return os.pread(file.fileno(), size, start)

    return PictureSource(str(path), sorted({*places, *left_out}), load, left_out)


def _members(archive: tarfile.TarFile, root: str) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Return (start, size) of each file, and the names of links, which are left out."""
    places, left_out = dict[str, tuple[int, int]](), dict[str, str]()
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # it would grow by a kilobyte for each file
        name = os.path.normpath(member.name)
        if member.isdir() or is_hidden(name):
            continue
        if name in places:
            raise InputError(f"{root} holds {name} twice; make the archive again")
        if member.isreg() and not member.issparse():
            places[name] = (member.offset_data, member.size)
        else:
            left_out[name] = "link or no plain file in the archive"
    return places, left_out


def _unpacked(path: Path, room: Path) -> IO[bytes]:
    """Open a tar archive; a compressed one is first unpacked to a file without a name, to be read in any order."""
    packed = bounded_reading.regular(path)
    opener = next((opener for magic, opener in PACKERS.items() if _starts(path, magic)), None)
    if opener is None:
        return packed
    with packed:
        plain = bounded_reading.Bounded(cast(IO[bytes], opener(packed)), GROWTH * bounded_reading.size(packed) + ROOM)
        room.mkdir(parents=True, exist_ok=True)
        unpacked = cast(IO[bytes], tempfile.TemporaryFile(dir=room))  # noqa: SIM115  the caller closes it
        try:
            shutil.copyfileobj(plain, unpacked, 2**20)
            unpacked.seek(0)
        except BaseException:
            unpacked.close()
            raise
        return unpacked


def _on_hub(place: Path, path: str) -> bool:
    return not place.exists() and on_hub(path)


def _rows(path: str, split: str) -> PictureSource:
    """Return the rows of a data set of the Hugging Face library, named by their numbers."""
    images, classes = huggingface.rows(path, split)
    names = [f"{index:08d}" for index in range(len(images))]

    def load(name: str) -> bytes:
        try:
            return images.content(int(name))
        except InputError as error:
            raise UnusableError("cannot be read", str(error)) from error

    return PictureSource(path, names, load, classes=_known(names, classes.labels))


def _known(names: Sequence[str], labels: Tensor) -> dict[str, int] | None:
    """Return the classes, without -1; None if there are none."""
    return {name: label for name, label in zip(names, labels.tolist(), strict=True) if label >= 0} or None


def _images(path: str, images: Cifar10 | NpzArchive) -> PictureSource:
    """Return the images of a data set as PNG files named by their numbers."""
    names = [f"{index:08d}" for index in range(len(images))]

    def load(name: str) -> bytes:
        return png_bytes(images.read([int(name)])[0][0])

    return PictureSource(path, names, load, classes=_known(names, images.labels))
