"""Forecast of `sample.py table=NAME`: the time of all its runs."""

from collections.abc import Sequence
from typing import NamedTuple

from scoreline.doctor.findings import duration
from scoreline.tables.pace import SERVER, START_UP


class TableTime(NamedTuple):
    """Seconds of a table on one device.

    Attributes:
        preparations: of the trainings before the runs.
        runs: of the network calls of each run.
        features: of the features of all images, for the metrics.
    """

    preparations: float
    runs: Sequence[float]
    features: float

    def faster(self, speed: float) -> "TableTime":
        """Return the time on devices that compute `speed` times as fast."""
        return TableTime(self.preparations / speed, [it / speed for it in self.runs], self.features / speed)

    def on(self, places: int) -> float:
        """Return the seconds with some runs at a time, after the preparations one by one."""
        mean = self.features / max(1, len(self.runs))
        each = [seconds + mean + START_UP for seconds in self.runs]
        server = SERVER if each else 0.0
        return self.preparations + server + max(sum(each) / places, max(each, default=0.0))

    def sentence(self, places: int) -> str:
        """Return the time with its parts."""
        parts = [f"{duration(sum(self.runs))} of network calls in all", f"{duration(self.features)} of features"]
        if self.preparations:
            parts.insert(0, f"{duration(self.preparations)} of training")
        return f"{duration(self.on(places))}: {', '.join(parts)}, {len(self.runs):,} starts of {START_UP:g} s"
