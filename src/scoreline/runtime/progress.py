"""Progress of long work: a bar on a terminal, plain lines in a log."""

import math
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

DELAY, BAR_DELAY = 5.0, 1.0
"""Seconds before the first line, or the bar; shorter work has none."""

REFRESH = 0.1
"""Seconds between two updates of a bar."""

BEGUN = 1e-3
"""Share of the work after which its rate predicts the remaining time."""


class ImageProgress:
    """Images done, their rate and the time left: rich's bar on a terminal, else a line every `every` seconds.

    Args:
        total: number of images of the whole work.
        what: name of the work.
        done: number of images from an earlier start, which the rate leaves out.
        enabled: whether this process reports; only one of several should.
        every: seconds between two lines; 0 prints one line per update.
        unit: name of one image.
        seconds_left: forecasts the remaining time of work whose units differ in length, or returns None before it can;
            by default the rest goes on at the rate so far.
    """

    def __init__(
        self,
        total: int,
        what: str,
        done: int = 0,
        enabled: bool = True,
        every: float = 10.0,
        unit: str = "img",
        seconds_left: Callable[[], float | None] | None = None,
    ) -> None:
        self.total, self.what, self.start, self.unit = total, what, done, unit
        self.seconds_left = seconds_left or self._at_this_rate
        self.done: float = done
        self.note = ""
        self.terminal = sys.stderr.isatty()
        self.bar: Any = None
        self.every = REFRESH if self.terminal else every
        self.began = time.monotonic()
        self.due = self.began + (BAR_DELAY if self.terminal else min(DELAY, every)) if enabled else math.inf

    def update(self, images: float, note: str = "") -> None:
        """Count more images, also fractions of one, and print a line or update the bar if it is time.

        Args:
            images: images' worth of work since the last update.
            note: text behind the rate.
        """
        self.done, self.note = self.done + images, note
        if time.monotonic() < self.due:
            return
        self.due = time.monotonic() + self.every
        if not self.terminal:
            print(self.line(note), file=sys.stderr, flush=True)
            return
        self.bar = self.bar or _bar(self.total)
        self.bar.update(0, completed=self.done, text=self.line(note), refresh=True)

    def line(self, note: str = "") -> str:
        """Return `training: 12800/128000 img, 850 img/s, ETA 2:15, loss 0.31`."""
        text = f"{self.what}: {round(self.done)}/{self.total} {self.unit}, {self._rate():.3g} {self.unit}/s"
        left = self.seconds_left()
        if left is not None:
            text += f", ETA {clock_time(left)}"
        return f"{text}, {note}" if note else text

    def _rate(self) -> float:
        return (self.done - self.start) / max(time.monotonic() - self.began, 1e-9)

    def _at_this_rate(self) -> float | None:
        """Return the seconds left, 0 at the end and beyond: the last batch may exceed the total."""
        if self.done >= self.total:
            return 0.0
        begun = self.done - self.start > BEGUN * (self.total - self.start)
        return (self.total - self.done) / self._rate() if begun else None

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.stop()

    def __enter__(self) -> "ImageProgress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def clock_time(seconds: float) -> str:
    """Return a duration as `2:05`, or `3:02:05` from an hour on; a negative one as `0:00`."""
    minutes, left = divmod(max(0, int(seconds)), 60)
    return f"{minutes}:{left:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{left:02d}"


def _bar(total: int) -> Any:
    """Return a bar that stays below other output on the terminal, without a thread of its own.

    The import of rich is here, since short work needs no bar.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    bar = Progress(
        BarColumn(bar_width=20),
        TextColumn("{task.fields[text]}", markup=False),
        console=Console(stderr=True),
        auto_refresh=False,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    )
    bar.add_task("", total=total, text="")
    bar.start()
    return bar
