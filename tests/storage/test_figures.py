"""One style of all figures, the same bytes for the same figure, and plain ticks."""

import io
from pathlib import Path

import pytest

from scoreline.errors import InputError
from scoreline.storage import figures
from scoreline.storage.figures import in_style, overlaid, plain_number


def written(form: str) -> bytes:
    from matplotlib.figure import Figure

    file = io.BytesIO()
    with in_style():
        chart = Figure()
        chart.subplots().plot([1, 2], label="a")
        figures.save(chart, file, form)
    return file.getvalue()


@pytest.mark.parametrize("form", ["svg", "pdf"])
def test_the_same_figure_has_the_same_bytes(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any time, and whatever the settings of the user are."""
    import matplotlib

    first = written(form)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    with matplotlib.rc_context({"svg.hashsalt": "other", "font.size": 20, "pdf.fonttype": 3}):
        assert written(form) == first
        assert matplotlib.rcParams["font.size"] == 20, "the user's settings are back"


def test_text_stays_text() -> None:
    assert b"<text" in written("svg")
    assert b"STIXGeneral" in written("svg")
    assert b"/FontFile2" in written("pdf"), "TrueType"


def test_a_style_sheet_is_laid_over(tmp_path: Path) -> None:
    import matplotlib

    sheet = tmp_path / "mine.mplstyle"
    sheet.write_text("font.size: 11\n")
    with overlaid(str(sheet)), in_style():
        assert (matplotlib.rcParams["font.size"], matplotlib.rcParams["svg.fonttype"]) == (11, "none")
    with in_style():
        assert matplotlib.rcParams["font.size"] == 8


@pytest.mark.parametrize("content", [None, "font.size: large people\n"])
def test_what_is_no_style_sheet_is_one_line(content: str | None, tmp_path: Path) -> None:
    sheet = tmp_path / "mine.mplstyle"
    if content:
        sheet.write_text(content)
    said = r"style=.*mine.mplstyle: no style sheet of Matplotlib \("
    with pytest.raises(InputError, match=said), overlaid(str(sheet)):
        pass


@pytest.mark.parametrize(
    ("limits", "shown"),
    [
        ((3, 60), ["5", "10", "20", "50"]),
        ((0.04, 11), ["0.05", "0.1", "0.2", "0.5", "1", "2", "5", "10"]),
        ((0.008, 90), ["0.01", "0.1", "1", "10"]),
        ((2.6, 4.9), ["3", "3.5", "4", "4.5"]),
    ],
)
def test_ticks_of_logarithmic_axes_are_plain_numbers(limits: tuple[float, float], shown: list[str]) -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    axes.set(xscale="log", xlim=limits)
    figures.plain_ticks(axes.xaxis)
    low, high = limits
    assert [text.get_text() for text in axes.get_xticklabels() if low <= text.get_position()[0] <= high] == shown


def test_powers_of_ten_out_of_reach() -> None:
    assert [plain_number(value) for value in (1e-4, 1e-5, 1e6)] == ["0.0001", "$10^{-5}$", "$10^{6}$"]
