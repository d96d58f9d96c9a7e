"""Generated images by path: a folder, an archive, an array, or a run directory of sample.py."""

from pathlib import Path

from scoreline.datasets.base import ImageDataset
from scoreline.datasets.decode import CONVERSION
from scoreline.errors import InputError
from scoreline.storage import bounded_reading

RUN = ("samples.npz", "samples.zip", "images")
"""Where sample.py writes its images, by `format`."""

MARK = "metrics.json"

BEGUN = ("shards", ".hydra")
"""Folders of an unfinished run; versions before 0.8 have the second."""


def images(path: str) -> ImageDataset:
    """Open the images at `path`: an npz file (arr_0), a zip archive, a folder of PNG files, or a run directory.

    When to use it: to evaluate images of this package or of any other program.

    Raises:
        InputError: if nothing is there, if a run is unfinished or kept no images, and for everything that the kind of
            data set refuses.
    """
    place = bounded_reading.place(path, "images")
    if place.suffix == ".npz":
        from scoreline.datasets.npz_archive import NpzArchive

        return NpzArchive(path)
    if place.suffix == ".zip":
        from scoreline.datasets.zip_archive import ZipArchive

        return ZipArchive(path)
    if place.is_dir():
        if is_run(place):
            return images(str(_kept(place)))
        from scoreline.datasets.image_folder import ImageFolder

        return ImageFolder(path)
    what = f"neither .npz nor .zip ({CONVERSION} reads other files)" if place.exists() else "nothing is there"
    raise InputError(
        f"{path}: {what}; give a folder of PNG files, a zip archive, an npz file or a run directory of sample.py"
    )


def is_run(place: Path) -> bool:
    """Return whether a folder is a run directory of sample.py."""
    has_begun = (place / "config.yaml").is_file() and any((place / name).is_dir() for name in BEGUN)
    return has_begun or (place / MARK).is_file()


def _kept(run: Path) -> Path:
    if not (run / MARK).is_file():
        raise InputError(f"{run}: this run is not finished; run the same sample.py command again, which goes on")
    kept = [run / name for name in RUN if (run / name).exists()]
    if not kept:
        raise InputError(f"{run}: this run kept no images as npz, png or zip; sample again with format=npz")
    return kept[0]
