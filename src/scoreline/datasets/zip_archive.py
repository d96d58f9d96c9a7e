"""The zip archives that EDM's and StyleGAN's data set tools write."""

import os
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

from scoreline.datasets.class_labels import LABEL_FILE, MAX_LABEL_BYTES, read_classes
from scoreline.datasets.image_files import MAX_IMAGE_BYTES, ImageFiles, normal_path, select_images
from scoreline.datasets.lazy import LazyDataset
from scoreline.errors import InputError
from scoreline.storage import bounded_reading

PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile does not bound what the others unpack to


class ZipArchive(LazyDataset):
    """The PNG (or, with a warning, JPEG) files in a zip, in order of their names, with EDM's `dataset.json`.

    Images are 8-bit grey or RGB of one shape. They are read in place and decoded when read; every process opens the
    archive for itself.

    When to use it: for large sets: one file to copy, and no slower than a folder.

    Args:
        path: the archive, compressed or not.
        resolution: as for `image_folder.ImageFolder`.
        labels: as for `image_folder.ImageFolder`.
        cache_mib: as for `image_folder.ImageFolder`.

    Source: layout of Karras et al. (2022), arXiv:2206.00364, reference data set tool.

    Raises:
        InputError: for a missing, damaged or encrypted archive, an entry too large for an image, and everything that
            `ImageFolder` refuses.
    """

    def __init__(self, path: str, resolution: int | None = None, labels: str = "auto", cache_mib: float = 1024) -> None:
        entries = Entries(_existing(path), f"dataset.path={path}")
        names = entries.names()
        images = select_images(names, path)
        classes = read_classes(labels, images, names, entries.folders(), entries, path)
        super().__init__(entries.path.stem, ImageFiles(path, images, entries), classes, cache_mib)
        self.require_size(resolution)


class Entries:
    """A reader of one archive's entries; processes must not share its handle, since that shares its position.

    Args:
        path: the archive.
        where: its name in errors.

    Raises:
        InputError: for a damaged archive, and on reading a damaged, encrypted or oversized entry.
    """

    def __init__(self, path: Path, where: str) -> None:
        self.path, self.where = path, where
        self.owner, self.archive = os.getpid(), self._open()

    def _open(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.path)
        except bounded_reading.DAMAGE as error:
            raise InputError(f"{self.where} is not a whole zip archive ({error}); make it again") from error

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "where": self.where, "owner": -1, "archive": None}

    def names(self) -> list[str]:
        """Return every file in the archive; a name that occurs twice, in any spelling, is refused."""
        names = [info.filename for info in self.archive.infolist() if not info.is_dir()]
        twice = [name for name, times in Counter(map(normal_path, names)).items() if times > 1]
        if twice:
            raise InputError(f"{self.where} holds {twice[0]} twice; make the archive again")
        return names

    def folders(self) -> set[str]:
        """Return the top folders."""
        return {info.filename.split("/", 1)[0] for info in self.archive.infolist() if "/" in info.filename}

    def __call__(self, name: str) -> bytes:
        if self.owner != os.getpid():
            self.owner, self.archive = os.getpid(), self._open()
        entry = self.archive.getinfo(name)
        self._check(entry, MAX_LABEL_BYTES if name == LABEL_FILE else MAX_IMAGE_BYTES)
        try:
            with self.archive.open(entry) as handle:
                return handle.read(entry.file_size)
        except bounded_reading.DAMAGE as error:
            raise InputError(f"{self.where}: {name} cannot be unpacked ({error}); make it again") from error

    def _check(self, entry: zipfile.ZipInfo, limit: int) -> None:
        where = f"{self.where}: {entry.filename}"
        if entry.file_size > limit:
            raise InputError(f"{where} unpacks to {entry.file_size} bytes, more than {limit}; remove it")
        if entry.compress_type not in PACKINGS:
            raise InputError(f"{where} is packed by method {entry.compress_type}; make the zip stored or deflated")


def _existing(path: str) -> Path:
    archive = bounded_reading.place(path, "dataset.path")
    if archive.is_dir():
        raise InputError(f"dataset.path={path}: is a folder; give a zip file, or use dataset=image_folder")
    if not archive.is_file():
        raise InputError(f"dataset.path={path}: no such file; give the zip archive of images")
    return archive
