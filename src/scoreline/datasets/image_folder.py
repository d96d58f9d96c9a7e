"""A folder of PNG files, in the layout of StyleGAN and EDM or with a folder for each class."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from scoreline.datasets.class_labels import LABEL_FILE, MAX_LABEL_BYTES, read_classes
from scoreline.datasets.decode import CONVERSION
from scoreline.datasets.image_files import MAX_IMAGE_BYTES, ImageFiles, select_images
from scoreline.datasets.lazy import LazyDataset
from scoreline.errors import InputError
from scoreline.storage import bounded_reading


class ImageFolder(LazyDataset):
    """The PNG (or, with a warning, JPEG) files under a folder, in order of their names, with EDM's `dataset.json`.

    Images are 8-bit grey or RGB of one shape; nothing is resized or flattened. They are decoded when read.

    When to use it: for images of your own. A zip archive of them (`ZipArchive`) is easier to copy.

    Args:
        path: the folder, searched to any depth; hidden files are left out.
        resolution: height and width that the images must have; None accepts any.
        labels: `auto` (classes from `dataset.json` if there is one, otherwise none), `file` (`dataset.json` must be
            there), `folders` (a class for each top folder, numbered in order of name), `none`.
        cache_mib: each process keeps the decoded images in memory if all of them fit into this many MiB.

    Source: layout of Karras et al. (2022), arXiv:2206.00364, reference data set tool.

    Raises:
        InputError: for a missing or empty folder, unusable labels, an image that cannot be used or differs in shape.
    """

    def __init__(self, path: str, resolution: int | None = None, labels: str = "auto", cache_mib: float = 1024) -> None:
        root = _existing(path)
        names = list(walk(root, path))
        images = select_images(names, path)
        files = ImageFiles(path, images, partial(_content, root))
        folders = [place.name for place in root.iterdir() if place.is_dir()]
        classes = read_classes(labels, images, names, folders, files.load, path)
        super().__init__(root.resolve().name, files, classes, cache_mib)
        self.require_size(resolution)


def _content(root: Path, name: str) -> bytes:
    try:
        return bounded_reading.content(root / name, MAX_LABEL_BYTES if name == LABEL_FILE else MAX_IMAGE_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"dataset.path={root}: {name} cannot be read ({reason}); restore it") from error


def _existing(path: str) -> Path:
    root = bounded_reading.place(path, "dataset.path")
    if root.is_file():
        raise InputError(
            f"dataset.path={path}: is a file; use dataset=zip, or give a folder of PNG files; {CONVERSION} reads others"
        )
    if not root.is_dir():
        raise InputError(f"dataset.path={path}: no such folder; give the folder that holds the PNG files")
    return root


def walk(root: Path, path: str) -> Iterator[str]:
    """Yield the relative name of every file under a folder.

    Args:
        root: the folder.
        path: its name in errors.

    Raises:
        InputError: for a folder that cannot be read, or a linked one, which may lead in a circle.
    """

    def unreadable(error: OSError) -> None:
        raise InputError(
            f"dataset.path={path}: {error.filename} cannot be read ({error.strerror}); allow it"
        ) from error

    for folder, folders, files in os.walk(root, onerror=unreadable):
        here = Path(folder)
        for name in folders:
            if (here / name).is_symlink():
                raise InputError(
                    f"dataset.path={path}: {here / name} is a link to a folder; put the folder itself there"
                )
        yield from ((here / name).relative_to(root).as_posix() for name in files)
