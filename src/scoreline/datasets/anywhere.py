"""Data sets by path, whatever holds them: an archive, a folder, a table or the hub."""

from pathlib import Path

from scoreline.datasets.base import ImageDataset
from scoreline.datasets.lazy import LazyDataset
from scoreline.errors import InputError
from scoreline.storage import bounded_reading

SAVED = ("dataset_info.json", "dataset_dict.json")
"""Files that `save_to_disk` of the Hugging Face library writes into a folder."""


def images(path: str, resolution: int, labels: str = "none", cache_mib: float = 1024) -> ImageDataset:
    """Open the images at `path`: a zip archive, a folder, a parquet file or saved data set, or a name on the hub.

    When to use it: for a published set that users keep in different forms, as dataset=celeba64 does.

    Args:
        path: path or name.
        resolution: height and width that the images must have; nothing is cropped or resized here.
        labels: as for `image_folder.ImageFolder`; for a parquet file or the hub, `none` or the name of a column.
        cache_mib: as for `image_folder.ImageFolder`.

    Raises:
        InputError: if nothing is there, and for everything that the kind of data set refuses.
    """
    place = bounded_reading.place(path, "dataset.path")
    if place.suffix == ".zip" and place.is_file():
        from scoreline.datasets.zip_archive import ZipArchive

        return ZipArchive(path, resolution, labels, cache_mib)
    if place.is_dir() and not any((place / name).exists() for name in SAVED):
        from scoreline.datasets.image_folder import ImageFolder

        return ImageFolder(path, resolution, labels, cache_mib)
    if place.exists() or on_hub(path):
        return _hugging_face(path, resolution, labels, cache_mib)
    raise InputError(
        f"dataset.path={path}: nothing is there; give a zip archive or folder of {resolution}x{resolution} images as "
        f"scoreline dataset SRC DEST.zip resolution={resolution} writes them, a parquet file, or a name on the Hugging "
        "Face hub (owner/name)"
    )


def on_hub(path: str) -> bool:
    """Return whether a path that does not exist may be a name on the Hugging Face hub."""
    return path.count("/") == 1 and not path.startswith((".", "/", "~")) and not Path(path).suffix


def _hugging_face(path: str, resolution: int, labels: str, cache_mib: float) -> LazyDataset:
    from scoreline.datasets.huggingface import HuggingFace

    dataset = HuggingFace(path, label_key=labels, cache_mib=cache_mib)
    dataset.require_size(resolution)
    return dataset
