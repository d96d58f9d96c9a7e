"""Cells of tables that nobody ran: what sample.py would have left."""

import json
from pathlib import Path
from typing import Any

from scoreline.tables import plan
from scoreline.tables.plan import Cell, Plan
from scoreline.tables.schema import parse

DATA: dict[str, Any] = {
    "title": "Toy_table & more",
    "paper": {"authors": "A & B", "year": 2023, "arxiv": "2204.13902", "where": "Table 2", "dataset": "CIFAR-10"},
    "metric": "fid",
    "note": "A note.",
    "budgets": {"smoke": {"ranges": ["0-9"]}, "small": {"ranges": ["0-9", "10-19"]}, "paper": {"ranges": ["0-99"]}},
    "columns": {"label": "NFE", "key": "nfe", "values": [5, 10]},
    "rows": [
        {
            "name": "DDIM",
            "overrides": ["solver=ddim"],
            "published": {
                "5": {"value": 26.9, "status": "verified", "source": "Table 2"},
                "10": {"value": 11.14, "error": 0.02, "status": "second-hand", "source": "Other, Table 1"},
            },
        },
        {
            "name": "Heun",
            "overrides": ["solver=heun"],
            "published": {"10": {"value": 9.125, "status": "unverified", "source": "from memory"}},
            "cannot": {"5": "needs an even NFE"},
        },
    ],
}


def draft(root: Path, data: dict[str, Any] = DATA, budget: str = "paper") -> Plan:
    """A plan saved into a table's directory; identities count the ranges."""
    made = plan.planned(
        parse("toy", data), data, budget, [], lambda _, ranges: [f"{k:08x}" for k in range(len(ranges))]
    )
    plan.save(made, root)
    return made


def finish(root: Path, cell: Cell, value: float, **changes: Any) -> dict[str, Any]:
    """The files of a finished run."""
    folder = root / cell.directory
    folder.mkdir(parents=True)
    first, _, last = cell.seeds.partition("-")
    images = int(last) - int(first) + 1
    nfe = int(cell.column) if cell.column.isdigit() else 0
    metrics = {name: {"value": value * k, "error": 0.25, "n": images} for k, name in ((1, "fid"), (2, "kid"))}
    found = {
        **{"solver": "s", "schedule": "t", "guidance": "none", "threshold": "none", "final": "none", "labels": "none"},
        **{"seeds": cell.seeds, "nfe": nfe, "network_calls": nfe, "images": images},
        **{"metrics": metrics, "protocol": {"extractor": "e", "reference": "cifar10-train:0123"}, "warnings": []},
        **{"checkpoint": {"name": "m", "sha256": "ab" * 32}, "sigma_max": 80.0, "sigma_end": 0.5, "code_version": "c"},
        **changes,
    }
    (folder / "config.yaml").write_text(f"nfe: {cell.column}\nidentity: '{cell.identity}'\n")
    (folder / "metrics.json").write_text(json.dumps(found))
    return found
