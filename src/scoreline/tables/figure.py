"""A grid as a picture: the metric over the columns, a line for each row."""

from pathlib import Path
from typing import IO, Any

from scoreline.tables.grid import Grid, Part

PANELS = 12
"""Axes side by side; a folder of unrelated runs has more parts than a picture has room for."""

TALLEST = 200
"""Inches; a picture has at most 2^16 dots a side."""

STYLES = ("-", "--", ":")


def figure(grid: Grid, path: Path | IO[bytes], kind: str = "png") -> None:
    """Draw a grid with a measured figure: ours with error bars, published ones as hollow markers of the same colour.

    The watermark stands across it. Parts of unequal protocols have axes of their own, the first `PANELS` of them.
    In SVG the artists of row i are `row-i`, that of its figure in column j `point-i-j`, and its name `label-i`; those
    of the second part have `part-1-` before.
    """
    parts = [grid.parts[number] for number in drawn_parts(grid)]
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    longest = max(map(len, grid.rows))
    many = len(grid.rows) > 6 or longest > 40
    beside = min(max(3, 0.07 * longest), TALLEST) if many else 0
    size = (6 * len(parts) + beside, min(max(4, 0.22 * len(grid.rows)), TALLEST))
    chart, axes = pyplot.subplots(1, len(parts), figsize=size, layout="constrained", squeeze=False)
    for k, (part, panel) in enumerate(zip(parts, axes[0], strict=True)):
        _draw(grid, part, panel, f"part-{k}-" if k else "")
    handles = {label: it for panel in axes[0] for it, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    if many:
        legend = chart.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=8)
    else:
        legend = axes[0][0].legend(handles.values(), handles.keys())
    for text in legend.get_texts():
        text.set_gid(f"label-{grid.rows.index(text.get_text())}")
    if grid.watermark:
        place: dict[str, Any] = {"ha": "center", "va": "center", "rotation": 25}
        chart.text(0.5, 0.5, grid.watermark, fontsize=20, alpha=0.25, color="red", **place)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": grid.name}):
        chart.savefig(path, dpi=120, format=kind, metadata={"Date": None} if kind == "svg" else None)
    pyplot.close(chart)


def drawn_parts(grid: Grid) -> list[int]:
    """Return the numbers of the parts that are drawn: the first `PANELS` with a measured figure."""
    numbered = enumerate(grid.parts)
    return [number for number, part in numbered if any(_points(grid, part, row) for row in grid.rows)][:PANELS]


def _draw(grid: Grid, part: Part, axes: Any, prefix: str) -> None:
    from matplotlib import pyplot

    columns = part.columns(grid)
    places, numeric = _places(columns)
    for number, row in enumerate(grid.rows):
        colour, style = pyplot.colormaps["tab10"](number % 10), STYLES[number // 10 % 3]
        points = sorted((places[column], value, error) for column, value, error in _points(grid, part, row))
        if points:
            x, y, bars = zip(*points, strict=True)
            look = {"marker": "o", "markersize": 3, "capsize": 2, "color": colour, "linestyle": style}
            container = axes.errorbar(x, y, bars, label=row, **look)
            for artist in (container[0], *container[1], *container[2]):
                artist.set_gid(f"{prefix}row-{number}")
            for column, value, _ in _points(grid, part, row):
                (spot,) = axes.plot(places[column], value, marker="o", markersize=8, alpha=0)
                spot.set_gid(f"{prefix}point-{number}-{grid.columns.index(column)}")
        hollow = _published(part, columns, row)
        if hollow:
            x, y = zip(*sorted((places[column], value) for column, value in hollow), strict=True)
            (marks,) = axes.plot(x, y, marker="o", markersize=7, linestyle="none", markerfacecolor="none", color=colour)
            marks.set_gid(f"{prefix}row-{number}")
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
    scores = [(entry.column, entry.score(grid.metric)) for entry in entries if entry]
    return [(column, score["value"], max(score["error"], 0.0)) for column, score in scores if score is not None]


def _published(part: Part, columns: list[str], row: str) -> list[tuple[str, float]]:
    entries = [(column, part.entries.get((row, column))) for column in columns]
    return [(column, it.published.value) for column, it in entries if it and it.published]
