"""metrics.json of a run directory of sample.py: written, read back as checked, plain data, compared with the files."""

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from scoreline import run_config
from scoreline.errors import InputError
from scoreline.files import content_digest, write_atomically
from scoreline.reading import content
from scoreline.seeds import shared, spans

NAME = "metrics.json"

LARGEST = 2**20
"""Bytes of the largest file that is read; those of the package's own runs have a few thousand."""

LONGEST = 2000
"""Letters of the longest text in it."""

DEEPEST = 8
"""Levels of nesting that are read."""

BEGINNING = b'{\n  "solver": '
"""Of every metrics.json that sample.py writes."""

MANIFEST = "manifest.csv"

OUTPUTS = {"npz": "samples.npz", "png": "images", "zip": "samples.zip", "webdataset": "samples.tar"}
"""The file or folder below the run directory that holds the images, by `format`."""

Result = dict[str, Any]
"""The content of a metrics.json."""


def read(root: Path) -> Result | None:
    """What a run directory says of itself, or None if it holds no metrics.json.

    Raises:
        InputError: for a file that is unreadable, too large, no JSON, or of other keys and types than sample.py writes.
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
    """What an earlier start left: its result if it is whole, else why the run is made again, if there was one."""

    result: Result | None
    again: str = ""


def finished(out: Path) -> Former:
    """The result of a run directory that was finished before; a partly filled one counts as empty.

    Raises:
        InputError: for a metrics.json that no run of ours can have left there.
    """
    if cut_short(out):
        return Former(None, f"{NAME} is cut short")
    result = read(out)
    if result is None:
        return Former(None)
    if not set(result) >= ALWAYS or not (out / run_config.NAME).is_file():
        raise InputError(
            f"{out / NAME}: it cannot be told of which run it is, config.yaml or keys of it are missing; "
            "delete it, or choose another directory with hydra.run.dir"
        )
    missing = lacking(out, result)
    return Former(None, missing) if missing else Former(result)


def reopen(out: Path) -> None:
    """Take the mark of a finished run away, before it is made again."""
    (out / NAME).unlink(missing_ok=True)


def write(out: Path, result: Result) -> None:
    """metrics.json, the mark of a finished run, which is written last of all."""
    text = json.dumps(result, indent=2) + "\n"
    write_atomically(out / NAME, lambda path: path.write_text(text))


def summary(result: Result, out: Path) -> str:
    """`64 images, NFE 10 (20 network calls), 850 images/s, frechet_distance 3.21 +- 0.40 -> outputs/...`."""
    calls = "" if result["network_calls"] == result["nfe"] else f" ({result['network_calls']} network calls)"
    speed = result["images_per_second"]
    rate = f"{speed:{'.0f' if speed >= 10 else '.2g'}} images/s" if speed else "all found"
    parts = [f"{result['images']} images", f"NFE {result['nfe']}{calls}", rate]
    parts += [f"{name} {m['value']:.4g} +- {m['error']:.2g}" for name, m in list(result["metrics"].items())[:1]]
    return f"{', '.join(parts)} -> {out}"


def cut_short(root: Path) -> bool:
    """Whether metrics.json is empty or the beginning of one, as a full disk or a lost power leaves it."""
    path = root / NAME
    if not path.is_file() or path.stat().st_size > LARGEST:
        return False
    found = path.read_bytes().strip(b"\0 \t\r\n")
    if not BEGINNING.startswith(found[: len(BEGINNING)]):
        return False
    try:
        json.loads(found)
    except (ValueError, RecursionError):
        return True
    return False


def _parsed(text: bytes) -> Result:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("no mapping")
    return found


def _checked(found: Result) -> Result:
    if not _shallow(found, DEEPEST):
        raise ValueError(f"more than {DEEPEST} levels")
    for key, check in {**NEEDED, **POSSIBLE}.items():
        if key not in found and key in NEEDED:
            raise ValueError(f"{key} is missing")
        if key in found and not check(found[key]):
            raise ValueError(f"{key} is {found[key]!r:.40}")
    kept = {key: value for key, value in found.items() if key not in OF_SEVERAL}
    return {**kept, "seeds": _bare(found["seeds"])}


def _bare(seeds: object) -> str:
    """A list of seeds stands in brackets."""
    return str(seeds).removeprefix("[").removesuffix("]")


def _shallow(value: object, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_shallow(it, levels - 1) for it in inner)


def _text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST and value.isprintable()


def _number(value: object) -> bool:
    """Also inf and nan, which some error may be.

    Raises:
        OverflowError: for an integer beyond what a float holds.
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and isinstance(float(value), float)


def _finite(value: object) -> bool:
    return _number(value) and math.isfinite(value)  # type: ignore[arg-type]


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _seeds(value: object) -> bool:
    return (_text(value) or _whole(value)) and not shared(spans(_bare(value)))


def _score(value: object) -> bool:
    return (
        isinstance(value, dict)
        and {"value", "error", "n"} <= set(value)
        and all(map(_number, (value["value"], value["error"])))
        and _whole(value["n"])
    )


def _named(check: Callable[[object], bool]) -> Callable[[object], bool]:
    """A mapping of texts to what passes a check."""
    return lambda value: isinstance(value, dict) and all(_text(key) and check(it) for key, it in value.items())


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
"""Keys that every result has, and what each must be."""

POSSIBLE: Mapping[str, Callable[[object], bool]] = {
    **dict.fromkeys(("guidance", "threshold", "final", "labels", "recommended", "format"), _text),
    **dict.fromkeys(("manifest", "code_version"), _text),
    **dict.fromkeys(("network_calls", "seconds", "images_per_second"), _finite),
    **dict.fromkeys(("sigma_max", "sigma_end"), _number),
    "numerics_version": _whole,
    "warnings": lambda value: isinstance(value, list) and all(map(_text, value)),
    "files": _named(_file),
}
"""Keys that results of some versions lack."""


ALWAYS = {"manifest", "network_calls", "images_per_second", "warnings"}
"""Keys of every result that sample.py writes today, on which `read` does not insist."""

OF_SEVERAL = ("ranges", "code_versions")
"""Keys that tables give to the mean of several results, and no file."""


class Written(NamedTuple):
    """Bytes and SHA-256 of a file; of a folder, of all its files together with their names."""

    bytes: int
    sha256: str


def described(out: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """`files` of metrics.json: what lies below a run directory under these names."""
    return {name: written(out / name)._asdict() for name in names}


def written(path: Path) -> Written:
    """What a file or folder holds."""
    return Written(_size(path), content_digest(path))


def _size(path: Path) -> int:
    return (
        sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
    )


def lacking(out: Path, result: Result) -> str:
    """What of a finished run's files is not as it was written, as `samples.npz is gone`; empty if nothing is.

    A result of a version that did not record `files` is held to its manifest, and to the presence of its images.
    """
    known = {name: Written(it["bytes"], it["sha256"]) for name, it in result.get("files", {}).items()}
    if "manifest" in result:
        known[MANIFEST] = Written(-1, result["manifest"])
    names = [MANIFEST, *filter(None, [OUTPUTS.get(str(result.get("format")))]), *known]
    return next(filter(None, (_wrong(out, name, known.get(name)) for name in dict.fromkeys(names))), "")


def _wrong(out: Path, name: str, known: Written | None) -> str:
    """The size is compared first; it is -1 where only the digest is known."""
    path = out / name
    if not re.fullmatch(r"[\w-]+(\.\w+)?", name) or not (path.is_file() or path.is_dir()):
        return f"{name} is gone"
    if known is None or (known.bytes in (-1, _size(path)) and written(path).sha256 == known.sha256):
        return ""
    return f"{name} is not what the run wrote"
