"""The options in which runs of sample.py differ besides their seeds, which name the rows of a sweep."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scoreline.config.run_names import NEVER, WITHOUT
from scoreline.generation.run_results import Result

Options = dict[str, Any]
"""Leaves of a config by their dotted names."""

ELSEWHERE = frozenset(
    {
        *NEVER,
        *WITHOUT["sample"],
        *("seeds", "nfe"),
        *("checkpoint", "model", "import", "trust"),
        *("metrics", "record", "sigma_data"),
        *("format", "trajectories", "trajectory_nfe"),
    }
)
"""Keys of a config that are no options of a row: those that cannot change a result; seeds and nfe; the checkpoint,
which its digest names; metrics, which their protocol names; the record and sigma_data, which stand again where they are
read; and the format of the images."""

QUIET = ("_partial_", "_convert_", "_recursive_", "trust")
LONGEST = 40


def of_config(config: Mapping[str, Any], result: Result) -> Options:
    """Return the options of a run, from its config.

    The options of a solver and schedule that `solver=auto` chose follow from its record and are left out. So is the
    model's noise schedule where a solver or schedule holds it.
    """
    left_out = ELSEWHERE | ({"solver", "schedule"} if "recommended" in result else set())
    model = config.get("model")
    native = model.get("noise_schedule") if isinstance(model, Mapping) else None
    kept = {key: value for key, value in config.items() if key not in left_out}
    return {**dict(_leaves(kept, "", native)), "checkpoint": config.get("checkpoint")}


def _leaves(node: Mapping[str, Any], prefix: str, native: object) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if str(key) in QUIET or (value is not None and value == native):
            continue
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.", native)
        else:
            yield f"{prefix}{key}", _plain(value)


def _plain(value: Any) -> Any:
    """Write equal numbers alike: 2.0 as 2."""
    if isinstance(value, list):
        return [_plain(it) for it in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def key(options: Options) -> str:
    """Return a text that is equal for equal options; the digest of the checkpoint counts, not its path."""
    return json.dumps({name: it for name, it in options.items() if name != "checkpoint"}, sort_keys=True, default=str)


def varied_options(rows: Sequence[tuple[Options, Result]]) -> list[Options]:
    """Return the options of each row in which rows differ.

    The options of a solver, schedule, guidance or threshold are compared among the rows that chose the same one. The
    choice of guidance and threshold is an option too; solvers and schedules stand in the name of the row anyway.
    """
    whole = [{**_choices(result), **_with_checkpoint(options, result, rows)} for options, result in rows]
    varying: list[Options] = [{} for _ in rows]
    for name in sorted(dict.fromkeys(name for options in whole for name in options), key=_rank):
        for places in _comparable(name, rows):
            if len({_text(whole[k].get(name, _ABSENT)) for k in places}) > 1:
                for k in places:
                    varying[k] |= {name: whole[k][name]} if name in whole[k] else {}
    return varying


_ABSENT = object()


def _rank(name: str) -> int:
    """Return the rank of an option: those of a solver come first, then those of a schedule, as in names of rows."""
    group = name.partition(".")[0]
    return ("solver", "schedule").index(group) if group in ("solver", "schedule") else 2


def _text(value: object) -> str:
    return "" if value is _ABSENT else json.dumps(value, sort_keys=True, default=str)


def _choices(result: Result) -> Options:
    """Return `{"guidance": "classifier_free"}`; the bare name of a group is no leaf of a config."""
    return {group: _choice(result, group) for group in ("guidance", "threshold") if group in result}


def _choice(result: Result, group: str) -> str:
    return str(result.get(group, "")).partition("(")[0]


def _comparable(name: str, rows: Sequence[tuple[Options, Result]]) -> list[list[int]]:
    """Return groups of rows, as their places, in each of which an option can be compared."""
    group = name.partition(".")[0] if "." in name else ""
    by_choice = group in ("solver", "schedule", "guidance", "threshold")
    places: dict[str, list[int]] = {}
    for k, (_, result) in enumerate(rows):
        places.setdefault(_choice(result, group) if by_choice else "", []).append(k)
    return list(places.values())


def _with_checkpoint(options: Options, result: Result, rows: Sequence[tuple[Options, Result]]) -> Options:
    """Name the checkpoint as its first row does, with its digest where another one has the same name."""
    digest = result["checkpoint"]["sha256"]
    names: dict[str, Any] = {}
    for other, its in rows:
        names.setdefault(its["checkpoint"]["sha256"], other.get("checkpoint"))
    name = names[digest]
    twice = list(names.values()).count(name) > 1
    return {**options, "checkpoint": f"{name}@{digest[:8]}" if twice else name}


def suffixes(rows: Sequence[Options]) -> list[str]:
    """Return the options of each row as text, `, schedule.power=5`, with as many digits as tell numbers apart."""
    return ["".join(f", {name}={_shown(value, name, rows)}" for name, value in row.items()) for row in rows]


def _shown(value: Any, name: str, rows: Sequence[Options]) -> str:
    others = [row[name] for row in rows if name in row]
    few = len({_printed(it, short=True) for it in others}) == len({_text(it) for it in others})
    return _printed(value, short=few)


def _printed(value: Any, short: bool) -> str:
    """Return a number with four digits, or whole."""
    if isinstance(value, float) and short:
        return f"{value:.4g}"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= LONGEST else f"..{text[-LONGEST:]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
