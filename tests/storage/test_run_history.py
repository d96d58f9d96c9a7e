"""Rows of a run directory."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoreline.errors import InputError
from scoreline.storage.run_history import history, picture_row, records, row

NAMES = st.text("abc-<.1", min_size=1, max_size=4)
VALUES = st.recursive(
    st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=3)
    | st.none()
    | st.lists(st.floats(0, 1), max_size=5),
    lambda inner: st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


def test_nested_records_become_flat_names_on_an_axis() -> None:
    record = {"step": 25, "kimg": 1.6, "loss": 0.5, "loss_bins": {"<0.01": 0.25, "0.01-0.03": 0.75}, "error": None}
    assert row({"train": record}) == {
        "kimg": 1.6,
        "train/step": 25,
        "train/loss": 0.5,
        "train/loss_bins/<0.01": 0.25,
        "train/loss_bins/0.01-0.03": 0.75,
    }


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0, 2.0, 1.0], {"s/sigma_0": 3.0, "s/sigma_50": 2.0, "s/sigma_100": 1.0}),
        (list(range(9)), {f"s/sigma_{12.5 * k:g}": k for k in range(9)}),
        ([7], {"s/sigma_0": 7}),
        ([], {}),
        (["a", "b"], {}),
    ],
)
def test_a_list_is_named_by_percentage(values: list[Any], expected: dict[str, float]) -> None:
    assert row({"s": {"sigma": values}}) == expected


@given(st.dictionaries(NAMES, VALUES, max_size=4), st.floats(0, 100))
def test_a_part_may_be_a_prefix(record: dict[str, Any], kimg: float) -> None:
    nested = row({"train": {**record, "kimg": kimg}})
    assert nested["kimg"] == kimg
    assert row({f"train/{key}": value for key, value in {**record, "kimg": kimg}.items()}) == nested
    assert row(nested) == nested


def test_only_the_axis_of_a_part_counts() -> None:
    assert row({"a": {"kimg": 1, "deep": {"kimg": 2}, "mykimg": 3}}) == {"kimg": 1, "a/deep/kimg": 2, "a/mykimg": 3}
    assert row({"a": {"loss": 1}}) == {"a/loss": 1}
    assert row({"sample": {"nfe": 5, "images": 2}}, axis="nfe") == {"nfe": 5, "sample/images": 2}


@pytest.mark.parametrize(
    ("name", "kimg"), [("000064kimg", 64.0), ("000001.5kimg", 1.5), ("grid", None), ("xkimg", None)]
)
def test_a_picture_has_the_kimg_it_names(name: str, kimg: float | None) -> None:
    path = Path("run/previews") / f"{name}.png"
    assert picture_row(path) == ({} if kimg is None else {"kimg": kimg, "previews": path})


def test_the_history_is_everything_in_order_of_kimg(tmp_path: Path) -> None:
    assert history(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text('{"kimg": 1, "loss": 3}\n{"kimg": 2, "loss": 2}\n{"kimg": 3, "loss')
    (tmp_path / "online_schedule.jsonl").write_text('{"kimg": 1, "sigma": [9, 1]}\n')
    (tmp_path / "previews").mkdir()
    for name in ("000002kimg", "000000kimg", "other"):
        (tmp_path / "previews" / f"{name}.png").touch()
    assert history(tmp_path) == [
        {"kimg": 0.0, "previews": tmp_path / "previews/000000kimg.png"},
        {"kimg": 1, "train/loss": 3},
        {"kimg": 1, "online_schedule/sigma_0": 9, "online_schedule/sigma_100": 1},
        {"kimg": 2, "train/loss": 2},
        {"kimg": 2.0, "previews": tmp_path / "previews/000002kimg.png"},
    ]


@pytest.mark.parametrize("line", ["{", "3", '{"loss": 1}', '{"kimg": "1"}', ""])
def test_a_damaged_line_is_named(line: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"kimg": 1}}\n{line}\n{{"kimg": 3}}\n')
    with pytest.raises(InputError, match=r"metrics.jsonl: line 2 .* delete that line"):
        records(tmp_path / "metrics.jsonl")
