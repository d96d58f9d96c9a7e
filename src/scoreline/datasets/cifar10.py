"""CIFAR-10 from the archive of its authors."""

import gzip
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import IO, cast

import numpy as np
import torch

from scoreline.datasets.base import ArrayDataset
from scoreline.datasets.cifar_pickle import read_batch
from scoreline.errors import InputError
from scoreline.storage import bounded_reading
from scoreline.storage.downloads import fetch
from scoreline.values import check_choice

ARCHIVE = "cifar-10-python.tar.gz"
URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
AGAIN = f"download {URL} again"
FOLDER = "cifar-10-batches-py"
BATCHES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
MAX_BYTES = 2**27  # a batch has 31 MB
MAX_UNPACKED = 2**28  # the archive has 186 MB
GZIP = b"\x1f\x8b"


class Cifar10(ArrayDataset):
    """CIFAR-10, 3 x 32 x 32, 10 classes: `train` (50,000 images) or `test` (10,000), in the order of the archive.

    The batches are Python pickles; `cifar_pickle` reads them and runs nothing of them.

    When to use it: for the CIFAR-10 results of the papers; its digest and order are those of every copy of the archive.

    Args:
        path: `cifar-10-python.tar.gz`, the folder it unpacks to, or a folder that holds either.
        split: `train` or `test`.
        download: download the archive (170 MB) from www.cs.toronto.edu if nothing is at `path`; its SHA-256 is
            checked.

    Source: Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images, technical report, Toronto.

    Raises:
        InputError: for another split, a missing or damaged archive or batch, and a failed download.
    """

    heldout_split = "test"

    def __init__(self, path: str = f"data/{ARCHIVE}", split: str = "train", download: bool = False) -> None:
        check_choice("dataset.split", BATCHES, split)
        place = bounded_reading.place(path, "dataset.path")
        if download and _find(place) is None:
            target = place if place.suffix in (".gz", ".tgz") else place / ARCHIVE
            fetch(URL, target, SHA256, "fetch it by other means and give dataset.path=")
        files = _read_files(place, BATCHES[split])
        parts = [read_batch(files[name], f"dataset.path={path}: {name}") for name in BATCHES[split]]
        pixels = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, 32, 32)
        labels = torch.tensor([label for _, labels in parts for label in labels])
        super().__init__(f"cifar10-{split}", torch.from_numpy(pixels), labels, num_classes=10)


def _find(place: Path) -> Path | None:
    """Find the folder of the batches or the archive, at `place` or in it."""
    if place.is_file() or (place / BATCHES["test"][0]).is_file():
        return place
    inside = (place / FOLDER, place / ARCHIVE)
    return next((candidate for candidate in inside if candidate.exists()), None)


def _read_files(place: Path, names: Sequence[str]) -> dict[str, bytes]:
    source = _find(place)
    if source is None:
        raise InputError(
            f"dataset.path={place}: neither {ARCHIVE} nor the folder {FOLDER} is there; "
            f"use dataset.download=true, or fetch {URL} yourself"
        )
    files = _from_folder(source, names) if source.is_dir() else _from_archive(source, names)
    missing = [name for name in names if name not in files]
    if missing:
        raise InputError(f"dataset.path={source} has no {missing[0]}; {AGAIN}")
    return files


def _from_folder(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    try:
        return {name: bounded_reading.content(folder / name, MAX_BYTES) for name in names if (folder / name).exists()}
    except (OSError, ValueError) as error:
        raise InputError(f"dataset.path={folder} holds a file that is not a batch ({error}); {AGAIN}") from error


def _from_archive(archive: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Read the plain files of these names from any folder of the archive; nothing is unpacked to the disk."""
    files: dict[str, bytes] = {}
    try:
        with bounded_reading.regular(archive) as packed, tarfile.open(fileobj=_unpacked(packed), mode="r|") as tar:
            for member in tar:
                name = PurePosixPath(member.name).name
                content = tar.extractfile(member) if name in names and _plain(member) else None
                if content is not None:
                    files[name] = content.read()
    except (tarfile.TarError, *bounded_reading.DAMAGE) as error:
        raise InputError(f"dataset.path={archive} is not a whole tar archive ({error}); {AGAIN}") from error
    return files


def _unpacked(packed: IO[bytes]) -> bounded_reading.Bounded:
    """Open the tar archive, whether or not gzip packed it."""
    start = packed.read(len(GZIP))
    packed.seek(0, os.SEEK_SET)
    tar = cast(IO[bytes], gzip.GzipFile(fileobj=packed)) if start == GZIP else packed
    return bounded_reading.Bounded(tar, MAX_UNPACKED)


def _plain(member: tarfile.TarInfo) -> bool:
    return member.isfile() and member.size <= MAX_BYTES
