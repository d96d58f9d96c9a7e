"""Calibration records: measured tensors and their provenance, in one safetensors file."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from scoreline.errors import InputError
from scoreline.storage.files import order_metadata, write_atomically
from scoreline.storage.schemas import (
    MOST_NUMBERS,
    PLAIN,
    Anything,
    ListOf,
    Number,
    Object,
    Rule,
    Text,
    Values,
    check_tensors,
    excerpt,
    parse_entries,
)
from scoreline.storage.tensor_files import Header, read_header, read_tensors

FORMAT = "scoreline/record/1"

NAME = Text(r"\w[\w.+-]*(/\w[\w.+-]*)*", "a plain name")
"""The name of a solver or a schedule."""

PAIR = ListOf(NAME, 2, 2)
SPAN = ListOf(Number(0, 1e30), 2, 2)
PROVENANCE: dict[str, Rule] = {
    "search": Object({"candidates": ListOf(ListOf(ListOf(PAIR, 1), 1), 1), "span": SPAN}, Anything()),
    "tableau": Object(others=Anything(), optional={"starts": ListOf(PAIR, 1), "guidance": Text()}),
}
"""Keys of a record's provenance that readers rely on, beside `checkpoint`; others are only shown."""

RISING = Values(("K",), 0, above=True, order=1)
MAP = replace(RISING, fewest=2)
MEASURED = Values(("K",), 0, above=True)
ERROR = Values(("K",), 0, unknown=True, optional=True)
BUDGETS = Values(("B",), 1, whole=True)
HELD_OUT = Values(("B",), unknown=True, optional=True)
BY_CHANNEL = Values(("K", "C"), 0, unknown=True, optional=True)
BY_PASS = Values(("P",), 0, unknown=True, fewest=0, optional=True)
FINALISTS = Values(("B", "F"), 0, unknown=True, optional=True)
PAIRS = Values(("J", "K"), 0, unknown=True)

RECORDS: dict[str, dict[str, Values]] = {
    "score_norm": {
        "rho": MAP,
        "mean_abs_eps": MEASURED,
        "standard_error": ERROR,
        "mean_abs_eps_by_channel": BY_CHANNEL,
        "standard_error_by_channel": BY_CHANNEL,
        "second_moments": Values(("K", 3), optional=True),
        "second_moments_covariance": Values(("K", 3, 3), optional=True),
    },
    "score_optimal": {
        "rho": MAP,
        "length": Values(("K",), order=1),
        "standard_error": ERROR,
        "cost": Values(("K-1",), 0, unknown=True, optional=True),
        "spread": BY_PASS,
        "lowest": BY_PASS,
        "change": Values(("Q",), 0, unknown=True, fewest=0, optional=True),
    },
    "search": {
        "budgets": BUDGETS,
        "mean": FINALISTS,
        "standard_error": FINALISTS,
    },
    "tableau": {
        "budgets": BUDGETS,
        "start": HELD_OUT,
        "start_error": HELD_OUT,
        "learned": HELD_OUT,
        "learned_error": HELD_OUT,
        "ratio_of_medians": HELD_OUT,
    },
    "target_variance": {
        "rho": RISING,
        "references": Values(("J",), 1, whole=True, order=1),
        "effective_size": Values(("K",), 0, unknown=True),
        "effective_size_error": ERROR,
        "dsm": Values(("K",), 0, unknown=True),
        "dsm_error": Values(("K",), 0, unknown=True),
        "stf": PAIRS,
        "stf_error": PAIRS,
        "ratio": PAIRS,
        "ratio_error": PAIRS,
        "limit": Values(("J",), 0, unknown=True, optional=True),
    },
}
"""Tensors of each kind of record; those of a tableau's budgets come from `_tables_of`."""

LARGEST_BUDGET = 4096
"""Largest NFE of a learned tableau."""


def _tables_of(budgets: Tensor) -> dict[str, Values]:
    """Return the rules for the tensors of a tableau record's budgets: levels and lower triangular weights.

    Of a later date are the levels that the network is given, the deviation of the frame of velocity prediction, and
    the level of a first step without a call.

    Raises:
        ValueError: for budgets that repeat, or are too large.
    """
    BUDGETS.check_values("budgets", budgets)
    counts = budgets.tolist()
    if len(set(counts)) < len(counts) or max(counts) > LARGEST_BUDGET:
        raise ValueError(f"tensor budgets is {excerpt(counts)}, not different numbers from 1 to {LARGEST_BUDGET}")
    levels = {f"rho_{n}": Values((n + 1,), 0, order=-1) for n in counts}
    weights = {f"N_{n}": Values((n, n), triangular=True) for n in counts}
    query = {f"query_{n}": Values((n,), 0, above=True, optional=True) for n in counts}
    frame = {f"sigma_data_{n}": Values((1,), 0, above=True, optional=True) for n in counts}
    start = {f"start_{n}": Values((1,), 0, above=True, optional=True) for n in counts}
    return levels | weights | query | frame | start


@dataclass(frozen=True)
class Record:
    """Measured tensors and their provenance, bound to a checkpoint by its digest.

    Every calibration returns one. Use it to read the numbers and the errors that `load_scale`, `load_schedule`,
    `load_learned` and `load_recommendation` turn into parts of a sampler.

    Attributes:
        kind: the calibration, such as `score_norm`.
        values: named float64 tensors.
        provenance: digest of the checkpoint, sampler, NFE, seeds, count, estimator, code version.
    """

    kind: str
    values: dict[str, Tensor]
    provenance: dict[str, Any]

    def save(self, path: str | Path) -> None:
        """Write one safetensors file whose metadata is the provenance, atomically; equal records make equal bytes."""
        from safetensors.torch import save_file

        metadata = {"format": FORMAT, "kind": self.kind, "provenance": json.dumps(self.provenance, sort_keys=True)}
        tensors = {name: value.contiguous() for name, value in self.values.items()}

        def write(temporary: Path) -> None:
            save_file(tensors, temporary, metadata)
            order_metadata(temporary)

        write_atomically(Path(path), write)


def load_record(path: str | Path, kind: str, checkpoint: str, key: str = "record") -> Record:
    """Load a record of the given kind for the checkpoint with that SHA-256.

    Use it to look at a measurement in your own code. Names, types, shapes and values of its tensors are checked against
    `RECORDS`, its provenance against `PROVENANCE`.

    Args:
        path: the file.
        kind: one of `RECORDS`, or a kind of your own.
        checkpoint: SHA-256 of the model that it must belong to.
        key: the config key of the file, for messages.

    Raises:
        InputError: if the file is missing, of another kind or damaged, or belongs to another checkpoint; the message
            gives the command that makes the right one.
    """
    return read_record(path, (kind,), str(checkpoint), key)  # a null of a config is no digest


def read_record(path: str | Path, kinds: Sequence[str], checkpoint: str | None, key: str = "record") -> Record:
    """Load a record of one of these kinds, as `load_record`, for any model if `checkpoint` is None.

    Raises:
        InputError: as `load_record`.
    """
    remedy = f"make one with: python calibrate.py calibration={kinds[0]} checkpoint=..."
    if not isinstance(path, str | Path) or not os.path.isfile(path):
        raise InputError(f"{key}={path}: no such record; {remedy}")
    path = Path(path)
    header = read_header(path, f"{key}={path}", remedy)
    kind = header.metadata.get("kind", "")
    if header.metadata.get("format") != FORMAT or kind not in kinds:
        raise header.refuse(f"holds {excerpt(kind)}, not {' or '.join(map(repr, kinds))}")
    try:
        provenance = read_provenance(header, PROVENANCE.get(kind, PLAIN))
        if checkpoint is not None:
            _check_checkpoint(provenance, checkpoint)
        return Record(kind, _checked_values(header, kind), provenance)
    except InputError:
        raise
    except ValueError as error:
        raise header.refuse(error) from error


def _check_checkpoint(provenance: dict[str, Any], checkpoint: str) -> None:
    made_for = provenance.get("checkpoint")
    if made_for is None:
        raise ValueError(f"bound to no checkpoint, this one is {checkpoint[:12]}")
    if made_for != checkpoint:
        raise ValueError(f"made for checkpoint {str(made_for)[:12]}, this one is {checkpoint[:12]}")


def read_provenance(header: Header, rule: Rule = PLAIN) -> dict[str, Any]:
    """Read the provenance of a record of any kind.

    Raises:
        ValueError: in one line, if it is missing or against the rule.
    """
    provenance: dict[str, Any] = parse_entries(header.metadata, {"provenance": rule}, ("format", "kind"))["provenance"]
    return provenance


def read_values(header: Header) -> dict[str, Tensor]:
    """Read the tensors of a record of any kind.

    Raises:
        ValueError: in one line, if they are too large.
    """
    if sum(map(math.prod, header.shapes.values())) > 2 * MOST_NUMBERS:
        raise ValueError(f"it holds more than {2 * MOST_NUMBERS:,} numbers")
    return read_tensors(header)


def _checked_values(header: Header, kind: str) -> dict[str, Tensor]:
    """Read the tensors of a record and check them against `RECORDS`; a kind that is not there may have any."""
    if kind not in RECORDS:
        return read_values(header)
    rules = RECORDS[kind] | (_tables(header) if kind == "tableau" else {})
    check_tensors(rules, header.shapes, header.types)
    values = read_values(header)
    for name, value in values.items():
        rules[name].check_values(name, value)
    return values


def _tables(header: Header) -> dict[str, Values]:
    """Return the rules for the tensors of a tableau's budgets."""
    budgets = {"budgets": BUDGETS}
    only = header._replace(shapes={name: shape for name, shape in header.shapes.items() if name in budgets})
    check_tensors(budgets, only.shapes, only.types)
    return _tables_of(read_tensors(only)["budgets"])
