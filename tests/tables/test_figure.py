"""The figure of a table, from results that nobody measured."""

import io
import re
from itertools import pairwise
from typing import Any

import pytest

from scoreline.storage.figures import COLUMN, PAGE, in_style, save
from scoreline.tables.figure import MARKERS, figure
from scoreline.tables.grid import Entry, Grid, Part
from scoreline.tables.schema import Published


def grid(rows: dict[str, list[float]], columns: list[str], published: dict[str, float] | None = None) -> Grid:
    """Rows of figures with an error of a hundredth; a published figure stands in the first column."""
    entries = {}
    for row, values in rows.items():
        for column, value in zip(columns, values, strict=False):
            score = {"value": value, "error": 0.01 * value, "n": 9}
            quoted = Published(published[row], None, "verified", "s") if published and row in published else None
            result: Any = {"metrics": {"frechet_distance": score}, "nfe": 5, "seeds": "0-9"}
            entries[row, column] = Entry(row, column, result, published=quoted if column == columns[0] else None)
    return Grid("t", "T", "frechet_distance", "NFE", list(rows), columns, [Part(entries)], watermark="small")


def drawn(table: Grid) -> Any:
    with in_style():
        chart = figure(table)
        chart.draw_without_rendering()
    return chart


def by_gid(axes: Any) -> dict[str, Any]:
    return {artist.get_gid(): artist for artist in axes.get_children() if artist.get_gid()}


def fan(count: int, columns: list[str]) -> dict[str, list[float]]:
    """Rows whose ends are a factor of 1.6 apart."""
    return {f"row {k}": [1.6**k * (2 - j / 10) for j, _ in enumerate(columns)] for k in range(count)}


def test_lines_bars_markers_and_watermark() -> None:
    chart = drawn(grid({"DDIM": [25.0, 11.0], "Heun": [30.0, 9.0]}, ["5", "10"], {"Heun": 29.0}))
    (axes,) = chart.axes
    assert [text.get_text() for text in chart.texts] == ["small"]
    found = by_gid(axes)
    assert found["row-1"].get_xydata().tolist() == [[5, 30.0], [10, 9.0]]
    assert found["point-1-0"].get_xydata().tolist() == [[5, 30.0]]
    assert found["row-0-bars"].get_segments()[0][:, 1].tolist() == pytest.approx([24.75, 25.25])
    hollow = found["row-1-published"]
    assert (hollow.get_xydata().tolist(), hollow.get_markerfacecolor()) == ([[5, 29.0]], "none")
    assert hollow.get_color() == found["row-1"].get_color()
    assert hollow.get_marker() == found["point-1-0"].get_marker()
    assert axes.get_ylabel() == "Fr\u00e9chet distance \u2193"


def test_error_bars_stand_beside_each_other() -> None:
    """By points, not in data: places stay the evaluations."""
    chart = drawn(grid({name: [2.0, 1.0] for name in "abc"}, ["5", "10"]))
    found = by_gid(chart.axes[0])
    left = [found[f"point-{k}-0"].get_transform().transform([[5, 2.0]])[0, 0] for k in range(3)]
    gaps = [72 / chart.dpi * (b - a) for a, b in pairwise(left)]
    assert gaps == pytest.approx([1.3, 1.3])
    middle = chart.axes[0].transData.transform([[5, 2.0]])[0, 0]
    assert left[1] == pytest.approx(middle)


def test_fourteen_rows_are_told_apart_without_colours() -> None:
    chart = drawn(grid(fan(14, ["5", "10"]), ["5", "10"]))
    found = by_gid(chart.axes[0])
    looks = {(found[f"point-{k}-0"].get_marker(), found[f"row-{k}"].get_linestyle()) for k in range(14)}
    assert len(looks) == 14
    assert len({found[f"row-{k}"].get_color() for k in range(7)}) == 7
    assert {found[f"row-{k}"].get_linestyle() for k in range(14)} == {"-", "--"}
    assert len(set(MARKERS)) == len(MARKERS) == 13


def test_names_stand_at_the_ends_where_they_fit() -> None:
    chart = drawn(grid(fan(5, ["5", "10"]), ["5", "10"]))
    axes = chart.axes[0]
    assert not chart.legends
    assert chart.get_size_inches()[0] == COLUMN
    heights = [text.xyann[1] for text in axes.texts]
    ends = [axes.transAxes.inverted().transform(axes.transData.transform([[10, 1.9 * 1.6**k]]))[0, 1] for k in range(5)]
    assert [text.get_text() for text in axes.texts] == [f"row {k}" for k in range(5)]
    assert heights == pytest.approx(ends, abs=0.02)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert all(low.y1 <= high.y0 + 1 for low, high in pairwise(boxes)), "no overlap"
    assert max(box.x1 for box in boxes) <= chart.bbox.x1


@pytest.mark.parametrize(
    "rows",
    [
        {**fan(4, ["5", "10"]), **{f"near {k}": [3.0, 1.0 + k / 1000] for k in range(4)}},  # ends that meet
        {**fan(2, ["5", "10"]), "short": [1.0]},  # a line that ends early
    ],
)
def test_else_a_legend_has_the_order_of_the_ends(rows: dict[str, list[float]]) -> None:
    chart = drawn(grid(rows, ["5", "10"]))
    (legend,) = chart.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == sorted(rows, key=lambda row: -rows[row][-1])
    assert [text.get_gid() for text in legend.get_texts()] == [f"label-{[*rows].index(name)}" for name in names]
    assert legend.get_window_extent().x0 >= chart.axes[0].get_window_extent().x1, "outside"


def test_ticks_stand_at_the_evaluations() -> None:
    axes = drawn(grid({"a": [9.0, 5.0, 3.0]}, ["5", "10", "50"])).axes[0]
    assert axes.get_xscale() == "log"
    assert axes.get_xticks().tolist() == [5, 10, 50]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["5", "10", "50"]
    assert "0.1" not in {text.get_text() for text in axes.get_yticklabels()}


def test_crowded_columns_stand_apart_on_a_linear_axis() -> None:
    columns = [str(nfe) for nfe in range(20, 68, 4)]
    axes = drawn(grid({"a": [9.0] * 12}, columns)).axes[0]
    assert axes.get_xscale() == "linear"
    assert axes.get_xticks().tolist() == [float(column) for column in columns]


def test_names_of_crowded_ticks_are_left_out() -> None:
    """The ticks stay; 1000 is the last, and always named."""
    columns = ["5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "1000"]
    axes = drawn(grid({"a": [9.0] * 12}, columns)).axes[0]
    names = [text for text in axes.get_xticklabels() if text.get_text()]
    assert len(axes.get_xticks()) == 12
    assert names[-1].get_text() == "1000"
    boxes = [text.get_window_extent() for text in names]
    assert all(one.x1 < other.x0 for one, other in pairwise(boxes))


@pytest.mark.parametrize(("last", "weight"), [(6.0, "bold"), (3.0, "bold"), (2.95, "bold"), (2.0, "normal")])
def test_the_row_that_is_best_most_often_is_bold(last: float, weight: str) -> None:
    """Equal figures are best both, and without a winner no row is bold."""
    rows = {"a": [9.0, 5.0, last], "b": [8.0, 5.0, 3.0]}
    shown = {text.get_text(): text.get_weight() for text in drawn(grid(rows, ["5", "10", "20"])).axes[0].texts}
    assert shown == {"a": "normal", "b": weight}


def test_long_names_are_cut_and_the_figure_is_as_wide_as_a_page() -> None:
    chart = drawn(grid({"a, " * 400: [9.0, 5.0], "b" * 900: [8.0, 4.0]}, ["5", "10"]))
    assert chart.get_size_inches()[0] == PAGE
    (legend,) = chart.legends
    assert all(len(text.get_text()) < 130 for text in legend.get_texts())
    assert chart.axes[0].get_window_extent().width > 0.4 * chart.bbox.width


def test_identifiers_of_the_svg_are_unique_over_parts() -> None:
    table = grid({"a": [9.0, 5.0], "b": [8.0, 4.0]}, ["5", "10"], {"a": 9.5})
    table.parts.append(Part(dict(table.parts[0].entries), ["images: 1, not 2"]))
    file = io.BytesIO()
    with in_style():
        save(figure(table), file, "svg")
    names = re.findall(r'id="((?:part-1-)?(?:row|point|label)-[^"]*)"', file.getvalue().decode())
    assert len(names) == len(set(names))
    assert {"row-0", "row-1-bars", "point-1-1", "row-0-published", "label-1", "part-1-row-0", "part-1-point-0-1"} < {
        *names
    }
    assert "row-1-published" not in names


def test_a_single_column_spreads_its_rows() -> None:
    found = by_gid(drawn(grid({name: [2.0] for name in "abc"}, ["FID"])).axes[0])
    left = [found[f"point-{k}-0"].get_transform().transform([[0, 2.0]])[0, 0] for k in range(3)]
    assert left[1] - left[0] > 10
