"""The benchmark of growth, on a few images and steps."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import growth


def cells(text: str) -> list[list[str]]:
    """The rows of a table but its head and rule."""
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]


def test_images_over_the_size_of_a_call(capsys: pytest.CaptureFixture[str]) -> None:
    growth.main(["batch", "--self-check"])
    rows = cells(capsys.readouterr().out)
    assert [row[0] for row in rows] == ["1", "4"]
    assert all(float(cell.replace(",", "")) > 0 for row in rows for cell in row[1:])


def test_the_bare_network_is_called_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """On as many images in calls of the same size."""
    counts: list[int] = []

    def counted(works: list[growth.Callable[[], object]], repeats: int, device: str) -> list[float]:
        for work in works:
            sizes.clear()
            work()
            counts.append(len(sizes))
        return [1.0, 1.0]

    sizes: list[int] = []
    load = growth.load_model

    def watched(path: Path) -> object:
        model = load(path)
        model.denoiser.network.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
        return model

    monkeypatch.setattr(growth, "load_model", watched)
    monkeypatch.setattr(growth, "least", counted)
    growth.batch_table("cpu", [4], 8, 1)
    assert counts == [20, 20]


def test_the_tableaus(capsys: pytest.CaptureFixture[str]) -> None:
    growth.main(["setup", "--self-check"])
    rows = cells(capsys.readouterr().out)
    assert [row[0] for row in rows] == list(growth.SOLVERS)
    assert all(float(cell) > 0 for row in rows for cell in row[1:4])


def test_the_power_is_that_of_the_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "milliseconds", lambda solver, nfe, repeats: nfe**2 / 1000)
    (row,) = cells("\n".join(growth.setup_table(["ddim"], growth.BUDGETS, 1)))
    assert row[-1] == "2.00"


@pytest.mark.slow
def test_one_process_and_two(capsys: pytest.CaptureFixture[str]) -> None:
    growth.main(["processes", "--images", "2", "--self-check"])
    rows = cells(capsys.readouterr().out)
    assert [row[0] for row in rows] == ["1", "2"]
    assert rows[0][2] == "1.00"


@pytest.mark.slow
def test_two_processes_really_share_the_work() -> None:
    found = growth.launched(2, 130, "cpu")
    assert (found["processes"], found["images_made"]) == (2, 130)
    with pytest.raises(RuntimeError, match="device=none"):
        growth.launched(1, 2, "none")
