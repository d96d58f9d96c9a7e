"""Families of foreign checkpoints: recognition of a file, and its translation by the module of its family."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from scoreline.descriptions.specs import Spec
from scoreline.errors import InputError
from scoreline.foreign.diffusers_files import CONFIG, FOLDER_MARKS, MODEL_INDEX
from scoreline.foreign.translation import ForeignModel
from scoreline.safe_pickle.torch_files import read
from scoreline.storage.bounded_reading import json_value
from scoreline.values import check_choice

FAMILIES = {
    "edm": "edm",
    "score_sde": "score_sde",
    "ddpm": "ddpm",
    "guided_diffusion": "guided_diffusion",
    "diffusers": "diffusers_folder",
    "lightning": "lightning",
    "lucidrains": "lucidrains",
}
"""Name on the command line -> module of this package."""

DESCRIBED = frozenset({"edm", "diffusers"})
"""Families whose files describe their network."""

SIZED = frozenset({"diffusers", "lucidrains"})
"""Families whose networks take images of any size, which a file may leave open."""

WEIGHTS = ("ema", "raw")

LARGEST_HEADER, MOST_VALUES = 2**25, 2**22
"""Bytes and values in the header of a safetensors file; a tensor takes about 120 bytes and 8 values."""


def load(
    path: Path,
    family: str | None,
    model: Spec | None,
    weights: str,
    allow: Sequence[str] = (),
    size: tuple[int, int] | None = None,
) -> tuple[str, ForeignModel]:
    """Read a foreign file or folder without running anything in it.

    Args:
        path: the file or folder.
        family: one of FAMILIES; None recognises it by the names in the file.
        model: description as in conf/model, for families whose files do not describe themselves.
        weights: ema or raw.
        allow: further names of classes that its pickle may hold, kept as inert records.
        size: (H, W) of the images, for folders that do not say it.

    Returns:
        The family and the model.

    Raises:
        InputError: if the file cannot be imported; the sentence begins with the path.
    """
    if family is not None:
        check_choice("from", FAMILIES, family)
    check_choice("weights", WEIGHTS, weights)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give a checkpoint, a diffusers folder or a URL")
    content = content_of(path, family, allow)
    family = family or family_of(path, content)
    if size is not None and family not in SIZED:
        raise InputError(f"import.size: files of {family} have one size of images; leave the key out")
    given = {} if size is None else {"size": size}
    try:
        return family, module(family).read_model(content, model, weights, **given)
    except InputError as error:
        raise InputError(f"{path} (read as {family}): {error}") from error


def content_of(path: Path, family: str | None, allow: Sequence[str] = ()) -> Any:
    """Read the tree of a file, or return the path of a folder, for a family's module.

    Raises:
        InputError: for a file that is no checkpoint, or that names a class no family needs.
    """
    if path.is_dir() or path.name in (MODEL_INDEX, CONFIG):
        return path if path.is_dir() else path.parent
    families = FAMILIES if family is None else (family,)
    inert = {name for each in families for name in getattr(module(each), "INERT", ())}
    return read(path, inert | set(allow))


def family_of(path: Path, content: Any) -> str:
    """Return the one family that recognises this content.

    Raises:
        InputError: if none or several do.
    """
    families = [family for family in FAMILIES if module(family).recognises(content)]
    if len(families) == 1:
        return families[0]
    names = " or ".join(families) if families else "none of the known families"
    raise InputError(
        f"{path}: its content is that of {names} ({summary(content)}); name the family: --from {' | '.join(FAMILIES)}"
    )


def module(family: str) -> ModuleType:
    return importlib.import_module(f"scoreline.foreign.{FAMILIES[family]}")


def summary(content: Any) -> str:
    """Show the first keys of a tree in a message."""
    if isinstance(content, dict):
        names = [ascii(str(key))[1:-1][:60] for key in content]
        return f"{len(names)} keys: {', '.join(names[:4])}{', ..' * (len(names) > 4)}"
    return f"a {type(content).__name__}"


def is_safetensors(path: Path) -> bool:
    """Return whether a file begins with a header of that format: its length, then a JSON object of that length."""
    with open(path, "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        return 2 <= length <= path.stat().st_size - 8 and handle.read(1) == b"{"


def is_diffusers(path: Path) -> bool:
    """Return whether diffusers wrote a folder."""
    return any((path / name).is_file() for name in FOLDER_MARKS)


def is_ours(path: Path) -> bool:
    """Return whether a file is a safetensors file whose metadata name a format of scoreline."""
    return path.is_file() and is_safetensors(path) and metadata(path).get("format", "").startswith("scoreline/")


def is_foreign(path: Path) -> bool:
    """Return whether a file is a safetensors file of another project."""
    return path.is_file() and is_safetensors(path) and not is_ours(path)


def metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file; empty if it is damaged."""
    with open(path, "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        try:
            metadata = json_value(handle.read(min(length, LARGEST_HEADER)), MOST_VALUES).get("__metadata__", {})
        except (ValueError, AttributeError):
            return {}
    return {key: text for key, text in metadata.items() if isinstance(text, str)} if isinstance(metadata, dict) else {}
