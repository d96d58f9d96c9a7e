"""A grid as CSV: one line for each number, so that nothing is left out."""

import csv
import io
import math
from collections.abc import Iterator

from scoreline.tables.grid import Entry, Grid, difference
from scoreline.tables.protocol import digest, fingerprint

FIELDS = (
    *("table", "part", "row", "column", "metric", "value", "error", "n", "ranges", "seeds", "nfe", "network_calls"),
    *("published", "published_error", "status", "source", "difference", "reason", "budget", "fingerprint"),
)


def long_csv(grid: Grid) -> str:
    """A line of FIELDS, then every metric of every cell; above them, as a comment, the watermark.

    The metric of the table comes first in each cell and carries what was published. `reason` says why a value or a
    difference is missing.
    """
    out = io.StringIO()
    if grid.watermark:
        out.write(f"# {grid.watermark}\n")
    writer = csv.DictWriter(out, FIELDS, restval="", lineterminator="\n")
    writer.writeheader()
    for number, part in enumerate(grid.parts, 1):
        for row in part.rows(grid):
            for column in part.columns(grid):
                entry = part.entries.get((row, column))
                if entry is not None:
                    writer.writerows({"part": number, **line} for line in _lines(grid, entry))
    return out.getvalue()


def _lines(grid: Grid, entry: Entry) -> Iterator[dict[str, object]]:
    common: dict[str, object] = {"table": grid.name, "row": entry.row, "column": entry.column, "budget": grid.budget}
    result = entry.result
    if result is not None:
        counts = {"ranges": result.get("ranges", 1), "seeds": result["seeds"], "nfe": result["nfe"]}
        calls = {"network_calls": result.get("network_calls", result["nfe"])}
        common |= {**counts, **calls, "fingerprint": digest(fingerprint(result))}
    yield {**common, "metric": grid.metric, **_score(entry, grid.metric), **_published(grid, entry)}
    for name in result["metrics"] if result else ():
        if name != grid.metric:
            yield {**common, "metric": name, **_score(entry, name)}


def _score(entry: Entry, metric: str) -> dict[str, object]:
    score = entry.score(metric)
    if score is None:
        return {}
    numbers = {key: score[key] for key in ("value", "error") if math.isfinite(score[key])}
    return {**numbers, "n": score["n"]}


def _published(grid: Grid, entry: Entry) -> dict[str, object]:
    found, less = entry.published, difference(entry, grid.metric, grid.paper)
    told: dict[str, object] = {"reason": entry.reason or (less if isinstance(less, str) else "")}
    if found is None:
        return told
    told |= {"published": found.value, "status": found.status, "source": found.source}
    if found.error is not None:
        told["published_error"] = found.error
    return told | ({"difference": less} if isinstance(less, float) else {})
