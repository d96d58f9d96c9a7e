"""Image data sets of the Hugging Face `datasets` library, without the code of their authors."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scoreline.datasets.decode import decode
from scoreline.datasets.image_files import MAX_IMAGE_BYTES
from scoreline.datasets.lazy import Classes, LazyDataset, count_classes
from scoreline.errors import InputError, did_you_mean
from scoreline.storage import bounded_reading

FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
LOSSLESS = (b"\x89PNG", b"BM")
FIRST_SAFE = 4  # the first major version of `datasets` that cannot run loading scripts


class HuggingFace(LazyDataset):
    """One split of an image data set, decoded when read; 8-bit grey or RGB of one shape.

    When to use it: for parquet files, data sets saved by `save_to_disk`, and sets on the hub.

    Args:
        path: a folder written by `save_to_disk`, a parquet file, a folder of data files, or a name on the hub.
        split: `train`, `test`, ... or a slice of one such as `train[:1000]` (not for `save_to_disk`).
        image_key: the column of images; None takes the only one.
        label_key: the column of classes; None takes the ClassLabel column if there is just one; `none` takes no labels.
            Integers count as classes 0 .. max, and -1 as no class.
        config: the configuration, for a data set on the hub that has several.
        cache_mib: as for `image_folder.ImageFolder`.

    Raises:
        InputError: if `datasets` is missing, the data set or the split cannot be loaded, a column is missing or
            unsuitable, or an image cannot be used or differs in shape.
    """

    def __init__(
        self,
        path: str,
        split: str = "train",
        image_key: str | None = None,
        label_key: str | None = None,
        config: str | None = None,
        cache_mib: float = 1024,
    ) -> None:
        images, classes = rows(path, split, image_key, label_key, config)
        super().__init__(f"{Path(path).name}-{split}", images, classes, cache_mib)
        images.warn_of_losses()


def rows(
    path: str,
    split: str = "train",
    image_key: str | None = None,
    label_key: str | None = None,
    config: str | None = None,
) -> tuple["EncodedImages", Classes]:
    """Return the image files of a split and their classes; the arguments and errors are those of `HuggingFace`."""
    table = _load(path, split, config)
    images = EncodedImages(path, _encoded(table, _image_column(table, image_key, path)))
    return images, _classes(table, _label_column(table, label_key, path), path)


@dataclass(frozen=True)
class EncodedImages:
    """A `Source` over one column whose cells are {"bytes": file or None, "path": file or None}."""

    path: str
    column: Any

    def __len__(self) -> int:
        return len(self.column)

    def where(self, index: int) -> str:
        """`dataset.path=PATH: row INDEX`."""
        return f"dataset.path={self.path}: row {index}"

    def decode(self, index: int) -> NDArray[np.uint8]:
        """Image `index` as uint8 (C, H, W)."""
        return decode(self.content(index), self.where(index), FORMATS)

    def warn_of_losses(self) -> None:
        """Warn if the first image is of a lossy format such as JPEG."""
        if not self.content(0).startswith(LOSSLESS):
            message = f"dataset.path={self.path}: the first image is not lossless, which changes FID; prefer PNG"
            warnings.warn(message, UserWarning, stacklevel=3)

    def content(self, index: int) -> bytes:
        """Bytes of the image file `index`."""
        (cell,) = self.column[index].values()
        if cell is None:
            raise InputError(f"{self.where(index)} holds no image; filter such rows out")
        try:
            return bytes(cell["bytes"] or bounded_reading.content(Path(cell["path"]), MAX_IMAGE_BYTES))
        except (OSError, TypeError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"{self.where(index)}: the image file {cell['path']} is missing or unusable ({reason}); restore it"
            ) from error


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise InputError("dataset=huggingface needs one more package: pip install 'scoreline[huggingface]'") from error
    if int(datasets.__version__.split(".")[0]) < FIRST_SAFE:
        raise InputError(
            f"dataset=huggingface: datasets {datasets.__version__} can run code that comes with a data set; "
            "pip install 'scoreline[huggingface]' --upgrade"
        )
    return datasets


def _load(path: str, split: str, config: str | None) -> Any:
    library = _library()
    place = bounded_reading.place(path, "dataset.path")
    try:
        if (place / "state.json").is_file() or (place / "dataset_dict.json").is_file():
            return _saved(library.load_from_disk(place), split, path)
        if place.is_file():
            return library.load_dataset("parquet", data_files=str(place), split=split)
        return library.load_dataset(str(place) if place.is_dir() else path, name=config, split=split)
    except InputError:
        raise
    except Exception as error:  # the library, its readers and its network client share no base class
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"dataset.path={path} dataset.split={split}: cannot be loaded ({reason}); give a folder from "
            "save_to_disk, a parquet file, or a name on the hub"
        ) from error


def _saved(saved: Any, split: str, path: str) -> Any:
    """Return the named split of a saved dictionary, or the one saved data set, whose split may have no name."""
    splits = saved if hasattr(saved, "keys") else {str(saved.split or split): saved}
    if split not in splits:
        raise InputError(f"dataset.split={split}: not in {path}{did_you_mean(split, splits)}")
    return splits[split]


def _encoded(table: Any, column: str) -> Any:
    return table.with_format(None).select_columns([column]).cast_column(column, _library().Image(decode=False))


def _image_column(table: Any, column: str | None, path: str) -> str:
    images = [name for name, feature in table.features.items() if isinstance(feature, _library().Image)]
    if column is None and len(images) != 1:
        raise InputError(f"dataset.image_key: {path} has {len(images)} columns of images {images}; name one")
    if column is not None and column not in images:
        raise InputError(f"dataset.image_key={column}: no column of images in {path}{did_you_mean(column, images)}")
    return column or images[0]


def _label_column(table: Any, column: str | None, path: str) -> str | None:
    if column is None:
        classes = [name for name, feature in table.features.items() if isinstance(feature, _library().ClassLabel)]
        return classes[0] if len(classes) == 1 else None
    if column == "none":
        return None
    if column not in table.features:
        raise InputError(f"dataset.label_key={column}: no such column in {path}{did_you_mean(column, table.features)}")
    return column


def _classes(table: Any, column: str | None, path: str) -> Classes:
    if column is None:
        return Classes.none(len(table))
    values: Sequence[Any] = table.with_format(None)[column][:]
    if not all(type(value) is int and value >= -1 for value in values):
        raise InputError(f"dataset.label_key={column}: the column in {path} is not one integer class per image")
    where, most = f"dataset.label_key={column}: the column in {path}", max(values)
    named = getattr(table.features[column], "num_classes", None)
    if named and most >= named:
        raise InputError(f"{where} holds class {most}, but names only 0 to {named - 1}; mend it")
    return Classes(torch.tensor(values), named or count_classes(most, len(values), where))
