"""`format=`: the file or folder that the images of a run end in."""

import errno
import io
import json
import secrets
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, astuple, fields
from pathlib import Path
from typing import NamedTuple

from scoreline import choices
from scoreline.errors import InputError
from scoreline.files import part_beside, write_atomically
from scoreline.generation import npz
from scoreline.generation.images import Entry, ShardImages, unwatched
from scoreline.pictures import png_bytes
from scoreline.run_results import OUTPUTS, written
from scoreline.sampling import Progress

PER_FOLDER = 1000


def write_folder(path: Path, images: ShardImages, progress: Progress) -> None:
    """PNG files `00000/000123.png`: a folder for each thousand, six digits or more of the index.

    They are written into a folder of this call's own, which is renamed at the end: several writers leave a whole folder
    of one of them. What a killed one leaves is for `files.remove_parts`.
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
    """A name beside `path` that no other call has."""
    return part_beside(path, f".{secrets.token_hex(4)}")


def _take_the_place(partial: Path, path: Path) -> None:
    """Rename a whole folder to `path`; a folder of the same content that is there stays, of another content it goes."""
    while not _renamed(partial, path) and not _alike(partial, path):
        former = _own(path)
        with suppress(FileNotFoundError):
            path.rename(former)
        shutil.rmtree(former, ignore_errors=True)


def _renamed(partial: Path, path: Path) -> bool:
    """Raises InputError where something other than a folder is in the way."""
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
    """Whether both hold the same; not if another writer is just renaming one."""
    try:
        return written(partial) == written(path)
    except OSError:
        return False


def write_zip(path: Path, images: ShardImages, progress: Progress) -> None:
    """EDM's and StyleGAN's layout: `00000/img00000123.png`, stored, and their classes in `dataset.json`, or null.

    Source: Karras et al. (2022), arXiv:2206.00364, reference data set tool.
    """
    labels: list[list[object]] = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for entry, image in images.one_by_one(progress):
            name = f"{entry.index // PER_FOLDER:05d}/img{entry.index:08d}.png"
            archive.writestr(npz.zip_entry(name), png_bytes(image))
            labels.append([name, entry.label])
        table = {"labels": labels if images.labelled else None}
        archive.writestr(npz.zip_entry("dataset.json"), json.dumps(table))


def write_webdataset(path: Path, images: ShardImages, progress: Progress) -> None:
    """A tar with `000123.png`, `000123.cls` (where there are labels) and `000123.json`, its line of the manifest.

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

    The archive forgets it at once: its list of members would grow with the images.
    """
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), npz.MODE
    archive.addfile(entry, io.BytesIO(content))
    archive.getmembers().clear()


def _stem(index: int, images: ShardImages) -> str:
    """Digits enough that the order of the names is that of the images."""
    return f"{index:0{max(6, len(str(len(images) - 1)))}d}"


def write_manifest(path: Path, images: ShardImages) -> None:
    """The header `index,seed,label,sha256` and a line for each image in the order of the seeds.

    The label is empty where there is none; `sha256` is `images.Entry.sha256`.
    """
    with open(path, "w", newline="") as file:
        file.write(",".join(field.name for field in fields(Entry)) + "\n")
        for index in range(len(images)):
            values = astuple(images.entry(index))
            file.write(",".join("" if value is None else str(value) for value in values) + "\n")


class Format(NamedTuple):
    """Where images go below the run directory, how, and whether as PNG files, which have one or three channels."""

    name: str
    write: Callable[[Path, ShardImages, Progress], None]
    png: bool


FORMATS = {
    "npz": Format(OUTPUTS["npz"], npz.write_images, False),
    "png": Format(OUTPUTS["png"], write_folder, True),
    "zip": Format(OUTPUTS["zip"], write_zip, True),
    "webdataset": Format(OUTPUTS["webdataset"], write_webdataset, True),
}
NONE = "none"
"""Only the manifest stays."""


def check_format(choice: str, shape: tuple[int, int, int]) -> None:
    """Refuse a format before anybody spends time on images.

    Raises:
        InputError: for an unknown one, or PNG files of images that have neither one nor three channels.
    """
    choices.check_format(choice)
    if choice != NONE and FORMATS[choice].png and shape[0] not in (1, 3):
        raise InputError(f"format={choice}: PNG files take 1 or 3 channels, these images have {shape[0]}; use npz")


def write_format(choice: str, out: Path, images: ShardImages, progress: Progress = unwatched) -> None:
    """Write the images below `out`; whole or not at all."""
    if choice == NONE:
        return
    name, write, _ = FORMATS[choice]
    if choice == "png":
        write(out / name, images, progress)
    else:
        write_atomically(out / name, lambda path: write(path, images, progress))
