"""Objects rebuilt from the description inside a file, without letting the file choose what code runs."""

import importlib
from collections.abc import Sequence
from typing import Any

from torch import nn

from scoreline.errors import InputError
from scoreline.parameterisations import Parameterisation
from scoreline.schedules.base import Schedule

Spec = dict[str, Any]
"""{"_target_": "package.module.Class", argument: number | string | list | Spec}."""

PACKAGES = ("scoreline.networks", "scoreline.parameterisations", "scoreline.schedules")


def rebuild(spec: Spec, kind: type, trust: Sequence[str] = ()) -> Any:
    """The object a description stands for.

    Only classes are called, and only networks, parameterisations and schedules that are defined in scoreline itself
    or in a package named in `trust`; arguments are plain values or descriptions of such objects.

    Args:
        kind: class that the object must be an instance of.
        trust: further package names from which classes may be taken, given by the user, never by the file.

    Raises:
        InputError: naming the class that was refused, or an argument that its constructor refuses.
    """
    target = spec.get("_target_")
    if not isinstance(target, str):
        raise InputError(f"checkpoint: a description without a class: {spec!r:.80}")
    found = _find(target, (*PACKAGES, *trust))
    if not issubclass(found, kind):
        raise InputError(f"checkpoint: {target} is no {kind.__name__}")
    arguments = {name: _argument(name, value, trust) for name, value in spec.items() if name != "_target_"}
    try:
        return found(**arguments)
    except TypeError as error:
        raise InputError(
            f"checkpoint: {target} refuses its arguments: {error}; was it made by another version?"
        ) from error


def _argument(name: str, value: Any, trust: Sequence[str]) -> Any:
    if isinstance(value, dict):
        return rebuild(value, object, trust)
    plain = all(isinstance(part, str | int | float | None) for part in (value if isinstance(value, list) else [value]))
    if not plain or name.startswith("_") or "${" in str(value):
        raise InputError(f"checkpoint: its description holds {name}={value!r:.60}, which is no plain value")
    return value


def _find(target: str, packages: tuple[str, ...]) -> type:
    module_name, _, name = target.rpartition(".")
    if not any(module_name == package or module_name.startswith(package + ".") for package in packages):
        raise InputError(
            f"checkpoint: its description names {target}, which is not part of scoreline; "
            f"if you know this code, pass trust=[{target.partition('.')[0]}]"
        )
    try:
        found = getattr(importlib.import_module(module_name), name, None)
    except ImportError as error:
        raise InputError(f"checkpoint: {module_name} cannot be imported: {error}") from error
    kinds = (nn.Module, Parameterisation, Schedule)
    if isinstance(found, type) and issubclass(found, kinds) and found.__module__ == module_name:
        return found
    raise InputError(f"checkpoint: {target} is no network, parameterisation or schedule defined there")
