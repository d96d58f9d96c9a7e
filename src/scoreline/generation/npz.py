"""Writers of npz and npy files, array by array and block by block; equal numbers give equal bytes."""

import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from scoreline.generation.images import ShardImages, no_progress
from scoreline.sampling import Progress
from scoreline.storage.edm_layout import zip_entry


def write_images(path: Path, images: ShardImages, progress: Progress = no_progress) -> None:
    """Write ADM's layout: arr_0 uint8 (N, H, W, C) and, if there are labels, arr_1 int64 (N,).

    Source: layout of Dhariwal & Nichol (2021), arXiv:2105.05233, reference sampling script.
    """
    channels, height, width = images.shape
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        rows = (block.permute(0, 2, 3, 1).contiguous().numpy() for block in images.blocks(progress))
        _add(archive, "arr_0", (len(images), height, width, channels), np.dtype(np.uint8), rows)
        if images.shards.labels is not None:
            labels = images.shards.labels.numpy().astype(np.int64)
            _add(archive, "arr_1", labels.shape, labels.dtype, [labels])


def write_arrays(path: Path, arrays: dict[str, NDArray[np.generic]]) -> None:
    """Write arrays that are in memory, under their names."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            _add(archive, name, array.shape, array.dtype, [np.ascontiguousarray(array)])


def _add(
    archive: zipfile.ZipFile,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[np.generic],
    parts: Iterable[NDArray[np.generic]],
) -> None:
    """Add one array to an archive.

    Args:
        archive: an archive that is open for writing.
        name: the name of the array.
        shape: its shape.
        dtype: its type.
        parts: consecutive parts along the first axis, C-contiguous.
    """
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with archive.open(zip_entry(f"{name}.npy"), "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(part.data)


def write_samples(path: Path, images: ShardImages, progress: Progress = no_progress) -> None:
    """Write samples.npy: float32 (N, C, H, W), as they were sampled."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (len(images), *images.shape)})
        for block in images.blocks(progress):
            file.write(block.to(torch.float32).contiguous().numpy().data)
