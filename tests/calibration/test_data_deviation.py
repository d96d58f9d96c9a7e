"""The standard deviation of data: from the images, from a model of them, and as the key `sigma_data` of the scripts."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from small_models import save_small
from torch import Tensor

from scoreline import FullGaussianMixture, GaussianMixture, measure_sigma_data
from scoreline.calibration.data_deviation import IMAGES, MOST_IMAGES, NFE, dataset_deviation
from scoreline.checkpoints import Checkpoint, load_model, save_model
from scoreline.config import calibrate_config, compose, run_names, sample_config
from scoreline.config.conf_folder import compose_config
from scoreline.config.model_source import with_model, with_sigma_data
from scoreline.datasets.base import ArrayDataset
from scoreline.datasets.digits import Digits
from scoreline.errors import InputError
from scoreline.runtime import progress
from scoreline.sampling import count_calls
from scoreline.scripts import sample

READER, OTHER = "solver=velocity_ab3", "solver=deis_tab3"
"""A solver that reads the key, and one that does not."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SCORELINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sigma_data"


def pictures(count: int, seed: int = 0) -> Tensor:
    return torch.randint(256, (count, 3, 4, 5), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_deviation_of_a_data_set_is_that_round_its_mean_image() -> None:
    images = pictures(40)
    images[:, :, :2] //= 8  # the mean image is not grey
    labels = torch.arange(40) % 3
    x = images.double() / 127.5 - 1
    dataset = ArrayDataset("x", images, labels, num_classes=3)
    assert dataset_deviation(dataset, by_class=False) == pytest.approx(float(x.var(0).mean().sqrt()), rel=1e-3)
    assert float(x.std()) > 1.1 * dataset_deviation(dataset, by_class=False), "not round the mean of all pixels"
    squares = sum(float((x[labels == k] - x[labels == k].mean(0)).square().sum()) for k in range(3))
    within = math.sqrt(squares / (37 * 60))
    assert dataset_deviation(dataset, by_class=True) == pytest.approx(within, rel=1e-3)


def test_single_images_and_classes_have_a_deviation() -> None:
    assert dataset_deviation(ArrayDataset("x", pictures(1)), by_class=False) == 0
    images = pictures(9)
    alone = ArrayDataset("x", images, torch.arange(9), num_classes=9)
    assert dataset_deviation(alone, True) == dataset_deviation(alone, False) > 0


def test_a_large_data_set_is_represented_by_some_images_of_fixed_seeds() -> None:
    images = pictures(8 * MOST_IMAGES)
    dataset = ArrayDataset("x", images)
    read: list[int] = []
    dataset.read = lambda indices: (read.extend(indices), ArrayDataset.read(dataset, indices))[1]  # type: ignore
    measured = dataset_deviation(dataset, by_class=False)
    assert measured == pytest.approx(float((images.double() / 127.5).var(0).mean().sqrt()), rel=0.01)
    assert 0.8 * MOST_IMAGES < len(set(read)) == len(read) <= MOST_IMAGES
    assert dataset_deviation(dataset, by_class=False) == measured


def spectrum(d: int, decay: float) -> Tensor:
    """Eigenvalues as steep as those of pictures, of mean 0.1."""
    values = torch.arange(1, d + 1, dtype=torch.float64) ** -decay
    return 0.1 * values / values.mean()


def gaussian(d: int, decay: float, seed: int = 0) -> FullGaussianMixture:
    draw = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(d, d, generator=draw, dtype=torch.float64))[0]
    mean = torch.randn(1, d, generator=draw, dtype=torch.float64)
    return FullGaussianMixture(mean, spectrum(d, decay)[None], axes[None], torch.ones(1, dtype=torch.float64))


def test_a_model_without_a_number_is_measured(mixture: GaussianMixture) -> None:
    """On exact models: two components, a Gaussian with the spectrum of white noise, and with one as of pictures."""
    for model, tolerance in ((mixture, 0.08), (gaussian(64, 0.0), 0.03), (gaussian(256, 1.2), 0.06)):
        mean, cov = model.moments()
        exact = math.sqrt(float(cov.trace()) / len(mean))

        def denoise(x: Tensor, sigma: Tensor, model: Any = model) -> Tensor:
            return model.denoise(x.double(), float(sigma)).to(x)

        measured = measure_sigma_data(denoise, (len(mean),))
        assert measured == pytest.approx(exact, rel=tolerance)
        assert measured == float(f"{measured:.1e}")


def test_levels_keep_to_the_range_of_the_model() -> None:
    levels = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        levels.append(float(sigma))
        return x * 0.25 / (0.25 + sigma**2)

    assert measure_sigma_data(denoise, (3, 8, 8), sigma_max=10) == pytest.approx(0.5, rel=0.03)
    assert max(levels) == 10
    assert len(levels) * 16 == IMAGES * NFE


@pytest.mark.parametrize("classes", [3, 1000])
def test_classes_have_means_of_their_own(classes: int) -> None:
    seen = []

    def denoise(x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        seen.append(label)
        mean = (label % 7 - 3.0)[:, None]
        return mean + (x - mean) * 0.25 / (0.25 + sigma**2)

    assert measure_sigma_data(denoise, (32,), num_classes=classes) == pytest.approx(0.5, rel=0.05)
    labels = torch.cat(seen)
    assert labels.min() == 0
    assert 0.95 * classes < int(labels.max()) + 1 <= classes or classes == 3 == int(labels.max()) + 1


@pytest.mark.parametrize(
    ("value", "words"), [(0.0, r"sigma_data=null.*sigma_data=0\.5"), (math.nan, "sigma=20: numbers that denoise")]
)
def test_a_model_of_one_image_or_none_is_refused(value: float, words: str) -> None:
    with pytest.raises(InputError, match=words):
        measure_sigma_data(lambda x, sigma: torch.full_like(x, value) if value else x - sigma * (x / sigma), (4,))


def test_number_of_the_shipped_model_is_that_of_its_data() -> None:
    """The card has none, so it is measured: 0.54, as the training set has."""
    checkpoint = load_model(run_names.model_path("digits_vp"))
    assert "sigma_data" not in checkpoint.card.data
    cfg = completed("sample", checkpoint)  # the default solver reads it
    assert cfg.sigma_data == cfg.solver.frame.sigma_data == round(dataset_deviation(Digits("train"), False), 2) == 0.54


def completed(script: str, checkpoint: Checkpoint, *overrides: str) -> DictConfig:
    run_names.register_resolvers()
    return with_sigma_data(with_model(compose_config(script, overrides), checkpoint), checkpoint)


@pytest.fixture
def small(tmp_path: Path) -> Checkpoint:
    return load_model(save_small(tmp_path / "small.safetensors", classes=10))


def with_number(checkpoint: Checkpoint, number: object) -> Path:
    card = checkpoint.card
    card.data["sigma_data"] = number
    save_model(checkpoint.path, checkpoint.denoiser.network.state_dict(), card)
    return checkpoint.path


@pytest.mark.parametrize("script", ["sample", "calibrate"])
def test_only_a_solver_that_reads_the_number_pays_for_it(script: str, small: Checkpoint) -> None:
    with count_calls(small.denoiser) as calls:
        assert completed(script, small, OTHER).sigma_data is None
        assert completed(script, small, READER, "sigma_data=0.3").solver.frame.sigma_data == 0.3
        assert calls.count == 0
        assert completed(script, small, READER).sigma_data > 0
        assert calls.count == NFE * IMAGES // 16
        card = load_model(with_number(small, 0.625))
        assert completed(script, card, READER).sigma_data == 0.625
        assert completed(script, card, READER, "sigma_data=0.3").sigma_data == 0.3


def test_a_model_is_measured_once(small: Checkpoint, cache: Path) -> None:
    with count_calls(small.denoiser) as calls:
        measured = completed("sample", small).sigma_data
        assert completed("calibrate", small, READER).sigma_data == measured
        assert calls.count == NFE * IMAGES // 16
        (kept,) = cache.iterdir()
        assert small.digest in kept.name
        kept.write_text("0.375")
        assert completed("sample", small).sigma_data == 0.375
        other = load_model(save_small(small.path.with_name("other.safetensors"), classes=0))
        assert completed("sample", other).sigma_data != 0.375, "the number of another model"


@pytest.mark.parametrize("text", ["", "text", "-1", "0", "nan", "inf", "1" * 200])
def test_a_damaged_number_in_the_cache_is_measured_again(text: str, small: Checkpoint, cache: Path) -> None:
    measured = completed("sample", small).sigma_data
    (kept,) = cache.iterdir()
    kept.write_text(text)
    assert completed("sample", small).sigma_data == measured == float(kept.read_text())


def test_a_cache_that_cannot_be_written_is_done_without(small: Checkpoint, cache: Path) -> None:
    cache.parent.write_text("no folder")
    assert completed("sample", small).sigma_data > 0


def test_a_slow_measurement_shows_its_progress(
    small: Checkpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "DELAY", 0.0)
    completed("sample", small)
    assert re.search(r"sigma_data: \d+/64 img", capsys.readouterr().err)


@pytest.mark.parametrize("number", ["0.5", -1, math.inf, None, [0.5]])
def test_a_card_with_another_number_is_damaged(number: object, small: Checkpoint) -> None:
    with pytest.raises(InputError, match=r"sigma_data is .*; copy or train it again"):
        load_model(with_number(small, number))


def test_a_number_of_constant_images_stands_for_none(small: Checkpoint) -> None:
    small = load_model(with_number(small, 0.0))
    assert completed("sample", small).sigma_data > 0


@pytest.mark.parametrize("value", ["0", "-1", "nan", "text", "true", "inf"])
def test_a_value_that_is_no_deviation_is_refused(value: str, small: Checkpoint) -> None:
    with pytest.raises(InputError, match=r"sigma_data=.*must be a number greater than 0"):
        completed("sample", small, f"sigma_data={value}")


def test_number_counts_in_the_identity_and_its_absence_does_not() -> None:
    run_names.register_resolvers()
    for script in ("sample", "calibrate"):
        plain = compose_config(script, [])
        OmegaConf.set_struct(plain, False)
        before = plain.copy()
        del before["sigma_data"]
        found = [before, plain, compose_config(script, ["sigma_data=0.3"])]
        names = [run_names.run_sha256(cfg, script) for cfg in found]
        assert names[0] == names[1]
        assert names[0] != names[2]


def components(script: str, checkpoint: Checkpoint, out: Path, *overrides: str) -> Any:
    cfg = compose.script_config(script, [f"checkpoint={checkpoint.path}", *overrides])
    OmegaConf.set_readonly(cfg.hydra, False)
    OmegaConf.set_struct(cfg, False)
    cfg.hydra.runtime.output_dir = str(out)
    HydraConfig.instance().set_config(cfg)
    del cfg["hydra"]
    return (sample_config if script == "sample" else calibrate_config).read(cfg)


def test_a_run_records_its_number(small: Checkpoint, tmp_path: Path) -> None:
    config = components("sample", small, tmp_path, READER, "nfe=3", "seeds=0-3", "metrics=none", "device=cpu")
    result = sample.sample(config)
    assert json.loads((tmp_path / "metrics.json").read_text())["sigma_data"] == result["sigma_data"]
    recorded = OmegaConf.load(tmp_path / "config.yaml")
    assert recorded.sigma_data == recorded.solver.frame.sigma_data == result["sigma_data"]
    other = components("sample", small, tmp_path / "other", OTHER, "nfe=3").components(small)
    assert "sigma_data" not in other.choices
    assert "sigma_data: null" in other.config_yaml(None, False)
