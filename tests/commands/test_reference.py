import json

import numpy as np
import pytest
import torch

from scoreline.commands.reference import main
from scoreline.datasets.digits import Digits
from scoreline.errors import InputError
from scoreline.metrics.features import DigitFeatures


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCORELINE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_writes_mean_covariance_and_where_they_come_from(capsys):
    main(["dataset=digits", "digits.npz"])
    printed = capsys.readouterr().out
    assert printed == "1500 images of digits-train (1x8x8), 32 features of digits-cnn -> digits.npz\n"
    features = DigitFeatures()(Digits("train").images).numpy()
    with np.load("digits.npz") as file:
        np.testing.assert_allclose(file["mu"], features.mean(0), rtol=1e-12)
        np.testing.assert_allclose(file["sigma"], np.cov(features, rowvar=False), rtol=1e-10)
        assert int(file["n"]) == 1500
        about = json.loads(str(file["about"]))
    known = {
        "format": "scoreline/reference/1",
        "extractor": "digits-cnn",
        "extractor_digest": DigitFeatures().digest,
        "resize": "none",
        "dataset": "digits-train",
        "dataset_digest": Digits("train").digest,
        "split": "train",
        "count": 1500,
        "shape": [1, 8, 8],
    }
    assert {key: about[key] for key in known} == known
    assert about.keys() == {*known, "code_version"}


def test_keys_of_the_data_set_reach_it():
    main(["dataset=digits", "dataset.split=test", "test.npz"])
    with np.load("test.npz") as file:
        assert json.loads(str(file["about"]))["split"] == "test"


def test_any_images_give_the_same_numbers():
    main(["dataset=digits", "digits.npz"])
    np.savez("images.npz", arr_0=Digits("train").images.permute(0, 2, 3, 1).numpy())
    main(["images.npz", "own.npz", "metrics=fidelity"])
    with np.load("digits.npz") as one, np.load("own.npz") as other:
        assert np.array_equal(one["sigma"], other["sigma"])
        assert json.loads(str(other["about"]))["split"] == "unknown"


def test_other_images_get_inception_with_spatial_features(place):
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parents[1] / "metrics"))
    try:
        from tiny_inception import FEATURES, SIDE, write
    finally:
        sys.path.pop(0)
    from scoreline.storage.files import sha256

    spatial = 7 * SIDE * SIDE
    network = write(place / "tiny.pt")
    images = torch.randint(0, 256, (30, 9, 9, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    np.savez("images.npz", arr_0=images.numpy())
    file = [f"metrics.extractor.path={network}", f"metrics.extractor.sha256={sha256(network)}", "device=cpu"]
    main(["images.npz", "both.npz", *file])
    main(["images.npz", "one.npz", "metrics.scores=[fid]", *file])
    with np.load("both.npz") as both, np.load("one.npz") as one:
        assert (both["mu"].shape, both["mu_s"].shape, both["sigma_s"].shape) == (
            (FEATURES,),
            (spatial,),
            (spatial, spatial),
        )
        assert "mu_s" not in one
        np.testing.assert_allclose(one["mu"], both["mu"], rtol=1e-3, atol=1e-4)
        assert json.loads(str(one["about"]))["extractor_digest"] == sha256(network)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dataset=digits"], r"no OUT\.npz: give images and where to write"),
        (["dataset=digits", "out.txt"], r"out\.txt: give images and where to write"),
        (["a", "b", "c.npz"], "give images and where to write"),
        (["nothing", "out.npz"], "nothing: nothing is there"),
        (["dataset=digits", "there.npz"], r"there\.npz: is there already"),
        (["dataset=digits", "out.npz", "metrics=none"], "these have no features"),
        (["dataset=digits", "out.npz", "dataet.split=test"], r"dataet\.split: there is no such key"),
        (["there.npz", "out.npz", "dataset.split=test"], r"dataset\.split=test: give dataset= too"),
    ],
)
def test_mistakes_are_one_sentence(place, words, message):
    np.savez("there.npz", arr_0=np.zeros((9, 8, 8, 1), np.uint8))
    with pytest.raises(InputError, match=message):
        main(words)
