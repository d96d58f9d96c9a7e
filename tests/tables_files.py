"""Cells of tables that nobody ran: what sample.py would have left."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

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
    made = plan.make_plan(
        parse("toy", data), data, budget, [], lambda _, ranges: [f"{k:08x}" for k in range(len(ranges))]
    )
    plan.save(made, root)
    return made


def finish(root: Path, cell: Cell, value: float, **changes: Any) -> dict[str, Any]:
    """The files of a finished run."""
    folder = root / cell.directory
    folder.mkdir(parents=True)
    nfe = int(cell.column) if cell.column.isdigit() else 0
    found = {**result(cell.seeds, nfe, value), **changes}
    (folder / "config.yaml").write_text(f"nfe: {cell.column}\nidentity: '{cell.identity}'\n")
    (folder / "metrics.json").write_text(json.dumps(found))
    return found


def result(seeds: str, nfe: int, value: float) -> dict[str, Any]:
    """The content of a metrics.json."""
    first, _, last = seeds.partition("-")
    images = int(last) - int(first) + 1
    metrics = {name: {"value": value * k, "error": 0.25, "n": images} for k, name in ((1, "fid"), (2, "kid"))}
    return {
        **{"solver": "s", "schedule": "t", "guidance": "none", "threshold": "none", "final": "none", "labels": "none"},
        **{"seeds": seeds, "nfe": nfe, "network_calls": nfe, "images": images},
        **{"metrics": metrics, "protocol": {"extractor": "e", "reference": "cifar10-train:0123"}, "warnings": []},
        **{"checkpoint": {"name": "m", "sha256": "ab" * 32}, "sigma_max": 80.0, "sigma_end": 0.5, "code_version": "c"},
    }


CONFIG: dict[str, Any] = {
    **{"checkpoint": "m", "nfe": 5, "seeds": "0-9", "batch_size": 64, "network_batch": 64, "final": "none"},
    **{"format": "npz", "record": "a/m.score_norm.safetensors", "device": "auto", "precision": "32-true"},
    "model": {"noise_schedule": {"_target_": "LinearVP", "beta_max": 20.0}},
    "solver": {"_target_": "DEIS", "order": 3, "variable": {"_target_": "LinearVP", "beta_max": 20.0}},
    "schedule": {"_target_": "Polynomial", "power": 2, "base": {"_target_": "LinearVP", "beta_max": 20.0}},
    "guidance": {"_target_": "unguided", "_partial_": True},
    "metrics": {"_target_": "Fidelity", "reference": "here"},
    **{"digest": "ab", "identity": "00000000", "code_version": "c", "lock": "refuse"},
}
"""What a config.yaml holds, cut down."""


def ran(folder: Path, value: float = 1.0, config: Mapping[str, Any] | None = None, **changes: Any) -> Path:
    """The files of a finished run of a sweep; `config` are dotted keys of its config.yaml."""
    whole = copy.deepcopy(CONFIG)
    for key, it in (config or {}).items():
        *groups, last = key.split(".")
        node = whole
        for group in groups:
            node = node[group]
        node[last] = it
    found = {**result(whole["seeds"], whole["nfe"], value), **changes}
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(whole, sort_keys=False))
    (folder / "metrics.json").write_text(json.dumps(found))
    return folder
