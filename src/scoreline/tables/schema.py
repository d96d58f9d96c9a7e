"""The schema of conf/table/NAME.yaml: the rows, columns and published figures of a table, checked key by key."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from scoreline.errors import InputError, did_you_mean
from scoreline.values import count_seeds, is_number, is_whole, overlap, seed_ranges

STATUSES = ("verified", "second-hand", "unverified")
"""How far a published figure was checked: in the paper itself, in a work that quotes it, or not yet."""

PAPER = "paper"
"""The budget whose number of images is the paper's."""


@dataclass(frozen=True)
class Published:
    """A figure that a paper prints, with its source and the status of that claim, one of `STATUSES`.

    It is the minimum of `minimum_of` seed ranges, as EDM's protocol has it; of one where the paper says nothing.
    """

    value: float
    error: float | None
    status: str
    source: str
    minimum_of: int = 1


@dataclass(frozen=True)
class Column:
    """One column: its heading, and what it adds to the command of every row."""

    name: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One row: its overrides, and by column name the published figures and the reasons why a cell cannot run."""

    name: str
    overrides: tuple[str, ...]
    published: Mapping[str, Published] = field(default_factory=dict)
    cannot: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Command:
    """A command to run unless its product, the path `makes`, exists."""

    run: str
    makes: str


@dataclass(frozen=True)
class Paper:
    """The place of the published figures, and the protocol that ours need before they are compared.

    `metric` defaults to the table's, `images` to the length of a seed range of the budget `paper`; a `dataset` is
    compared with the reference set that the metric names. `minimum_of` is the largest of its figures'.
    """

    authors: str
    year: int
    arxiv: str
    where: str
    metric: str
    images: int | None
    dataset: str | None
    minimum_of: int = 1

    def citation(self) -> str:
        """Return `Zhang & Chen (2023), arXiv:2204.13902, Table 2`."""
        parts = [f"{self.authors} ({self.year})", f"arXiv:{self.arxiv}" if self.arxiv else "", self.where]
        return ", ".join(filter(None, parts))


@dataclass(frozen=True)
class Table:
    """A table of a paper; `budgets` are the seed ranges by name, and a cell runs once for each range."""

    name: str
    title: str
    metric: str
    label: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    budgets: Mapping[str, tuple[str, ...]]
    base: tuple[str, ...]
    prepare: tuple[Command, ...]
    needs: tuple[str, ...]
    note: str
    paper: Paper | None

    def ranges(self, budget: str) -> tuple[str, ...]:
        """Return the seed ranges of a budget.

        Raises:
            InputError: if the table has no such budget.
        """
        if budget not in self.budgets:
            raise InputError(
                f"budget={budget}: table={self.name} has no such budget{did_you_mean(budget, self.budgets)}"
            )
        return self.budgets[budget]


KEYS = dict.fromkeys(("title", "metric", "columns", "rows", "budgets"), True) | dict.fromkeys(
    ("paper", "note", "needs", "prepare", "base"), False
)
"""Keys of a file, and whether they are required."""

Node = Mapping[str, Any]


def parse(name: str, data: object) -> Table:
    """Build a table from the plain content of its file.

    Raises:
        InputError: one sentence that names the first key that is unknown, missing or of a wrong value.
    """
    where = f"table={name}"
    node = _mapping(where, data, KEYS)
    budgets = {key: _ranges(f"{where}: budgets.{key}", value) for key, value in _any(where, node, "budgets").items()}
    if not budgets:
        _refuse(where, "budgets: is empty; give seed ranges for smoke, small or paper")
    label, columns = _columns(f"{where}: columns", node["columns"])
    names = [column.name for column in columns]
    metric = _word(where, node, "metric")
    images = count_seeds(budgets[PAPER][0]) if PAPER in budgets else None
    paper = _paper(f"{where}: paper", node["paper"], metric, images) if node.get("paper") is not None else None
    least = paper.minimum_of if paper else 1
    rows = tuple(_row(f"{where}: rows[{k}]", it, names, least) for k, it in enumerate(_list(where, node, "rows")))
    if paper is not None:
        all_figures = [figure.minimum_of for row in rows for figure in row.published.values()]
        paper = replace(paper, minimum_of=max([least, *all_figures]))
    _unique(f"{where}: rows", [row.name for row in rows])
    if paper is None and any(row.published for row in rows):
        _refuse(where, "the key paper is missing; published figures need to say where they stand")
    prepared = enumerate(_list(where, node, "prepare", least=0))
    return Table(
        name,
        _word(where, node, "title"),
        metric,
        label,
        columns,
        rows,
        budgets,
        _overrides(where, node, "base"),
        tuple(_command(f"{where}: prepare[{k}]", value) for k, value in prepared),
        tuple(_words(where, node, "needs")),
        _word(where, node, "note", ""),
        paper,
    )


def _refuse(where: str, sentence: str) -> NoReturn:
    raise InputError(f"{where}: {sentence}")


def _mapping(where: str, data: object, keys: Mapping[str, bool]) -> Node:
    if not isinstance(data, Mapping):
        _refuse(where, f"must be a mapping with the keys {', '.join(keys)}, is {_shown(data)}")
    for key in data:
        if key not in keys:
            _refuse(where, f"{key}: there is no such key{did_you_mean(str(key), keys)}")
    for key, needed in keys.items():
        if needed and data.get(key) is None:
            _refuse(where, f"the key {key} is missing")
    return data


def _shown(value: object) -> str:
    return f"{value!r:.60}"


def _any(where: str, node: Node, key: str) -> dict[str, Any]:
    """Return a mapping whose keys are names of the author's."""
    mapping = node.get(key) or {}
    if not isinstance(mapping, Mapping):
        _refuse(where, f"{key}: must be a mapping, is {_shown(mapping)}")
    return {str(name): value for name, value in mapping.items()}


def _list(where: str, node: Node, key: str, least: int = 1) -> list[Any]:
    values = node.get(key)
    values = [] if values is None else values
    if not isinstance(values, Sequence) or isinstance(values, str):
        _refuse(where, f"{key}: must be a list, is {_shown(values)}")
    if len(values) < least:
        _refuse(where, f"{key}: is an empty list; give at least {least}")
    return list(values)


def _word(where: str, node: Node, key: str, default: str | None = None) -> str:
    value = node.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, str) or not value.strip():
        _refuse(where, f"{key}: must be a text, is {_shown(value)}")
    return " ".join(value.split())


def _words(where: str, node: Node, key: str) -> list[str]:
    words = _list(where, node, key, least=0)
    for value in words:
        if not isinstance(value, str):
            _refuse(where, f"{key}: holds {_shown(value)}; put it in quotes, so that it is a text")
    return [" ".join(value.split()) for value in words]


def _overrides(where: str, node: Node, key: str = "overrides") -> tuple[str, ...]:
    words = _words(where, node, key)
    for word in words:
        if not re.match(r"[+~]{0,2}[\w./@]+=", word):
            _refuse(where, f"{key}: {_shown(word)} is not of the form key=value")
        if word.partition("=")[0].lstrip("+~") in ("seeds", "table", "budget") or word.startswith("hydra."):
            _refuse(where, f"{key}: {_shown(word)} is not for a cell to choose; seeds belong into budgets")
    return tuple(words)


def number(where: str, key: str, value: object) -> float:
    """Check a number of a file; the message for a text says how to write a number.

    Raises:
        InputError: if it is none, or is not finite.
    """
    if not is_number(value) or not abs(value) < float("inf"):
        hint = "; write it without quotes, 1e-3 as 1.0e-3" if isinstance(value, str) else ""
        _refuse(where, f"{key}: must be a finite number, is {_shown(value)}{hint}")
    return float(value)


def _ranges(where: str, value: object) -> tuple[str, ...]:
    node = _mapping(where, value, {"ranges": True})
    ranges = [
        str(one) if isinstance(one, int) and not isinstance(one, bool) else one for one in _list(where, node, "ranges")
    ]
    seeds: list[tuple[int, int]] = []
    for one in ranges:
        if not isinstance(one, str):
            _refuse(where, f"ranges: holds {_shown(one)}; write a range as 0-999, in quotes")
        try:
            spans = seed_ranges(one)
        except InputError as error:
            raise InputError(f"{where}: {str(error).replace('seeds=', 'ranges: ', 1)}") from error
        if overlap(spans):
            _refuse(where, f"ranges: {one}: a seed occurs twice; every image needs its own")
        if overlap([*seeds, *spans]):
            _refuse(where, f"ranges: {one} shares seeds with an earlier range; only disjoint ranges have a spread")
        seeds += spans
    return tuple(ranges)


def _columns(where: str, value: object) -> tuple[str, tuple[Column, ...]]:
    node = _mapping(where, value, {"label": True, "values": True, "key": False})
    key = _word(where, node, "key") if node.get("key") is not None else None
    columns = tuple(_column(f"{where}.values[{k}]", it, key) for k, it in enumerate(_list(where, node, "values")))
    _unique(f"{where}.values", [column.name for column in columns])
    return _word(where, node, "label"), columns


def _column(where: str, value: object, key: str | None) -> Column:
    if isinstance(value, Mapping):
        node = _mapping(where, value, {"name": True, "overrides": True})
        return Column(_name(where, node["name"]), _overrides(where, node))
    if key is None:
        _refuse(where, f"is {_shown(value)}; give columns.key, or a mapping with the keys name and overrides")
    return Column(_name(where, value), (f"{key}={_name(where, value)}",))


def _name(where: str, value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float | str) or not str(value).strip():
        _refuse(where, f"a name must be a text or a number, is {_shown(value)}")
    return str(value).strip()


def _row(where: str, value: object, columns: Sequence[str], minimum_of: int) -> Row:
    node = _mapping(where, value, {"name": True, "overrides": True, "published": False, "cannot": False})
    name = _name(where, node["name"])
    where = f"{where} ({name})"
    published, cannot = _any(where, node, "published"), _any(where, node, "cannot")
    for key, places in (("published", published), ("cannot", cannot)):
        for column in places:
            if column not in columns:
                _refuse(where, f"{key}: {column}: there is no such column{did_you_mean(column, columns)}")
    figures = {
        column: _published(f"{where}: published.{column}", it, minimum_of)
        for column, it in published.items()
        if it is not None
    }
    return Row(
        name,
        _overrides(where, node),
        figures,
        {column: _word(f"{where}: cannot", cannot, column) for column in cannot},
    )


def _published(where: str, value: object, minimum_of: int) -> Published:
    needed = dict.fromkeys(("value", "status", "source"), True)
    node = _mapping(where, value, needed | {"error": False, "minimum_of": False})
    status = _word(where, node, "status")
    if status not in STATUSES:
        _refuse(where, f"status={status}: there is no such status{did_you_mean(status, STATUSES)}")
    error = None if node.get("error") is None else number(where, "error", node["error"])
    return Published(
        number(where, "value", node["value"]),
        error,
        status,
        _word(where, node, "source"),
        _minimum_of(where, node, minimum_of),
    )


def _minimum_of(where: str, node: Node, default: int = 1) -> int:
    """Return the number of seed ranges of whose figures a paper prints the minimum."""
    value = node.get("minimum_of")
    if value is None:
        return default
    if not is_whole(value, 1):
        _refuse(where, f"minimum_of: must be a whole number of seed ranges from 1 on, is {_shown(value)}")
    return int(value)


def _command(where: str, value: object) -> Command:
    node = _mapping(where, value, {"run": True, "makes": True})
    return Command(_word(where, node, "run"), _word(where, node, "makes"))


def _paper(where: str, value: object, metric: str, images: int | None) -> Paper:
    keys = {"authors": True, "year": True, "arxiv": False, "where": True}
    node = _mapping(where, value, keys | dict.fromkeys(("metric", "images", "dataset", "minimum_of"), False))
    year, number_of_images = node["year"], node.get("images", images)
    for key, whole in (("year", year), ("images", number_of_images)):
        if isinstance(whole, bool) or not isinstance(whole, int | None):
            _refuse(where, f"{key}: must be a whole number, is {_shown(whole)}")
    arxiv = node.get("arxiv")
    if arxiv is not None and not isinstance(arxiv, str):
        _refuse(where, f"arxiv: must be a text, is {_shown(arxiv)}; put it in quotes")
    return Paper(
        _word(where, node, "authors"),
        year,
        arxiv or "",
        _word(where, node, "where"),
        _word(where, node, "metric", metric),
        number_of_images,
        _word(where, node, "dataset") if node.get("dataset") is not None else None,
        _minimum_of(where, node),
    )


def _unique(where: str, names: Collection[str]) -> None:
    for name, times in Counter(names).items():
        if times > 1:
            _refuse(where, f"'{name}' occurs twice; give each its own name")
