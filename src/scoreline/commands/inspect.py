"""scoreline inspect PATH ..
Describe checkpoints and calibration records as text.

  scoreline inspect digits_vp outputs/train/NAME model.score_norm.safetensors

PATH is a safetensors file, a directory with a model.safetensors, the name of a
shipped model, or another project's checkpoint (a file of torch, a pickle, a
diffusers folder). For a checkpoint of scoreline it prints the card, for a
record its provenance and measurements, for others the names and contents of
the file. It runs and builds nothing of the file.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoreline import checkpoints, records
from scoreline.calibration import target_variance_report
from scoreline.config import run_names
from scoreline.errors import InputError, did_you_mean, printable
from scoreline.foreign import description, families
from scoreline.foreign.diffusers_settings import sentences
from scoreline.storage.files import sha256
from scoreline.storage.schemas import parse_entries
from scoreline.storage.tensor_files import Header, read_header

LEVELS = 10
"""Rows of the table of a score_norm record."""

ROWS = 10_000
"""Most levels or budgets of a record for which a table is printed."""

BEST = 3
"""Printed candidates for each budget of a search record."""

LONGEST = 200
"""Printed characters of a value."""


def main(words: list[str]) -> None:
    """Describe each file.

    Raises:
        InputError: for the first file that is missing, unreadable or no checkpoint or record.
    """
    if not words:
        raise InputError("give a checkpoint or a record: scoreline inspect digits_vp")
    for place, word in enumerate(words):
        print("\n" * (place > 0) + text(_find(word)))


def _find(word: str) -> Path:
    """Return the file that a word on the command line names.

    Raises:
        InputError: if there is no such file.
    """
    path = run_names.model_path(word)
    if path.is_file():
        return path
    if families.is_diffusers(Path(word)):
        return Path(word)
    if Path(word).is_dir():
        others = ", ".join(sorted(str(file) for file in Path(word).glob("*.safetensors"))[:3])
        raise InputError(f"{word}: a directory without model.safetensors; name a file{others and f', as {others}'}")
    shipped = [file.stem for file in run_names.ASSETS.glob("*.safetensors")]
    raise InputError(f"{word}: no such file and no shipped model{did_you_mean(word, shipped)}")


def text(path: Path) -> str:
    """Describe a file, with control characters escaped.

    Raises:
        InputError: if it is no checkpoint, or its metadata is damaged.
    """
    if path.is_dir() or not (path.suffix == ".safetensors" or families.is_safetensors(path)):
        return "\n".join([printable(f"{path}: checkpoint of another project"), *_foreign_lines(path)])
    header = read_header(path, str(path), "copy or make it again")
    describe = {checkpoints.FORMAT: _checkpoint_lines, records.FORMAT: _record_lines}.get(_format(header))
    if describe is None:
        head = f"{path}: no file of scoreline, but a safetensors file with {_tensors(header)} and {_metadata(header)}"
        return "\n".join([printable(head), *_foreign_lines(path)])
    try:
        return "\n".join(map(printable, describe(header)))
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise header.refuse(f"its metadata is damaged ({error!r:.80})") from error


def _foreign_lines(path: Path) -> Iterator[str]:
    """Describe a checkpoint of another project.

    Raises:
        InputError: if the file is no checkpoint.
    """
    for name, shown, depth in description.lines(path):
        yield printable(line(name, shown, depth))


def _checkpoint_lines(header: Header) -> Iterator[str]:
    """Describe a model by its card."""
    card = parse_entries(header.metadata, checkpoints.CARD, ("format",))
    numbers = sum(map(math.prod, header.shapes.values()))
    yield from _first("model checkpoint", header)
    for part in ("network", "parameterisation", "noise_schedule", "decoder"):
        if part in card["model"]:
            yield from _tree(part.replace("_", " "), card["model"][part])
    yield line("images", "x".join(map(str, card["shape"])) + " (CxHxW)")
    yield line("classes", str(card["num_classes"]) + " (unconditional)" * (card["num_classes"] == 0))
    yield line("parameters", f"{numbers:,} in {_tensors(header)}, {' '.join(sorted(set(header.types.values())))}")
    yield from _tree("data", card["data"])
    yield from _tree("training", card["training"])
    yield from (line("note", sentence) for sentence in sentences(card["training"].get("imported")))


def _record_lines(header: Header) -> Iterator[str]:
    """Describe a record by its provenance and tensors."""
    kind, provenance = header.metadata["kind"], records.read_provenance(header)
    values = records.read_values(header)
    yield from _first(f"calibration record, {kind}", header)
    yield from _tree("provenance", provenance)
    for name, value in sorted(values.items()):
        yield line(name, summary(value))
    if any(size > ROWS for shape in header.shapes.values() for size in shape):
        return
    if kind == "score_norm":
        yield from levels(values)
    if kind == "search":
        yield from _best(values, provenance)
    if kind == "tableau":
        yield from learned(values, provenance)
    if kind == "target_variance":
        yield from target_variance_report.table(values)


def _tree(name: str, value: Any, depth: int = 0) -> Iterator[str]:
    """Yield one line per item, nested ones indented; an object starts with its class."""
    if not isinstance(value, dict):
        text = value if isinstance(value, str) else json.dumps(value)
        yield line(name, text if len(text) <= LONGEST else f"{text[:LONGEST]} ..", depth)
        return
    yield line(name, str(value.get("_target_", "")), depth)
    for key in sorted(value.keys() - {"_target_"}):
        yield from _tree(key, value[key], depth + 1)


def summary(value: Tensor) -> str:
    """Return shape, type, first, last, least and greatest value of a tensor as text."""
    kind = f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    numbers = value.double().flatten()
    if not len(numbers):
        return f"{kind}, empty"
    ends = f"{kind}, first {float(numbers[0]):.6g}, last {float(numbers[-1]):.6g}"
    finite = numbers[numbers.isfinite()]
    if not len(finite):
        return f"{ends}, no finite number"
    lost = f", {len(numbers) - len(finite)} not finite" * (len(finite) < len(numbers))
    return f"{ends}, min {float(finite.min()):.6g}, max {float(finite.max()):.6g}{lost}"


def levels(values: dict[str, Tensor]) -> Iterator[str]:
    """Yield rho, mean |eps| and standard error at up to ten measured levels, uniform in ln rho, from noise to data."""
    rows = torch.stack([values[name].double() for name in ("rho", "mean_abs_eps", "standard_error")], dim=1)
    yield f"{'rho':>12} {'mean |eps|':>12}    standard error"
    log = rows[:, 0].log()
    nearest = (log - torch.linspace(float(log[-1]), float(log[0]), LEVELS).double()[:, None]).abs().argmin(1)
    for k in dict.fromkeys(nearest.tolist()):
        rho, mean, error = rows[k].tolist()
        yield f"{rho:12.6g} {mean:12.6f} +- {'unknown' if error != error else f'{error:.6f}'}"


def _best(values: dict[str, Tensor], provenance: dict[str, Any]) -> Iterator[str]:
    """Yield the solvers and schedules nearest to the fine run at every budget of a search record."""
    yield f"{'NFE':>4} {'distance':>11}    standard error  solver / schedule"
    for place, nfe in enumerate(values["budgets"].tolist()):
        for k, names in enumerate(provenance["candidates"][place][:BEST]):
            mean, error = float(values["mean"][place, k]), float(values["standard_error"][place, k])
            alike = f" and {len(names) - 1} alike" * (len(names) > 1)
            yield f"{nfe if k == 0 else '':>4} {mean:11.6g} +- {error:<15.2g} {' / '.join(names[0])}{alike}"


def learned(values: dict[str, Tensor], provenance: dict[str, Any]) -> Iterator[str]:
    """Yield the held-out distance of the start and of the learned tableau at every budget of a tableau record."""
    yield f"{'NFE':>4} {'held out, before':>24} {'learned':>24}  start"
    columns = ("start", "start_error", "learned", "learned_error")
    for place, nfe in enumerate(values["budgets"].tolist()):
        before, error, after, left = (float(values[name][place]) for name in columns)
        numbers = (f"{mean:.6g} +- {own:.2g}" for mean, own in ((before, error), (after, left)))
        yield f"{nfe:>4} {next(numbers):>24} {next(numbers):>24}  {' / '.join(provenance['starts'][place])}"


def line(name: str, value: str, depth: int = 0) -> str:
    """Return a line of the description, indented by its depth."""
    return f"{'  ' * depth + name:<24} {value}".rstrip()


def _first(what: str, header: Header) -> Iterator[str]:
    yield f"{header.path}: {what} ({_format(header)})"
    yield line("name", header.path.parent.name if header.path.name == "model.safetensors" else header.path.stem)
    yield line("SHA-256", sha256(header.path))


def _format(header: Header) -> str:
    return header.metadata.get("format", "")


def _tensors(header: Header) -> str:
    return f"{len(header.shapes)} tensor{'s' * (len(header.shapes) != 1)}"


def _metadata(header: Header) -> str:
    """Return the keys and the beginnings of the values of foreign metadata."""
    lines = [printable(f"{key}: {value:.40}") for key, value in sorted(header.metadata.items())[:5]]
    more = len(header.metadata) - len(lines)
    return f"metadata {{{', '.join(lines)}{f', and {more} more' * (more > 0)}}}" if lines else "no metadata"
