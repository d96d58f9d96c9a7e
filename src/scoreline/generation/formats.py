"""`format=`: the file or folder that the images of a run end in."""

import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from scoreline import choices
from scoreline.errors import InputError
from scoreline.files import write_atomically
from scoreline.generation import npz
from scoreline.generation.archives import add_to_tar, zip_entry
from scoreline.generation.images import ShardImages, unwatched
from scoreline.pictures import png_bytes
from scoreline.sampling import Progress

PER_FOLDER = 1000


def write_folder(path: Path, images: ShardImages, progress: Progress) -> None:
    """PNG files `00000/000123.png`: a folder for each thousand, six digits or more of the index.

    A folder left behind by a run that was killed here is made anew; the finished one appears by a rename.
    """
    partial = path.with_name(f".{path.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    for entry, image in images.one_by_one(progress):
        file = partial / f"{entry.index // PER_FOLDER:05d}" / f"{_stem(entry.index, images)}.png"
        if entry.index % PER_FOLDER == 0:
            file.parent.mkdir(parents=True)
        file.write_bytes(png_bytes(image))
    shutil.rmtree(path, ignore_errors=True)
    partial.rename(path)


def write_zip(path: Path, images: ShardImages, progress: Progress) -> None:
    """EDM's and StyleGAN's layout: `00000/img00000123.png`, stored, and their classes in `dataset.json`, or null.

    Source: Karras et al. (2022), arXiv:2206.00364, reference data set tool.
    """
    labels: list[list[object]] = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for entry, image in images.one_by_one(progress):
            name = f"{entry.index // PER_FOLDER:05d}/img{entry.index:08d}.png"
            archive.writestr(zip_entry(name), png_bytes(image))
            labels.append([name, entry.label])
        table = {"labels": labels if images.labelled else None}
        archive.writestr(zip_entry("dataset.json"), json.dumps(table))


def write_webdataset(path: Path, images: ShardImages, progress: Progress) -> None:
    """A tar with `000123.png`, `000123.cls` (where there are labels) and `000123.json`, its line of the manifest.

    Source: layout of the webdataset package, https://github.com/webdataset/webdataset.
    """
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for entry, image in images.one_by_one(progress):
            stem = _stem(entry.index, images)
            add_to_tar(archive, f"{stem}.png", png_bytes(image))
            if entry.label is not None:
                add_to_tar(archive, f"{stem}.cls", str(entry.label).encode())
            add_to_tar(archive, f"{stem}.json", json.dumps(asdict(entry)).encode())


def _stem(index: int, images: ShardImages) -> str:
    """Digits enough that the order of the names is that of the images."""
    return f"{index:0{max(6, len(str(len(images) - 1)))}d}"


class Format(NamedTuple):
    """Where images go below the run directory, how, and whether as PNG files, which have one or three channels."""

    name: str
    write: Callable[[Path, ShardImages, Progress], None]
    png: bool


FORMATS = {
    "npz": Format("samples.npz", npz.write_images, False),
    "png": Format("images", write_folder, True),
    "zip": Format("samples.zip", write_zip, True),
    "webdataset": Format("samples.tar", write_webdataset, True),
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
