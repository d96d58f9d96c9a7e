import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from scoreline.runtime import progress
from scoreline.runtime.progress import ImageProgress
from scoreline.storage.pictures import save_png, sheet


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Time that passes when a test says so."""
    found = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: found.now)
    return found


def shown(out: io.StringIO, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, **options: Any) -> str:
    """Standard error of 100 images in 25 s, after 100 of an earlier start."""
    monkeypatch.setattr(sys, "stderr", out)
    with ImageProgress(200, "sampling", done=100, **options) as bar:
        for _ in range(8):
            clock.now += 3.125
            bar.update(12.5, "NFE 5")
    return out.getvalue()


def test_a_log_gets_a_line_every_ten_seconds(clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(io.StringIO(), clock, monkeypatch).splitlines()
    assert lines == [
        "sampling: 125/200 img, 4 img/s, ETA 0:18, NFE 5",
        "sampling: 175/200 img, 4 img/s, ETA 0:06, NFE 5",
    ]
    assert len(shown(io.StringIO(), clock, monkeypatch, every=0.0).splitlines()) == 8


def test_short_work_and_other_processes_show_nothing(clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    for out in (io.StringIO(), Terminal()):
        assert shown(out, clock, monkeypatch, enabled=False) == ""
        with ImageProgress(10, "work") as bar:
            clock.now += 0.9
            bar.update(10)
        assert out.getvalue() == ""


def test_a_terminal_gets_a_bar(clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    text = shown(Terminal(), clock, monkeypatch)
    assert "sampling: 175/200 img, 4 img/s, ETA 0:06, NFE 5" in text
    assert "\u2501" in text, "the bar"
    assert text.endswith("\x1b[2K"), "the bar is removed"


@pytest.mark.parametrize(
    ("total", "done", "images", "seconds", "eta"),
    [
        (200, 0, 100, 50.0, "ETA 0:50"),
        (200, 190, 10, 50.0, "ETA 0:00"),
        (1000, 990, 64, 3.0, "ETA 0:00"),  # the last batch of a training exceeds its length
        (1000, 1064, 0, 3.0, "ETA 0:00"),  # it was longer once
        (1000, 1064, 64, 0.0, "ETA 0:00"),
        (0, 0, 5, 1.0, "ETA 0:00"),
        (1000, 999, 0.5, 10.0, "ETA 0:10"),  # a share of the rest, not of the whole, predicts it
        (10, 0, 1, 1000.0, "ETA 2:30:00"),
        (100, 0, 0, 5.0, None),
        (100_000, 0, 50, 5.0, None),
        (100, 50, 10, -5.0, "ETA 0:00"),  # a clock that goes back
    ],
)
def test_the_time_left_is_never_negative(
    total: int, done: int, images: float, seconds: float, eta: str | None, clock: SimpleNamespace
) -> None:
    bar = ImageProgress(total, "work", done)
    clock.now += seconds
    bar.update(images)
    shown = bar.line().partition("ETA")
    assert "".join(shown[1:]) == (eta or "")


def test_a_forecast_replaces_the_rate() -> None:
    left: list[float | None] = [None, 61.0, -3.0]
    bar = ImageProgress(3, "table", unit="cell", seconds_left=lambda: left.pop(0))
    lines = [bar.line("a") for _ in range(3)]
    assert [line.rpartition("cell/s")[2] for line in lines] == [", a", ", ETA 1:01, a", ", ETA 0:00, a"]


@pytest.mark.parametrize("channels", [1, 3])
def test_sheet_and_png(channels: int, tmp_path: Path) -> None:
    images = torch.arange(5 * channels * 4, dtype=torch.uint8).reshape(5, channels, 2, 2)
    picture = sheet(images, columns=3, scale=2)
    assert picture.shape == (channels, 2 * 3 * 2, 3 * 3 * 2)
    assert torch.equal(picture[:, :4:2, :4:2], images[0])
    assert torch.equal(picture[:, 6:10:2, 6:10:2], images[4])
    assert (picture[:, 6:, 12:] == 255).all()
    save_png(tmp_path / "a.png", picture)
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (18, 12)
        assert image.mode == ("L" if channels == 1 else "RGB")
    assert sheet(images).shape[1] >= 48
