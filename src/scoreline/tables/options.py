"""The options in which runs of sample.py differ, besides their seeds, and how a row's name tells them."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scoreline.run_names import NEVER, WITHOUT
from scoreline.run_results import Result

Options = dict[str, Any]
"""Leaves of a config by their dotted names."""

OTHERWISE_TOLD = frozenset(
    {
        *NEVER,
        *WITHOUT["sample"],
        *("seeds", "nfe"),
        *("checkpoint", "model", "import", "trust"),
        *("metrics", "record"),
        *("format", "trajectories", "trajectory_nfe"),
    }
)
"""Keys of a config that are no options of a row: those that cannot change a result; seeds and nfe; the checkpoint and
what follows from it, told by its digest; metrics, told by their protocol; the record, which stands again where it is
read; and in which files the images are."""

QUIET = ("_partial_", "_convert_", "_recursive_", "trust")
LONGEST = 40


def of_config(config: Mapping[str, Any], result: Result) -> Options:
    """The options of a run.

    Those of a solver and schedule that the file of `solver=auto` recommended follow from it and are no options. Nor is
    the model's noise schedule where a solver or schedule holds it.
    """
    left_out = OTHERWISE_TOLD | ({"solver", "schedule"} if "recommended" in result else set())
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
    """Numbers alike however they were written."""
    if isinstance(value, list):
        return [_plain(it) for it in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def key(options: Options) -> str:
    """The options as text, equal for equal ones; the checkpoint's path is none of them, its digest is compared."""
    return json.dumps({name: it for name, it in options.items() if name != "checkpoint"}, sort_keys=True, default=str)


def varied(rows: Sequence[tuple[Options, Result]]) -> list[Options]:
    """Of each row the options in which rows differ.

    Those of a solver, schedule, guidance or threshold are compared among the rows that chose the same one, and the
    choice of guidance and threshold is an option itself: of unequal solvers and schedules the names are enough.
    """
    chosen = [{**_choices(result), **_with_checkpoint(options, result, rows)} for options, result in rows]
    found: list[Options] = [{} for _ in rows]
    for name in sorted(dict.fromkeys(name for options in chosen for name in options), key=_rank):
        for places in _comparable(name, rows):
            if len({_text(chosen[k].get(name, _ABSENT)) for k in places}) > 1:
                for k in places:
                    found[k] |= {name: chosen[k][name]} if name in chosen[k] else {}
    return found


_ABSENT = object()


def _rank(name: str) -> int:
    """Options of a solver come first, then those of a schedule, beside whose names they stand."""
    group = name.partition(".")[0]
    return ("solver", "schedule").index(group) if group in ("solver", "schedule") else 2


def _text(value: object) -> str:
    return "" if value is _ABSENT else json.dumps(value, sort_keys=True, default=str)


def _choices(result: Result) -> Options:
    """`{"guidance": "classifier_free"}`; the bare name of a group is no leaf of a config."""
    return {group: _choice(result, group) for group in ("guidance", "threshold") if group in result}


def _choice(result: Result, group: str) -> str:
    return str(result.get(group, "")).partition("(")[0]


def _comparable(name: str, rows: Sequence[tuple[Options, Result]]) -> list[list[int]]:
    """Places of the rows between which an option can be compared."""
    group = name.partition(".")[0] if "." in name else ""
    told = group if group in ("solver", "schedule", "guidance", "threshold") else ""
    places: dict[str, list[int]] = {}
    for k, (_, result) in enumerate(rows):
        places.setdefault(_choice(result, told) if told else "", []).append(k)
    return list(places.values())


def _with_checkpoint(options: Options, result: Result, rows: Sequence[tuple[Options, Result]]) -> Options:
    """The checkpoint as it was given first, with its digest where another one was given by the same name."""
    digest = result["checkpoint"]["sha256"]
    names: dict[str, Any] = {}
    for other, its in rows:
        names.setdefault(its["checkpoint"]["sha256"], other.get("checkpoint"))
    name = names[digest]
    twice = list(names.values()).count(name) > 1
    return {**options, "checkpoint": f"{name}@{digest[:8]}" if twice else name}


def told(rows: Sequence[Options]) -> list[str]:
    """`, schedule.power=5`: of each row its options, numbers with as many digits as tell them apart."""
    return ["".join(f", {name}={_shown(value, name, rows)}" for name, value in row.items()) for row in rows]


def _shown(value: Any, name: str, rows: Sequence[Options]) -> str:
    others = [row[name] for row in rows if name in row]
    few = len({_printed(it, short=True) for it in others}) == len({_text(it) for it in others})
    return _printed(value, short=few)


def _printed(value: Any, short: bool) -> str:
    """A number with four digits, or whole."""
    if isinstance(value, float) and short:
        return f"{value:.4g}"
    shown = value if isinstance(value, str) else json.dumps(value, default=str)
    shown = shown if shown.isprintable() else ascii(shown)
    return shown if len(shown) <= LONGEST else f"..{shown[-LONGEST:]}-{hashlib.sha256(shown.encode()).hexdigest()[:8]}"
