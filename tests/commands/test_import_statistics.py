"""`scoreline import-statistics`: files in the format of the released statistics, written here."""

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from images import images_of
from scipy.interpolate import PchipInterpolator

from scoreline import cli
from scoreline.calibration.published_statistics import published_record
from scoreline.calibration.score_norm_plot import plot
from scoreline.calibration.score_norm_published import load_published_scale
from scoreline.calibration.score_scale import load_scale
from scoreline.checkpoints import Card, Checkpoint, load_model, save_model
from scoreline.commands import import_statistics, inspect
from scoreline.errors import InputError
from scoreline.networks.unet import UNet
from scoreline.records import load_record
from scoreline.schedules.base import NoiseSchedule
from scoreline.schedules.deis_sn_times import DEISSNTimes
from scoreline.schedules.discrete import DiscreteVP
from scoreline.schedules.spacings import Polynomial
from scoreline.schedules.ve import EDM, VE
from scoreline.schedules.vp import CosineVP, LinearVP
from scoreline.solvers.deis import DEIS
from scoreline.solvers.tableau import build
from scoreline.storage.files import sha256

SIGMA = (1 - torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float32), 0)).sqrt().numpy()
"""Of the released code, in its own precision; entry k is at tau = (k + 1) / 1000."""

INDEX = [0, 1, 2, 3, 5, 8, 10, 15, 20, 30, 50, 75, 100, 150, 200, 300, 500, 700, 900, 999]
LISTED_SIGMA = [0.010001, 0.014830, 0.018966, 0.022790, 0.029975, 0.040200, 0.046835, 0.063112, 0.079150, 0.110859]
LISTED_SIGMA += [0.173346, 0.249752, 0.323819, 0.462724, 0.586219, 0.778453, 0.960314, 0.996560, 0.999865, 0.999980]
CIFAR_SCORE = [54.61691, 39.54902, 32.05293, 27.40192, 21.58698, 16.66555, 14.53864, 11.10714, 9.02684, 6.60297]
CIFAR_SCORE += [4.33425, 3.05981, 2.38422, 1.68843, 1.34191, 1.01775, 0.82996, 0.80161, 0.79854, 0.79812]
CIFAR = [0.54621, 0.58653, 0.60792, 0.62450, 0.64706, 0.66995, 0.68092, 0.70099, 0.71447, 0.73200]
CIFAR += [0.75132, 0.76420, 0.77206, 0.78128, 0.78665, 0.79227, 0.79702, 0.79885, 0.79844, 0.79810]
CHURCH_SCORE = [57.94929, 41.68915, 33.64712, 28.71334, 22.52706, 17.32022, 15.07385, 11.45987, 9.28223, 6.75724]
CHURCH_SCORE += [4.40845, 3.09826, 2.40709, 1.69850, 1.34632, 1.01884, 0.82919, 0.80049, 0.79786, 0.79762]
CHURCH = [0.57954, 0.61827, 0.63816, 0.65438, 0.67524, 0.69626, 0.70598, 0.72325, 0.73469, 0.74910]
CHURCH += [0.76418, 0.77380, 0.77946, 0.78594, 0.78924, 0.79312, 0.79629, 0.79774, 0.79775, 0.79761]
CIFAR_LAST_ROW = (-0.0366958, 0.0097556, -0.0015684)
CHURCH_LAST_ROW = (-0.0368109, 0.0096489, -0.0015494)

MODEL = {
    "network": {
        "_target_": "scoreline.networks.unet.UNet",
        "channels": 1,
        "resolution": 8,
        "width": 8,
        "blocks": 1,
    },
    "noise_schedule": {"_target_": "scoreline.schedules.discrete.DiscreteVP"},
    "parameterisation": {
        "_target_": "scoreline.parameterisations.NoisePrediction",
        "label_scale": 1.0,
        "noise_schedule": {"_target_": "scoreline.schedules.discrete.DiscreteVP"},
    },
}


def statistics(score: np.ndarray) -> dict[str, Any]:
    """As released: float32, from tau = 1 down."""
    parts = {"score_abs": score, "Ls": SIGMA}
    return {name: torch.from_numpy(part.astype(np.float32)[::-1].copy()) for name, part in parts.items()}


def listed(score: list[float]) -> dict[str, Any]:
    """All 1000 entries from the twenty listed ones: score times sigma, monotone cubic in ln(k + 1)."""
    norms = PchipInterpolator(np.log1p(INDEX), np.array(score) * SIGMA[INDEX])(np.log1p(np.arange(1000)))
    return statistics(norms / SIGMA)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    path = tmp_path / "model" / "model.safetensors"
    torch.manual_seed(0)
    save_model(path, UNet(1, 8, width=8, blocks=1).state_dict(), Card(MODEL, (1, 8, 8), 0, {"name": "toy"}, {}))
    return load_model(path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    torch.save(listed(CIFAR_SCORE), tmp_path / "normalizer.pt")
    return tmp_path / "normalizer.pt"


def imported(source: Path, checkpoint: Checkpoint) -> Path:
    """By the command."""
    import_statistics.main([str(source), f"checkpoint={checkpoint.path.parent}"])
    return checkpoint.path.with_name("model.score_norm.safetensors")


@pytest.mark.parametrize(
    ("score", "norms", "clip", "row"),
    [(CIFAR_SCORE, CIFAR, 5, CIFAR_LAST_ROW), (CHURCH_SCORE, CHURCH, 1, CHURCH_LAST_ROW)],
)
def test_published_rows_and_coefficients_come_out(
    score: list[float], norms: list[float], clip: int, row: tuple[float, ...], tmp_path: Path, checkpoint: Checkpoint
) -> None:
    """Entries as listed; the last row of the ten steps reads entries 0 .. 10 only, seven of which are listed."""
    torch.save(listed(score), tmp_path / "s.pt")
    path = imported(tmp_path / "s.pt", checkpoint)
    values = load_record(path, "score_norm", checkpoint.digest).values
    assert values["mean_abs_eps"][INDEX].tolist() == pytest.approx(norms, abs=1e-5)
    rho = values["rho"][INDEX]
    assert (rho / (1 + rho**2).sqrt()).tolist() == pytest.approx(LISTED_SIGMA, abs=1.5e-6)
    process = checkpoint.noise_schedule
    scale = load_published_scale(path, checkpoint.digest, process, clip)
    table = DEIS(2, process, scale)(DEISSNTimes(process), process.sigma_max, 0.0, 10)
    C = table.N[9, 7:].flip(0) * scale(table.rho[7:10].flip(0))
    assert C.tolist() == pytest.approx(row, rel=2e-4)


def test_constant_statistic_gives_plain_deis(tmp_path: Path, checkpoint: Checkpoint) -> None:
    torch.save(statistics(0.8 / SIGMA), tmp_path / "s.pt")
    scale = load_scale(imported(tmp_path / "s.pt", checkpoint), checkpoint.digest)
    process = checkpoint.noise_schedule
    span = (process.sigma_max, process.sigma_min)
    plain, normalised = (build(DEIS(3, process, s), Polynomial(process, 2), span, 6, "none") for s in (None, scale))
    torch.testing.assert_close(normalised.N, plain.N, rtol=1e-5, atol=1e-6)
    images = images_of(checkpoint, normalised, [0, 1], None, 2)
    assert images.shape == (2, 1, 8, 8)
    assert int(images.max()) > int(images.min())


def test_provenance_names_known_and_unknown(source: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    record = load_record(imported(source, checkpoint), "score_norm", checkpoint.digest)
    assert record.provenance["imported_sha256"] == sha256(source)
    assert record.provenance["imported_from"] == "normalizer.pt"
    assert record.provenance["images"] is None
    assert record.provenance["estimator"].startswith("imported")
    assert record.provenance["data"] == {"name": "toy"}
    assert bool(record.values["standard_error"].isnan().all())
    assert bool((record.values["rho"].diff() > 0).all())
    plot(record, tmp_path / "plot.png", checkpoint.noise_schedule)
    assert (tmp_path / "plot.png").stat().st_size > 5000
    assert "+- unknown" in inspect.text(checkpoint.path.with_name("model.score_norm.safetensors"))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("location", ["cpu", "cuda:0"])
def test_torch_formats_and_gpu_storages_are_read(
    zipped: bool, location: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "other.pt"
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: location)
        torch.save(listed(CIFAR_SCORE), path, _use_new_zipfile_serialization=zipped)
    assert location.encode() in path.read_bytes()
    ours, reference = (published_record(p, DiscreteVP(), "ab", {}).values for p in (path, source))
    assert torch.equal(ours["mean_abs_eps"], reference["mean_abs_eps"])


class Canary:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_code_in_a_file_never_runs(form: str, tmp_path: Path) -> None:
    canary, path = tmp_path / "ran", tmp_path / "evil.pt"
    content = {**listed(CIFAR_SCORE), "score_abs": Canary(canary)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(InputError, match=r"evil\.pt: not a readable file of tensors"):
        published_record(path, DiscreteVP(), "ab", {})
    assert not canary.exists()
    if form == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert canary.exists(), "the canary works: unpickling in earnest runs it"


def test_a_refused_global_is_named(tmp_path: Path) -> None:
    torch.save({"score_abs": Path("x"), "Ls": 1}, tmp_path / "s.pt")
    with pytest.raises(InputError, match=r"it asks for pathlib\.\w+, and code in a file is never run"):
        published_record(tmp_path / "s.pt", DiscreteVP(), "ab", {})


GOOD = listed(CIFAR_SCORE)
SPARSE = torch.sparse_coo_tensor(torch.tensor([[3]]), torch.ones(1), (1000,), check_invariants=True)


def altered(key: str, at: int, value: float) -> dict[str, Any]:
    tensor = GOOD[key].clone()
    tensor[at] = value
    return {**GOOD, key: tensor}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([1, 2], "holds list; statistics of DEIS-SN have exactly the keys Ls and score_abs"),
        ({}, "holds dict; statistics"),
        ({"Ls": GOOD["Ls"]}, "holds the keys Ls; statistics"),
        ({**GOOD, "more": 1}, "holds the keys Ls, more, score_abs; statistics"),
        ({**GOOD, "Ls": 3.0}, "Ls is not a plain tensor"),
        ({**GOOD, "Ls": torch.ones(1000, dtype=torch.int64)}, "Ls is not a plain tensor"),
        ({**GOOD, "score_abs": SPARSE}, "it asks for torch._utils._rebuild_sparse_tensor, and code in a file is never"),
        ({**GOOD, "score_abs": torch.ones(999)}, "score_abs has shape 999; statistics of DEIS-SN have 1000 entries"),
        ({**GOOD, "score_abs": torch.ones(1000, 3)}, "score_abs has shape 1000x3;"),
        ({**GOOD, "score_abs": torch.tensor(1.0)}, "score_abs has shape a single number;"),
        (altered("score_abs", 7, torch.nan), "score_abs is not finite and positive everywhere"),
        (altered("score_abs", 7, torch.inf), "score_abs is not finite and positive everywhere"),
        (altered("Ls", 7, 0.0), "Ls is not finite and positive everywhere"),
        (altered("score_abs", 999, -1.0), "score_abs is not finite and positive everywhere"),
        (altered("Ls", 999, 0.010012), "Ls is 0.010012 at tau=0.001, sigma of the checkpoint's DiscreteVP is 0.01:"),
        ({**GOOD, "Ls": GOOD["Ls"].flip(0)}, "another process, or in another order"),
    ],
)
def test_wrong_content_is_one_sentence(content: Any, sentence: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "s.pt")
    with pytest.raises(InputError) as refused:
        published_record(tmp_path / "s.pt", DiscreteVP(), "ab", {})
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02}q\x00.", b"PK\x03\x04"])
def test_files_of_another_kind(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "s.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"s\.pt: (not a readable file of tensors|holds dict)"):
        published_record(tmp_path / "s.pt", DiscreteVP(), "ab", {})


@pytest.mark.parametrize("cut", [100, 5000, -5])
@pytest.mark.parametrize("zipped", [True, False])
def test_cut_files(cut: int, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "s.pt"
    torch.save(GOOD, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match="not a readable file of tensors"):
        published_record(path, DiscreteVP(), "ab", {})


@pytest.mark.parametrize("process", [LinearVP(), CosineVP(), DiscreteVP(steps=500), VE(), EDM()])
def test_another_process_is_refused(process: NoiseSchedule, source: Path) -> None:
    with pytest.raises(InputError, match=rf"sigma of the checkpoint's {type(process).__name__} is .*another process"):
        published_record(source, process, "ab", {})


def test_a_record_is_never_overwritten(source: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    beside = imported(source, checkpoint)
    before = beside.read_bytes()
    with pytest.raises(InputError, match="is there already"):
        imported(source, checkpoint)
    assert beside.read_bytes() == before
    out = tmp_path / "a=b" / "r.safetensors"
    import_statistics.main([f"checkpoint={checkpoint.path}", str(source), f"out={out}"])
    assert load_scale(out, checkpoint.digest) == load_scale(beside, checkpoint.digest)


def test_file_name_may_hold_an_equals_sign(source: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    name = tmp_path / "data=cifar.pt"
    source.rename(name)
    assert imported(name, checkpoint).is_file()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "0 files of statistics: give one"),
        (["a.pt", "b.pt", "checkpoint=digits_vp"], "2 files of statistics: give one"),
        (["a.pt"], "checkpoint: has no default"),
        (["a.pt", "chekpoint=digits_vp"], "chekpoint: there is no such key; did you mean 'checkpoint'?"),
        (["a.pt", "checkpoint=nowhere"], "checkpoint=nowhere: no such file"),
        (["a.pt", "checkpoint=digits_vp"], "is there already"),
        (["a.pt", "checkpoint=digits_vp", "out=new"], "a.pt: no such file"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_two(
    words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["scoreline", "import-statistics", *words])
    with pytest.raises(SystemExit) as left:
        cli.main()
    error = capsys.readouterr().err
    assert left.value.code == 2
    assert error.startswith("scoreline import-statistics: ")
    assert sentence in error
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()
