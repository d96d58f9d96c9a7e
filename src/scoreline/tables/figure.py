"""A grid as a picture: the metric over the columns, a line for each row."""

from pathlib import Path
from typing import Any

from scoreline.tables.grid import Grid, Part, statistic_of

PANELS = 12
"""Axes side by side; a folder of unrelated runs has more parts than a picture has room for."""

TALLEST = 200
"""Inches; a picture has at most 2^16 dots a side."""

STYLES = ("-", "--", ":")


def figure(grid: Grid, path: Path) -> None:
    """Draw a grid with a measured figure: ours with error bars, published ones as hollow markers of the same colour.

    The watermark stands across it. Parts of unequal protocols have axes of their own, the first `PANELS` of them.
    """
    parts = [part for part in grid.parts if any(_points(grid, part, row) for row in grid.rows)][:PANELS]
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    longest = max(map(len, grid.rows))
    many = len(grid.rows) > 6 or longest > 40
    beside = min(max(3, 0.07 * longest), TALLEST) if many else 0
    size = (6 * len(parts) + beside, min(max(4, 0.22 * len(grid.rows)), TALLEST))
    chart, axes = pyplot.subplots(1, len(parts), figsize=size, layout="constrained", squeeze=False)
    for part, panel in zip(parts, axes[0], strict=True):
        _draw(grid, part, panel)
    handles = {label: it for panel in axes[0] for it, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    if many:
        chart.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=8)
    else:
        axes[0][0].legend(handles.values(), handles.keys())
    if grid.watermark:
        place: dict[str, Any] = {"ha": "center", "va": "center", "rotation": 25}
        chart.text(0.5, 0.5, grid.watermark, fontsize=20, alpha=0.25, color="red", **place)
    chart.savefig(path, dpi=120, format="png")
    pyplot.close(chart)


def _draw(grid: Grid, part: Part, axes: Any) -> None:
    from matplotlib import pyplot

    columns = part.columns(grid)
    places, numeric = _places(columns)
    for number, row in enumerate(grid.rows):
        colour, style = pyplot.colormaps["tab10"](number % 10), STYLES[number // 10 % 3]
        points = sorted((places[column], value, error) for column, value, error in _points(grid, part, row))
        if points:
            x, y, bars = zip(*points, strict=True)
            look = {"marker": "o", "markersize": 3, "capsize": 2, "color": colour, "linestyle": style}
            axes.errorbar(x, y, bars, label=row, **look)
        hollow = _published(part, columns, row)
        if hollow:
            x, y = zip(*sorted((places[column], value) for column, value in hollow), strict=True)
            axes.plot(x, y, marker="o", markersize=7, linestyle="none", markerfacecolor="none", color=colour)
    positive = all(value > 0 for row in grid.rows for _, value, _ in _points(grid, part, row))
    axes.set(xlabel=grid.label, ylabel=grid.metric.replace("_", " "), yscale="log" if positive else "linear")
    if numeric:
        axes.set_xscale("log")
    axes.set_xticks([places[column] for column in columns], columns)
    axes.xaxis.minorticks_off()


def _places(columns: list[str]) -> tuple[dict[str, float], bool]:
    """Positive numbers stand at themselves on a logarithmic axis, names one after the other."""
    try:
        places = {column: float(column) for column in columns}
        numeric = min(places.values()) > 0 and len(set(places.values())) == len(columns)
    except ValueError:  # a name, or no column
        numeric = False
    return (places, True) if numeric else ({column: float(k) for k, column in enumerate(columns)}, False)


def _points(grid: Grid, part: Part, row: str) -> list[tuple[str, float, float]]:
    entries = [part.entries.get((row, column)) for column in grid.columns]
    shown = [(entry.column, statistic_of(entry, grid.metric, grid.paper)) for entry in entries if entry]
    return [(column, it.value, max(it.error, 0.0)) for column, it in shown if it is not None]


def _published(part: Part, columns: list[str], row: str) -> list[tuple[str, float]]:
    entries = [(column, part.entries.get((row, column))) for column in columns]
    return [(column, it.published.value) for column, it in entries if it and it.published]
