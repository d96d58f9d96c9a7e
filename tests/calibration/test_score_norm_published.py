"""The released code's reading of a score_norm record, quirk by quirk."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from scoreline.calibration.score_norm_published import PublishedScale, load_published_scale
from scoreline.errors import InputError
from scoreline.records import Record
from scoreline.schedules.discrete import DiscreteVP
from scoreline.schedules.vp import LinearVP

VP = DiscreteVP()
INDEX = torch.arange(1000, dtype=torch.float64)
RHO = VP.inverse(INDEX)
R = 0.5 + 0.3 * (INDEX + 1).log() / 7 + 0.01 * torch.sin(INDEX)


def scale(**options: object) -> PublishedScale:
    return PublishedScale(tuple(RHO.tolist()), tuple(R.tolist()), VP, **options)


def at(tau: Tensor) -> Tensor:
    """Noise level at tau = (t + 1) / 1000."""
    return VP.inverse(tau * 1000 - 1)


@pytest.mark.parametrize("clip", [0, 1, 5, 999])
def test_only_the_first_entries_are_overwritten(clip: int) -> None:
    expected = R.clone()
    for k in range(clip):
        expected[k] = R[clip]
    torch.testing.assert_close(scale(clip=clip).entries, expected, rtol=1e-11, atol=0)


@pytest.mark.parametrize("clip", [0, 5])
def test_where_entries_sit(clip: int) -> None:
    expected = torch.cat([R[clip].expand(clip), R[clip:]])
    stretched, clean = scale(clip=clip), scale(clip=clip, stretched_knots=False)
    torch.testing.assert_close(stretched(at(INDEX / 999)), expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(clean(at((INDEX + 1) / 1000)), expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(stretched.knots(), at(INDEX / 999), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(clean.knots(), at((INDEX + 1) / 1000), rtol=1e-12, atol=1e-15)


def test_linear_in_tau_between_and_constant_outside() -> None:
    tau = torch.linspace(0, 1, 4321, dtype=torch.float64)
    for stretched, places in ((True, INDEX / 999), (False, (INDEX + 1) / 1000)):
        ours = scale(stretched_knots=stretched)
        right = torch.searchsorted(places, tau).clamp(1, 999)
        fraction = ((tau - places[right - 1]) / (places[right] - places[right - 1])).clamp(0, 1)
        expected = ours.entries[right - 1] * (1 - fraction) + ours.entries[right] * fraction
        torch.testing.assert_close(ours(at(tau)), expected, rtol=1e-9, atol=0)
        assert float(ours(RHO[-1:] * 2)) == pytest.approx(float(R[-1]))
        assert float(ours(torch.zeros(1, dtype=torch.float64))) == pytest.approx(float(R[5]))


def test_other_levels_are_resampled_at_training_times() -> None:
    """As `ScoreScale` reads it: linear in ln rho, constant outside; here on a continuous process."""
    process = LinearVP()
    levels = (float(process.inverse(torch.tensor(0.3).double())), float(process.inverse(torch.tensor(0.7).double())))
    entries = PublishedScale(levels, (0.6, 0.8), process, clip=0).entries
    assert (entries[:300] == 0.6).all()
    torch.testing.assert_close(entries[699:], torch.full((301,), 0.8, dtype=torch.float64))
    log = process.inverse(torch.tensor(0.5).double()).log()
    ends = torch.tensor(levels, dtype=torch.float64).log()
    assert float(entries[499]) == pytest.approx(0.6 + 0.2 * float((log - ends[0]) / (ends[1] - ends[0])), rel=1e-12)


def test_a_senseless_clip_or_record_is_refused() -> None:
    for clip in (-1, 1000, 2.5, True):
        with pytest.raises(InputError, match=r"solver\.scale\.clip="):
            scale(clip=clip)
    with pytest.raises(InputError, match="score scale"):
        PublishedScale((1.0, 0.5), (1.0, 1.0), VP)


def test_loads_the_record_of_its_checkpoint_only(tmp_path: Path) -> None:
    path = tmp_path / "model.score_norm.safetensors"
    Record("score_norm", {"rho": RHO, "mean_abs_eps": R}, {"checkpoint": "ab" * 32}).save(path)
    assert load_published_scale(path, "ab" * 32, VP, 1, False) == scale(clip=1, stretched_knots=False)
    with pytest.raises(InputError, match="made for checkpoint"):
        load_published_scale(path, "cd" * 32, VP)
    with pytest.raises(InputError, match="no such record"):
        load_published_scale(tmp_path / "none", "ab" * 32, VP)
