"""Images in one array of an npz file, as ADM and many others keep their samples."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from scoreline.datasets.base import ImageDataset
from scoreline.errors import InputError

IMAGES, LABELS = "arr_0", "arr_1"
DAMAGE = (OSError, ValueError, zipfile.BadZipFile, EOFError, NotImplementedError)
LOCAL_HEADER = 30
"""Bytes of a zip entry's own header before its name; the lengths of name and extra field are its last four bytes."""


class NpzArchive(ImageDataset):
    """`arr_0` uint8 (N, H, W, C) and, where it is there, `arr_1` int (N,), the classes.

    Images of an uncompressed file (`np.savez`) are read from the disk when asked for; those of a compressed one are
    unpacked into memory.

    Args:
        path: the file.

    Source: layout of Dhariwal & Nichol (2021), arXiv:2105.05233, reference code.

    Raises:
        InputError: for a missing or damaged file, or arrays of other types or shapes. Nothing but numbers is read.
    """

    def __init__(self, path: str) -> None:
        file = Path(path).expanduser()
        if not file.is_file():
            raise InputError(f"dataset.path={path}: no such file; give an npz file of images (arr_0)")
        try:
            self._images, labels = _array(file, IMAGES), _array(file, LABELS)
        except DAMAGE as error:
            raise InputError(f"dataset.path={path}: cannot be read as an npz file ({error}); make it anew") from error
        self.name, images = file.stem, self._images
        if images is None or images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
            held = "no arr_0" if images is None else f"arr_0 of {images.dtype} {images.shape}"
            raise InputError(f"dataset.path={path}: holds {held}; images are arr_0, uint8 (N, H, W, C)")
        if images.shape[3] not in (1, 3) and images.shape[1] in (1, 3):
            raise InputError(f"dataset.path={path}: arr_0 is {images.shape}: put the channels last, (N, H, W, C)")
        self.labels = _labels(path, labels, len(images))
        self.num_classes = int(self.labels.max()) + 1
        self.shape = (images.shape[3], images.shape[1], images.shape[2])
        self._file = file

    def __len__(self) -> int:
        assert self._images is not None
        return len(self._images)

    def read(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        assert self._images is not None
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        rows = np.ascontiguousarray(self._images[chosen.numpy()].transpose(0, 3, 1, 2))
        return torch.from_numpy(rows), self.labels[chosen]


def _array(path: Path, name: str) -> NDArray[Any] | None:
    """An array of an npz file, mapped from the disk where it is not compressed; None if it is not there."""
    with zipfile.ZipFile(path) as archive:
        if f"{name}.npy" not in archive.namelist():
            return None
        entry = archive.getinfo(f"{name}.npy")
        with archive.open(entry) as stored:
            if entry.compress_type != zipfile.ZIP_STORED:
                return np.asarray(npy.read_array(stored, allow_pickle=False))
            shape, fortran, dtype = _header(stored)
            begin = stored.tell()
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects")
    with open(path, "rb") as handle:
        handle.seek(entry.header_offset)
        header = handle.read(LOCAL_HEADER)
    offset = entry.header_offset + LOCAL_HEADER + sum(int.from_bytes(header[k : k + 2], "little") for k in (26, 28))
    return np.memmap(path, dtype, "r", offset + begin, shape, "F" if fortran else "C")


def _header(stored: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(stored)
    return npy.read_array_header_1_0(stored) if version == (1, 0) else npy.read_array_header_2_0(stored)


def _labels(path: str, labels: NDArray[Any] | None, count: int) -> Tensor:
    if labels is None:
        return torch.full((count,), -1)
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise InputError(
            f"dataset.path={path}: arr_1 of {labels.dtype} {labels.shape} is no class of each of {count} images; "
            "make the file anew"
        )
    return torch.from_numpy(np.array(labels, dtype=np.int64))
