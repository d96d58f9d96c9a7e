"""Classes of image files, from EDM's `dataset.json` or from their folders."""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch

from scoreline.datasets.image_files import is_hidden, normal_path
from scoreline.datasets.lazy import Classes, count_classes
from scoreline.errors import InputError
from scoreline.storage.bounded_reading import json_value
from scoreline.values import check_choice

LABEL_FILE = "dataset.json"
CHOICES = ("auto", "file", "folders", "none")

MAX_LABEL_BYTES = 2**29
"""Size of a label file; ten million images take 350 MB."""

SPARE_BYTES, SPARE_VALUES = 3 * 2**24, 2**22
"""Room in a label file for images that are not there, such as the rest of ImageNet beside a subset."""


def read_classes(
    choice: str,
    images: Sequence[str],
    names: Collection[str],
    folders: Iterable[str],
    load: Callable[[str], bytes],
    root: str,
) -> Classes:
    """Read the class of each of `images` by the rule `choice`.

    Args:
        choice: `file` reads `dataset.json`; `folders` numbers the top folders of the images in order of their names;
            `none` reads nothing; `auto` is `file` if there is a `dataset.json`, otherwise `none`. Folders are never
            taken for classes unasked, since EDM's own folders 00000, 00001, ... are none.
        images: names of the images.
        names: names of all files in the container.
        folders: its top folders, empty ones too.
        load: reads the bytes of one file.
        root: the name of the container in errors.

    Raises:
        InputError: for another choice, a missing, misplaced or malformed `dataset.json`, an image without a class,
            or a folder that would be a class without images.
    """
    check_choice("dataset.labels", CHOICES, choice)
    if choice == "folders":
        return _from_folders(images, folders, root)
    if choice != "none" and LABEL_FILE in names:
        return _from_json(load(LABEL_FILE), images, f"dataset.path={root}: {LABEL_FILE}")
    if choice == "file":
        raise InputError(f"dataset.labels=file: there is no {LABEL_FILE} in {root}; use labels=none or labels=folders")
    misplaced = [name for name in names if name.endswith("/" + LABEL_FILE)]
    if choice == "auto" and misplaced:
        raise InputError(
            f"dataset.path={root}: found {misplaced[0]}, but {LABEL_FILE} must lie at the top; "
            "move it there, or use dataset.labels=none"
        )
    return Classes.none(len(images))


def _from_folders(images: Sequence[str], present: Iterable[str], root: str) -> Classes:
    loose = [name for name in images if "/" not in name]
    if loose:
        raise InputError(f"dataset.labels=folders: {loose[0]} in {root} lies in no folder; use labels=none or move it")
    folders = [name.split("/", 1)[0] for name in images]
    number = {folder: index for index, folder in enumerate(sorted(set(folders)))}
    empty = sorted(folder for folder in set(present) - set(number) if not is_hidden(folder))
    if empty:  # skipped, it would shift the classes behind it against a copy of the set that is whole
        raise InputError(
            f"dataset.labels=folders: folder {empty[0]} in {root} holds no image; remove it, or put its images there"
        )
    return Classes(torch.tensor([number[folder] for folder in folders]), len(number))


def _from_json(text: bytes, images: Sequence[str], where: str) -> Classes:
    """Parse EDM's `{"labels": [["00000/img00000000.png", 6], ...]}`, or null for no labels; classes are 0 .. max.

    Args:
        text: the label file.
        images: names of the images.
        where: the name of the file in errors.

    Raises:
        InputError: for anything else, such as one-hot or negative labels, and for an image that is not listed, or
            listed with two classes.
    """
    labels = label_table(text, len(images), where)
    if labels is None:
        return Classes.none(len(images))
    values = []
    for name in images:
        if normal_path(name) not in labels:
            raise InputError(f"{where} gives no label for {name}; add it, or use dataset.labels=none")
        values.append(checked_class(labels[normal_path(name)], name, where))
    number = count_classes(max(values), len(images), where)
    return Classes(torch.tensor(values), number)


def checked_class(value: Any, name: str, where: str) -> int:
    """Return the class of the image `name`.

    Raises:
        InputError: for anything but an integer from 0, such as a one-hot vector.
    """
    if type(value) is not int or value < 0:
        raise InputError(f"{where} labels {name} with {value!r:.60}; one integer from 0 is needed")
    return value


def label_table(text: bytes, images: int, where: str) -> dict[str, Any] | None:
    """Map images to labels; None stands for no labels.

    An image may be listed again, under any spelling of its path, with the same label.

    Args:
        text: the label file.
        images: number of images, which bounds the size of the file.
        where: the name of the file in errors.

    Raises:
        InputError: for a file of another form, and for an image that is listed with two labels.
    """
    table: dict[str, Any] = {}
    try:
        if len(text) > SPARE_BYTES + 256 * images:
            raise ValueError(f"{len(text):,} bytes for {images:,} images")
        listed = json_value(text, SPARE_VALUES + 4 * images)["labels"]
        if listed is None:
            return None
        pairs = [(normal_path(name), label) for name, label in listed]
        twice = next((name for name, label in pairs if table.setdefault(name, label) != label), None)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f'{where} is not of the form {{"labels": [["name.png", 0], ...]}} ({reason:.160})') from error
    if twice is not None:
        raise InputError(f"{where} labels {twice} twice, with different classes; keep the right one")
    return table
