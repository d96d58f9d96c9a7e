"""A grid as a picture: the metric over the columns, a line for each row."""

import math
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from scoreline.metrics.base import higher_is_better
from scoreline.storage.figures import COLUMN, PAGE, plain_ticks
from scoreline.tables.best import best
from scoreline.tables.grid import Grid, Part, statistic_of

PANELS = 12
"""Axes in a picture; a folder of unrelated runs has more parts than a picture has room for."""

ABREAST = 3
"""Axes side by side."""

TALLEST = 200
"""Inches; a picture has at most 2^16 dots a side."""

MARKERS = "os^DvPX<>ph*d"
STYLES = ("-", "--", ":", "-.")
"""With seven colours, rows from the eighth on have another style of line, and 91 rows a pair of colour and marker."""

LINE = 0.125
"""Inches; the height of a line of names."""

LETTER = 0.052
"""Inches; the width of a letter of a name."""

NAME, LINES = 38, 3
"""Letters of a line and lines of a name in a legend; table.md has the whole name."""

WIDE, FEW = 1.1, 7
"""Inches of the longest name and rows, of a figure that is one column wide."""

APART = 0.03
"""Inches; the least space between the names of two columns."""

DODGE, ROOM = 1.3, 45.0
"""Points between two rows at a column, and at most those of all rows for an axis with a single gap."""

ALONE, ACROSS = 14.0, 110.0
"""The same for a single column."""

SHORT = 3
"""Letters; so short a name of a metric is an abbreviation."""


EDGE = {"markeredgecolor": "white", "markeredgewidth": 0.3}
"""Of filled markers, so that one is seen in front of another."""

LARGER = {"*": 1.5, "P": 1.25, "X": 1.25, "d": 1.2, "p": 1.15, "h": 1.15}
"""Sizes of markers that would look smaller than the others."""


class Look(NamedTuple):
    """Colour, marker and style of line of a row, and its place among the rows at a column, from -0.5 to 0.5."""

    colour: str
    marker: str
    style: str
    place: float


class Panel(NamedTuple):
    """Axes of a part; `prefix` makes the names of its artists its own."""

    axes: Any
    part: Part
    places: Mapping[str, float]
    prefix: str


def figure(grid: Grid) -> Any:
    """Draw a grid with a measured figure: ours with error bars, published ones as hollow markers of the same look.

    Call it within `in_style`. Parts of unequal protocols have axes of their own, the first `PANELS` of them. Names
    stand at the ends of the lines where they fit, else in a legend in the order of the ends. The row that is among the
    best of more columns than any other is bold. In SVG the artists of row i are `row-i`, `row-i-bars`, `row-i-cap-k`
    and `row-i-published`, that of its figure in column j `point-i-j`, and its name `label-i`; those of the second part
    have `part-1-` before.

    Returns:
        A figure of Matplotlib's.
    """
    from matplotlib.figure import Figure

    parts = [grid.parts[number] for number in drawn_parts(grid)]
    chart = Figure()
    abreast = min(len(parts), ABREAST)
    down = -(-len(parts) // abreast)
    axes = chart.subplots(down, abreast, squeeze=False).flat
    for spare in list(axes)[len(parts) :]:
        spare.remove()
    looks = _looks(grid, parts)
    panels = [
        _draw(grid, part, looks, axes[k], f"part-{k}-" if k else "", f"Table {k + 1}" if len(parts) > 1 else "")
        for k, part in enumerate(parts)
    ]
    if grid.watermark:
        chart.suptitle(grid.watermark, color="firebrick", fontsize="small")
    _name(grid, chart, panels, looks, down)
    return chart


def drawn_parts(grid: Grid) -> list[int]:
    """Return the numbers of the parts that are drawn: the first `PANELS` with a measured figure."""
    measured = (k for k, part in enumerate(grid.parts) if any(points(grid, part, row) for row in grid.rows))
    return list(measured)[:PANELS]


def _looks(grid: Grid, parts: Sequence[Part]) -> dict[str, Look]:
    """Return the look of each row that is drawn."""
    from matplotlib import rcParams

    colours = rcParams["axes.prop_cycle"].by_key()["color"]
    rows = [row for row in grid.rows if any(points(grid, part, row) or _published(grid, part, row) for part in parts)]
    return {row: _look(k, colours, len(rows)) for k, row in enumerate(rows)}


def _look(k: int, colours: Sequence[str], count: int) -> Look:
    style, place = STYLES[k // len(colours) % len(STYLES)], k / (count - 1) if count > 1 else 0.5
    return Look(colours[k % len(colours)], MARKERS[k % len(MARKERS)], style, place - 0.5)


def _draw(grid: Grid, part: Part, looks: Mapping[str, Look], axes: Any, prefix: str, title: str) -> Panel:
    places, numeric = _places(part.columns(grid))
    panel, leading = Panel(axes, part, places, prefix), leader(grid, part)
    each, most = (DODGE, ROOM * _least_gap([*places.values()], numeric)) if len(places) > 1 else (ALONE, ACROSS)
    dodge = min(each * (len(looks) - 1), most)
    for row, look in looks.items():
        _draw_row(grid, panel, row, look, _beside(axes, dodge * look.place), bold=row == leading)
    arrow = "\u2191" if higher_is_better(grid.metric) else "\u2193"
    axes.set(xlabel=grid.label, ylabel=f"{in_words(grid.metric)} {arrow}", title=title)
    values = [value for row in looks for _, value, _ in points(grid, part, row)]
    axes.set(xscale="log" if numeric else "linear", yscale="log" if min(values) > 0 else "linear")
    axes.update_datalim([(places[column], value) for row in looks for column, value in _ends(grid, part, row)])
    axes.margins(x=0.06)
    axes.autoscale_view()
    if min(values) > 0:
        plain_ticks(axes.yaxis)
    return panel


def _least_gap(places: Sequence[float], log: bool) -> float:
    """Return the least distance of two places as a share of the axis."""
    at = sorted(map(math.log, places) if log else places)
    return min(b - a for a, b in pairwise(at)) / (at[-1] - at[0])


def _draw_row(grid: Grid, panel: Panel, row: str, look: Look, beside: Any, bold: bool) -> None:
    """Draw line, error bars and markers; each marker is an artist of its own, so that a page can name it."""
    axes, number = panel.axes, grid.rows.index(row)
    name = f"{panel.prefix}row-{number}"
    style = {"color": look.colour, "transform": beside, "zorder": 2.5 if bold else 2}
    found = sorted(
        (panel.places[column], value, error, column) for column, value, error in points(grid, panel.part, row)
    )
    x, y, errors, columns = zip(*found, strict=True) if found else ((), (), (), ())
    if found:
        axes.plot(x, y, linestyle=look.style, linewidth=1.7 if bold else 0.9, gid=name, **style)
        bars = axes.errorbar(x, y, errors, fmt="none", elinewidth=0.8, **style)
        for k, cap in enumerate(bars.lines[1]):
            cap.set_gid(f"{name}-cap-{k}")
        bars.lines[2][0].set_gid(f"{name}-bars")
    for place, value, column in zip(x, y, columns, strict=True):
        gid = f"{panel.prefix}point-{number}-{grid.columns.index(column)}"
        axes.plot([place], [value], marker=look.marker, linestyle="none", gid=gid, **_edge(look), **style)
    hollow = sorted((panel.places[column], value) for column, value in _published(grid, panel.part, row))
    if hollow:
        marks = {"marker": look.marker, "markersize": 6, "markerfacecolor": "none", "linestyle": "none"}
        axes.plot(*zip(*hollow, strict=True), gid=f"{name}-published", **marks, **style)


def _edge(look: Look) -> dict[str, Any]:
    from matplotlib import rcParams

    return {**EDGE, "markersize": rcParams["lines.markersize"] * LARGER.get(look.marker, 1.0)}


def _beside(axes: Any, points: float) -> Any:
    """Return the transform of data to places that lie some points to the right, whatever the scale."""
    from matplotlib.transforms import ScaledTranslation

    return axes.transData + ScaledTranslation(points / 72, 0, axes.figure.dpi_scale_trans)


def _places(columns: list[str]) -> tuple[dict[str, float], bool]:
    """Positive numbers stand at themselves on a logarithmic axis, names one after the other."""
    try:
        places = {column: float(column) for column in columns}
        numeric = min(places.values()) > 0 and len(set(places.values())) == len(columns)
    except ValueError:  # a name, or no column
        numeric = False
    return (places, True) if numeric else ({column: float(k) for k, column in enumerate(columns)}, False)


def points(grid: Grid, part: Part, row: str) -> list[tuple[str, float, float]]:
    """Return (column, value, standard error) of the measured figures of a row."""
    entries = [part.entries.get((row, column)) for column in grid.columns]
    shown = [(entry.column, statistic_of(entry, grid.metric, grid.paper)) for entry in entries if entry]
    return [(column, it.value, max(it.error, 0.0)) for column, it in shown if it is not None]


def _published(grid: Grid, part: Part, row: str) -> list[tuple[str, float]]:
    entries = [(column, part.entries.get((row, column))) for column in part.columns(grid)]
    return [(column, it.published.value) for column, it in entries if it and it.published]


def _ends(grid: Grid, part: Part, row: str) -> list[tuple[str, float]]:
    """Return (column, value) of all that is drawn of a row: ends of error bars, where positive, and published ones."""
    found = points(grid, part, row)
    bars = [(column, value + sign * error) for column, value, error in found for sign in (-1, 0, 1)]
    positive = all(value > 0 for _, value, _ in found)
    return [*((column, value) for column, value in bars if value > 0 or not positive), *_published(grid, part, row)]


def leader(grid: Grid, part: Part) -> str | None:
    """Return the row that is the best of a column, or equal to it, more often than any other; None without one."""
    columns = part.columns(grid)
    counts = Counter(row for column in columns for row in best(part, grid.metric, column)).most_common(2)
    ahead = len(counts) == 1 or (counts and counts[0][1] > counts[1][1])
    return counts[0][0] if ahead and len(columns) > 1 else None


def in_words(metric: str) -> str:
    """Return the words of a metric's name: Fr\u00e9chet distance of frechet_distance, FID of fid."""
    return metric.upper() if len(metric) <= SHORT else metric.replace("_", " ").replace("frechet", "Fr\u00e9chet")


def _name(grid: Grid, chart: Any, panels: Sequence[Panel], looks: Mapping[str, Look], down: int) -> None:
    """Name the rows, and give the figure its size and its axes the names of their columns."""
    names = {row: _short(row) for row in looks}
    wide = LETTER * max(len(line) for name in names.values() for line in name.split("\n"))
    ends, high = _line_ends(grid, panels, looks), max(2.5, 2.1 * down)
    one_line = not any("\n" in name for name in names.values())
    direct = len(panels) == 1 and one_line and _all_to_the_end(grid, panels[0], looks)
    spread = _spread([end for end, _ in ends], LINE / (high - 0.7)) if direct else None
    narrow = len(panels) == 1 and wide <= WIDE and (spread is not None or len(looks) <= FEW)
    chart.set_size_inches(COLUMN if narrow else PAGE, high)
    for panel in panels:
        _tick(panel, (chart.get_size_inches()[0] - wide - 0.7) / min(len(panels), ABREAST) - 0.3)
    hollow = any(_published(grid, panel.part, row) for panel in panels for row in looks)
    if spread is None:
        _legend(grid, chart, panels, looks, [row for _, row in reversed(ends)], hollow)
    else:
        _write_names(grid, panels[0], looks, [row for _, row in ends], spread)
        panels[0].axes.legend(handles=[_hollow()] * hollow, loc="best")


def _short(name: str) -> str:
    """Wrap a name; the last of its lines ends in dots if there are more."""
    return "\n".join(textwrap.wrap(name, NAME, max_lines=LINES, placeholder=" ...")) or name


def _line_ends(grid: Grid, panels: Sequence[Panel], looks: Mapping[str, Look]) -> list[tuple[float, str]]:
    """Return (height of the last point as a share of the axes, row) of all rows, the lowest first."""
    ends = {}
    for panel in reversed(panels):
        scale = panel.axes.transScale + panel.axes.transLimits
        for row in looks:
            found = [(panel.places[column], value) for column, value, _ in points(grid, panel.part, row)]
            found = found or [(panel.places[column], value) for column, value in _published(grid, panel.part, row)]
            if found:
                ends[row] = float(scale.transform(max(found))[1])
    return sorted((end, row) for row, end in ends.items())


def _all_to_the_end(grid: Grid, panel: Panel, looks: Mapping[str, Look]) -> bool:
    last = max(panel.places, key=lambda column: panel.places[column])
    return all(last in {column for column, *_ in points(grid, panel.part, row)} for row in looks)


def _spread(ends: Sequence[float], gap: float) -> list[float] | None:
    """Move ascending places apart by `gap`, as little as possible; None if one moves further than a gap.

    The least squares solution pools neighbours that are too close around their mean.
    """
    pools: list[list[float]] = []
    for number, end in enumerate(ends):
        pools.append([end - number * gap])
        while len(pools) > 1 and sum(pools[-2]) / len(pools[-2]) > sum(pools[-1]) / len(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    moved = [sum(pool) / len(pool) for pool in pools for _ in pool]
    places = [place + number * gap for number, place in enumerate(moved)]
    return places if all(abs(a - b) <= gap for a, b in zip(ends, places, strict=True)) else None


def _write_names(
    grid: Grid, panel: Panel, looks: Mapping[str, Look], rows: Sequence[str], heights: Sequence[float]
) -> None:
    """Write names beside the axes, each with a line of its colour to the end of the row's line."""
    panel.axes.set_xmargin(0.04)
    leading = leader(grid, panel.part)
    for row, height in zip(rows, heights, strict=True):
        look, ours = looks[row], points(grid, panel.part, row)
        end, value = max((panel.places[at], value) for at, value, _ in ours)
        panel.axes.annotate(
            _short(row),
            (end, value),
            (1.02, height),
            textcoords="axes fraction",
            va="center",
            fontsize="small",
            weight="bold" if row == leading else "normal",
            gid=f"label-{grid.rows.index(row)}",
            arrowprops={"arrowstyle": "-", "color": look.colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 3},
            annotation_clip=False,
        )


def _legend(
    grid: Grid, chart: Any, panels: Sequence[Panel], looks: Mapping[str, Look], rows: Sequence[str], hollow: bool
) -> None:
    handles = [_handle(row, looks[row]) for row in rows]
    legend = chart.legend(handles=handles + [_hollow()] * hollow, loc="outside right center")
    leading = {leader(grid, panel.part) for panel in panels}
    for text, row in zip(legend.get_texts(), rows, strict=False):
        text.set(gid=f"label-{grid.rows.index(row)}", weight="bold" if leading == {row} else "normal")
    lines = sum(_short(row).count("\n") + 1 for row in rows) + hollow
    width, high = chart.get_size_inches()
    chart.set_size_inches(width, min(max(high, LINE * lines + 0.4), TALLEST))


def _handle(row: str, look: Look) -> Any:
    from matplotlib.lines import Line2D

    style: dict[str, Any] = {"linestyle": look.style, **_edge(look)}
    return Line2D([], [], color=look.colour, marker=look.marker, label=_short(row), **style)


def _hollow() -> Any:
    from matplotlib.lines import Line2D

    marks: dict[str, Any] = {"marker": "o", "markersize": 6, "markerfacecolor": "none", "linestyle": "none"}
    return Line2D([], [], color="dimgrey", label="published", **marks)


def _tick(panel: Panel, width: float) -> None:
    """Put a tick at every column, with its name where it fits; names that are no numbers are slanted instead.

    A logarithmic axis turns linear where more names fit then.

    Args:
        panel: the axes.
        width: their width in inches.
    """
    axes, names = panel.axes, sorted(panel.places, key=panel.places.__getitem__)
    log = axes.get_xscale() == "log"
    at = [panel.places[name] for name in names]
    shown = _fitting(names, [math.log(place) for place in at] if log else at, width)
    if log and len(linear := _fitting(names, at, width)) > len(shown):
        shown = linear
        axes.set_xscale("linear")
    slanted = {} if log or len(shown) == len(names) else {"rotation": 30, "ha": "right"}
    axes.set_xticks(at, [name if name in shown or slanted else "" for name in names], **slanted)
    axes.xaxis.minorticks_off()


def _fitting(names: Sequence[str], places: Sequence[float], width: float) -> set[str]:
    """Return the names that stand apart from each other on an axis, the last one among them."""
    inch = 0.9 * width / ((places[-1] - places[0]) or 1.0)
    shown: dict[str, float] = {}
    for name, place in reversed([*zip(names, places, strict=True)]):
        left = min((at - LETTER * len(other) / 2 for other, at in shown.items()), default=math.inf)
        if inch * place + LETTER * len(name) / 2 + APART <= left:
            shown[name] = inch * place
    return set(shown)
