"""Classes of the pictures of a source: from `dataset.json`, folders, a CSV file or webdataset's .cls files."""

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from scoreline.datasets.class_labels import LABEL_FILE, MAX_LABEL_BYTES, checked_class, label_table
from scoreline.datasets.image_files import normal_path
from scoreline.datasets.lazy import count_classes
from scoreline.datasets.picture_conversion import UnusableError
from scoreline.datasets.picture_sources import PictureSource
from scoreline.errors import InputError
from scoreline.storage import bounded_reading

CHOICES = ("auto", "file", "folders", "cls", "none")
CLS, CSV = ".cls", ".csv"


@dataclass(frozen=True)
class PictureLabels:
    """The class of each picture.

    Attributes:
        origin: where the classes come from, for reports; `none` without classes.
        by_name: file -> the number or the name of its class; None without classes.
        files: files of the source that are labels and no pictures.
    """

    origin: str
    by_name: Mapping[str, int | str] | None = None
    files: frozenset[str] = frozenset()

    @property
    def missing(self) -> str:
        """The reason for leaving out a picture that has no class."""
        return "in no folder, so without a class" if self.origin == "folders" else f"without a class in {self.origin}"

    def numbers(self, kept: Iterable[int | str]) -> dict[int | str, int]:
        """Number the classes of the pictures that are kept: names in their order from 0, numbers as they are."""
        return {label: label if isinstance(label, int) else place for place, label in enumerate(sorted(set(kept)))}


def read_labels(choice: str, source: PictureSource) -> PictureLabels:
    """Read the classes of a source.

    Args:
        choice: `auto` takes the source's own classes, else `dataset.json` if there is one, else .cls files if there
            are any, else none; `file` takes `dataset.json`; `folders` the top folder of each picture; `cls` the file
            `0001.cls` beside `0001.png`; `none` nothing; PATH.csv a table of files and their classes.
        source: the source.

    Raises:
        InputError: for another choice, a missing or malformed file of labels, and a picture with two classes.
    """
    if choice.endswith(CSV):
        return _from_csv(choice, source)
    if choice not in CHOICES:
        raise InputError(f"labels={choice}: choose {', '.join(CHOICES)} or a CSV file of files and their classes")
    if source.classes is not None and choice == "auto":
        return PictureLabels("the source", source.classes)
    if choice == "folders":
        return PictureLabels("folders", {name: name.partition("/")[0] for name in source.names if "/" in name})
    if choice == "file" or (choice == "auto" and LABEL_FILE in source.names):
        return _from_json(source)
    if choice == "cls" or (choice == "auto" and any(name.endswith(CLS) for name in source.names)):
        return _from_cls(source)
    misplaced = next((name for name in source.names if name.endswith(f"/{LABEL_FILE}")), None)
    if choice == "auto" and misplaced:
        raise InputError(
            f"labels=auto: {misplaced} in {source.root} lies in a folder; give that folder, or labels=none"
        )
    return PictureLabels("none", files=frozenset({LABEL_FILE}))


def _content(source: PictureSource, name: str) -> bytes:
    try:
        if name in source.left_out:
            raise UnusableError(source.left_out[name])
        return source.load(name)
    except UnusableError as error:
        raise InputError(f"{source.root}: {name} {error.reason} {error.detail}; mend it, or use labels=none") from error


def _from_json(source: PictureSource) -> PictureLabels:
    if LABEL_FILE not in source.names:
        raise InputError(f"labels=file: there is no {LABEL_FILE} in {source.root}; use labels=folders or labels=none")
    where = f"{source.root}: {LABEL_FILE}"
    table = label_table(_content(source, LABEL_FILE), len(source.names), where)
    own = frozenset({LABEL_FILE})
    if table is None:
        return PictureLabels("none", files=own)
    found = {name: table[normal_path(name)] for name in source.names if normal_path(name) in table}
    return PictureLabels(LABEL_FILE, _plausible(found, where), own)


def _plausible(found: Mapping[str, int], where: str) -> Mapping[str, int]:
    values = [checked_class(value, name, where) for name, value in found.items()]
    count_classes(max(values, default=0), len(values), where)
    return found


def _from_cls(source: PictureSource) -> PictureLabels:
    """Read webdataset's .cls files: those of a sample share its name up to the first dot."""
    files = frozenset(name for name in source.names if name.endswith(CLS))
    where = f"labels=cls: {source.root}"
    if not files:
        raise InputError(f"{where} holds no .cls file; use labels=folders or labels=none")
    classes = {_sample(name): _number(_content(source, name), name, where) for name in sorted(files)}
    found = {name: classes[_sample(name)] for name in source.names if _sample(name) in classes and name not in files}
    return PictureLabels(f"{CLS} files", _plausible(found, where), files)


def _sample(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_name(path.name.partition(".")[0]))


def _number(text: bytes, name: str, where: str) -> int:
    if not (text.strip().isdigit() and len(text) < 20):
        raise InputError(f"{where}: {name} holds {text[:20]!r}; one integer from 0 is needed")
    return int(text)


def _from_csv(choice: str, source: PictureSource) -> PictureLabels:
    """Read files and their classes from the first two columns, without lines about other files, such as a header."""
    inside = choice in source.names
    content = _content(source, choice) if inside else _outside(choice)
    names, found = {normal_path(name): name for name in source.names}, dict[str, str]()
    try:
        rows = [row for row in csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")) if len(row) > 1]
    except (ValueError, csv.Error) as error:
        raise InputError(f"labels={choice}: is no CSV file ({error}); write lines of file,class") from error
    for file, label, *_ in rows:
        name = names.get(normal_path(file.strip()))
        if name is not None and found.setdefault(name, label.strip()) != label.strip():
            raise InputError(f"labels={choice} labels {name} twice, with different classes; keep the right one")
    if not found:
        raise InputError(f"labels={choice}: names no file of {source.root}; write lines of file,class")
    files = frozenset({choice} if inside else ())
    if all(label.isdecimal() and label.isascii() and len(label) < 20 for label in found.values()):
        return PictureLabels(choice, _plausible({name: int(x) for name, x in found.items()}, f"labels={choice}"), files)
    return PictureLabels(choice, found, files)


def _outside(path: str) -> bytes:
    try:
        return bounded_reading.content(bounded_reading.place(path, "labels"), MAX_LABEL_BYTES)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"labels={path}: cannot be read ({reason}); give a CSV file of files and classes") from error
