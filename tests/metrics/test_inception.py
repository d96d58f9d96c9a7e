import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from processes import printed
from tiny_inception import Bare, Plain, load, write

from scoreline.datasets.base import ArrayDataset
from scoreline.errors import InputError
from scoreline.metrics.frechet import GaussianStatistics, frechet_distance
from scoreline.metrics.inception import SCORES, Inception
from scoreline.metrics.inception_features import InceptionFeatures
from scoreline.metrics.inception_score import inception_score
from scoreline.metrics.jackknife import assign_groups
from scoreline.metrics.kid import kernel_distance
from scoreline.metrics.precision_recall import support_replicates
from scoreline.metrics.reference_statistics import Statistics, write_statistics
from scoreline.storage.files import sha256
from scoreline.storage.resumable import Parts

CONF = Path(__file__).parents[2] / "conf" / "metrics"


def images(n, seed, name="x", shape=(3, 16, 16), dark=0):
    generator = torch.Generator().manual_seed(seed)
    return ArrayDataset(name, torch.randint(0, 256 - dark, (n, *shape), dtype=torch.uint8, generator=generator))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCORELINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    torch.set_num_threads(1)
    file = write(tmp_path_factory.mktemp("networks") / "tiny.pt")
    return InceptionFeatures(str(file), sha256=sha256(file), device="cpu")


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    file = write(tmp_path_factory.mktemp("networks") / "bare.pt", Bare)
    return InceptionFeatures(str(file), sha256=sha256(file), device="cpu")


def test_all_scores_come_from_one_pass(tiny):
    x, y = images(40, 1, dark=40), images(50, 2, "reference")
    told = []
    found = Inception(tiny, y, compared=30, groups=2, splits=4)(x, progress=told.append)
    assert tuple(found) == SCORES
    assert sum(told) == 40
    a, b = (tiny(data.images, spatial=True) for data in (x, y))
    for score, name in (("fid", "features"), ("sfid", "spatial")):
        want = frechet_distance(GaussianStatistics.of(a[name]), GaussianStatistics.of(b[name]))
        assert found[score]["value"] == pytest.approx(want, rel=1e-6)
        assert found[score]["n"] == 40
    few_x, few_y = ([k * n // 30 for k in range(30)] for n in (40, 50))
    p, q = a["features"][few_x], b["features"][few_y]
    assert found["kid"]["value"] == pytest.approx(kernel_distance(p, q), rel=1e-9)
    for name, it in support_replicates(p, q, assign_groups(30, 2), 3).items():
        assert found[name] == {"value": it.full, "error": it.error, "n": 30}
    with torch.no_grad():
        probabilities = load(tiny.path)(x.images, no_output_bias=True)
    splits = inception_score([probabilities], 40, 4)
    assert found["inception_score"]["value"] == pytest.approx(np.mean(splits), rel=1e-6)
    assert found["inception_score"]["error"] == pytest.approx(np.std(splits, ddof=1) / 2, rel=1e-2)


def test_a_new_score_costs_no_second_pass(bare, tmp_path):
    x, y, told = images(30, 1), images(40, 2, "reference"), []
    first = Inception(bare, y, ["fid"])(x, Parts(tmp_path / "features"), told.append)
    second = Inception(bare, y, ["fid", "kid"])(x, Parts(tmp_path / "features"), told.append)
    assert told == [30]
    assert second["fid"] == first["fid"]


def test_the_reference_is_passed_once_for_all_runs(bare, own_cache, monkeypatch):
    y = images(40, 2, "reference")
    first = Inception(bare, y, ["fid"])(images(30, 1))
    assert len(list(own_cache.rglob("*.safetensors"))) == 1
    monkeypatch.setattr(ArrayDataset, "read", lambda *_: pytest.fail("read again"))
    again = Inception(bare, y, ["fid"])
    assert again._compared(again._reference_features(Parts(), False)).gaussian.n == 40
    assert first["fid"]["value"] > 0


def test_scores_without_a_source_are_left_out(bare, tmp_path):
    path = tmp_path / "reference.npz"
    gaussian = GaussianStatistics.of(bare(images(40, 2).images, False)["features"])
    write_statistics(path, Statistics("x", gaussian, None, {"extractor_digest": bare.digest, "split": "train"}, 40))
    metric = Inception(bare, str(path))
    found = metric(images(30, 1))
    assert set(found) == {"fid"}
    want = frechet_distance(GaussianStatistics.of(bare(images(30, 1).images, False)["features"]), gaussian)
    assert found["fid"]["value"] == pytest.approx(want, rel=1e-9)
    said = metric.warnings(30)
    assert "sfid left out: the file has no layer conv" in said
    assert "inception_score left out: the file has no layer output.weight that takes its features" in said
    assert "kid, precision, recall, density, coverage left out: the reference holds statistics, no images" in said
    assert metric.protocol["reference_count"] == 40


def test_a_file_in_adms_layout_serves_every_score(tiny, tmp_path):
    y = images(50, 2)
    made = tiny(y.images, spatial=True)
    sides = [GaussianStatistics.of(made[name]) for name in ("features", "spatial")]
    arrays = {"arr_0": y.images.permute(0, 2, 3, 1).numpy()}
    for end, side in zip(("", "_s"), sides, strict=True):
        arrays |= {f"mu{end}": side.mean.numpy(), f"sigma{end}": side.covariance.numpy()}
    np.savez(tmp_path / "adm.npz", **arrays)
    x = images(40, 1)
    metric = Inception(tiny, str(tmp_path / "adm.npz"), ["fid", "kid"], groups=2, protocol="adm")
    own = Inception(tiny, y, ["fid", "kid"], groups=2)(x)
    found = metric(x)
    assert found["fid"]["value"] == pytest.approx(own["fid"]["value"], rel=1e-6)
    assert found["kid"] == own["kid"]
    assert metric._no("sfid") is None
    assert metric.fingerprint(40)["protocol"] == "not adm (another extractor, n=40)"
    with pytest.raises(InputError, match="are 3x16x16, the generated ones 3x8x8"):
        metric.check((3, 8, 8), 40)


def test_statistics_of_another_extractor_are_refused(bare, tmp_path):
    side = GaussianStatistics(2, torch.zeros(6).double(), torch.eye(6).double())
    write_statistics(tmp_path / "a.npz", Statistics("x", side, None, {"extractor_digest": "f" * 64}, 9))
    with pytest.raises(InputError, match=f"made with extractor ffffffff, not {bare.digest[:8]}"):
        Inception(bare, str(tmp_path / "a.npz")).check((3, 16, 16), 64)
    np.savez(tmp_path / "b.npz", mu=np.zeros(7), sigma=np.eye(7))
    with pytest.raises(InputError, match="of 7 features, the extractor gives 6"):
        Inception(bare, str(tmp_path / "b.npz")).check((3, 16, 16), 64)


def test_unsuitable_images_are_refused_before_sampling(bare):
    metric = Inception(bare, images(40, 2, "reference"))
    metric.check((3, 16, 16), 10)
    with pytest.raises(InputError, match=r"metrics\.reference: images of reference are 3x16x16.*ones 3x32x32"):
        metric.check((3, 32, 32), 64)
    with pytest.raises(InputError, match="the generated images are 9, too few; give at least 10"):
        metric.check((3, 16, 16), 9)
    with pytest.raises(InputError, match=r"metrics\.reference: few has 4 images; give at least 5"):
        Inception(bare, images(4, 2, "few")).check((3, 16, 16), 64)
    with pytest.raises(InputError, match=r"metrics\.reference: nothing to compare with; add dataset@metrics"):
        Inception(bare).check((3, 16, 16), 64)
    with pytest.raises(InputError, match="nothing is there"):
        Inception(bare, "none").check((3, 16, 16), 64)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scores": ["fdi"]}, r"metrics\.scores=fdi.*fid"),
        ({"splits": 1}, r"metrics\.splits=1: must be at least 2"),
        ({"compared": 4}, r"metrics\.compared=4: must be at least 5"),
        ({"neighbours": 0}, r"metrics\.neighbours=0: must be at least 1"),
        ({"groups": 1}, r"metrics\.groups=1: must be at least 2"),
        ({"protocol": "emd"}, r"metrics\.protocol=emd"),
    ],
)
def test_impossible_settings_are_named(bare, settings, message):
    with pytest.raises(InputError, match=message):
        Inception(bare, **settings)


def test_a_protocol_that_differs_marks_the_row(bare):
    metric = Inception(bare, images(40, 2, "cifar10-test"), protocol="edm")
    assert metric.fingerprint(30)["protocol"] == "not edm (another extractor, n=30, split=test)"
    assert any("metrics.protocol=edm: not edm" in text for text in metric.warnings(30))
    assert "protocol" not in Inception(bare, images(40, 2)).fingerprint(30)


def test_the_protocol_holds_settings_and_reference(bare):
    y = images(40, 2, "reference")
    base = Inception(bare, y)
    assert base.protocol == {
        "extractor": f"inception-like:{bare.digest[:8]}",
        "reference": f"reference:{y.digest[:8]}",
        "reference_count": 40,
        "resize": "network",
        "neighbours": 3,
        "compared": 10000,
        "splits": 10,
        "jackknife_groups": 20,
    }
    for change in ({"neighbours": 5}, {"compared": 9}, {"splits": 5}, {"groups": 4}):
        assert Inception(bare, y, **change).protocol != base.protocol


def test_the_config_names_the_published_file(tmp_path, monkeypatch):
    monkeypatch.setenv("SCORELINE_OFFLINE", "1")
    cfg = OmegaConf.create({"device": "cpu", "metrics": OmegaConf.load(CONF / "inception.yaml")})
    metric = instantiate(cfg.metrics)
    assert (metric.extractor.name, metric.extractor.device, metric.scores) == ("inception", "cpu", SCORES)
    with pytest.raises(InputError, match=r"inception-2015-12-05\.pt is not there"):
        metric.check((3, 32, 32), 64)


PROCESSES = """
from scoreline.metrics.inception import Inception
from scoreline.metrics.inception_features import InceptionFeatures

def images(n, seed):
    generator = torch.Generator().manual_seed(seed)
    return ArrayDataset("x", torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=generator))

extractor = InceptionFeatures(words[0], sha256=words[1], device="cpu")
metric = Inception(extractor, images(700, 1), ["kid", "inception_score", "precision"])
print(json.dumps([metric(images(600, 2), parts, calls.append), calls]))
"""


@pytest.mark.slow
def test_two_processes_give_the_bits_of_one(tiny, tmp_path, monkeypatch):
    def run(size, folder):
        monkeypatch.setenv("SCORELINE_CACHE", str(folder / "cache"))
        return printed(PROCESSES, folder, size, tiny.path, tiny.sha256)

    ((alone, _),) = run(1, tmp_path / "one")
    (first, calls), (second, others) = run(2, tmp_path / "two")
    assert first == second == alone
    assert (calls, others) == ([512], [88])


MEMORY = """
import sys, torch
from pathlib import Path
from scoreline.datasets.base import ImageDataset
from scoreline.metrics.inception import Inception
from scoreline.metrics.inception_features import InceptionFeatures
from scoreline.storage.resumable import Parts

class Synthetic(ImageDataset):
    shape, num_classes = (3, 32, 32), 0
    def __init__(self, n, seed):
        self.n, self.seed, self.name = n, seed, f"synthetic{seed}"
        self.digest = f"{n} {seed}"
    def __len__(self):
        return self.n
    def read(self, indices):
        generator = torch.Generator().manual_seed(self.seed * 10**6 + indices[0])
        images = torch.randint(0, 256, (len(indices), *self.shape), dtype=torch.uint8, generator=generator)
        return images, torch.full((len(indices),), -1)

n, folder, file, digest = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
extractor = InceptionFeatures(file, sha256=digest, device="cpu")
scores = Inception(extractor, Synthetic(n, 1), sys.argv[5].split(","))(Synthetic(n, 2), Parts(folder))
assert all(score["n"] == min(n, 10000) or name in ("fid", "inception_score") for name, score in scores.items())
status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
print(len(scores), int(status["VmHWM"].split()[0]) * 1024)
"""


def peak(tmp_path, n, scores):
    """Number of scores and peak memory of a fresh process: ru_maxrss would count that of this one, which started it."""
    script, file = tmp_path / "memory.py", write(tmp_path / "plain.pt", Plain)
    script.write_text(textwrap.dedent(MEMORY))
    command = [sys.executable, str(script), str(n), str(tmp_path / "parts"), str(file), sha256(file), scores]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    count, memory = map(int, done.stdout.split())
    return count, memory


def test_images_pass_through_and_are_not_kept(tmp_path):
    count, memory = peak(tmp_path, 2500, "kid,inception_score")
    assert count == 2
    assert memory < 2**30


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_thousand_images_take_under_two_gigabytes(tmp_path):
    count, memory = peak(tmp_path, 50_000, ",".join(name for name in SCORES if name != "sfid"))
    assert count == 7
    assert memory < 2e9
