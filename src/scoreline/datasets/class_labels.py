"""Where the classes of image files come from: EDM's `dataset.json`, or the folders they lie in."""

import json
from collections.abc import Callable, Collection, Sequence

import torch

from scoreline.datasets.lazy import Classes
from scoreline.errors import InputError, did_you_mean

LABEL_FILE = "dataset.json"
CHOICES = ("auto", "file", "folders", "none")


def read_classes(
    choice: str, images: Sequence[str], names: Collection[str], load: Callable[[str], bytes], root: str
) -> Classes:
    """The class of each of `images` by the rule `choice`.

    Args:
        choice: `file` reads `dataset.json`; `folders` numbers the top folders of the images in order of their names;
            `none` reads nothing; `auto` is `file` where there is a `dataset.json` and `none` elsewhere. Folders are
            never guessed to be classes, since EDM's own folders 00000, 00001, ... are not.
        names: every file of the container.
        load: gives the bytes of one.
        root: the container, for errors.

    Raises:
        InputError: for another choice, a missing, misplaced or malformed `dataset.json`, an image without a class.
    """
    if choice not in CHOICES:
        raise InputError(f"dataset.labels={choice}: not a rule{did_you_mean(choice, CHOICES)}")
    if choice == "folders":
        return _from_folders(images, root)
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


def _from_folders(images: Sequence[str], root: str) -> Classes:
    loose = [name for name in images if "/" not in name]
    if loose:
        raise InputError(f"dataset.labels=folders: {loose[0]} in {root} lies in no folder; use labels=none or move it")
    folders = [name.split("/", 1)[0] for name in images]
    number = {folder: index for index, folder in enumerate(sorted(set(folders)))}
    return Classes(torch.tensor([number[folder] for folder in folders]), len(number))


def from_json(text: bytes, images: Sequence[str], where: str) -> Classes:
    """EDM's `{"labels": [["00000/img00000000.png", 6], ...]}`, or null for none; classes are 0 .. max.

    Raises:
        InputError: for anything else, such as one-hot or negative labels, or an image that is not listed.
    """
    try:
        labels = json.loads(text)["labels"]
        known = None if labels is None else {name.replace("\\", "/"): label for name, label in labels}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f'{where} is not of the form {{"labels": [["name.png", 0], ...]}} ({error!r})') from error
    if known is None:
        return Classes.none(len(images))
    missing = [name for name in images if name not in known]
    if missing:
        raise InputError(f"{where} gives no label for {missing[0]}; add it, or use dataset.labels=none")
    for name in images:
        if type(known[name]) is not int or not 0 <= known[name] < 2**31:
            raise InputError(f"{where} labels {name} with {known[name]!r}; one integer from 0 is needed")
    values = [known[name] for name in images]
    return Classes(torch.tensor(values), max(values) + 1)
