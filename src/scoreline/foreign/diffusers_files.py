"""Files of diffusers' save_pretrained: JSON, and weights in one file or in shards."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from scoreline.errors import InputError
from scoreline.safe_pickle.torch_files import read
from scoreline.storage.bounded_reading import content, json_value

STEM = "diffusion_pytorch_model"
SINGLE = re.compile(STEM + r"(?:\.(?P<variant>\w+))?\.(?P<kind>safetensors|bin)")
SHARDED = re.compile(STEM + r"\.(?P<kind>safetensors|bin)\.index(?:\.(?P<variant>\w+))?\.json")
SHARD = re.compile(r"[\w.-]+\.(safetensors|bin)")

MODEL_INDEX, CONFIG = "model_index.json", "config.json"

FOLDER_MARKS = (MODEL_INDEX, CONFIG, *(f"{part}/{CONFIG}" for part in ("unet", "unet_ema", "transformer")))
"""Files by one of which a folder of diffusers is recognised."""

OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""Layers of attention -> their names in files before diffusers 0.15."""

LARGEST_JSON, MOST_VALUES = 2**24, 2**20  # bytes, values


def weight_files(folder: Path, weights: str) -> list[Path]:
    """Find the weights in one file or in shards: first the variant for `weights`, first safetensors, then .bin."""
    files: dict[tuple[str, str], Path] = {}
    for path in sorted(folder.iterdir()):
        match = SINGLE.fullmatch(path.name) or SHARDED.fullmatch(path.name)
        if match is not None:
            files.setdefault((match["variant"] or "", match["kind"]), path)
    variants = sorted({variant for variant, _ in files} - {"", "non_ema"})
    order = ["non_ema", "", *variants] if weights == "raw" else ["", *variants]
    for choice in ((variant, kind) for variant in order for kind in ("safetensors", "bin")):
        if choice in files:
            path = files[choice]
            return _shards(path) if path.suffix == ".json" else [path]
    if files:
        raise InputError("weights=ema: the folder holds weights without an average only (non_ema); use weights=raw")
    raise InputError(f"{STEM}.safetensors and {STEM}.bin are not there; copy the folder with its weights")


def _shards(index: Path) -> list[Path]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise InputError(f"{index.name}: holds no weight_map; copy the folder again")
    for name in names.values():
        if not isinstance(name, str) or SHARD.fullmatch(name) is None or not (index.parent / name).is_file():
            raise InputError(f"{index.name}: {word(name)} is no file of this folder; copy the folder again")
    return [index.parent / name for name in sorted(set(names.values()))]


def tensors(files: Collection[Path]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for path in files:
        part = read(path, ())
        if not isinstance(part, dict) or not all(isinstance(n, str) and isinstance(w, Tensor) for n, w in part.items()):
            raise InputError(f"{path.name}: is no state dict of tensors; copy the folder again")
        if twice := sorted(set(part) & set(state)):
            raise InputError(f"{path.name}: weight {word(twice[0])} is in another file too; copy the folder again")
        state.update(part)
    return state


def stored_name(name: str, names: Collection[str]) -> str:
    """Return the name of a weight, or its old name if only that is among the names of a file."""
    for now, once in OLD_NAMES.items():
        old = name.replace(f".{now}.", f".{once}.")
        if name not in names and old in names:
            return old
    return name


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file.

    Raises:
        InputError: if there is none.
    """
    try:
        value = json_value(content(path, LARGEST_JSON), MOST_VALUES)
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path.name}: no readable JSON ({reason:.100}); copy the folder again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path.name}: holds a {type(value).__name__}, no JSON object; copy the folder again")
    return value


def word(value: Any) -> str:
    """Show a value of a file in a message."""
    return ascii(value)[:60]
