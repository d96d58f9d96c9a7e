import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoreline.errors import InputError
from scoreline.schedules.base import grid
from scoreline.schedules.discrete import DiscreteVP
from scoreline.schedules.tabulated import Tabulated, from_file
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.deis import DEIS

LEVELS = (80.0, 9.723, 1.901, 0.4765, 0.0667, 0.002)
TABLES = st.lists(st.floats(1e-4, 1e3).map(lambda x: float(f"{x:.6g}")), min_size=2, max_size=40, unique=True)


@settings(max_examples=60, deadline=None)
@given(levels=TABLES, clean=st.booleans())
def test_steps_on_all_intervals_are_the_levels(levels: list[float], clean: bool) -> None:
    falling = [*sorted(levels, reverse=True), *([0.0] if clean else [])]
    for given_order in (falling, falling[::-1]):
        assert grid(Tabulated(tuple(given_order)), falling[0], falling[-1], len(falling) - 1).tolist() == falling


@settings(max_examples=60, deadline=None)
@given(levels=TABLES, at=st.lists(st.floats(0, 1), min_size=2, max_size=20, unique=True))
def test_inverts_and_increases(levels: list[float], at: list[float]) -> None:
    schedule = Tabulated(tuple(sorted(levels)))
    span = torch.tensor(sorted(at), dtype=torch.float64)
    rho = schedule.knots()[0] + (schedule.knots()[-1] - schedule.knots()[0]) * span
    v, back = (torch.asinh(level / 1e-3) for level in (rho, schedule.inverse(schedule(rho))))
    widest = float(torch.asinh(schedule.knots() / 1e-3).diff().max())
    assert float((v - back).abs().max()) <= 1e-9 * widest + 1e-11  # u within 1e-9 of a whole number is that level
    assert (schedule(rho).diff() >= 0).all()
    assert torch.equal(schedule(schedule.knots()), torch.arange(len(levels), dtype=torch.float64))


def test_other_numbers_of_steps_interpolate_in_asinh() -> None:
    rho = grid(Tabulated(LEVELS), LEVELS[0], LEVELS[-1], 10).tolist()
    assert rho[::2] == list(LEVELS)
    for a, between, b in zip(LEVELS, rho[1::2], LEVELS[1:], strict=False):
        middle = (math.asinh(a / 1e-3) + math.asinh(b / 1e-3)) / 2
        assert between == pytest.approx(1e-3 * math.sinh(middle), rel=1e-12)
    assert (grid(Tabulated(LEVELS), 80, 0.002, 7).diff() < 0).all()


def test_other_shapes_and_dtypes_and_values_outside() -> None:
    schedule = Tabulated((1.0, 2.0, 4.0))
    rho = torch.tensor([[0.5, 1.0], [4.0, 9.0]])
    assert schedule(rho).tolist() == [[0.0, 0.0], [2.0, 2.0]]
    assert schedule(rho).dtype == torch.float32
    assert schedule.inverse(torch.tensor([-1.0, 3.0])).tolist() == [1.0, 4.0]
    assert schedule.knots().tolist() == [1.0, 2.0, 4.0]


def test_another_range_is_refused_with_the_right_one() -> None:
    remedy = "the levels of this schedule go from 80 to 0.002; use sigma_max=80 sigma_min=0.002"
    with pytest.raises(InputError, match=f"sigma_max=152.167: {remedy}"):
        grid(Tabulated(LEVELS), 152.16697, 0.002, 5)
    with pytest.raises(InputError, match=f"sigma_min=0: {remedy}"):
        grid(Tabulated(LEVELS), 80, 0, 5)
    with pytest.raises(InputError, match=r"sigma_min=0\.01"):
        grid(Tabulated((80.0, 1.0, 0.0)), 80, 0.01, 5)
    with pytest.raises(InputError, match=r"from 0\.002 to 80; use sigma_max=0\.002 sigma_min=80"):
        grid(Tabulated(LEVELS), 0.01, 80, 5)


def test_a_rising_run_meets_the_levels() -> None:
    for levels in (LEVELS, tuple(reversed(LEVELS))):
        assert grid(Tabulated(levels), 0.002, 80, len(LEVELS) - 1).tolist() == sorted(LEVELS)


def test_an_end_of_six_digits_is_accepted() -> None:
    vp = LinearVP()
    levels = grid(Tabulated((152.167, 3.0, 0.0104860)), vp.sigma_max, vp.sigma_min, 2)
    assert levels.tolist() == [vp.sigma_max, 3.0, vp.sigma_min]


def test_a_solver_integrates_over_its_knots() -> None:
    """As the variable of DEIS the map has kinks: the rows must still be exact for constant eps."""
    assert DEIS(3, Tabulated(LEVELS))(Tabulated(LEVELS), 80, 0.002, 12).residual < 1e-13


@pytest.mark.parametrize(
    ("levels", "sentence"),
    [
        ((), "0 noise levels; a schedule needs two or more"),
        ((1.0,), "1 noise levels"),
        ((3.0, 2.0, 2.0, 1.0), "number 3 is 2 after 2"),
        ((3.0, 1.0, 2.0, 0.5), "number 3 is 2 after 1"),
        ((1.0, 3.0, 2.0), "number 3 is 2 after 3"),
        ((2.0, 2.0), "number 2 is 2 after 2"),
        ((1.0, 0.5, -0.1), "-0.1 is"),
        ((float("nan"), 1.0), "nan is"),
    ],
)
def test_refuses_what_is_no_list_of_levels(levels: tuple[float, ...], sentence: str) -> None:
    with pytest.raises(InputError, match=rf"schedule\.levels: {sentence}"):
        Tabulated(levels)


@pytest.mark.parametrize("order", [1, -1])
def test_reads_all_kinds_of_files(tmp_path: Path, order: int) -> None:
    levels = list(LEVELS)[::order]
    lines = "".join(f"{level!r} # a comment\n\n" for level in levels)
    (tmp_path / "a.txt").write_text(f"# levels of a run\n{lines}")
    (tmp_path / "a.csv").write_text("\ufeff" + lines, encoding="utf-8")
    (tmp_path / "a.JSON").write_text(json.dumps(levels))
    np.save(tmp_path / "a.npy", np.array(levels))
    for name in ("a.txt", "a.csv", "a.JSON", "a.npy"):
        assert from_file(tmp_path / name) == Tabulated(LEVELS), name
    np.save(tmp_path / "whole.npy", np.array([80, 3, 1][::order], dtype=np.int16))
    assert from_file(str(tmp_path / "whole.npy")) == Tabulated((80.0, 3.0, 1.0))


def test_times_become_the_levels_of_the_process(tmp_path: Path) -> None:
    path = tmp_path / "times.txt"
    path.write_text("999\n500\n100\n0\n")
    schedule = from_file(path, "time", DiscreteVP())
    vp = DiscreteVP()
    assert vp(grid(schedule, vp.sigma_max, vp.sigma_min, 3)).tolist() == pytest.approx([999, 500, 100, 0], abs=1e-8)


def test_a_mistake_in_a_file_is_one_sentence(tmp_path: Path) -> None:
    def refused(name: str, content: str | bytes, sentence: str, **options: object) -> None:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(InputError, match=sentence) as caught:
            from_file(path, **options)
        assert "schedule." in str(caught.value)
        assert "\n" not in str(caught.value)

    with pytest.raises(InputError, match=r"schedule\.path=.*missing\.txt: no such file"):
        from_file(tmp_path / "missing.txt")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(InputError, match="no such file"):
        from_file(tmp_path / "folder.txt")
    refused("a.yaml", "[2, 1]", r"unknown kind of file; use one of \.csv, \.json, \.npy, \.txt")
    refused("a.txt", "2\none\n", "not a list of numbers .*'one'")
    refused("a.csv", "2,1\n", "not a list of numbers .*'2,1'")
    refused("b.txt", b"\xff\xfe\x00", "not a list of numbers")
    refused("c.txt", "3\n1\n2\n", r"schedule\.path=.*c\.txt: number 3 is 2 after 1")
    refused("d.txt", "# nothing\n", r"schedule\.path=.*d\.txt: 0 noise levels")
    refused("e.txt", "2\n-1\n", "-1 is")
    refused("f.txt", "nan\n1\n", "nan is")
    refused("a.json", '{"levels": [2, 1]}', "it holds a dict")
    refused("b.json", "[2, [1]]", "number")
    refused("c.json", "[2, true]", "'True' is")
    refused("d.json", "[2, 1", "not a list of numbers")
    refused("e.json", "[" * 100_000, "not a list of numbers")
    refused("g.txt", "2\n1\n", r"schedule\.values=tme.*'time'", values="tme")
    refused("g.txt", "2\n1\n", r"schedule\.values=time: times need", values="time")
    far = {"values": "time", "noise_schedule": DiscreteVP()}
    refused("h.txt", "5\n2000\n0\n", r"schedule\.path: DiscreteVP has no noise level at time 2000", **far)
    refused("i.txt", "5\n9\n0\n", r"i\.txt \(its times as noise levels\): number 2", **far)
    far["noise_schedule"] = LinearVP()
    refused("j.txt", "1\n-1\n", "LinearVP has no noise level at time -1", **far)
    refused("k.txt", "1\ninf\n", "LinearVP has no noise level at time inf", **far)
    refused("l.txt", "1\nnan\n", "LinearVP has no noise level at time nan", **far)


def test_a_numpy_file_is_read_without_executing_anything(tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (marker,))  # type: ignore[return-value]

    np.save(tmp_path / "object.npy", np.array([Bomb(), 1.0], dtype=object), allow_pickle=True)
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(Bomb()))
    np.savez(tmp_path / "zip.npz", levels=np.array([2.0, 1.0]))
    (tmp_path / "zip.npz").rename(tmp_path / "zip.npy")
    np.save(tmp_path / "square.npy", np.ones((2, 2)))
    np.save(tmp_path / "complex.npy", np.ones(2, dtype=complex))
    np.save(tmp_path / "none.npy", np.ones(0))
    (tmp_path / "short.npy").write_bytes((tmp_path / "square.npy").read_bytes()[:-8])
    (tmp_path / "empty.npy").write_bytes(b"")
    for path in sorted(tmp_path.glob("*.npy")):
        with pytest.raises(InputError, match=rf"schedule\.path=.*{path.name}: (not a list|0 noise levels)"):
            from_file(path)
    assert not marker.exists()
