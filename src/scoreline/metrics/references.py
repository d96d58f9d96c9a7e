"""What generated images are compared with: images, or statistics of their features."""

from scoreline import reading
from scoreline.datasets.base import ImageDataset
from scoreline.errors import InputError
from scoreline.metrics.statistics import Statistics, keys, read_statistics

Reference = ImageDataset | str | None


def images_of(reference: Reference) -> ImageDataset | None:
    """The images of a reference, None where it holds statistics alone.

    Raises:
        InputError: if there is no reference, or it cannot be read.
    """
    from scoreline.datasets import given

    if reference is None:
        raise InputError(
            "metrics.reference: nothing to compare with; add dataset@metrics.reference=cifar10 (with +), or "
            "metrics.reference=PATH of statistics (npz) or images (folder, zip, npz)"
        )
    if isinstance(reference, ImageDataset):
        return reference
    return given.images(reference) if "arr_0" in _arrays(reference) or not _statistics(reference) else None


def statistics_of(reference: Reference) -> Statistics | None:
    """The statistics that a file of a reference holds, if it holds any.

    Raises:
        InputError: if they are damaged.
    """
    if isinstance(reference, str) and _statistics(reference):
        return read_statistics(reading.place(reference, "metrics.reference"))
    return None


def _statistics(path: str) -> bool:
    return {"mu", "sigma"} <= _arrays(path)


def _arrays(path: str) -> set[str]:
    place = reading.place(path, "metrics.reference")
    return keys(place) if place.suffix == ".npz" and place.is_file() else set()


def split_of(data: ImageDataset) -> str:
    """The split that the name of a data set ends in, `unknown` for others."""
    last = data.name.rpartition("-")[2]
    return last if last in ("train", "test", "all") else "unknown"
