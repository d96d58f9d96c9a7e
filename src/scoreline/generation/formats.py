"""`format=`: the file or folder of a run's images."""

import errno
import io
import json
import secrets
import shutil
import tarfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, astuple, fields
from pathlib import Path
from typing import NamedTuple

from scoreline import values
from scoreline.errors import InputError
from scoreline.generation import npz
from scoreline.generation.images import Entry, ShardImages, no_progress
from scoreline.generation.run_results import OUTPUTS, file_record
from scoreline.sampling import Progress
from scoreline.storage import edm_layout
from scoreline.storage.edm_layout import MODE, PER_FOLDER
from scoreline.storage.files import part_beside, write_atomically
from scoreline.storage.pictures import PICTURES, png_bytes


def _write_folder(path: Path, images: ShardImages, progress: Progress) -> None:
    """Write PNG files `00000/000123.png`: a folder per thousand images, at least six digits of the index.

    The call writes into a folder of its own and renames it at the end, so that several writers leave one whole folder.
    `files.remove_parts` removes the leftovers of a killed writer.
    """
    partial = _own(path)
    try:
        for entry, image in images.one_by_one(progress):
            file = partial / f"{entry.index // PER_FOLDER:05d}" / f"{_stem(entry.index, images)}.png"
            if entry.index % PER_FOLDER == 0:
                file.parent.mkdir(parents=True)
            file.write_bytes(png_bytes(image))
        _take_the_place(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _own(path: Path) -> Path:
    """Return a name beside `path` that is unique to this call."""
    return part_beside(path, f".{secrets.token_hex(4)}")


def _take_the_place(partial: Path, path: Path) -> None:
    """Rename a whole folder to `path`; an equal folder there stays, a different one is removed."""
    while not _renamed(partial, path) and not _alike(partial, path):
        former = _own(path)
        with suppress(FileNotFoundError):
            path.rename(former)
        shutil.rmtree(former, ignore_errors=True)


def _renamed(partial: Path, path: Path) -> bool:
    """Rename a folder unless a folder is in the way; raise InputError if a file is."""
    try:
        partial.rename(path)
    except NotADirectoryError as error:
        raise InputError(f"{path}: is in the way of the folder of images; remove it") from error
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _alike(partial: Path, path: Path) -> bool:
    """Return whether both folders are equal; False if another writer is renaming one."""
    try:
        return file_record(partial) == file_record(path)
    except OSError:
        return False


def _write_zip(path: Path, images: ShardImages, progress: Progress) -> None:
    """Write EDM's and StyleGAN's layout: `00000/img00000123.png`, stored, and classes or null in `dataset.json`."""
    pictures = (png_bytes(image) for _, image in images.one_by_one(progress))
    labels = [images.entry(index).label for index in range(len(images))] if images.labelled else None
    edm_layout.write_zip(path, pictures, lambda: labels)


def _write_webdataset(path: Path, images: ShardImages, progress: Progress) -> None:
    """Write a tar with `000123.png`, `000123.cls` (if there are labels) and `000123.json`, the line of the manifest.

    Source: layout of the webdataset package, https://github.com/webdataset/webdataset.
    """
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for entry, image in images.one_by_one(progress):
            stem = _stem(entry.index, images)
            _add_to_tar(archive, f"{stem}.png", png_bytes(image))
            if entry.label is not None:
                _add_to_tar(archive, f"{stem}.cls", str(entry.label).encode())
            _add_to_tar(archive, f"{stem}.json", json.dumps(asdict(entry)).encode())


def _add_to_tar(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to a tar archive, dated 1970-01-01 and without an owner.

    The list of members is cleared, since it would grow with the images.
    """
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), MODE
    archive.addfile(entry, io.BytesIO(content))
    archive.getmembers().clear()


def _stem(index: int, images: ShardImages) -> str:
    """Return the index with enough digits that the names sort like the images."""
    return f"{index:0{max(6, len(str(len(images) - 1)))}d}"


def write_manifest(path: Path, images: ShardImages) -> None:
    """Write the header `index,seed,label,sha256` and one line per image, in the order of the seeds.

    A missing label is empty; `sha256` is `images.Entry.sha256`.
    """
    with open(path, "w", newline="") as file:
        file.write(",".join(field.name for field in fields(Entry)) + "\n")
        for index in range(len(images)):
            row = astuple(images.entry(index))
            file.write(",".join("" if value is None else str(value) for value in row) + "\n")


class Format(NamedTuple):
    """The name of a format's file or folder, and its writer."""

    name: str
    write: Callable[[Path, ShardImages, Progress], None]


FORMATS = {
    "npz": Format(OUTPUTS["npz"], npz.write_images),
    "png": Format(OUTPUTS["png"], _write_folder),
    "zip": Format(OUTPUTS["zip"], _write_zip),
    "webdataset": Format(OUTPUTS["webdataset"], _write_webdataset),
    "npy": Format(OUTPUTS["npy"], npz.write_samples),
}
FLOAT = "npy"
"""The format that keeps samples as they are, in float32."""

NONE = "none"
"""The format that writes the manifest alone."""


def check_format(choice: str, shape: tuple[int, int, int]) -> None:
    """Refuse an unsuitable format; call it before sampling.

    Args:
        choice: one of `values.FORMAT`.
        shape: (C, H, W) of the images.

    Raises:
        InputError: for an unknown format, or files of bytes for images with neither one nor three channels.
    """
    values.check_format(choice)
    if choice not in (NONE, FLOAT) and shape[0] not in PICTURES:
        raise InputError(
            f"format={choice}: bytes from -1 to 1 hold images of 1 or 3 channels, these samples have {shape[0]}; "
            "format=npy metrics=none keeps them in float32"
        )


def write_format(choice: str, out: Path, images: ShardImages, progress: Progress = no_progress) -> None:
    """Write the images below `out` atomically.

    Args:
        choice: one of `values.FORMAT`.
        out: the run directory.
        images: all images of the run.
        progress: receives the number of images after each block.
    """
    if choice == NONE:
        return
    name, write = FORMATS[choice]
    if choice == "png":
        write(out / name, images, progress)
    else:
        write_atomically(out / name, lambda path: write(path, images, progress))
