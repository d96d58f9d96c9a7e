"""The distances of the table of learned solvers, at a tiny size."""

import sys
from pathlib import Path

import pytest
import torch

from scoreline.calibration.distances import Ends, distances
from scoreline.checkpoints import load_model
from scoreline.config import run_names
from scoreline.records import Record
from scoreline.schedules.spacings import Power
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.learned import tensors_of
from scoreline.tables.schema import parse

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import few_evaluations
import learned_methods

CELLS = {
    "title": "two rows",
    "metric": "frechet_distance",
    "base": ["checkpoint=digits_vp", "metrics=digits"],
    "budgets": {"smoke": {"ranges": ["0-1"]}},
    "columns": {"label": "NFE", "key": "nfe", "values": [2, 3]},
    "rows": [
        {"name": "closed", "overrides": ["solver=ddim", "schedule=karras"]},
        {"name": "learned", "overrides": ["solver=learned", "solver.path=record.safetensors"]},
    ],
}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> learned_methods.Bench:
    """Two ranges of three seeds, a fine run of eight calls, and a record that holds what the other row runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(few_evaluations, "FINE", 8)
    monkeypatch.setattr(few_evaluations, "RANGES", 2)
    monkeypatch.setattr(learned_methods, "table", lambda: parse("two", CELLS))
    checkpoint = load_model(run_names.model_path("digits_vp"))
    values = {"budgets": torch.tensor([2, 3])}
    for nfe in (2, 3):
        values |= tensors_of(DDIM()(Power(7), *few_evaluations.span_of(checkpoint), nfe))
    provenance = {"checkpoint": checkpoint.digest, "seconds": 41.6, "code_version": "abc"}
    Record("tableau", values, provenance).save(Path("record.safetensors"))
    return learned_methods.bench(tmp_path, 3)


def test_distances_are_those_of_the_package(small: learned_methods.Bench) -> None:
    found = small.figures()
    assert found["closed"] == found["learned"]
    seeds, ends = next(iter(small.ends.items()))
    assert seeds == range(10_000, 10_003)
    run = DDIM()(Power(7), *few_evaluations.span_of(small.checkpoint), 2)
    apart = distances(few_evaluations.subject_of(small.checkpoint, seeds), run, Ends(ends, ends))
    assert found["closed"]["mean"]["2"][0] == pytest.approx(float(apart.mean()), rel=1e-12)
    assert found["closed"]["median"]["2"][0] == pytest.approx(float(apart.median()), rel=1e-12)


def test_the_report_has_every_row_and_the_learning_times(small: learned_methods.Bench) -> None:
    figures = {
        row: {name: {"2": [0.1 + k, 0.3 + k], "3": [0.2, 0.4]} for name in ("mean", "median")}
        for k, row in enumerate(("closed", "learned"))
    }
    text = learned_methods.markdown(small, figures)
    assert "| closed | **0.20 +- 0.10** | **0.30 +- 0.10** |" in text
    assert "| learned | 1.20 +- 0.10 | **0.30 +- 0.10** |" in text
    assert "| learned | 42 | abc |" in text
    assert "| closed | 4" not in text
