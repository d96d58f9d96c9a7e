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
