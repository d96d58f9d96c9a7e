"""Progress in images, on one process, for people and for log files."""

import sys
import time
from types import TracebackType
from typing import Any

BEGUN = 1e-3
"""Share of the work after which its rate says something of the rest."""


class ImageProgress:
    """A bar with images, rate and ETA on a terminal; a plain line every `every` seconds elsewhere.

    Nothing is shown for work that ends within `delay` seconds.
    """

    def __init__(
        self,
        total: int,
        what: str,
        done: int = 0,
        enabled: bool = True,
        delay: float = 2.0,
        every: float = 10.0,
        unit: str = "img",
    ) -> None:
        self.total, self.what, self.start, self.unit = total, what, done, unit
        self.done: float = done
        self.enabled, self.every, self.began = enabled, every, time.monotonic()
        self.printed = self.began + delay - every
        self.note = ""
        self.bar = self._bar(delay) if enabled and sys.stderr.isatty() else None

    def _bar(self, delay: float) -> Any:
        from tqdm import tqdm

        return tqdm(
            total=self.total,
            initial=self.done,
            desc=self.what,
            unit=self.unit,
            unit_scale=True,
            delay=delay,
            leave=False,
        )

    def update(self, images: float, note: str = "") -> None:
        """`images` more are done, in fractions where one image takes long; `note` is shown behind the rate."""
        self.done, self.note = self.done + images, note
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.n = round(self.done)
            self.bar.update(0)
        elif self.enabled and time.monotonic() - self.printed >= self.every:
            self.printed = time.monotonic()
            print(self.line(note), file=sys.stderr, flush=True)

    def line(self, note: str = "") -> str:
        """`training: 12800/128000 img, 850 img/s, ETA 2:15, loss 0.31`."""
        rate = (self.done - self.start) / max(time.monotonic() - self.began, 1e-9)
        text = f"{self.what}: {round(self.done)}/{self.total} {self.unit}, {rate:.3g} {self.unit}/s"
        if self.done - self.start > BEGUN * self.total:
            left = int((self.total - self.done) / rate)
            text += f", ETA {left // 60}:{left % 60:02d}"
        return f"{text}, {note}" if note else text

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()

    def __enter__(self) -> "ImageProgress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
