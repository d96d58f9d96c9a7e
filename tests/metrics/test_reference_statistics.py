import json
import os
import zipfile

import numpy as np
import pytest
import torch
from bounded import refusal

from scoreline.errors import InputError
from scoreline.metrics.frechet import GaussianStatistics, frechet_distance
from scoreline.metrics.reference_statistics import Statistics, keys, read_statistics, write_statistics


def rows(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_what_was_written_is_read(tmp_path):
    gaussian, spatial = GaussianStatistics.of(rows(50, 4)), GaussianStatistics.of(rows(50, 3, seed=1))
    write_statistics(tmp_path / "ours.npz", Statistics("x", gaussian, spatial, {"split": "train"}, 50))
    found = read_statistics(tmp_path / "ours.npz")
    assert (found.name, found.count, found.about["split"]) == ("ours", 50, "train")
    for name, side in (("gaussian", gaussian), ("spatial", spatial)):
        read = getattr(found, name)
        torch.testing.assert_close(read.mean, side.mean, rtol=0, atol=0)
        torch.testing.assert_close(read.covariance, side.covariance, rtol=1e-14, atol=0)
    with pytest.raises(InputError, match=r"ours\.npz is there already"):
        write_statistics(tmp_path / "ours.npz", found)


def test_others_read_its_mu_and_sigma(tmp_path):
    x = rows(50, 4)
    write_statistics(tmp_path / "ours.npz", Statistics("x", GaussianStatistics.of(x), None, {}, 50))
    with np.load(tmp_path / "ours.npz") as file:
        np.testing.assert_allclose(file["mu"], x.numpy().mean(0), rtol=1e-13)
        np.testing.assert_allclose(file["sigma"], np.cov(x.numpy(), rowvar=False), rtol=1e-12)
        assert file["sigma"].dtype == np.float64
        assert int(file["n"]) == 50
        assert json.loads(str(file["about"]))["format"] == "scoreline/reference/1"


def test_edms_and_adms_files_are_read(tmp_path):
    x, y = rows(50, 4), rows(60, 4, seed=1)
    mu, sigma = y.numpy().mean(0), np.cov(y.numpy(), rowvar=False)
    np.savez(tmp_path / "edm.npz", mu=mu, sigma=sigma)
    np.savez(tmp_path / "adm.npz", mu=mu, sigma=sigma, mu_s=mu[:2], sigma_s=sigma[:2, :2], arr_0=np.zeros((2, 8, 8, 3)))
    want = frechet_distance(GaussianStatistics.of(x), GaussianStatistics.of(y))
    for name in ("edm", "adm"):
        found = read_statistics(tmp_path / f"{name}.npz")
        assert frechet_distance(GaussianStatistics.of(x), found.gaussian) == pytest.approx(want, rel=1e-12)
        assert (found.count, found.about) == (None, {})
    assert found.spatial.mean.shape == (2,)


def test_the_digest_is_of_the_numbers(tmp_path):
    mu, sigma = np.zeros(2), np.eye(2)
    np.savez(tmp_path / "a.npz", mu=mu, sigma=sigma)
    np.savez_compressed(tmp_path / "b.npz", sigma=sigma, mu=mu)
    np.savez(tmp_path / "c.npz", mu=mu + 1e-9, sigma=sigma)
    a, b, c = (read_statistics(tmp_path / f"{name}.npz").digest for name in "abc")
    assert a == b != c


BAD = {
    "no sigma": ({"mu": np.zeros(2)}, "holds no mu and sigma"),
    "another size": ({"mu": np.zeros(2), "sigma": np.eye(3)}, "are no mean and covariance"),
    "whole numbers": ({"mu": np.zeros(2, int), "sigma": np.eye(2)}, "are no mean and covariance"),
    "not finite": ({"mu": np.array([0, np.nan]), "sigma": np.eye(2)}, "not finite"),
    "not symmetric": ({"mu": np.zeros(2), "sigma": np.array([[1.0, 0.5], [0.0, 1.0]])}, "not symmetric"),
    "negative": ({"mu": np.zeros(2), "sigma": -np.eye(2)}, "negative on the diagonal"),
    "another record": ({"mu": np.zeros(2), "sigma": np.eye(2), "about": np.array("{}")}, "its record is damaged"),
    "a pickle": ({"mu": np.array([{}], dtype=object), "sigma": np.eye(2)}, "cannot be read as an npz file of numbers"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_mean_and_covariance_is_refused(tmp_path, case):
    arrays, message = BAD[case]
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(InputError, match=message):
        read_statistics(tmp_path / "bad.npz")


def test_a_cut_file_is_refused(tmp_path):
    np.savez(tmp_path / "whole.npz", mu=np.zeros(2), sigma=np.eye(2))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:200])
    with pytest.raises(InputError, match="cannot be read as an npz file"):
        read_statistics(tmp_path / "cut.npz")


DEEP = np.array("[" * 100_000)
HOSTILE = {
    "deep record": ({"about": DEEP}, "its record is damaged"),
    "a list as record": ({"about": np.array("[1]")}, "its record is damaged"),
    "no number": ({"n": np.array(np.nan)}, "its n of float64 is no number of images"),
    "an infinite number": ({"n": np.array(np.inf)}, "is no number of images"),
    "a negative number": ({"n": np.array(-5)}, "is no number of images"),
    "a text as number": ({"n": np.array("5")}, "is no number of images"),
    "a complex number": ({"n": np.array(5j)}, "is no number of images"),
    "a huge number": ({"n": np.array(2**64 - 1, np.uint64)}, "is no number of images"),
    "no features": ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, "are no mean and covariance"),
    "too many features": ({"mu": np.zeros(5000), "sigma": np.zeros((5000, 5000), np.float16)}, "are no mean and"),
    "a structure": ({"mu": np.zeros(2, [("a", float)])}, "cannot be read as an npz file of numbers"),
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_hostile_statistics_are_refused(tmp_path, case, save):
    arrays, message = HOSTILE[case]
    save(tmp_path / "bad.npz", **({"mu": np.zeros(2), "sigma": np.eye(2)} | arrays))
    said = refusal(lambda: read_statistics(tmp_path / "bad.npz"), room=2**28)
    assert message in said
    assert len(said.splitlines()) == 1


def test_declared_sizes_take_no_memory(tmp_path):
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (100000, 100000), }\n"
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as archive:
        for name in ("mu", "sigma"):
            archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header + bytes(99))
    said = refusal(lambda: read_statistics(tmp_path / "bad.npz"), room=2**25)
    assert "takes 80,000,000,000 bytes, but the file holds" in said


@pytest.mark.parametrize("kind", ["<f4", ">f8", "longdouble"])
def test_other_kinds_of_real_numbers_are_read(tmp_path, kind):
    mu, sigma = np.array([1.0, 2.0]).astype(kind), np.diag([3.0, 4.0]).astype(kind)
    np.savez(tmp_path / "x.npz", mu=mu, sigma=sigma)
    found = read_statistics(tmp_path / "x.npz")
    assert found.gaussian.mean.tolist() == [1.0, 2.0]
    assert found.gaussian.covariance.tolist() == [[3.0, 0.0], [0.0, 4.0]]


def test_pipes_and_directories_are_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    for place in (tmp_path / "pipe.npz", tmp_path):
        for read in (read_statistics, keys):
            assert str(place) in refusal(lambda read=read, place=place: read(place), seconds=5)
