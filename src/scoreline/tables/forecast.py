"""Forecast of `sample.py table=NAME`: the work of all its cells."""

from collections.abc import Sequence
from typing import NamedTuple

from scoreline.doctor.findings import Finding, duration
from scoreline.doctor.timing import Cost
from scoreline.tables.schema import Table
from scoreline.values import count_seeds


class TableJob(NamedTuple):
    """The runs of a table: their number, their evaluations of one image, and the preparations before them."""

    runs: int
    evaluations: int
    preparations: int

    def forecast(self, cost: Cost | None, jobs: int) -> Finding:
        """Report the work, and its time if the cost of an evaluation is known."""
        text = f"{self.runs:,} runs, {self.evaluations:,} evaluations of an image"
        if cost is not None:
            time = duration(cost.seconds_for(self.evaluations / jobs))
            text += f": {time} of network calls with {jobs} at a time, on as many idle cores, and the metrics"
        if self.preparations:
            text += f"; before them {self.preparations} preparations, which are not counted"
        return Finding("ok", "table", text)


def table_job(table: Table, budget: str, overrides: Sequence[str], nfe: int) -> TableJob:
    """Count the work of all cells.

    Args:
        table: the table.
        budget: the name of its seed ranges.
        overrides: those of the user, for every cell.
        nfe: of cells that do not set it.
    """
    images = [count_seeds(one) for one in table.ranges(budget)]
    found = []
    for row in table.rows:
        for column in (it for it in table.columns if it.name not in row.cannot):
            words = (*table.base, *row.overrides, *column.overrides, *overrides)
            found.append(next((int(word[4:]) for word in reversed(words) if word.startswith("nfe=")), nfe))
    return TableJob(len(found) * len(images), sum(found) * sum(images), len(table.prepare))
