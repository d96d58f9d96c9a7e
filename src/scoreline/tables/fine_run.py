"""A sweep or a table as a picture: solvers by NFE, and below the images their distance to a fine run."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from scoreline.datasets import generated_images
from scoreline.datasets.base import ImageDataset
from scoreline.errors import InputError
from scoreline.generation import run_results
from scoreline.generation.run_results import Result
from scoreline.metrics.base import Score
from scoreline.storage.pictures import to_unit
from scoreline.tables.best import best
from scoreline.tables.grid import Grid, Run
from scoreline.tables.protocol import ranges_of
from scoreline.values import parse_seeds

DISTANCE = "distance"
"""Name of the metric: the root mean square over the values of an image, in [-1, 1], of its difference to the image of
the same seed in the fine run; mean and standard error over seeds."""

SAME = ("checkpoint", "labels", "guidance", "threshold")
"""Keys of a result in which a run must agree with the fine run."""

PART = 512
"""Images that are read at a time."""

TILE, GAP, LINE, LABELS = 64, 4, 18, 172
"""Pixels: least height of an image, space between images, height of a line of text, width of the names of rows."""

LETTERS = 26
"""Letters of a line below the name of a row, which fit into `LABELS`."""

INK, FAINT = "#1f2328", "#59636e"

Pixels = npt.NDArray[np.uint8]

Place = tuple[str, str]
"""Row and column."""


@dataclass(frozen=True)
class FineRun:
    """A finished run whose images others are compared with."""

    directory: Path
    result: Result

    def title(self) -> str:
        """Return `unipc_3 / log_snr, NFE 200`."""
        return f"{self.result['solver']} / {self.result['schedule']}, NFE {self.result['nfe']:g}"


def fine_run(directory: Path) -> FineRun:
    """Open a finished run.

    Raises:
        InputError: if the directory holds none.
    """
    result = run_results.read(directory)
    if result is None:
        raise InputError(f"fine={directory}: no finished run there; give a run directory of sample.py")
    return FineRun(directory, result)


def with_distances(runs: Sequence[Run], fine: FineRun) -> list[Run]:
    """Return the runs, without the fine one, with their `DISTANCE` among the metrics.

    Raises:
        InputError: as `with_distance`.
    """
    others = [run for run in runs if run.directory.resolve() != fine.directory.resolve()]
    return [replace(run, result=with_distance(run.directory, run.result, fine)) for run in others]


def with_distance(directory: Path, result: Result, fine: FineRun) -> Result:
    """Return the result of a run with its `DISTANCE` among the metrics.

    Raises:
        InputError: if the run has another checkpoint, labels or guidance, or seeds that the fine run lacks.
    """
    for key in SAME:
        if result.get(key) != fine.result.get(key):
            raise InputError(
                f"fine={fine.directory}: {key} is not that of {directory}; sample both with the same {key}"
            )
    seeds, images = parse_seeds(result["seeds"]), generated_images.images(str(directory))
    places, references = _places(seeds, fine), generated_images.images(str(fine.directory))
    if images.shape != references.shape:
        raise InputError(f"fine={fine.directory}: its images have another shape than those of {directory}")
    distance = mean_distance(root_mean_squares(images, range(len(seeds)), references, places))
    return {**result, "metrics": {**result["metrics"], DISTANCE: distance}}


def root_mean_squares(
    ours: ImageDataset, chosen: Sequence[int], theirs: ImageDataset, places: Sequence[int]
) -> torch.Tensor:
    """Return the root mean square, over values in [-1, 1], of the difference of each pair of images: (N,) float64.

    Args:
        ours: images.
        chosen: numbers of N of them.
        theirs: images of the same shape.
        places: the number of the image that each is compared with.
    """
    parts = []
    for start in range(0, len(chosen), PART):
        ends = slice(start, start + PART)
        one, other = ours.read(chosen[ends])[0], theirs.read(places[ends])[0]
        parts.append((to_unit(one) - to_unit(other)).double().flatten(1).square().mean(1).sqrt())
    return torch.cat(parts)


def mean_distance(each: torch.Tensor) -> Score:
    """Return mean and standard error over images."""
    error = float(each.std() / len(each) ** 0.5) if len(each) > 1 else float("inf")
    return Score(value=float(each.mean()), error=error, n=len(each))


def _places(seeds: Sequence[int], fine: FineRun) -> list[int]:
    """Return where the fine run keeps the images of these seeds."""
    found = {seed: place for place, seed in enumerate(parse_seeds(fine.result["seeds"]))}
    lacking = [seed for seed in seeds if seed not in found]
    if lacking:
        raise InputError(f"fine={fine.directory}: has no seed {lacking[0]}; sample it with the seeds of the other runs")
    return [found[seed] for seed in seeds]


def note(fine: FineRun) -> str:
    """Return what the distance in a table is."""
    return (
        f"Distance to {fine.title()}: root mean square over the values of an image in [-1, 1] of the difference from "
        "the image of the same seed, mean over seeds."
    )


def draw(grid: Grid, folders: Mapping[Place, Path], fine: FineRun, shown: int, path: Path) -> None:
    """Draw the first images of each cell with their distance, and those of the fine run in the last row.

    Args:
        grid: the grid of the runs with their distances.
        folders: the directory of the first run of each cell.
        fine: the fine run.
        shown: images in a cell, of the first seeds of the first run; a cell without these seeds stays empty.
        path: the PNG file.
    """
    entries = {place: entry for part in reversed(grid.parts) for place, entry in part.entries.items() if entry.result}
    results = {place: entries[place].result for place in folders if place in entries}
    seeds = parse_seeds(ranges_of(next(it for it in results.values() if it))[0])[:shown]
    cells = {place: _tiles(folders[place], result, seeds) for place, result in results.items() if result}
    last = _tiles(fine.directory, fine.result, seeds)
    assert last is not None, "the fine run has the seeds of all runs"
    height, width = last.shape[0], max(last.shape[1], 6 * LINE)
    page = _Page(len(grid.columns), len(grid.rows) + 1, height, width)
    for j, column in enumerate(grid.columns):
        page.write(*page.corner(-1, j), f"NFE {column}", weight="bold")
    for i, row in enumerate(grid.rows):
        page.name(i, row)
        for j, column in enumerate(grid.columns):
            if (row, column) in cells:
                if (tiles := cells[row, column]) is not None:
                    page.put(i, j, tiles)
                score = entries[row, column].score(DISTANCE)
                bold = any(row in best(part, DISTANCE, column) for part in grid.parts)
                page.caption(i, j, "" if score is None else f"{score['value']:.3f} ± {score['error']:.3f}", bold)
    page.name(len(grid.rows), fine.title())
    page.put(len(grid.rows), 0, last)
    page.caption(len(grid.rows), 0, "the fine run; beside the others, distances to it", False)
    page.save(path)


def _tiles(directory: Path, result: Result, seeds: Sequence[int]) -> Pixels | None:
    """Return the images of these seeds side by side, enlarged by a whole factor, as (H, W, 3); None if it has none."""
    order = {seed: place for place, seed in enumerate(parse_seeds(ranges_of(result)[0]))}
    places = [order[seed] for seed in seeds if seed in order]
    if not places:
        return None
    images = generated_images.images(str(directory)).read(places)[0]
    pixels = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    factor = max(1, TILE // pixels.shape[1])
    large = pixels.repeat(factor, 1).repeat(factor, 2)
    padded = np.pad(large, ((0, 0), (0, 0), (0, GAP), (0, 0)), constant_values=255)
    row: Pixels = np.concatenate(list(padded), axis=1)[:, :-GAP]
    return row


class _Page:
    """A white page of cells, in pixels from its upper left corner, with a column of names before them.

    Args:
        columns: number of columns.
        rows: number of rows, below a line of headings.
        height: pixels of the images of a cell, below which a caption stands.
        width: pixels of a cell.
    """

    def __init__(self, columns: int, rows: int, height: int, width: int) -> None:
        self.step = (height + LINE + 2 * GAP, width + 4 * GAP)
        self.size = (LINE + 2 * GAP + rows * self.step[0], LABELS + columns * self.step[1])
        self.pixels = np.full((*self.size, 3), 255, dtype=np.uint8)
        self.texts: list[tuple[float, float, str, dict[str, Any]]] = []

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Return the upper left corner of a cell; row -1 is the line of headings."""
        y = GAP if row < 0 else LINE + 2 * GAP + row * self.step[0]
        return y, LABELS + column * self.step[1]

    def write(self, y: float, x: float, text: str, **look: Any) -> None:
        """Write a text whose upper left corner is given."""
        self.texts.append((y, x, text, {"color": INK, "fontsize": 10, **look}))

    def name(self, row: int, text: str) -> None:
        """Write the name of a row, the solver above the schedule, or above what follows a comma in a table's row."""
        y, _ = self.corner(row, 0)
        solver, rest = (*re.split(r" / |, ", text, maxsplit=1), "")[:2]
        self.write(y + GAP, GAP, solver, weight="bold")
        lines = textwrap.wrap(rest, LETTERS, max_lines=3, placeholder=" ..")
        self.write(y + GAP + LINE, GAP, "\n".join(lines), color=FAINT, fontsize=9)

    def put(self, row: int, column: int, tiles: Pixels) -> None:
        """Place images in a cell."""
        y, x = self.corner(row, column)
        part = self.pixels[y : y + tiles.shape[0], x : x + tiles.shape[1]]
        part[:] = tiles[: part.shape[0], : part.shape[1]]

    def caption(self, row: int, column: int, text: str, bold: bool) -> None:
        """Write below the images of a cell."""
        y, x = self.corner(row, column)
        look = {"weight": "bold", "color": INK} if bold else {"color": FAINT}
        self.write(y + self.step[0] - LINE - GAP, x, text, fontsize=9, **look)

    def save(self, path: Path) -> None:
        """Write the page as PNG, pixel by pixel."""
        from matplotlib.figure import Figure

        height, width = self.size
        dots = 100
        chart = Figure(figsize=(width / dots, height / dots), dpi=dots)
        chart.figimage(self.pixels)
        for y, x, text, look in self.texts:
            chart.text(x / width, 1 - y / height, text, va="top", ha="left", **look)
        chart.savefig(path, dpi=dots, format="png")
