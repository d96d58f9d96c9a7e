"""From a path to a model of ours: whose file it is, and what that family's module makes of it."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from scoreline.errors import InputError, did_you_mean
from scoreline.foreign.torch_files import read
from scoreline.foreign.translation import ForeignModel
from scoreline.reading import json_value
from scoreline.specs import Spec

FAMILIES = {
    "edm": "edm",
    "score_sde": "score_sde",
    "ddpm": "ddpm",
    "guided_diffusion": "guided_diffusion",
    "diffusers": "diffusers_folder",
    "lightning": "lightning",
}
"""Name on the command line -> module of this package."""

DESCRIBED = frozenset({"edm", "diffusers"})
"""Families whose files say which network they hold."""

WEIGHTS = ("ema", "raw")

FOLDER_MARKS = ("model_index.json", "config.json")

LARGEST_HEADER, MOST_VALUES = 2**25, 2**22
"""Bytes and values in the header of a safetensors file; a tensor takes about 120 bytes and 8 values."""


def load(
    path: Path, family: str | None, model: Spec | None, weights: str, allow: Sequence[str] = ()
) -> tuple[str, ForeignModel]:
    """The family and the model of a foreign file or folder. Nothing in it is run.

    Args:
        family: one of FAMILIES; None recognises it by the names that the file holds.
        model: description as in conf/model, for families whose files do not describe themselves.
        weights: ema or raw.
        allow: further names of classes that its pickle may hold, kept as inert records.

    Raises:
        InputError: one sentence that begins with the path.
    """
    if family is not None and family not in FAMILIES:
        raise InputError(f"from={family}: no family of checkpoints{did_you_mean(family, FAMILIES)}")
    if weights not in WEIGHTS:
        raise InputError(f"weights={weights}: choose ema or raw")
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give a checkpoint, a diffusers folder or a URL")
    content = content_of(path, family, allow)
    family = family or recognised(path, content)
    try:
        return family, module(family).read_model(content, model, weights)
    except InputError as error:
        raise InputError(f"{path} (read as {family}): {error}") from error


def content_of(path: Path, family: str | None, allow: Sequence[str] = ()) -> Any:
    """What the family modules take: the tree of a file, or the path of a folder.

    Raises:
        InputError: for a file that is no checkpoint, or names what none of the families needs.
    """
    if path.is_dir() or path.name in FOLDER_MARKS:
        return path if path.is_dir() else path.parent
    asked = FAMILIES if family is None else (family,)
    inert = {name for each in asked for name in getattr(module(each), "INERT", ())}
    return read(path, inert | set(allow))


def recognised(path: Path, content: Any) -> str:
    """The one family that knows this content.

    Raises:
        InputError: if none or several do.
    """
    found = [family for family in FAMILIES if module(family).recognises(content)]
    if len(found) == 1:
        return found[0]
    known = " or ".join(found) if found else "none of the known families"
    raise InputError(
        f"{path}: its content is that of {known} ({summary(content)}); name the family: --from {' | '.join(FAMILIES)}"
    )


def module(family: str) -> ModuleType:
    return importlib.import_module(f"scoreline.foreign.{FAMILIES[family]}")


def summary(content: Any) -> str:
    """The first keys of a tree, for a message."""
    if isinstance(content, dict):
        names = [ascii(str(key))[1:-1][:60] for key in content]
        return f"{len(names)} keys: {', '.join(names[:4])}{', ..' * (len(names) > 4)}"
    return f"a {type(content).__name__}"


def is_safetensors(path: Path) -> bool:
    """Whether a file begins with the header of that format: its length, then a JSON object of that length."""
    with open(path, "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        return 2 <= length <= path.stat().st_size - 8 and handle.read(1) == b"{"


def is_diffusers(path: Path) -> bool:
    """Whether a folder is one that diffusers wrote."""
    return any((path / name).is_file() for name in FOLDER_MARKS)


def is_ours(path: Path) -> bool:
    """Whether a file is a safetensors file whose metadata name a format of scoreline."""
    return path.is_file() and is_safetensors(path) and metadata(path).get("format", "").startswith("scoreline/")


def is_foreign(path: Path) -> bool:
    """Whether a file is a whole safetensors file of somebody else."""
    return path.is_file() and is_safetensors(path) and not is_ours(path)


def metadata(path: Path) -> dict[str, str]:
    """Of a safetensors file; empty if it is damaged."""
    with open(path, "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        try:
            found = json_value(handle.read(min(length, LARGEST_HEADER)), MOST_VALUES).get("__metadata__", {})
        except (ValueError, AttributeError):
            return {}
    return {key: text for key, text in found.items() if isinstance(text, str)} if isinstance(found, dict) else {}
