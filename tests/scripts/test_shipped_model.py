"""The checkpoint that ships with the package, as a user would lean on it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from images import images_of

from scoreline.calibration.score_scale import load_scale
from scoreline.calibration.subject import Subject
from scoreline.checkpoints import Checkpoint, load_model
from scoreline.config import conf_folder
from scoreline.config.run_names import model_path, record_beside
from scoreline.datasets.base import ArrayDataset
from scoreline.datasets.digits import Digits
from scoreline.metrics.fidelity import Fidelity
from scoreline.records import load_record
from scoreline.schedules.spacings import Polynomial, Power
from scoreline.solvers.deis import DEIS
from scoreline.solvers.learned import load_learned
from scoreline.solvers.runge_kutta import heun
from scoreline.solvers.tableau import Tableau, build, build_tableau


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_model(model_path("digits_vp"))


def table(checkpoint: Checkpoint, nfe: int, scale: object = None) -> Tableau:
    schedule = checkpoint.noise_schedule
    span = (schedule.sigma_max, schedule.sigma_min)
    return build(DEIS(3, schedule, scale), Polynomial(schedule, 2), span, nfe, "none")


def test_card_and_size(checkpoint: Checkpoint) -> None:
    assert checkpoint.path.stat().st_size < 2_000_000
    assert checkpoint.card.training["command"].startswith("python train.py ")
    assert checkpoint.card.data == {"images": 1500, "name": "digits-train", "sha256": Digits("train").digest}


def test_shipped_record_tends_to_noise(checkpoint: Checkpoint) -> None:
    record = load_record(record_beside(checkpoint.path, "score_norm"), "score_norm", checkpoint.digest)
    rho, mean, error = (record.values[name] for name in ("rho", "mean_abs_eps", "standard_error"))
    assert len(rho) == record.provenance["nfe"] == 1000
    assert float(mean[-1]) == pytest.approx((2 / torch.pi) ** 0.5, abs=0.01)
    assert float(mean[0]) < 0.7
    assert float(error.max()) < 0.02


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_images_ignore_the_batch_size(batch_size: int, checkpoint: Checkpoint) -> None:
    seeds = list(range(20))
    reference = images_of(checkpoint, table(checkpoint, 5), seeds, None, 20)
    assert torch.equal(images_of(checkpoint, table(checkpoint, 5), seeds, None, batch_size), reference)
    alone = images_of(checkpoint, table(checkpoint, 5), [13], None, batch_size)
    assert torch.equal(alone[0], reference[13])


def test_samples_are_digits(checkpoint: Checkpoint) -> None:
    """Real held-out digits score 0.35 +- 0.11 at n = 297, uniform noise 10.2; the bias falls with n."""
    images = images_of(checkpoint, table(checkpoint, 10), range(500), None, 500)
    scores = Fidelity(Digits("train"))(ArrayDataset("images", images))
    assert scores["frechet_distance"]["value"] < 0.5
    assert scores["precision"]["value"] > 0.7
    assert scores["recall"]["value"] > 0.8


def test_deis_sn_reads_its_record(checkpoint: Checkpoint) -> None:
    scale = load_scale(record_beside(checkpoint.path, "score_norm"), checkpoint.digest)
    plain, normalised = table(checkpoint, 5), table(checkpoint, 5, scale)
    assert float((plain.N - normalised.N).abs().max()) > 0.01
    images = images_of(checkpoint, normalised, range(16), None, 16)
    other = images_of(checkpoint, plain, range(16), None, 16)
    assert 0 < float((images.float() - other.float()).abs().mean()) < 40


@pytest.mark.parametrize("kind", ["score_norm", "score_optimal", "search", "tableau"])
def test_shipped_records_name_their_origin(checkpoint: Checkpoint, kind: str) -> None:
    record = load_record(record_beside(checkpoint.path, kind), kind, checkpoint.digest)
    assert {"images", "seeds", "nfe", "estimator", "code_version"} <= set(record.provenance)


def test_learned_tables_beat_default_on_unseen_noise(
    checkpoint: Checkpoint,
) -> None:
    """At NFE 6 on seeds 5000-5031, from the same noise; the fine run is Heun's with 200 evaluations."""
    schedule = checkpoint.noise_schedule
    span = (schedule.sigma_max, schedule.sigma_min)
    learned = load_learned(record_beside(checkpoint.path, "tableau"), checkpoint.digest)
    runs = [
        build_tableau(heun(), Power(7), span, 200, "none"),
        table(checkpoint, 6),
        build_tableau(learned, Power(7), span, 6, "none"),
    ]
    subject = Subject(checkpoint.denoiser, runs[0], checkpoint.card.shape, range(5000, 5032), 32)
    fine, default, own = (next(subject.samples(run)).x for run in runs)
    distance = [(x - fine).flatten(1).square().mean(1).sqrt().mean() for x in (default, own)]
    assert float(distance[1] / distance[0]) < 0.7


def test_sampling_says_when_noise_is_left(tmp_path: Path) -> None:
    """Heun's method at NFE 2 leaves noise; the default does not."""
    for words, noisy in ((("solver=heun", "schedule=karras"), True), ((), False)):
        command = [
            sys.executable,
            str(conf_folder.script("sample.py")),
            "checkpoint=digits_vp",
            *words,
            "nfe=2",
            "seeds=0-3",
            "metrics=none",
        ]
        done = subprocess.run([*command, "format=none"], capture_output=True, text=True, cwd=tmp_path, timeout=120)
        assert done.returncode == 0, done.stderr
        assert ("note: nfe=2: noise is left" in done.stdout) == noisy
