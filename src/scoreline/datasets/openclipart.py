"""The clip art of Debian's openclipart-png, a second small RGB data set."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoreline.datasets.base import ArrayDataset
from scoreline.datasets.bases import belongs, unique
from scoreline.datasets.debian_package import DebianPackage
from scoreline.datasets.digits import SPLITS
from scoreline.datasets.image_files import MAX_IMAGE_BYTES
from scoreline.datasets.image_folder import walk
from scoreline.datasets.thumbnails import Thumbnail, check_size, thumbnail, too_large
from scoreline.errors import InputError
from scoreline.storage import bounded_reading, debian
from scoreline.storage.files import cache_folder, content_digest, order_metadata, write_atomically
from scoreline.storage.tensor_files import read_header, read_tensors
from scoreline.values import check_choice

FOLDER = "usr/share/openclipart/png"
PACKAGE = DebianPackage("openclipart-png", f"/{FOLDER}")
LABELS = ("folders", "none")
CONVERSION = 1
"""Version of the conversion; another one converts anew."""


class Openclipart(ArrayDataset):
    """The PNG pictures of openclipart, 3 x `resolution` x `resolution`, in 22 classes or without labels.

    Each picture is flattened on the middle of a square of grey level `background` and resized by Pillow's LANCZOS
    filter; of pictures that are equal before resizing only the first by name stays, and pictures wider or higher than
    8192 pixels are left out. `train` and `test` share no base picture, a file name without its folders and digits: base
    b is held out if SHA-256(b) mod 10 = 0. The converted pictures are kept in the cache, with a checksum of theirs.

    When to use it: for colour experiments on more varied pictures than emoji.

    Args:
        path: the Debian package, or a folder that it was unpacked to; None for the installed openclipart-png, else the
            one in the cache.
        split: `train`, `test` or `all`.
        resolution: height and width of the images.
        background: grey level from 0 (black) to 255 (white).
        labels: `folders` (a class for each top folder, numbered in order of name) or `none`.
        download: download the package (131 MB) by apt if nothing is there and no path is given; nothing is installed.

    Source: Open Clip Art Library, release 0.18 (Creative Commons Public Domain Dedication); Debian package
    openclipart-png.

    Attributes:
        bases: the base picture of each image.
        folders: the top folder of each class.

    Raises:
        InputError: for a missing or damaged package, folder or picture, another split or labels, a size below 1, a grey
            level outside 0..255, a failed download.
    """

    heldout_split = "test"
    licence = "Creative Commons Public Domain Dedication (pictures of the Open Clip Art Library)"

    def __init__(
        self,
        path: str | None = None,
        split: str = "train",
        resolution: int = 32,
        background: int = 255,
        labels: str = "folders",
        download: bool = False,
    ) -> None:
        check_choice("dataset.split", SPLITS, split)
        check_choice("dataset.labels", LABELS, labels)
        check_size(resolution, background)
        place = PACKAGE.find(path, "dataset.path", download)
        pictures = _converted(place, resolution, background)
        chosen = [index for index, base in enumerate(pictures.bases) if belongs(base, split)]
        if not chosen:
            raise InputError(f"dataset.path={place} holds no picture for dataset.split={split}: use split=all")
        classes = pictures.labels[chosen] if labels == "folders" else None
        self.folders = pictures.folders if labels == "folders" else []
        super().__init__(f"openclipart-{split}", pictures.images[chosen], classes, len(self.folders))
        self.bases = [pictures.bases[index] for index in chosen]


class _Pictures(NamedTuple):
    """All pictures of the package: images uint8 (N, 3, R, R), labels int64 (N,), bases by picture, folders by class."""

    images: Tensor
    labels: Tensor
    bases: list[str]
    folders: list[str]

    @property
    def checksum(self) -> str:
        sha = hashlib.sha256(json.dumps([self.images.shape, self.bases, self.folders]).encode())
        sha.update(self.images.numpy().tobytes())
        sha.update(self.labels.numpy().tobytes())
        return sha.hexdigest()


def _converted(place: Path, resolution: int, background: int) -> _Pictures:
    """Read the converted pictures from the cache, or convert them and write them there."""
    source = f"{CONVERSION} {content_digest(place)} {resolution} {background}"
    file = cache_folder("datasets") / f"openclipart-{hashlib.sha256(source.encode()).hexdigest()[:16]}.safetensors"
    kept = _kept(file) if file.exists() else None
    if kept is None:
        kept = _convert(place, resolution, background)
        _keep(file, kept)
    return kept


def _kept(file: Path) -> _Pictures | None:
    """Return the pictures in a file of the cache, or None if they are not what was written."""
    try:
        header = read_header(file, str(file), "remove it")
        tensors, words = read_tensors(header), header.metadata
        lists = json.loads(words["bases"]), json.loads(words["folders"])
        pictures = _Pictures(tensors["images"], tensors["labels"], *lists)
        return pictures if pictures.checksum == words["checksum"] else None
    except (InputError, KeyError, ValueError):
        return None


def _keep(file: Path, pictures: _Pictures) -> None:
    from safetensors.torch import save_file

    lists = {"bases": json.dumps(pictures.bases), "folders": json.dumps(pictures.folders)}
    tensors = {"images": pictures.images, "labels": pictures.labels}

    def write(part: Path) -> None:
        save_file(tensors, part, lists | {"checksum": pictures.checksum})
        order_metadata(part)

    write_atomically(file, write)


def _convert(place: Path, resolution: int, background: int) -> _Pictures:
    small: dict[str, Thumbnail] = {}
    try:
        for name, png in _read(place):
            if not too_large(png):
                small[name] = thumbnail(png, background, resolution, f"dataset.path={place}: {name}")
    except InputError:
        raise
    except debian.DAMAGE as error:
        raise InputError(f"dataset.path={place} is not a whole Debian package ({error}); download it again") from error
    if not small:
        raise InputError(f"dataset.path={place}: no .png file in a folder inside; give the folder {PACKAGE.installed}")
    names = sorted(small)
    return _gather(names, [small[name] for name in names])


def _gather(names: list[str], small: list[Thumbnail]) -> _Pictures:
    bases = unique([[base(name)] for name in names], (it.fingerprint for it in small))
    folders = sorted({names[index].split("/")[0] for index in bases})
    images = np.stack([small[index].pixels for index in bases]).transpose(0, 3, 1, 2)
    labels = torch.tensor([folders.index(names[index].split("/")[0]) for index in bases])
    return _Pictures(torch.from_numpy(np.ascontiguousarray(images)), labels, list(bases.values()), folders)


def base(name: str) -> str:
    """Return the base picture of a file: its name in lower case without folders, digits and the ending.

    Numbered drawings of an artist and drawings of one name in several folders are one base.
    """
    stem = PurePosixPath(name).stem.lower()
    return re.sub(r"\d+", "", stem).strip("_-. ") or stem


def _read(place: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name below the folder of classes and the content of each picture; links to others are left out."""
    if place.is_dir():
        root = place / FOLDER if (place / FOLDER).is_dir() else place
        files = (name for name in walk(root, str(place)) if name.endswith(".png") and not (root / name).is_symlink())
        pictures = ((name, bounded_reading.content(root / name, MAX_IMAGE_BYTES)) for name in files)
    else:
        packed = debian.package_files(place, ".png", MAX_IMAGE_BYTES)
        pictures = ((name.removeprefix(f"{FOLDER}/"), png) for name, png in packed)
    yield from ((name, png) for name, png in pictures if "/" in name)
