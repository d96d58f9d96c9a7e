"""EDM's and StyleGAN's layout of pictures: `00000/img00000000.png`, .., and their classes in `dataset.json`.

Source: Karras et al. (2022), arXiv:2206.00364, reference data set tool.
"""

import json
import shutil
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from scoreline.storage.files import part_beside, write_atomically

PER_FOLDER = 1000
UNIX = 3
MODE = 0o644

Labels = Callable[[], Sequence[int | None] | None]
"""Returns the class of each picture once all are written; None stands for pictures without classes."""


def zip_entry(name: str) -> zipfile.ZipInfo:
    """Return the entry of a stored file in a zip archive, dated 1980-01-01, the first day of the format."""
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_STORED, UNIX, MODE << 16
    return entry


def picture_name(index: int) -> str:
    """Return `00001/img00001234.png` for 1234."""
    return f"{index // PER_FOLDER:05d}/img{index:08d}.png"


def write_zip(path: Path, pictures: Iterable[bytes], labels: Labels) -> None:
    """Write PNG files into a zip archive, uncompressed; equal pictures and labels make equal files.

    Args:
        path: the archive.
        pictures: the PNG files, one at a time.
        labels: called after the last picture.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        _write(lambda name, content: archive.writestr(zip_entry(name), content), pictures, labels)


def write_folder(path: Path, pictures: Iterable[bytes], labels: Labels) -> None:
    """Write the files that `write_zip` packs into a new folder; the arguments are the same."""

    def put(name: str, content: bytes) -> None:
        file = path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)

    path.mkdir()
    _write(put, pictures, labels)


def _write(put: Callable[[str, bytes], object], pictures: Iterable[bytes], labels: Labels) -> None:
    for index, png in enumerate(pictures):
        put(picture_name(index), png)
    classes = labels()
    table = None if classes is None else [[picture_name(index), label] for index, label in enumerate(classes)]
    put("dataset.json", json.dumps({"labels": table}).encode())


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a zip archive or, for a name without .zip, a folder; it is whole or absent at any moment."""
    if path.suffix == ".zip":
        write_atomically(path, write)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = part_beside(path)
    try:
        write(temporary)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
