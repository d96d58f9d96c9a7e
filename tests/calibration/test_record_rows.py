"""Records as rows: each number stands at its noise level, budget or pass."""

from math import nan
from typing import Any

import torch

from scoreline.calibration.record_rows import rows
from scoreline.records import Record


def record(kind: str, provenance: dict[str, Any] | None = None, **values: Any) -> Record:
    types = {"budgets": torch.int64, "references": torch.int64}
    tensors = {name: torch.tensor(value, dtype=types.get(name, torch.float64)) for name, value in values.items()}
    return Record(kind, tensors, provenance or {})


def test_steps_and_passes_of_score_optimal() -> None:
    """A step's cost stands at its upper level; what changed between two passes, at the second."""
    values: dict[str, Any] = {"rho": [1, 2, 3], "length": [0, 5, 9], "standard_error": [0, 1, nan], "cost": [6, 7]}
    axes, found = rows(record("score_optimal", **values, spread=[0.2, 0.1], lowest=[1, 2], change=[0.5]))
    assert axes == {"score_optimal/*": "rho", "score_optimal_passes/*": "pass"}
    assert found == [
        {"rho": 1, "score_optimal/length": 0, "score_optimal/standard_error": 0},
        {"rho": 2, "score_optimal/length": 5, "score_optimal/standard_error": 1, "score_optimal/cost": 6},
        {"rho": 3, "score_optimal/length": 9, "score_optimal/cost": 7},
        {"pass": 1, "score_optimal_passes/spread": 0.2, "score_optimal_passes/lowest": 1},
        {
            **{"pass": 2, "score_optimal_passes/spread": 0.1, "score_optimal_passes/lowest": 2},
            "score_optimal_passes/change": 0.5,
        },
    ]


def test_references_and_channels_have_a_curve_each() -> None:
    _, found = rows(record("target_variance", rho=[1, 2], references=[4, 8], stf=[[1, 2], [3, 4]], limit=[5, 6]))
    assert found == [
        {"rho": 1, "target_variance/stf_n4": 1, "target_variance/stf_n8": 3},
        {"rho": 2, "target_variance/stf_n4": 2, "target_variance/stf_n8": 4},
    ]
    channels = {"mean_abs_eps_by_channel": [[1, 2, 3], [4, 5, 6]], "second_moments": [[1, 2, 3], [4, 5, 6]]}
    _, found = rows(record("score_norm", rho=[1, 2], **channels))
    assert found[1] == {"rho": 2, **{f"score_norm/mean_abs_eps_by_channel_{k}": 4 + k for k in range(3)}}


def test_ranking_of_a_search() -> None:
    """The best of each budget is a curve, and a table has all finalists under the first of their names."""
    names = [[[["ddim", "a"], ["deis_tab0", "a"]], [["heun", "b"]]], [[["heun", "b"]]]]
    mean, error = [[1, 2], [3, nan]], [[0.1, 0.2], [0.3, nan]]
    found_axes, found = rows(record("search", {"candidates": names}, budgets=[5, 10], mean=mean, standard_error=error))
    assert found_axes == {"search/*": "nfe"}
    table = found[1].pop("search/ranking")
    assert found == [
        {"nfe": 5, "search/best_mean": 1, "search/best_standard_error": 0.1},
        {"nfe": 10, "search/best_mean": 3, "search/best_standard_error": 0.3},
    ]
    assert [tuple(line.values()) for line in table] == [
        (5, 1, "ddim", "a", 1, 0.1),
        (5, 2, "heun", "b", 2, 0.2),
        (10, 1, "heun", "b", 3, 0.3),
    ]
    assert list(table[0]) == ["nfe", "place", "solver", "schedule", "mean", "standard_error"]


def test_learned_tableaus_are_distances_and_levels() -> None:
    values: dict[str, Any] = {"start": [2, nan], "learned": [1, 0.5], "rho_1": [8, 1], "rho_2": [8, 4, 1]}
    _, found = rows(record("tableau", budgets=[1, 2], **values))
    levels = found[1].pop("tableau/levels")
    assert found == [{"nfe": 1, "tableau/start": 2, "tableau/learned": 1}, {"nfe": 2, "tableau/learned": 0.5}]
    assert [tuple(line.values()) for line in levels] == [(1, 0, 8), (1, 1, 1), (2, 0, 8), (2, 1, 4), (2, 2, 1)]


def test_own_kind_has_its_levels_alone() -> None:
    assert rows(record("mine", rho=[1, 2], other=[3, 4]))[1] == [{"rho": 1}, {"rho": 2}]
    assert rows(record("mine", other=[3, 4])) == ({"mine/*": "nfe"}, [{}])
