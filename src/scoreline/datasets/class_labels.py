"""Where the classes of image files come from: EDM's `dataset.json`, or the folders they lie in."""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch

from scoreline.datasets.image_files import hidden, spelled
from scoreline.datasets.lazy import Classes, count_classes
from scoreline.errors import InputError, did_you_mean
from scoreline.reading import json_value

LABEL_FILE = "dataset.json"
CHOICES = ("auto", "file", "folders", "none")

MAX_LABEL_BYTES = 2**29
"""Of a label file: ten million images take 350 MB."""

SPARE_BYTES, SPARE_VALUES = 3 * 2**24, 2**22
"""What a label file may hold beyond the images that are there, such as all of ImageNet's where a few were kept."""


def read_classes(
    choice: str,
    images: Sequence[str],
    names: Collection[str],
    folders: Iterable[str],
    load: Callable[[str], bytes],
    root: str,
) -> Classes:
    """The class of each of `images` by the rule `choice`.

    Args:
        choice: `file` reads `dataset.json`; `folders` numbers the top folders of the images in order of their names;
            `none` reads nothing; `auto` is `file` where there is a `dataset.json` and `none` elsewhere. Folders are
            never guessed to be classes, since EDM's own folders 00000, 00001, ... are not.
        names: every file of the container.
        folders: its top folders, empty ones too.
        load: gives the bytes of one.
        root: the container, for errors.

    Raises:
        InputError: for another choice, a missing, misplaced or malformed `dataset.json`, an image without a class,
            a folder that would be a class without images.
    """
    if choice not in CHOICES:
        raise InputError(f"dataset.labels={choice}: not a rule{did_you_mean(choice, CHOICES)}")
    if choice == "folders":
        return _from_folders(images, folders, root)
    if choice != "none" and LABEL_FILE in names:
        return from_json(load(LABEL_FILE), images, f"dataset.path={root}: {LABEL_FILE}")
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
    empty = sorted(folder for folder in set(present) - set(number) if not hidden(folder))
    if empty:  # skipped, it would shift the classes behind it against a copy of the set that is whole
        raise InputError(
            f"dataset.labels=folders: folder {empty[0]} in {root} holds no image; remove it, or put its images there"
        )
    return Classes(torch.tensor([number[folder] for folder in folders]), len(number))


def from_json(text: bytes, images: Sequence[str], where: str) -> Classes:
    """EDM's `{"labels": [["00000/img00000000.png", 6], ...]}`, or null for none; classes are 0 .. max.

    Raises:
        InputError: for anything else, such as one-hot or negative labels, an image that is not listed, or that is
            listed with two classes.
    """
    known = _listed(text, len(images), where)
    if known is None:
        return Classes.none(len(images))
    values = []
    for name in images:
        if spelled(name) not in known:
            raise InputError(f"{where} gives no label for {name}; add it, or use dataset.labels=none")
        value = known[spelled(name)]
        if type(value) is not int or value < 0:
            raise InputError(f"{where} labels {name} with {value!r:.60}; one integer from 0 is needed")
        values.append(value)
    number = count_classes(max(values), len(images), where)
    return Classes(torch.tensor(values), number)


def _listed(text: bytes, images: int, where: str) -> dict[str, Any] | None:
    """Image -> label. An image may be listed twice, under any spelling of its path, with one and the same label."""
    known: dict[str, Any] = {}
    try:
        if len(text) > SPARE_BYTES + 256 * images:
            raise ValueError(f"{len(text):,} bytes for {images:,} images")
        listed = json_value(text, SPARE_VALUES + 4 * images)["labels"]
        pairs = None if listed is None else [(spelled(name), label) for name, label in listed]
        if pairs is None:
            return None
        twice = next((name for name, label in pairs if known.setdefault(name, label) != label), None)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f'{where} is not of the form {{"labels": [["name.png", 0], ...]}} ({reason:.160})') from error
    if twice is not None:
        raise InputError(f"{where} labels {twice} twice, with different classes; keep the right one")
    return known
