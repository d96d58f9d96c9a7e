import io
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from scoreline.pictures import save_png, sheet
from scoreline.progress import ImageProgress


def test_plain_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    with ImageProgress(1000, "sampling", done=100, delay=0.0, every=0.05) as progress:
        for _ in range(9):
            time.sleep(0.02)
            progress.update(100, "NFE 5")
    lines = out.getvalue().splitlines()
    assert 2 <= len(lines) <= 5
    assert lines[-1].startswith("sampling: ")
    assert "/1000 img, " in lines[-1]
    assert lines[-1].endswith(", NFE 5")
    assert "ETA 0:" in lines[-1]


def test_short_work_and_other_ranks_show_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    for options in ({"delay": 5.0}, {"delay": 0.0, "enabled": False}):
        with ImageProgress(10, "work", **options) as progress:
            progress.update(10)
    assert out.getvalue() == ""


def test_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setenv("COLUMNS", "100")
    with ImageProgress(100, "sampling", delay=0.0) as progress:
        for _ in range(4):
            time.sleep(0.12)
            progress.update(12.5)
    assert "img/s" in out.getvalue()
    assert "50.0/100" in out.getvalue()


def test_rate_counts_only_what_was_done_here() -> None:
    progress = ImageProgress(1000, "training", done=900, enabled=False)
    progress.began -= 10
    progress.update(50)
    assert progress.line().startswith("training: 950/1000 img, 5 img/s, ETA 0:")


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
