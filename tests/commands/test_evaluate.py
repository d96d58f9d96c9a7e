import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scoreline.commands import reference
from scoreline.commands.evaluate import main, parts_for
from scoreline.datasets.digits import Digits
from scoreline.errors import InputError
from scoreline.metrics.base import Metrics
from scoreline.metrics.features import DigitFeatures
from scoreline.metrics.fidelity import Fidelity


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCORELINE_CACHE", str(tmp_path / "cache"))
    np.savez("samples.npz", arr_0=Digits("test").images.permute(0, 2, 3, 1).numpy())
    return tmp_path


def scores(*words):
    main([*words, "out=scores.json"])
    return json.loads(Path("scores.json").read_text())


def test_scores_are_those_of_sample_py(capsys):
    found = scores("samples.npz", "dataset=digits")
    want = Fidelity(Digits("train"))
    assert found["metrics"] == want(Digits("test"))
    assert (found["images"], found["protocol"]) == (297, want.protocol)
    assert found["warnings"] == want.warnings(297)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "297 images of samples, 1x8x8"
    assert printed[1] == "frechet_distance       0.34789 +- 0.089  (lower is better)"
    assert printed[3] == "precision              0.88889 +- 0.018  (higher is better)"
    assert printed[8].startswith("extractor digits-cnn:")
    assert printed[9].startswith("note: 297 images are fewer than 1000")


def test_statistics_alone_leave_the_frechet_distance():
    reference.main(["dataset=digits", "digits.npz"])
    found = scores("samples.npz", "digits.npz")
    assert list(found["metrics"]) == ["frechet_distance"]
    want = Fidelity(Digits("train"))(Digits("test"))["frechet_distance"]
    assert found["metrics"]["frechet_distance"]["value"] == pytest.approx(want["value"], rel=1e-10)
    assert found["metrics"]["frechet_distance"]["error"] == pytest.approx(want["error"], rel=1e-8)
    assert found["protocol"]["reference_count"] == 1500
    assert "all but frechet_distance left out: the reference holds statistics, no images" in found["warnings"]


def test_images_compare_with_images():
    np.savez("train.npz", arr_0=Digits("train").images.permute(0, 2, 3, 1).numpy())
    found = scores("samples.npz", "train.npz", "metrics.neighbours=5")
    want = Fidelity(Digits("train"), neighbours=5)(Digits("test"))
    assert found["metrics"] == want


def test_a_run_directory_is_its_images(place):
    run = place / "run"
    run.mkdir()
    (run / "metrics.json").write_text("{}")
    (place / "samples.npz").rename(run / "samples.npz")
    assert scores("run", "dataset=digits")["images"] == 297


def test_slow_features_are_cached(place):
    class Slow(DigitFeatures):
        slow = True

    (place / "run").mkdir()
    (place / "run/metrics.json").write_text("{}")
    slow, quick = Fidelity(Digits("test"), Slow()), Fidelity(Digits("test"))
    assert parts_for(place / "run", slow).folder == place / "run/features"
    assert parts_for(place / "samples.npz", slow).folder == place / "cache/features"
    assert parts_for(place / "run", quick).folder is None
    assert not Metrics.keeps_features


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no SAMPLES: give SAMPLES and REFERENCE"),
        (["samples.npz"], r"samples\.npz: give SAMPLES and REFERENCE"),
        (["samples.npz", "samples.npz", "dataset=digits"], "or SAMPLES and dataset="),
        (["samples.npz", "none.npz"], r"none\.npz: no such file"),
        (["none", "samples.npz"], "none: nothing is there"),
        (["samples.npz", "big.npz"], "are 3x16x16"),
        (["big.npz", "samples.npz"], "images of big are 3x16x16, those of samples 1x8x8"),
        (["big.npz", "dataset=digits"], "images of big are 3x16x16, those of digits-train 1x8x8"),
        (["samples.npz", "samples.npz", "metrics=none"], "metrics=none: compares with nothing"),
        (["samples.npz", "dataset=digits", "out=samples.npz"], r"out=samples\.npz: is there already"),
        (["samples.npz", "samples.npz", "dataset.split=test"], r"dataset\.split=test: give dataset= too"),
        (["samples.npz", "samples.npz", "metric=digits"], "metric: there is no such key; did you mean 'metrics'"),
    ],
)
def test_mistakes_are_one_sentence(words, message):
    np.savez("big.npz", arr_0=np.zeros((9, 16, 16, 3), np.uint8))
    from scoreline.config.explain import explain

    with pytest.raises(Exception) as caught:  # noqa: PT011 - the sentence is compared below
        main(words)
    assert re.search(message, explain(caught.value) or "no sentence")


def test_sizes_are_compared_before_anything_is_fetched(monkeypatch):
    from scoreline.metrics import inception_features

    def fetch(*_, **__):
        raise AssertionError("a download begins")

    monkeypatch.setattr(inception_features, "fetch", fetch)
    for name, side in (("a", 16), ("b", 8)):
        Path(name).mkdir()
        for k in range(20):
            Image.new("L", (side, side), k * 9).save(f"{name}/{k}.png")
    with pytest.raises(InputError, match=r"^the images of a are 1x16x16, those of b 1x8x8 \(CxHxW\)"):
        main(["a", "b"])
    with pytest.raises(AssertionError, match="a download begins"):
        main(["a", "a"])
