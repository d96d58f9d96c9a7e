"""Rebuild objects from the description inside a file, without letting the file choose what code runs."""

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, get_type_hints

import torch
from torch import nn

from scoreline.descriptions.annotations import fits
from scoreline.errors import InputError, line_of, printable
from scoreline.parameterisations import Parameterisation
from scoreline.schedules.base import NoiseSchedule, Schedule
from scoreline.storage.schemas import Either, ListOf, Number, Rule, excerpt, integer

Spec = dict[str, Any]
"""{"_target_": "package.module.Class", argument: number | string | list | Spec}."""

PACKAGES = ("scoreline.networks", "scoreline.parameterisations", "scoreline.schedules")

SIDE, WIDTH, POSITIVE = integer(1, 2**16), integer(1, 2**20), Number(0, 1e6, above=True)

ARGUMENTS: dict[str, Rule] = {
    "channels": SIDE,
    "in_channels": SIDE,
    "out_channels": SIDE,
    "resolution": SIDE,
    "sample_size": Either(SIDE, ListOf(SIDE, 2, 2)),
    "width": WIDTH,
    "multipliers": ListOf(Number(0, 4096, above=True), 1, 16),
    "block_out_channels": ListOf(WIDTH, 1, 16),
    "blocks": integer(1, 1000),
    "layers_per_block": integer(1, 1000),
    "attention": ListOf(integer(0, 2**16), 0, 64),
    "head_channels": integer(0, 2**20),
    "heads": integer(0, 2**16),
    "decoder_heads": integer(0, 2**16),
    "resample_filter": ListOf(Number(-1e6, 1e6), 1, 64),
    "dropout": Number(0, 1),
    "label_dropout": Number(0, 1),
    "num_classes": integer(0, 10**7),
    "augment_dim": integer(0, 2**16),
    "latent_channels": SIDE,
    "num_vq_embeddings": WIDTH,
    "scaling_factor": POSITIVE,
    "output_factor": integer(1, 64),
    "components": integer(1, 2**31),
    "steps": integer(1, 10**6),
    "M": integer(1, 10**6),
    "beta_min": Number(0, 1e6),
    "beta_max": Number(0, 1e6),
    "scale_min": POSITIVE,
    "scale_max": POSITIVE,
    "t_min": Number(-1, 1e6),
    "t_max": Number(-1, 1e6),
    "s": Number(0, 1),
    "sigma_data": POSITIVE,
    "label_scale": Number(-1e9, 1e9),
    "label_shift": Number(-1e9, 1e9),
    "C_1": Number(0, 1),
    "C_2": Number(0, 1),
}
"""Ranges of the arguments of our networks, schedules and parameterisations, which annotations do not express."""

SAME_TIME = 1e-3
"""Largest error of t(rho(t)), as a share of the process's range of times."""


def rebuild(spec: Spec, kind: type, trust: Sequence[str] = ()) -> Any:
    """Build the object that a description stands for.

    Only classes are called, and only networks, parameterisations and schedules that are defined in scoreline itself
    or in a package named in `trust`; arguments are plain values or descriptions of such objects. Arguments of
    scoreline's own classes are first checked against the annotations of the constructor and the ranges in `ARGUMENTS`.

    Args:
        spec: the description.
        kind: class that the object must be an instance of.
        trust: further packages from which classes may be taken, named by the user, never by the file.

    Raises:
        InputError: naming the class that was refused, or an argument that its constructor refuses.
    """
    target = spec.get("_target_")
    if not isinstance(target, str):
        raise InputError(f"checkpoint: a description without a class: {spec!r:.80}")
    target_class = _find(target, (*PACKAGES, *trust))
    if not issubclass(target_class, kind):
        raise InputError(f"checkpoint: {target} is not of type {kind.__name__}")
    hints = _hints(target_class.__init__) if is_ours(spec) else {}
    values = {name: value for name, value in spec.items() if name != "_target_"}
    arguments = {name: _argument(name, value, hints.get(name, object), trust) for name, value in values.items()}
    if is_ours(spec):
        _check_arguments(target, hints, arguments)
    result = _call(target, target_class, arguments)
    if is_ours(spec) and isinstance(result, NoiseSchedule):
        _check_process(target, result)
    return result


def is_ours(spec: Mapping[str, Any]) -> bool:
    """Return whether the class is one of scoreline's own."""
    return _within(str(spec.get("_target_")), PACKAGES)


def foreign_packages(spec: Mapping[str, Any]) -> list[str]:
    """Return the packages outside scoreline from which a description takes classes, which loading it has to trust.

    Args:
        spec: a description, or several of them by name as in a card.
    """
    inner = (foreign_packages(value) for value in spec.values() if isinstance(value, Mapping))
    own = [str(spec["_target_"]).partition(".")[0]] if "_target_" in spec and not is_ours(spec) else []
    return sorted({*own, *(name for names in inner for name in names)})


def _call(target: str, described: type, arguments: dict[str, Any]) -> Any:
    try:
        return described(**arguments)
    except InputError:
        raise
    except Exception as error:  # a constructor may raise anything for values that do not go together
        line = None if target.startswith("scoreline.") else line_of(error, {target.partition(".")[0]})
        reason = line or printable(f"{error!s:.200}" if isinstance(error, TypeError) else f"{error!r:.200}")
        raise InputError(
            f"checkpoint: {target} refuses its arguments: {reason}; was it made by another version?"
        ) from error


def _argument(name: str, value: Any, hint: Any, trust: Sequence[str]) -> Any:
    if isinstance(value, dict) and isinstance(hint, type):
        return rebuild(value, hint, trust)
    plain = all(isinstance(part, str | int | float | None) for part in (value if isinstance(value, list) else [value]))
    if not plain or name.startswith("_") or "${" in str(value):
        raise InputError(f"checkpoint: its description holds {name}={excerpt(value)}, which is not a plain value")
    return value


def _check_arguments(target: str, hints: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Check annotations and ranges. Unknown arguments are left to the constructor, which refuses them."""
    for name in hints.keys() & arguments.keys():
        value = arguments[name]
        try:
            if _large(value) or not fits(value, hints[name]):
                annotation = inspect.formatannotation(hints[name]).replace("collections.abc.", "")
                raise ValueError(f"{name} is {excerpt(value)}, not {annotation}")
            if name in ARGUMENTS and value is not None:
                ARGUMENTS[name](name, value)
        except ValueError as error:
            raise InputError(
                f"checkpoint: {target} refuses its arguments: {error}; was it made by another version?"
            ) from error


@cache
def _hints(constructor: Callable[..., None]) -> dict[str, Any]:
    return get_type_hints(constructor)


def _large(value: Any) -> bool:
    """Return whether a number, or one in a list, is larger than any in an honest file."""
    if isinstance(value, list):
        return any(map(_large, value))
    return isinstance(value, int | float) and not abs(value) < 2**63


def _check_process(target: str, process: NoiseSchedule) -> None:
    """Check that noise grows with time, from a level of 0 or more, finite before t_max, and that the map is invertible.

    Raises:
        InputError: if not.
    """
    first, last = process.t_min, process.t_max
    time = torch.linspace(first, last, 9, dtype=torch.float64)
    try:
        rho = process.inverse(time)
        again = (process(rho) - time).abs() <= SAME_TIME * abs(last - first)
        usable = first < last and bool(
            rho[:-1].isfinite().all() and ((rho >= 0) & again).all() and (rho.diff() > 0).all()
        )
    except (ArithmeticError, ValueError, RuntimeError):
        usable = False
    if not usable:
        raise InputError(
            f"checkpoint: {target} has noise levels that do not increase with time from t_min={first:g} to "
            f"t_max={last:g}; was it made by another version?"
        )


def _find(target: str, packages: tuple[str, ...]) -> type:
    if not _within(target, packages):
        raise InputError(
            f"checkpoint: its description names {printable(target):.200}, which is not part of scoreline; "
            f"if you know this code, pass trust=[{printable(target.partition('.')[0]):.60}]"
        )
    module_name, _, name = target.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module_name), name, None)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"checkpoint: {printable(f'{module_name:.200} cannot be imported: {error!s:.200}')}"
        ) from error
    kinds = (nn.Module, Parameterisation, Schedule)
    if isinstance(kind, type) and issubclass(kind, kinds) and kind.__module__ == module_name:
        return kind
    raise InputError(
        f"checkpoint: {printable(target):.200} is not a network, parameterisation or schedule defined there"
    )


def _within(target: str, packages: tuple[str, ...]) -> bool:
    module_name = target.rpartition(".")[0]
    return any(module_name == package or module_name.startswith(package + ".") for package in packages)
