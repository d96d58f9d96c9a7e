import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from scoreline.datasets.base import ArrayDataset
from scoreline.datasets.digits import Digits
from scoreline.errors import InputError
from scoreline.metrics import features
from scoreline.metrics.features import FeatureExtractor
from scoreline.metrics.fidelity import Fidelity
from scoreline.metrics.frechet import GaussianStatistics, frechet_distance
from scoreline.metrics.kid import kernel_distance
from scoreline.metrics.no_metrics import NoMetrics

NAMES = {"frechet_distance", "kid", "precision", "recall", "density", "coverage", "sliced_wasserstein"}
CONF = Path(__file__).parents[2] / "conf" / "metrics"


class Pixels(FeatureExtractor):
    """The pixels themselves, of 3x2x2 images."""

    name, shape, dimension, digest = "pixels", (3, 2, 2), 12, "00" * 32

    def __call__(self, images):
        return images.flatten(1).double() / 255


def as_set(images):
    return ArrayDataset("generated", images)


def noise(n, shape=(1, 8, 8), seed=0):
    images = torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return as_set(images)


@pytest.fixture(scope="module")
def fidelity():
    torch.set_num_threads(1)
    return Fidelity(Digits("train"))


@pytest.fixture(scope="module")
def held_out():
    return Digits("test").images


@pytest.fixture(scope="module")
def scores(fidelity, held_out):
    return fidelity(as_set(held_out))


def test_every_score_has_value_error_and_count(scores):
    assert set(scores) == NAMES
    for score in scores.values():
        assert set(score) == {"value", "error", "n"}
        assert np.isfinite(score["value"])
        assert 0 < score["error"] < np.inf
        assert score["n"] == 297


def test_scores_are_those_of_the_features(fidelity, scores, held_out):
    x, y = fidelity.extractor(held_out), fidelity.extractor(Digits("train").images)
    want = frechet_distance(GaussianStatistics.of(x), GaussianStatistics.of(y))
    assert scores["frechet_distance"]["value"] == pytest.approx(want, rel=1e-10)
    assert scores["kid"]["value"] == pytest.approx(kernel_distance(x, y), rel=1e-9)


def test_real_digits_beat_noise_and_missing_classes(fidelity, scores, held_out):
    halved = held_out[Digits("test").labels < 5]
    for worse in (fidelity(noise(297)), fidelity(as_set(halved))):
        for name, better_is_less in (("frechet_distance", True), ("kid", True), ("coverage", False)):
            gap = (worse[name]["value"] - scores[name]["value"]) * (1 if better_is_less else -1)
            assert gap > 4 * np.hypot(worse[name]["error"], scores[name]["error"]), name


def test_values_do_not_depend_on_the_order(fidelity, scores, held_out):
    order = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0))
    shuffled = fidelity(as_set(held_out[order]))
    for name in NAMES:
        assert shuffled[name]["value"] == pytest.approx(scores[name]["value"], rel=1e-9, abs=1e-12)


def test_the_extractor_batch_leaves_scores_unchanged(fidelity, scores, held_out, monkeypatch):
    monkeypatch.setattr(features, "CHUNK", 5)
    again = fidelity(as_set(held_out))
    for name in NAMES:
        assert again[name]["value"] == pytest.approx(scores[name]["value"], rel=1e-9)
        assert again[name]["error"] == pytest.approx(scores[name]["error"], rel=1e-7)


def test_the_reference_itself_is_at_zero(fidelity):
    own = {name: score["value"] for name, score in fidelity(Digits("train")).items()}
    assert own["frechet_distance"] == pytest.approx(0, abs=1e-9)
    assert own["sliced_wasserstein"] == pytest.approx(0, abs=1e-12)
    assert own["precision"] == own["recall"] == own["coverage"] == 1
    assert own["kid"] < 0


def test_errors_cover_the_spread_over_independent_sets():
    def draw(n, mean, seed):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(n, 3, 2, 2, generator=generator) * 40 + mean
        return x.clip(0, 255).to(torch.uint8)

    metric = Fidelity(ArrayDataset("normal", draw(300, 128, seed=999)), Pixels(), projections=32)
    runs = [metric(as_set(draw(120, 150, seed))) for seed in range(50)]
    for name in NAMES:
        spread = np.std([run[name]["value"] for run in runs], ddof=1)
        claimed = np.sqrt(np.mean([run[name]["error"] ** 2 for run in runs]))
        assert 0.75 < claimed / spread < 2.0, name


def test_the_protocol_names_what_scores_depend_on(fidelity):
    train = Digits("train")
    assert fidelity.protocol == {
        "extractor": f"digits-cnn:{fidelity.extractor.digest[:8]}",
        "reference": f"digits-train:{train.digest[:8]}",
        "reference_count": 1500,
        "resize": "none",
        "neighbours": 3,
        "projections": "256:seed0",
        "jackknife_groups": 20,
    }


@pytest.mark.parametrize("change", [{"neighbours": 5}, {"projections": 8}, {"groups": 10}, {"reference": "test"}])
def test_any_other_setting_has_another_protocol(fidelity, change):
    reference = Digits(change.get("reference", "train"))
    settings = {key: value for key, value in change.items() if key != "reference"}
    assert Fidelity(reference, fidelity.extractor, **settings).protocol != fidelity.protocol


def test_few_images_are_warned_of(fidelity):
    assert fidelity.warnings(1000) == []
    assert [text.split(":")[0] for text in fidelity.warnings(999)] == ["999 images are fewer than 1000"]
    assert "biased upwards" in fidelity.warnings(999)[0]
    assert any("singular" in text for text in fidelity.warnings(32))
    assert any("errors are rough" in text for text in fidelity.warnings(39))
    assert len(fidelity.warnings(40)) == 1


def test_few_images_bias_the_frechet_distance_upwards(fidelity):
    few = [fidelity(as_set(Digits("train").images[start::20]))["frechet_distance"]["value"] for start in range(3)]
    assert min(few) > 5 * fidelity(as_set(Digits("train").images[::2]))["frechet_distance"]["value"]


def test_a_small_reference_is_warned_of(fidelity):
    small = Fidelity(Digits("test"), fidelity.extractor)
    assert any("reference has only 297 images" in text for text in small.warnings(5000))


def test_the_fewest_images_are_five(fidelity, held_out):
    assert fidelity(as_set(held_out[:5]))["recall"]["n"] == 5
    with pytest.raises(InputError, match=r"metrics: .*images are 4, too few.*at least 5"):
        fidelity(as_set(held_out[:4]))


def test_images_of_another_shape_are_refused(fidelity):
    with pytest.raises(InputError, match=r"metrics: .*takes 1x8x8.*are 3x32x32; use metrics=none"):
        fidelity(noise(8, (3, 32, 32)))


def test_references_of_another_shape_are_refused():
    colour = ArrayDataset("colour", noise(8, (3, 4, 4)).images)
    with pytest.raises(InputError, match=r"takes 1x8x8.*metrics\.reference \(colour\) are 3x4x4; use metrics=none"):
        Fidelity(colour)


def test_a_reference_of_too_few_images_is_refused(fidelity):
    with pytest.raises(InputError, match=r"metrics\.reference \(four\) are 4, too few"):
        Fidelity(ArrayDataset("four", noise(4).images), fidelity.extractor)


@pytest.mark.parametrize(("key", "value"), [("neighbours", 0), ("projections", 0), ("groups", 1)])
def test_impossible_settings_are_named(fidelity, key, value):
    with pytest.raises(InputError, match=rf"metrics\.{key}={value}: must be at least"):
        Fidelity(Digits("test"), fidelity.extractor, **{key: value})


def test_conf_fidelity_is_the_default_metric(fidelity, scores, held_out):
    metric = instantiate(OmegaConf.load(CONF / "fidelity.yaml"))
    assert metric.protocol == fidelity.protocol
    assert metric(as_set(held_out)) == scores


def test_conf_none_measures_nothing():
    metric = instantiate(OmegaConf.load(CONF / "none.yaml"))
    assert isinstance(metric, NoMetrics)
    assert (metric(noise(2, (3, 5, 7))), metric.protocol, metric.warnings(1)) == ({}, {}, [])


def test_importing_brings_in_no_slow_library():
    slow = "{'torchmetrics', 'lightning', 'hydra', 'omegaconf', 'scipy', 'wandb', 'sklearn'}"
    code = f"import sys, scoreline.metrics.fidelity; print(sorted({slow} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
