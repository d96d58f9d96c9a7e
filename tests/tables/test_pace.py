"""The time left of a table, on a clock that passes when a test says so."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from scoreline.config.run_names import model_path
from scoreline.tables import pace
from scoreline.tables.pace import PASSES, SERVER, START_UP, Pace
from scoreline.tables.plan import Cell
from scoreline.tables.schema import Command


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    found = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("time.monotonic", lambda: found.now)
    return found


def cell(name: str, nfe: int, *words: str, seeds: str = "0-9") -> Cell:
    return Cell(name, str(nfe), seeds, ("checkpoint=digits_vp", f"nfe={nfe}", *words), "00000000", f"cells/{name}")


def estimates(
    work: list[float], places: int, seconds: Callable[[float, int], tuple[float, float]], clock: SimpleNamespace
) -> list[tuple[float | None, float]]:
    """Run units of a table on a number of places; return (estimate, truth) at the end of each.

    `seconds` maps the work of a unit and its number to the seconds before its evaluations, and to those of them.
    """
    forecast, waiting, running = Pace(dict(enumerate(work)), places), list(enumerate(work)), dict[int, float]()
    seen = []
    while waiting or running:
        while waiting and len(running) < places:
            number, size = waiting.pop(0)
            forecast.begin(number)
            running[number] = clock.now + sum(seconds(size, number))
        number = min(running, key=running.__getitem__)
        clock.now = running.pop(number)
        forecast.end(number, seconds(work[number], number)[1])
        seen.append((forecast.seconds_left(), clock.now))
    return [(estimate, clock.now - then) for estimate, then in seen]


NFE = [5.0, 6.0, 8.0, 10.0, 15.0, 20.0] * 11


@pytest.mark.parametrize("places", [1, 2, 3])
@pytest.mark.parametrize(("start_up", "rate"), [(0.5, 0.01), (0.5, 1.0), (3.0, 0.3)])
@pytest.mark.parametrize("cold", [0.0, 30.0])
def test_the_first_estimate_holds(
    places: int, start_up: float, rate: float, cold: float, clock: SimpleNamespace
) -> None:
    """Cells of unlike length, the first ones also fill caches: every estimate is within a third of the truth."""
    found = estimates(NFE, places, lambda work, k: (start_up + cold * (k < places), rate * work), clock)
    shown = [(estimate, truth) for estimate, truth in found if estimate is not None]
    assert len(shown) >= len(NFE) - 2 * places
    assert all(estimate == pytest.approx(truth, rel=0.34) for estimate, truth in shown[: -2 * places])
    assert min(estimate for estimate, _ in shown) >= 0.0
    assert shown[-1] == (0.0, 0.0)


def test_one_long_cell_predicts_the_others_at_once(clock: SimpleNamespace) -> None:
    found = estimates([10.0, 100.0, 10.0], 1, lambda work, k: (2.0, work), clock)
    assert found == [(2 * 2.0 + 110.0, 114.0), (12.0, 12.0), (0.0, 0.0)]


def test_cells_without_a_result_teach_nothing(clock: SimpleNamespace) -> None:
    """A refused one ends at once, one that another process finished never began, a failed one is tried again."""
    forecast = Pace({"refused": 5.0, "theirs": 5.0, "failed": 5.0, "good": 10.0, "last": 20.0}, 1)
    forecast.begin("refused")
    clock.now += 0.1
    forecast.end("refused")
    forecast.end("theirs")
    forecast.begin("failed")
    clock.now += 50.0
    forecast.again("failed")
    assert forecast.seconds_left() is None
    forecast.begin("good")
    clock.now += 12.0
    forecast.end("good", 10.0)
    assert forecast.seconds_left() == pytest.approx(2 * 2.0 + 25.0)


def test_running_cells_count_for_what_is_left_of_them(clock: SimpleNamespace) -> None:
    forecast = Pace(dict.fromkeys("abcd", 10.0), 2)
    for unit in "ab":
        forecast.begin(unit)
    clock.now += 10.0
    forecast.end("a", 10.0)
    assert forecast.seconds_left() == pytest.approx((0.0 + 10.0 + 10.0) / 2)
    clock.now += 1000.0
    assert forecast.seconds_left() == pytest.approx(10.0)


def test_trainings_predict_themselves_and_the_cells(clock: SimpleNamespace) -> None:
    """Two trainings of 1 and 3 s, then four cells of 0.5 s by two: each within its own kind."""
    short, long = (Command(f"train.py duration_kimg={kimg} hydra.run.dir=x", "x") for kimg in (1, 3))
    work = pace.of_preparations([short, long])
    assert list(work.values()) == [PASSES * 1000, PASSES * 3000]
    forecast = Pace({**work, **dict.fromkeys("abcd", 1500.0)}, 2, work)
    assert forecast.seconds_left() is None
    forecast.begin(short)
    clock.now += 1.0
    forecast.end_preparation(short)
    assert forecast.seconds_left() == pytest.approx(3.0 + SERVER + 4 * (START_UP + 0.5) / 2)


@pytest.mark.parametrize(
    ("command", "evaluations"),
    [
        ("train.py duration_kimg=16 resume=a/checkpoints/0000008000.ckpt", PASSES * 8000),
        ("train.py duration_kimg=16 resume=auto", PASSES * 16000),
        ("calibrate.py nfe=60 seeds=0-383", 60 * 384),
        ("calibrate.py nfe=60 seeds=0-9 calibration.evaluations=200 calibration.budgets=[3,4,5]", 600 + PASSES * 600),
    ],
)
def test_the_words_of_a_preparation_say_its_length(command: str, evaluations: float) -> None:
    unclear = Command("calibrate.py calibration=search", "b")
    work = pace.of_preparations([Command(command, "a"), unclear])
    assert list(work.values()) == [evaluations, evaluations]


def test_cells_weigh_by_evaluations_images_and_networks() -> None:
    cells = [cell("a", 5), cell("b", 10), cell("c", 5, seeds="0-19"), cell("d", 5, "checkpoint=emoji32_edm")]
    small, large = (model_path(name).stat().st_size for name in ("digits_vp", "emoji32_edm"))
    work = list(pace.of_cells([*cells, cell("e", 5, "checkpoint=nowhere")]).values())
    assert [it / work[0] for it in work[1:4]] == pytest.approx([2.0, 2.0, large / small])
    assert work[4] == pytest.approx(5 * 10)
