"""metrics.json of a run directory of sample.py: write it, read it as checked plain data, compare it with the files."""

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from scoreline.errors import InputError
from scoreline.storage import run_config
from scoreline.storage.bounded_reading import content
from scoreline.storage.files import content_digest, write_atomically
from scoreline.values import is_number, is_whole, overlap, seed_ranges

NAME = "metrics.json"

LARGEST = 2**20
"""Largest file in bytes; those of our runs have a few thousand."""

LONGEST = 2000
"""Most characters of a text in it."""

DEEPEST = 8
"""Most levels of nesting."""

BEGINNING = b'{\n  "solver": '
"""The beginning of every metrics.json that sample.py writes."""

MANIFEST = "manifest.csv"

OUTPUTS = {"npz": "samples.npz", "png": "images", "zip": "samples.zip", "webdataset": "samples.tar"}
OUTPUTS |= {"npy": "samples.npy"}
"""The file or folder below the run directory that holds the images, by `format`."""

Result = dict[str, Any]
"""The content of a metrics.json."""


def read(root: Path) -> Result | None:
    """Return the result in a run directory, or None if it holds no metrics.json.

    Raises:
        InputError: for a file that is unreadable, too large, no JSON, or without the keys and types of sample.py.
    """
    path = root / NAME
    if not os.path.lexists(path):
        return None
    try:
        return _checked(_parsed(content(path, LARGEST)))
    except (OSError, ValueError, RecursionError, OverflowError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"{path}: not the metrics of sample.py ({reason}); delete {root} and run its command again"
        ) from error


class Former(NamedTuple):
    """The result of an earlier start if it is whole, else the reason to repeat the run (empty for a first start)."""

    result: Result | None
    reason: str = ""


def former_result(out: Path) -> Former:
    """Return the result of a finished run directory; an unfinished one counts as empty.

    Raises:
        InputError: for a metrics.json without config.yaml, or without keys that sample.py writes.
    """
    if _cut_short(out):
        return Former(None, f"{NAME} is cut short")
    result = read(out)
    if result is None:
        return Former(None)
    if not set(result) >= ALWAYS or not (out / run_config.NAME).is_file():
        raise InputError(
            f"{out / NAME}: config.yaml or some of its keys are missing, so that its run is unknown; "
            "delete it, or choose another directory with hydra.run.dir"
        )
    missing = _lacking(out, result)
    return Former(None, missing) if missing else Former(result)


def reopen(out: Path) -> None:
    """Remove metrics.json, the mark of a finished run; call it before repeating the run."""
    (out / NAME).unlink(missing_ok=True)


def write(out: Path, result: Result) -> None:
    """Write metrics.json, the mark of a finished run; call it last."""
    text = json.dumps(result, indent=2) + "\n"
    write_atomically(out / NAME, lambda path: path.write_text(text))


def summary(result: Result, out: Path) -> str:
    """Format a result: `64 images, NFE 10 (20 network calls), 850 images/s, frechet_distance 3.21 +- 0.40 -> ...`."""
    calls = "" if result["network_calls"] == result["nfe"] else f" ({result['network_calls']} network calls)"
    speed = result["images_per_second"]
    rate = f"{speed:{'.0f' if speed >= 10 else '.2g'}} images/s" if speed else "all reused"
    parts = [f"{result['images']} images", f"NFE {result['nfe']}{calls}", rate]
    parts += [f"{name} {m['value']:.4g} +- {m['error']:.2g}" for name, m in list(result["metrics"].items())[:1]]
    if learned := result.get("learned"):
        pair = f"{learned['solver']} / {learned['schedule']}"
        share = f"{learned['ratio']:.2f} +- {learned['error']:.2g}"
        parts.append(f"{share} of the distance of {pair} from the fine run, on noise that learning held out")
    return f"{', '.join(parts)} -> {out}"


def _cut_short(root: Path) -> bool:
    """Return whether metrics.json is empty or truncated, as a full disk or a power failure leaves it."""
    path = root / NAME
    if not path.is_file() or path.stat().st_size > LARGEST:
        return False
    content = path.read_bytes().strip(b"\0 \t\r\n")
    if not BEGINNING.startswith(content[: len(BEGINNING)]):
        return False
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return True
    return False


def _parsed(text: bytes) -> Result:
    result = json.loads(text)
    if not isinstance(result, dict):
        raise ValueError("no mapping")
    return result


def _checked(result: Result) -> Result:
    if not _shallow(result, DEEPEST):
        raise ValueError(f"more than {DEEPEST} levels")
    for key, check in {**NEEDED, **POSSIBLE}.items():
        if key not in result and key in NEEDED:
            raise ValueError(f"{key} is missing")
        if key in result and not check(result[key]):
            raise ValueError(f"{key} is {result[key]!r:.40}")
    kept = {key: value for key, value in result.items() if key not in OF_SEVERAL}
    return {**kept, "seeds": _bare(result["seeds"])}


def _bare(seeds: object) -> str:
    """Remove the brackets of a list of seeds."""
    return str(seeds).removeprefix("[").removesuffix("]")


def _shallow(value: object, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_shallow(it, levels - 1) for it in inner)


def _text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST and value.isprintable()


def _number(value: object) -> bool:
    """Return whether a value is a number; an error may be inf or nan.

    Raises:
        OverflowError: for an integer beyond what a float holds.
    """
    return is_number(value) and isinstance(float(value), float)


def _finite(value: object) -> bool:
    return _number(value) and math.isfinite(value)  # type: ignore[arg-type]


def _whole(value: object) -> bool:
    return is_whole(value, 0) and value < 2**63


def _seeds(value: object) -> bool:
    return (_text(value) or _whole(value)) and not overlap(seed_ranges(_bare(value)))


def _score(value: object) -> bool:
    return (
        isinstance(value, dict)
        and {"value", "error", "n"} <= set(value)
        and all(map(_number, (value["value"], value["error"])))
        and _whole(value["n"])
    )


def _named(check: Callable[[object], bool]) -> Callable[[object], bool]:
    """Return a check for mappings from texts to values that pass a check."""
    return lambda value: isinstance(value, dict) and all(_text(key) and check(it) for key, it in value.items())


def _comparison(value: object) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"solver", "schedule", "ratio", "error"}
        and all(map(_text, (value["solver"], value["schedule"])))
        and all(map(_finite, (value["ratio"], value["error"])))
    )


def _file(value: object) -> bool:
    return isinstance(value, dict) and _whole(value.get("bytes")) and _text(value.get("sha256"))


def _checkpoint(value: object) -> bool:
    return _named(_text)(value) and {"name", "sha256"} <= set(value)  # type: ignore[call-overload]


NEEDED: Mapping[str, Callable[[object], bool]] = {
    **dict.fromkeys(("solver", "schedule"), _text),
    "seeds": _seeds,
    "nfe": _finite,
    "images": _whole,
    "checkpoint": _checkpoint,
    "protocol": _named(lambda value: _text(value) or _number(value)),
    "metrics": _named(_score),
}
"""Keys of every result, with their checks."""

POSSIBLE: Mapping[str, Callable[[object], bool]] = {
    **dict.fromkeys(("guidance", "threshold", "final", "labels", "recommended", "format"), _text),
    **dict.fromkeys(("manifest", "code_version"), _text),
    **dict.fromkeys(("network_calls", "seconds", "images_per_second", "sigma_data"), _finite),
    **dict.fromkeys(("sigma_max", "sigma_end"), _number),
    "learned": _comparison,
    "numerics_version": _whole,
    "warnings": lambda value: isinstance(value, list) and all(map(_text, value)),
    "files": _named(_file),
}
"""Keys that results of some versions lack, with their checks."""


ALWAYS = {"manifest", "network_calls", "images_per_second", "warnings"}
"""Keys of every result today, which results of older versions may lack."""

OF_SEVERAL = ("ranges", "code_versions", "by_range")
"""Keys that tables add to the mean of several results; no file has them."""


class FileRecord(NamedTuple):
    """Bytes and SHA-256 of a file, or of all files of a folder with their names."""

    bytes: int
    sha256: str


def file_records(out: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return `files` of metrics.json: size and digest of the files of a run directory with these names."""
    return {name: file_record(out / name)._asdict() for name in names}


def file_record(path: Path) -> FileRecord:
    """Return size and digest of a file or folder."""
    return FileRecord(_size(path), content_digest(path))


def _size(path: Path) -> int:
    return (
        sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
    )


def _lacking(out: Path, result: Result) -> str:
    """Return the first defect of a finished run's files, such as `samples.npz is gone`; empty if there is none.

    For a result of a version without `files`, the manifest is compared and the images must exist.
    """
    records = {name: FileRecord(it["bytes"], it["sha256"]) for name, it in result.get("files", {}).items()}
    if "manifest" in result:
        records[MANIFEST] = FileRecord(-1, result["manifest"])
    names = [MANIFEST, *filter(None, [OUTPUTS.get(str(result.get("format")))]), *records]
    return next(filter(None, (_wrong(out, name, records.get(name)) for name in dict.fromkeys(names))), "")


def _wrong(out: Path, name: str, record: FileRecord | None) -> str:
    """Return the defect of a file, comparing its size first; a size of -1 is unknown."""
    path = out / name
    if not re.fullmatch(r"[\w-]+(\.\w+)?", name) or not (path.is_file() or path.is_dir()):
        return f"{name} is gone"
    if record is None or (record.bytes in (-1, _size(path)) and file_record(path).sha256 == record.sha256):
        return ""
    return f"{name} differs from the file of the run"
