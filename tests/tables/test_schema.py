"""Files of conf/table: each mistake is one sentence that names its key."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from scoreline.errors import InputError
from scoreline.tables.plan import make_plan, refuse_varied, safe
from scoreline.tables.schema import Column, Command, Published, parse

CONF = Path(__file__).parents[2] / "conf" / "table"

GOOD: dict[str, Any] = {
    "title": "DEIS on CIFAR-10",
    "paper": {"authors": "Zhang & Chen", "year": 2023, "arxiv": "2204.13902", "where": "Table 2"},
    "metric": "fid",
    "note": "two\nlines",
    "needs": ["the checkpoint"],
    "prepare": [{"run": "train.py experiment=digits_edm", "makes": "models/a"}],
    "base": ["checkpoint=models/a", "+solver.order=2"],
    "budgets": {"smoke": {"ranges": ["0-15"]}, "paper": {"ranges": ["0-49999", "50000-99999"]}},
    "columns": {"label": "NFE", "key": "nfe", "values": [5, {"name": "10", "overrides": ["nfe=10", "final=denoise"]}]},
    "rows": [
        {
            "name": "DEIS-tAB3",
            "overrides": ["solver=deis_tab3"],
            "published": {"10": {"value": 4.17, "error": None, "status": "verified", "source": "Table 2"}},
            "cannot": {5: "needs an even NFE"},
        },
        {"name": "DDIM", "overrides": []},
    ],
}


def test_a_whole_file() -> None:
    table = parse("deis", GOOD)
    assert table.columns == (Column("5", ("nfe=5",)), Column("10", ("nfe=10", "final=denoise")))
    assert table.rows[0].published == {"10": Published(4.17, None, "verified", "Table 2")}
    assert table.rows[0].cannot == {"5": "needs an even NFE"}
    assert table.ranges("paper") == ("0-49999", "50000-99999")
    assert table.prepare == (Command("train.py experiment=digits_edm", "models/a"),)
    assert (table.note, table.needs) == ("two lines", ("the checkpoint",))
    assert table.paper is not None
    assert (table.paper.images, table.paper.metric, table.paper.dataset) == (50000, "fid", None)
    assert table.paper.citation() == "Zhang & Chen (2023), arXiv:2204.13902, Table 2"
    with pytest.raises(InputError, match=r"budget=papr: table=deis has no such budget; did you mean 'paper'\?"):
        table.ranges("papr")


def with_change(path: str, value: Any) -> dict[str, Any]:
    """GOOD with `a.b.0` set; a value `...` deletes the key."""
    data = copy.deepcopy(GOOD)
    node: Any = data
    *folders, last = path.split(".")
    for part in folders:
        node = node[int(part) if isinstance(node, list) else part]
    if value is ...:
        del node[last]
    else:
        node[int(last) if isinstance(node, list) else last] = value
    return data


MISTAKES = [
    ("metrik", "fid", "metrik: there is no such key; did you mean 'metric'?"),
    ("metric", ..., "the key metric is missing"),
    ("paper", ..., "the key paper is missing; published figures need to say where they stand"),
    ("title", 3, "title: must be a text, is 3"),
    ("needs", "a checkpoint", "needs: must be a list, is 'a checkpoint'"),
    ("needs", [{"the file": "x"}], "needs: holds {'the file': 'x'}; put it in quotes"),
    ("base", ["checkpoint"], "base: 'checkpoint' is not of the form key=value"),
    ("base", ["seeds=0-9"], "base: 'seeds=0-9' is not for a cell to choose; seeds belong into budgets"),
    ("base", ["hydra.run.dir=x"], "base: 'hydra.run.dir=x' is not for a cell to choose"),
    ("paper.yeer", 2023, "paper: yeer: there is no such key; did you mean 'year'?"),
    ("paper.year", "2023", "paper: year: must be a whole number, is '2023'"),
    ("paper.arxiv", 2204.13902, "paper: arxiv: must be a text, is 2204.13902; put it in quotes"),
    ("paper.minimum_of", "three", "paper: minimum_of: must be a whole number of seed ranges from 1 on, is 'three'"),
    ("rows.0.published.10.minimum_of", 0, "published.10: minimum_of: must be a whole number of seed ranges from 1 on"),
    ("prepare.0.make", "x", "prepare[0]: make: there is no such key; did you mean 'makes'?"),
    ("budgets", {}, "budgets: is empty; give seed ranges for smoke, small or paper"),
    ("budgets.smoke", {}, "budgets.smoke: the key ranges is missing"),
    ("budgets.smoke", {"range": ["0-1"]}, "budgets.smoke: range: there is no such key; did you mean 'ranges'?"),
    ("budgets.smoke.ranges", ["5-1"], "budgets.smoke: ranges: 5-1: the range 5-1 runs backwards"),
    ("budgets.smoke.ranges", ["0-9", "9-12"], "budgets.smoke: ranges: 9-12 shares seeds with an earlier range"),
    ("budgets.smoke.ranges", [], "budgets.smoke: ranges: is an empty list; give at least 1"),
    ("budgets.smoke.ranges", [1.5], "budgets.smoke: ranges: holds 1.5; write a range as 0-999, in quotes"),
    ("columns.values", [5, 5], "columns.values: '5' occurs twice; give each its own name"),
    ("columns.key", ..., "columns.values[0]: is 5; give columns.key, or a mapping with the keys name and overrides"),
    ("columns.values.1", {"name": "10"}, "columns.values[1]: the key overrides is missing"),
    ("columns.values.0", True, "columns.values[0]: a name must be a text or a number, is True"),
    ("rows.1.name", "DEIS-tAB3", "rows: 'DEIS-tAB3' occurs twice; give each its own name"),
    ("rows.0.publishd", {}, "rows[0]: publishd: there is no such key; did you mean 'published'?"),
    (
        "rows.0.published",
        {"100": {}},
        "rows[0] (DEIS-tAB3): published: 100: there is no such column; did you mean '10'?",
    ),
    ("rows.0.published.10.value", "4.17", "published.10: value: must be a finite number, is '4.17'; write it without"),
    ("rows.0.published.10.value", float("nan"), "published.10: value: must be a finite number, is nan"),
    ("rows.0.published.10.error", "1e-3", "published.10: error: must be a finite number, is '1e-3'; write it without"),
    ("rows.0.published.10.status", "verfied", "status=verfied: there is no such status; did you mean 'verified'?"),
    ("rows.0.published.10.source", "", "published.10: source: must be a text, is ''"),
    ("rows.0.cannot", {"6": "x"}, "cannot: 6: there is no such column"),
    ("rows.0.cannot", {"5": True}, "cannot: 5: must be a text, is True"),
    ("rows", [], "rows: is an empty list"),
    ("rows.1", "DDIM", "rows[1]: must be a mapping with the keys name, overrides, published, cannot, is 'DDIM'"),
]


@pytest.mark.parametrize(("path", "value", "sentence"), MISTAKES, ids=lambda value: str(value)[:30])
def test_mistake_is_a_sentence_naming_its_key(path: str, value: Any, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        parse("deis", with_change(path, value))
    text = str(caught.value)
    assert text.startswith("table=deis: ")
    assert sentence in text
    assert "\n" not in text


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_table_is_read(path: Path) -> None:
    table = parse(path.stem, yaml.safe_load(path.read_text()))
    assert table.budgets
    for row in table.rows:
        assert not set(row.published) - {column.name for column in table.columns}


def test_the_plan_of_a_table() -> None:
    """base, row, column, the user's, seeds; nothing for what cannot be; directories that tell the identity."""
    asked: list[list[str]] = []

    def identify(overrides: Any, ranges: Any) -> list[str]:
        asked.append(list(overrides))
        return [f"id{k}" for k, _ in enumerate(ranges)]

    plan = make_plan(parse("deis", GOOD), GOOD, "paper", ["batch_size=7"], identify)
    assert [(cell.row, cell.column, cell.seeds) for cell in plan.cells] == [
        (row, column, seeds)
        for row, column in (("DEIS-tAB3", "10"), ("DDIM", "5"), ("DDIM", "10"))
        for seeds in ("0-49999", "50000-99999")
    ]
    first = ("checkpoint=models/a", "+solver.order=2", "solver=deis_tab3", "nfe=10", "final=denoise", "batch_size=7")
    assert asked[0] == list(first)
    assert plan.cells[1].overrides == (*first, "seeds='50000-99999'")
    assert plan.cells[1].directory == "cells/DEIS-tAB3/10/50000-99999-id1"
    assert [safe(name) for name in ("DPM++ (2M)", "a/../b", "..")] == ["DPM++_2M_", "a_.._b", "_"]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("nfe=7", "nfe=7: '5' of table=deis sets nfe; leave it out"),
        ("solver=heun", "solver=heun: 'DEIS-tAB3' of table=deis sets solver; leave it out"),
        ("seeds=0-9", "seeds=0-9: the budgets of table=deis choose the seeds; give budget=..."),
    ],
)
def test_what_a_table_varies_is_not_the_users(override: str, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        refuse_varied(parse("deis", GOOD), [override])
    assert str(caught.value) == sentence
    refuse_varied(parse("deis", GOOD), ["batch_size=7"])
