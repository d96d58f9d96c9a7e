"""The table of training objectives: means and differences of cells that are there, and rows that can be composed."""

import objectives
import pytest

from scoreline.config import conf_folder


def cell(row: str, seed: int, frechet: float) -> objectives.Cell:
    numbers = {key: frechet + place for place, key in enumerate(objectives.NUMBERS)}
    return {"row": row, "seed": seed, "kimg": 64, **numbers}


CELLS = [cell("flow", 0, 0.5), cell("flow", 1, 0.7), cell("flow_stf", 0, 0.25), cell("flow_stf", 1, 0.35)]


def test_means_have_the_error_over_seeds() -> None:
    head, rule, *lines = objectives.results([*CELLS, cell("vp", 0, 0.2)]).splitlines()
    assert lines[0] == "| VP, DSM | 1 | 0.2 | 1.2 | 2.2 | 3.2 | 4.2 |"
    assert lines[1].startswith("| flow, DSM | 2 | 0.6 +- 0.1 | 1.6 +- 0.1 |")
    assert {line.count("|") for line in (head, rule, *lines)} == {8}


def test_differences_are_paired_by_seed() -> None:
    """The difference of -0.25 and -0.35, not of means: a third seed of one row alone says nothing."""
    head, rule, *lines = objectives.gains([*CELLS, cell("flow_stf", 2, 9.0)]).splitlines()
    assert lines == ["| flow, STF - flow, DSM | 2 | -0.3 +- 0.05 | -0.3 +- 0.05 |"]
    assert {line.count("|") for line in (head, rule, *lines)} == {5}


@pytest.mark.parametrize("name", objectives.ROWS)
def test_every_row_can_be_composed(name: str) -> None:
    cfg = conf_folder.compose_config("train", [*objectives.ROWS[name].words])
    assert ("stf" in name) == cfg.target._target_.endswith("StableTarget")
    assert ("stablevm" in name) == cfg.target._target_.endswith("StableVM")
    assert ("min_snr" in name) == cfg.objective.weight._target_.endswith("MinSNR")
    assert ("learned" in name) == ("uncertainty" in cfg.objective)
