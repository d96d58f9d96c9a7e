"""scoreline dataset SRC DEST resolution=N [KEY=VALUE ..]
Make a data set of one size and colour from pictures of any kind.

  scoreline dataset photos photos64.zip resolution=64 labels=folders
  scoreline dataset cifar-10-python.tar.gz cifar10.zip resolution=32
  scoreline dataset scans.tar scans channels=grey resolution=128 crop=none

SRC         a folder, zip or tar archive of pictures (PNG, JPEG, WebP, BMP, GIF,
            TIFF, PPM, JPEG 2000, AVIF), CIFAR-10's archive, an npz of samples,
            a parquet file, or a name on the Hugging Face hub
DEST        NAME.zip, EDM's archive, or a new folder of the same files
resolution  64, or WIDTHxHEIGHT such as 64x48
crop        center (default): largest central part of that aspect ratio; none:
            leave other aspect ratios out; stretch: distort them; adm: ADM's
            rule for ImageNet, with filters of its own
resize      lanczos (default) | box, both with antialiasing
upscale     refuse (default): leave smaller pictures out | allow
channels    auto (default: grey if all pictures are) | rgb | grey
background  behind transparent pixels: grey level or R,G,B (default: 255)
labels      auto (default: dataset.json, else .cls files, else none) | file
            (dataset.json) | folders | cls | none | FILE.csv (file,class)
duplicates  drop (default): keep the first of equal results | keep
limit       stop after so many pictures
split       of CIFAR-10 and the hub: train (default) | test | ..
workers     threads (default: 1); the result does not depend on them

Pictures are turned upright as EXIF says, animations give their first frame, and
16 bits become 8. A picture that fits already keeps its pixels to the bit. Files
that cannot be used are left out. Beside DEST, NAME.report.csv says for each
file what became of it, NAME.report.json counts reasons and classes, and
NAME.sheet.png shows some pictures. Equal sources make equal files.
"""

import csv
import hashlib
import json
import math
import re
import shlex
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from scoreline.commands.words import new_file, parse, refuse_blocked
from scoreline.config.conf_folder import quote
from scoreline.datasets.base import ImageDataset
from scoreline.datasets.image_folder import ImageFolder
from scoreline.datasets.picture_conversion import CROPS, FILTERS, Conversion, UnusableError, is_colour
from scoreline.datasets.picture_labels import PictureLabels, read_labels
from scoreline.datasets.picture_sources import PictureSource, open_source
from scoreline.datasets.zip_archive import ZipArchive
from scoreline.errors import InputError, printable
from scoreline.runtime.progress import ImageProgress
from scoreline.runtime.threads import in_order
from scoreline.storage.edm_layout import picture_name, write_folder, write_whole, write_zip
from scoreline.storage.files import remove_parts_of, write_atomically
from scoreline.storage.pictures import png_bytes, save_png, sheet
from scoreline.values import check_choice, whole_number

OWN = {
    **{"resolution": "", "crop": "center", "resize": "lanczos", "upscale": "refuse", "channels": "auto"},
    **{"background": "255", "labels": "auto", "duplicates": "drop", "limit": "", "split": "", "workers": "1"},
}
CHOICES = {
    **{"crop": CROPS, "resize": FILTERS, "upscale": ("refuse", "allow"), "channels": ("auto", "rgb", "grey")},
    "duplicates": ("drop", "keep"),
}
FORMAT = "scoreline/dataset/1"
HEADER = ("file", "image", "class", "reason", "note")
DUPLICATE = "equal to an earlier picture"
SHOWN = 64
"""Pictures on the contact sheet."""

MOST_LISTED = 12
"""Classes that the printed report lists one by one."""

LARGEST = 2**13
"""Most pixels of a side of `resolution`."""


class Settings(NamedTuple):
    """What the words of the command line ask for; `conversion.channels` counts unless `channels` is auto."""

    source: str
    dest: Path
    conversion: Conversion
    own: Mapping[str, str]
    limit: int
    workers: int

    def beside(self, ending: str) -> Path:
        """Return the path of a further file: NAME and an ending."""
        return self.dest.with_name(self.dest.name.removesuffix(".zip") + ending)


class Outcome(NamedTuple):
    """What became of a file: the PNG file and its numbers, or a reason to leave it out."""

    name: str
    reason: str = ""
    notes: tuple[str, ...] = ()
    png: bytes = b""
    digest: bytes = b""
    pixels: int = 0
    total: int = 0
    squares: int = 0


@dataclass
class Report:
    """Counts over all files, as the conversion goes on.

    Attributes:
        kept: the class of each picture; the number, the name of it, or -1.
        dropped: reason -> files.
        changes: change -> pictures.
        moments: number of pixels, their sum and the sum of their squares.
        seen: digest -> file, of every picture kept.
        unread: files behind the last picture of `limit`.
    """

    kept: list[int | str] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    moments: tuple[int, int, int] = (0, 0, 0)
    seen: dict[bytes, str] = field(default_factory=dict)
    unread: int = 0

    @property
    def std(self) -> float:
        """Standard deviation of all pixels in [-1, 1]."""
        n, total, squares = self.moments
        return math.sqrt((n * squares - total**2) / n**2) / 127.5  # of integers, so that rounding comes last


def main(words: list[str]) -> None:
    """Write the data set and its report, and print the report and the next command.

    Raises:
        InputError: for unusable arguments, a source that is none, and if no picture is left.
    """
    settings = _settings(words)
    room = settings.dest.absolute().parent
    with warnings.catch_warnings(), open_source(settings.source, settings.own["split"] or None, room) as source:
        warnings.simplefilter("ignore")  # Pillow's, about single files
        labels = read_labels(settings.own["labels"], source)
        names = [name for name in source.names if name not in labels.files]
        conversion = replace(settings.conversion, channels=_channels(settings, source, names))
        report = Report()
        one = _converter(source, labels, conversion)
        _write(settings, labels, report, lambda rows: _pictures(settings, labels, report, one, names, rows))
    data = _open(settings.dest)
    print("\n".join(_lines(settings, labels, report, data)))


def _settings(words: list[str]) -> Settings:
    paths, own, _ = parse(words, OWN)
    if len(paths) != 2:
        raise InputError(
            f"{' '.join(paths) or 'no SRC'}: give SRC and DEST, as in "
            "scoreline dataset pictures pictures.zip resolution=32"
        )
    for key, choices in CHOICES.items():
        check_choice(key, choices, own[key])
    width, height = _resolution(own["resolution"], own["crop"])
    conversion = Conversion(
        width,
        height,
        channels=1 if own["channels"] == "grey" else 3,
        crop=own["crop"],
        resize=own["resize"],
        upscale=own["upscale"] == "allow",
        background=_background(own["background"]),
    )
    limit, workers = (_whole(key, own[key]) if own[key] else 0 for key in ("limit", "workers"))
    settings = Settings(paths[0], Path(paths[1]), conversion, own, limit, workers)
    _check_places(settings)
    return settings


def _check_places(settings: Settings) -> None:
    """Refuse to overwrite anything, and to write into the source, whose next conversion would take it for pictures."""
    for path in (settings.dest, *map(settings.beside, (".report.csv", ".report.json", ".sheet.png"))):
        new_file(str(path), path)
    refuse_blocked(str(settings.dest), settings.dest.parent)
    if settings.dest.resolve().is_relative_to(Path(settings.source).resolve()):
        raise InputError(f"{settings.dest}: lies in {settings.source}, the source; choose a place outside it")


def _whole(key: str, value: str) -> int:
    return whole_number(key, int(value) if value.isdecimal() and len(value) < 20 else value)


def _resolution(value: str, crop: str) -> tuple[int, int]:
    """Return width and height."""
    match = re.fullmatch(r"(\d{1,4})(?:x(\d{1,4}))?", value)
    width, height = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not value:
        raise InputError("resolution: has no default; give the size of the pictures, such as resolution=32")
    if not 1 <= min(width, height) <= max(width, height) <= LARGEST:
        raise InputError(f"resolution={value}: give pixels as 64, or WIDTHxHEIGHT as 64x48, up to {LARGEST}")
    if crop == "adm" and width != height:
        raise InputError(f"resolution={value}: crop=adm makes squares; give one number, or crop=center")
    return width, height


def _background(value: str) -> tuple[int, int, int]:
    parts = value.strip("[]()").split(",")
    levels = [int(part) for part in parts if part.strip().isdecimal() and len(part) < 5]
    if len(levels) != len(parts) or len(parts) not in (1, 3) or max(levels) > 255:
        raise InputError(f"background={value}: give a grey level from 0 (black) to 255 (white), or R,G,B")
    red, green, blue = levels * (3 // len(levels))
    return red, green, blue


def _channels(settings: Settings, source: PictureSource, names: Iterable[str]) -> int:
    """Return the number of channels; with `auto` it is 3 from the first file on whose header is one of colour."""
    if settings.own["channels"] != "auto":
        return settings.conversion.channels
    for name in names:
        try:
            if name not in source.left_out and is_colour(source.load(name), settings.conversion.background):
                return 3
        except UnusableError:
            continue
    return 1


def _converter(source: PictureSource, labels: PictureLabels, conversion: Conversion) -> Callable[[str], Outcome]:
    """Return the function that converts one file, in any thread."""

    def one(name: str) -> Outcome:
        try:
            if name in source.left_out:
                raise UnusableError(source.left_out[name])
            if labels.by_name is not None and name not in labels.by_name:
                raise UnusableError(labels.missing)
            pixels, changes = conversion(source.load(name))
        except UnusableError as error:
            return Outcome(name, error.reason, (error.detail,) if error.detail else ())
        png, digest = png_bytes(torch.from_numpy(pixels)), hashlib.sha256(pixels.tobytes()).digest()
        values = pixels.astype("int64")
        return Outcome(name, "", changes, png, digest, values.size, int(values.sum()), int((values**2).sum()))

    return one


def _pictures(
    settings: Settings,
    labels: PictureLabels,
    report: Report,
    one: Callable[[str], Outcome],
    names: list[str],
    write_row: Callable[[Iterable[object]], object],
) -> Iterator[bytes]:
    """Yield the PNG files of the data set; count every file in the report and write its row."""
    with ImageProgress(len(names), "dataset", unit="files") as progress:
        for count, outcome in enumerate(in_order(one, names, settings.workers), 1):
            outcome = _unless_equal(outcome, report, settings.own["duplicates"])
            label = "" if labels.by_name is None else labels.by_name.get(outcome.name, "")
            image = "" if outcome.reason else picture_name(len(report.kept))
            notes = "; ".join(outcome.notes)
            write_row((printable(outcome.name), image, printable(str(label)), outcome.reason, printable(notes)))
            _count(outcome, -1 if label == "" else label, report)
            if not outcome.reason:
                yield outcome.png
            progress.update(1)
            if settings.limit and len(report.kept) == settings.limit:
                report.unread = len(names) - count
                break
    if not report.kept:
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in report.dropped.most_common())
        raise InputError(f"{settings.source}: no picture is left of {len(names):,} files: {reasons or 'none is there'}")


def _unless_equal(outcome: Outcome, report: Report, duplicates: str) -> Outcome:
    """Leave out a picture with the pixels of an earlier one, or with duplicates=keep note it."""
    first = report.seen.setdefault(outcome.digest, outcome.name) if outcome.png else outcome.name
    if first == outcome.name:
        return outcome
    if duplicates == "drop":
        return Outcome(outcome.name, DUPLICATE, (first,))
    return outcome._replace(notes=(*outcome.notes, DUPLICATE))


def _count(outcome: Outcome, label: int | str, report: Report) -> None:
    if outcome.reason:
        report.dropped[outcome.reason] += 1
        return
    report.kept.append(label)
    report.changes.update(outcome.notes)
    n, total, squares = report.moments
    report.moments = n + outcome.pixels, total + outcome.total, squares + outcome.squares


def _write(
    settings: Settings,
    labels: PictureLabels,
    report: Report,
    pictures: Callable[[Callable[[Iterable[object]], object]], Iterator[bytes]],
) -> None:
    """Write the report and the data set, the latter last: where it is, all of it is."""
    table, record, picture = map(settings.beside, (".report.csv", ".report.json", ".sheet.png"))
    write = write_zip if settings.dest.suffix == ".zip" else write_folder

    def fill(temporary: Path) -> None:
        def rows(path: Path) -> None:
            with open(path, "w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(HEADER)
                write(temporary, pictures(writer.writerow), lambda: _numbers(labels, report))

        write_atomically(table, rows)
        data = _open(temporary, settings.dest.suffix)
        content = json.dumps(_record(settings, labels, report, data), indent=2) + "\n"
        write_atomically(record, lambda path: path.write_text(content))
        chosen = sorted({place * len(data) // SHOWN for place in range(SHOWN)})
        save_png(picture, sheet(data.read(chosen)[0]))
        new_file(str(settings.dest), settings.dest)  # another run may have been faster

    for path in (settings.dest, table, record, picture):
        remove_parts_of(path)
    try:
        write_whole(settings.dest, fill)
    except BaseException:
        for path in (table, record, picture):
            path.unlink(missing_ok=True)
        raise


def _numbers(labels: PictureLabels, report: Report) -> list[int] | None:
    """Return the number of the class of each picture."""
    numbers = labels.numbers(report.kept)
    return None if labels.by_name is None else [numbers[label] for label in report.kept]


def _open(path: Path, suffix: str = "") -> ImageDataset:
    """Open the data set as training does, which checks the archive and its labels."""
    opener = ZipArchive if (suffix or path.suffix) == ".zip" else ImageFolder
    return opener(str(path), cache_mib=0)


def _record(settings: Settings, labels: PictureLabels, report: Report, data: ImageDataset) -> dict[str, Any]:
    """Return the content of NAME.report.json."""
    counts = Counter(report.kept)
    classes = [
        {"class": number, "name": printable(str(label)), "images": counts[label]}
        for label, number in labels.numbers(report.kept).items()
    ]
    return {
        "format": FORMAT,
        "source": printable(settings.source),
        "settings": {key: value for key, value in settings.own.items() if key != "workers"},
        "images": len(data),
        "shape": list(data.shape),
        "std": report.std,
        "labels": printable(labels.origin),
        "classes": classes if labels.by_name is not None else [],
        "dropped": dict(report.dropped.most_common()),
        "changes": dict(report.changes.most_common()),
        "not_read": report.unread,
    }


def _lines(settings: Settings, labels: PictureLabels, report: Report, data: ImageDataset) -> Iterator[str]:
    """Yield the lines of the printed report."""
    files = len(report.kept) + report.dropped.total() + report.unread
    yield f"{len(data):,} of {files:,} files -> {settings.dest}, {'x'.join(map(str, data.shape))} (CxHxW)"
    if labels.by_name is not None:
        yield f"classes from {labels.origin}: {_classes(labels, report)}"
    unread = Counter({f"not read, because of limit={settings.limit}": report.unread} if report.unread else {})
    for title, counts in (("left out:", report.dropped + unread), ("changed:", report.changes)):
        yield from (title, *(f"{count:8,}  {what}" for what, count in counts.most_common())) if counts else ()
    lost = sorted(set(map(str, (labels.by_name or {}).values())) - set(map(str, report.kept)))
    if lost and not report.unread:
        more = ", .." if len(lost) > MOST_LISTED else ""
        yield f"note: no picture is left of class {', '.join(lost[:MOST_LISTED])}{more}"
    beside = (settings.beside(ending) for ending in (".report.csv", ".report.json", ".sheet.png"))
    yield f"what became of each file, the counts, some pictures: {', '.join(map(str, beside))}"
    yield f"next: {next_command(settings.dest, data, report.std)}"


def _classes(labels: PictureLabels, report: Report) -> str:
    counts, numbers = Counter(report.kept), labels.numbers(report.kept)
    if len(numbers) > MOST_LISTED:
        return f"{len(numbers)}, of {min(counts.values()):,} to {max(counts.values()):,} pictures"
    named = (f"{number}" if label == number else f"{number} {label}" for label, number in numbers.items())
    return ", ".join(f"{name} ({counts[label]:,})" for name, label in zip(named, numbers, strict=True))


def next_command(dest: Path, data: ImageDataset, std: float) -> str:
    """Return the command that trains a small U-Net on the data set."""
    channels, height, width = data.shape
    path = str(dest) if re.fullmatch(r"[\w./~+-]+", str(dest)) else quote(str(dest))
    group = "zip" if dest.suffix == ".zip" else "image_folder"
    words = ["python", "train.py", f"dataset={group}", f"dataset.path={path}"]
    if height != width or height % 4:
        return f"{shlex.join(words)} with a network for {channels}x{height}x{width}; those of model= take squares"
    words += ["model=digits_edm", "objective=edm", f"model.network.channels={channels}"]
    words += [f"model.network.resolution={height}", f"model.network.num_classes={data.num_classes}"]
    words += [f"model.parameterisation.sigma_data={std:.2g}"]
    if height >= 16:
        words += ["model.network.width=64", "model.network.multipliers=[1,2,2]"]
    return shlex.join(words)
