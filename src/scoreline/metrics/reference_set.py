"""The reference of a metric: images, statistics of their features, or both."""

from dataclasses import dataclass, replace
from pathlib import Path

from scoreline.datasets import generated_images
from scoreline.datasets.base import ImageDataset
from scoreline.errors import InputError
from scoreline.metrics.reference_statistics import Statistics, keys, read_statistics
from scoreline.storage import bounded_reading

Reference = ImageDataset | str | None

SHIPPED = Path(__file__).parents[1] / "assets" / "statistics"
"""Statistics in the package, each as DATASET-SPLIT.EXTRACTOR.npz."""


@dataclass(frozen=True)
class ReferenceSet:
    """An opened reference; at least one of its parts is there, and a file in ADM's layout has both.

    Attributes:
        images: the reference images.
        statistics: mean and covariance of their features, from a file.
    """

    images: ImageDataset | None
    statistics: Statistics | None

    @classmethod
    def open(cls, reference: Reference, extractor: str = "") -> "ReferenceSet":
        """Open a data set, a path of images or statistics, or statistics that ship.

        Args:
            reference: the data set, the path, or the name of shipped statistics, such as emoji-train.
            extractor: the name of the extractor whose statistics those are.

        Raises:
            InputError: if there is no reference, it cannot be read, or none of that name ships for the extractor.
        """
        return cls(images_of(reference), _statistics_of(reference, extractor))

    @property
    def count(self) -> int | None:
        """Number of images, None if a file of statistics does not say."""
        if self.statistics is not None:
            return self.statistics.count
        return None if self.images is None else len(self.images)

    @property
    def split(self) -> str | None:
        """`train`, `test`, `all` or `unknown`; None for a file of statistics without a record."""
        if self.statistics is None:
            return None if self.images is None else split_of(self.images)
        return str(self.statistics.about.get("split", "unknown")) if self.statistics.about else None

    @property
    def protocol(self) -> dict[str, str | int]:
        """The entries of a metric's protocol: name, digest and number of images."""
        source = self.statistics or self.images
        assert source is not None
        return {"reference": f"{source.name}:{source.digest[:8]}", "reference_count": self.count or "unknown"}

    def check_extractor(self, path: object, digest: str, unknown: str | None) -> None:
        """Check that the statistics were computed with the extractor of this digest.

        Args:
            path: the reference, for the message.
            digest: SHA-256 of the extractor.
            unknown: what stands for the digest of a file without a record; None accepts such a file.

        Raises:
            InputError: if they come from another extractor.
        """
        theirs = None if self.statistics is None else self.statistics.about.get("extractor_digest", unknown)
        if theirs is not None and theirs != digest:
            raise InputError(
                f"metrics.reference={path}: made with extractor {theirs[:8]}, not {digest[:8]}; make it with "
                "scoreline reference and the same metrics"
            )


def images_of(reference: Reference) -> ImageDataset | None:
    """Return the images of a reference, None if it holds statistics alone.

    Raises:
        InputError: if there is no reference, or it cannot be read.
    """
    if reference is None:
        raise InputError(
            "metrics.reference: nothing to compare with; add dataset@metrics.reference=cifar10 (with +), or "
            "metrics.reference=PATH of statistics (npz) or images (folder, zip, npz)"
        )
    if isinstance(reference, ImageDataset):
        return reference
    if shipped(reference):
        return None
    return generated_images.images(reference) if "arr_0" in _arrays(reference) or not _statistics(reference) else None


def shipped(reference: str) -> dict[str, Path]:
    """Return files of shipped statistics by extractor, none if `reference` is another name or a path.

    Args:
        reference: a data set and a split, such as emoji-train; a folder of this name is written as ./emoji-train.
    """
    files = (path for path in sorted(SHIPPED.glob("*.npz")) if path.name.partition(".")[0] == reference)
    return {path.stem.partition(".")[2]: path for path in files}


def _statistics_of(reference: Reference, extractor: str) -> Statistics | None:
    """Return the statistics of a reference, None if it holds none.

    Raises:
        InputError: if they are damaged, or ship for other extractors.
    """
    if not isinstance(reference, str):
        return None
    if (files := shipped(reference)) and extractor not in files:
        raise InputError(
            f"metrics.reference={reference}: these statistics ship for {' and '.join(files)}, not for {extractor}; "
            "make your own with scoreline reference"
        )
    if files:
        return replace(read_statistics(files[extractor]), name=reference)
    if _statistics(reference):
        return read_statistics(bounded_reading.place(reference, "metrics.reference"))
    return None


def split_of(data: ImageDataset) -> str:
    """Return the split at the end of a data set's name, `unknown` for others."""
    last = data.name.rpartition("-")[2]
    return last if last in ("train", "test", "all") else "unknown"


def _statistics(path: str) -> bool:
    return {"mu", "sigma"} <= _arrays(path)


def _arrays(path: str) -> set[str]:
    place = bounded_reading.place(path, "metrics.reference")
    return keys(place) if place.suffix == ".npz" and place.is_file() else set()
