"""The solvers and schedules of conf/ by name, built without Hydra."""

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from torch import Tensor

from scoreline.errors import InputError, did_you_mean
from scoreline.schedules.base import NoiseSchedule, Schedule
from scoreline.schedules.tabulated import Tabulated
from scoreline.solvers.adaptive import Adaptive
from scoreline.solvers.tableau import Solver
from scoreline.storage.config_files import conf_dir

PACKAGES = ("scoreline.solvers.", "scoreline.schedules.")
"""Where the classes and functions of a name come from."""

NATIVE, DEVIATION = "${model.noise_schedule}", "${sigma_data}"

MODEL = {NATIVE: "noise_schedule", DEVIATION: "sigma_data", "${digest}": "DIGEST", "???": "PATH"}
"""What a file takes from a model -> its name in Python; every other interpolation is the path of a record."""

NEEDED = {
    NATIVE: "the model's own time; pass noise_schedule=, such as scoreline.DiscreteVP()",
    DEVIATION: "the data's standard deviation; pass sigma_data=, such as 0.5 for most photographs",
}


class _PlainData(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """YAML's plain data, in which 1e-5 is a number, as it is to Hydra."""


_PlainData.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


class _Choice(NamedTuple):
    """A choice of a group, with the values that it reads of a model."""

    group: str
    name: str
    values: Mapping[str, Any]


def names(group: str) -> list[str]:
    """Return the choices of `solver` or `schedule` that read no file."""
    stems = sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
    return [name for name in stems if not _foreign(_described(group, name))]


def solver_named(
    name: str, noise_schedule: NoiseSchedule | None = None, sigma_data: float | None = None
) -> Solver | Adaptive:
    """Return the solver that conf/solver/NAME.yaml describes; `scoreline show solver` lists the names.

    Args:
        name: such as `dpmpp_2m` or `deis_tab3`.
        noise_schedule: the model's process, for methods that read its time.
        sigma_data: the data's standard deviation, for methods in velocity prediction.

    Raises:
        InputError: for an unknown name, for a solver that reads a record, and if a value that it reads is None.
    """
    solver: Solver | Adaptive = _object(_Choice("solver", name, {NATIVE: noise_schedule, DEVIATION: sigma_data}))
    return solver


def schedule_named(name: str, noise_schedule: NoiseSchedule | None = None) -> Schedule:
    """Return the schedule that conf/schedule/NAME.yaml describes; `scoreline show schedule` lists the names.

    Args:
        name: such as `karras` or `time_quadratic`.
        noise_schedule: the model's process, for schedules that read its time.

    Raises:
        InputError: for an unknown name, for a schedule that reads a file, and if a value that it reads is None.
    """
    schedule: Schedule = _object(_Choice("schedule", name, {NATIVE: noise_schedule}))
    return schedule


def schedule_from(
    value: str | Schedule | Sequence[float] | Tensor | Any, noise_schedule: NoiseSchedule | None = None
) -> Schedule:
    """Return the schedule that a value stands for: a name, noise levels in a list, tensor or array, or itself.

    Args:
        value: the schedule.
        noise_schedule: as in `schedule_named`.

    Raises:
        InputError: as `schedule_named` and `Tabulated`, and for a value of another kind.
    """
    if isinstance(value, Schedule):
        return value
    if isinstance(value, str):
        return schedule_named(value, noise_schedule)
    try:
        levels = tuple(map(float, value))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"schedule: {value!r:.60} is none; give a name such as 'karras', an object of scoreline.schedules, or a "
            "list of noise levels"
        ) from error
    return Tabulated(levels)


def _object(choice: _Choice) -> Any:
    node = _described(choice.group, choice.name)
    if _foreign(node):
        expression = _expression(node)
        digest = ", with the SHA-256 of the record's model as DIGEST" if "DIGEST" in expression else ""
        raise InputError(
            f"{choice.group}={choice.name!r}: it reads a file; pass its object instead: {expression}{digest}"
        )
    return _built(node, choice)


def _described(group: str, name: str) -> dict[str, Any]:
    """Return the plain data of a choice, on top of those of its group that it starts from."""
    files: dict[str, Path] = {path.stem: path for path in (conf_dir() / group).glob("*.yaml")}
    if name not in files:
        raise InputError(f"{group}={name!r}: no such name{did_you_mean(str(name), files)}")
    own = yaml.load(files[name].read_text(), _PlainData)
    result: dict[str, Any] = {}
    for base in own.pop("defaults", []):
        result = _merged(result, _described(group, base))
    return _merged(result, own)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {key: _merged(below[key], above[key]) for key in below.keys() & above.keys() if isinstance(above[key], dict)}
    return {**below, **above, **both}


def _foreign(node: Any) -> bool:
    """Return whether a node needs more than a model's process and deviation, or code of other rooms."""
    if isinstance(node, dict):
        outside = "_target_" in node and not node["_target_"].startswith(PACKAGES)
        return outside or any(map(_foreign, node.values()))
    return isinstance(node, str) and (node == "???" or (node.startswith("${") and node not in NEEDED))


def _built(node: Any, choice: _Choice) -> Any:
    """Build the object of a node. Which code runs is decided by the package's own files."""
    if isinstance(node, dict):
        module_name, _, name = node["_target_"].rpartition(".")
        arguments = {key: _built(value, choice) for key, value in node.items() if key != "_target_"}
        return getattr(import_module(module_name), name)(**arguments)
    if node not in NEEDED:
        return node
    if choice.values[node] is None:
        raise InputError(f"{choice.group}={choice.name!r} reads {NEEDED[node]}")
    return choice.values[node]


def _expression(node: Any) -> str:
    """Return the Python expression that builds the object of a node."""
    if isinstance(node, dict):
        arguments = ", ".join(f"{key}={_expression(value)}" for key, value in node.items() if key != "_target_")
        return f"{node['_target_']}({arguments})"
    if isinstance(node, str) and (node.startswith("${") or node in MODEL):
        return MODEL.get(node, "PATH")
    return repr(node)
