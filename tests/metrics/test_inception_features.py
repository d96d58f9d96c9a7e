import numpy as np
import pytest
import torch
from PIL import Image
from tiny_inception import FEATURES, SIDE, Bare, Shifted, load, write

from scoreline.errors import InputError
from scoreline.metrics import inception_features
from scoreline.metrics.inception_features import PUBLISHED, InceptionFeatures, clean_resize, tf_bilinear
from scoreline.storage.files import sha256


def images(n, shape=(3, 32, 32), seed=0):
    return torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write(tmp_path_factory.mktemp("networks") / "tiny.pt")


@pytest.fixture(scope="module")
def extractor(file):
    return InceptionFeatures(str(file), sha256=sha256(file), device="cpu")


def test_features_are_those_of_the_file(file, extractor):
    x = images(5)
    found = extractor(x, spatial=False)
    assert set(found) == {"features"}
    with torch.no_grad():
        own = load(file)(x, return_features=True)
    assert found["features"].shape == (5, FEATURES)
    torch.testing.assert_close(found["features"], own, rtol=1e-5, atol=1e-6)


def test_class_probabilities_leave_out_the_bias(file, extractor):
    x = images(5)
    weights = extractor.classifier()
    mine = torch.softmax(extractor(x, spatial=False)["features"].double() @ weights.T, 1)
    with torch.no_grad():
        own = load(file)(x, no_output_bias=True)
    torch.testing.assert_close(mine.float(), own, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 17, 40), (3, 300, 298)])
def test_the_layer_walk_gives_equal_features(extractor, shape):
    x = images(3, shape)
    walked, called = extractor(x, spatial=True), extractor(x, spatial=False)
    assert extractor.no_spatial is None
    torch.testing.assert_close(walked["features"], called["features"], rtol=1e-3, atol=1e-4)


def test_spatial_features_are_seven_channels_of_mixed_6(extractor):
    x = images(2)
    spatial = extractor(x, spatial=True)["spatial"]
    layers = extractor.network.layers
    with torch.no_grad():
        inside = layers.mixed_6.conv(layers.conv((tf_bilinear(x.float(), 299) - 128) / 128))
    assert inside.shape == (2, 8, SIDE, SIDE)
    assert spatial.shape == (2, 7 * SIDE * SIDE)
    torch.testing.assert_close(spatial.reshape(2, SIDE, SIDE, 7)[1, 3, 5], inside[1, :7, 3, 5], rtol=1e-4, atol=1e-5)


def test_features_are_bit_equal_in_any_set(extractor):
    x = images(70)
    whole = extractor(x, spatial=True)
    for start, stop in ((0, 3), (64, 70)):
        part = extractor(x[start:stop], spatial=True)
        for name in whole:
            assert torch.equal(part[name], whole[name][start:stop])


def test_repeated_calls_have_the_same_bits(extractor):
    x = images(4)
    assert all(torch.equal(extractor(x, True)["features"], extractor(x, True)["features"]) for _ in range(3))


def test_grey_images_become_three_equal_channels(extractor):
    grey = images(2, (1, 8, 8))
    both = [extractor(x, spatial=False)["features"] for x in (grey, grey.repeat(1, 3, 1, 1))]
    assert torch.equal(*both)
    extractor.check((1, 8, 8))
    with pytest.raises(InputError, match="takes images of 1 or 3 channels, not 4"):
        extractor.check((4, 8, 8))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (32, 17), (400, 310)])
def test_the_resize_is_tensorflows_written_pixel_by_pixel(height, width):
    x = images(1, (1, height, width)).double()
    found = tf_bilinear(x, 299)[0, 0]
    for i, j in ((0, 0), (1, 298), (150, 7), (298, 298), (297, 113)):
        a, b = i * height / 299, j * width / 299
        (i0, j0), (u, v) = (int(a), int(b)), (a - int(a), b - int(b))
        i1, j1 = min(i0 + 1, height - 1), min(j0 + 1, width - 1)
        top = (1 - v) * x[0, 0, i0, j0] + v * x[0, 0, i0, j1]
        bottom = (1 - v) * x[0, 0, i1, j0] + v * x[0, 0, i1, j1]
        assert float(found[i, j]) == pytest.approx(float((1 - u) * top + u * bottom), abs=1e-9)


def test_an_image_of_299_is_not_touched():
    x = images(1, (3, 299, 299)).float()
    assert torch.equal(tf_bilinear(x, 299), x)


@pytest.mark.parametrize("side", [32, 512])
def test_the_clean_resize_is_an_averaging_bicubic_filter(side):
    x = images(2, (3, side, side))
    want = torch.nn.functional.interpolate(x.double(), (299, 299), mode="bicubic", antialias=True, align_corners=False)
    torch.testing.assert_close(clean_resize(x).double(), want.clip(0, 255), rtol=0, atol=2e-3)


def test_the_clean_resize_is_pillows_but_not_rounded():
    wave = torch.sin(torch.arange(512) / 9)
    x = (128 + 60 * (wave[:, None] + wave)).to(torch.uint8)[None, None]
    rounded = Image.fromarray(x[0, 0].numpy()).resize((299, 299), resample=Image.Resampling.BICUBIC)
    found = clean_resize(x)[0, 0]
    assert float((found - torch.from_numpy(np.array(rounded)).float()).abs().max()) < 2
    assert not torch.equal(found, found.round())


def test_another_resize_is_another_extractor(file, extractor):
    clean = InceptionFeatures(str(file), sha256=sha256(file), resize="clean", device="cpu")
    assert clean.digest != extractor.digest == sha256(file)
    x = images(2)
    own = extractor.network(clean_resize(x), return_features=True)
    torch.testing.assert_close(clean(x, spatial=False)["features"], own.detach(), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(clean(x, spatial=False)["features"], extractor(x, spatial=False)["features"], rtol=1e-3)
    with pytest.raises(InputError, match=r"metrics\.extractor\.resize=claen.*clean"):
        InceptionFeatures(str(file), resize="claen")


def test_a_file_of_another_digest_is_not_loaded(file, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(InputError, match=rf"its SHA-256 is {sha256(file)}, not {PUBLISHED}.*file that you trust"):
        InceptionFeatures(str(file)).check((3, 8, 8))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"metrics\.extractor\.path=.*none\.pt: no such file; leave it out"):
        InceptionFeatures(str(tmp_path / "none.pt")).check((3, 8, 8))


def test_offline_refusal_names_the_file_and_place(tmp_path, monkeypatch):
    monkeypatch.setenv("SCORELINE_OFFLINE", "1")
    monkeypatch.setenv("SCORELINE_CACHE", str(tmp_path))
    wanted = rf"{tmp_path}/downloads/\w+/inception\.pt is not there.*put it there, or give metrics\.extractor\.path="
    with pytest.raises(InputError, match=wanted):
        InceptionFeatures(url="https://example.org/inception.pt").check((3, 8, 8))


def test_a_cached_file_is_used_offline(file, tmp_path, monkeypatch):
    from scoreline.storage.downloads import cached_path

    monkeypatch.setenv("SCORELINE_OFFLINE", "1")
    monkeypatch.setenv("SCORELINE_CACHE", str(tmp_path))
    url = "https://example.org/inception.pt"
    cached_path(url).parent.mkdir(parents=True)
    cached_path(url).write_bytes(file.read_bytes())
    found = InceptionFeatures(url=url, sha256=sha256(file), device="cpu")
    assert found(images(2), spatial=False)["features"].shape == (2, FEATURES)


def test_what_is_no_such_program_is_refused(tmp_path):
    path = tmp_path / "text.pt"
    path.write_text("hello")
    with pytest.raises(InputError, match="not a TorchScript file that is called as"):
        InceptionFeatures(str(path), sha256=sha256(path), device="cpu").check((3, 8, 8))


def test_files_without_layers_have_no_spatial_features(tmp_path):
    bare = write(tmp_path / "bare.pt", Bare)
    found = InceptionFeatures(str(bare), sha256=sha256(bare), device="cpu")
    assert (found(images(3), spatial=False)["features"].shape, found.dimension) == ((3, 6), 6)
    assert found.no_spatial == "the file has no layer conv"
    assert found.classifier() is None


def test_a_walk_to_other_features_is_refused(tmp_path):
    shifted = write(tmp_path / "shifted.pt", Shifted)
    found = InceptionFeatures(str(shifted), sha256=sha256(shifted), device="cpu")
    assert "off its own call" in found.no_spatial


def test_calls_are_filled_up_to_one_size(extractor, monkeypatch):
    sizes = []
    monkeypatch.setattr(
        inception_features, "walk", lambda layers, x: sizes.append(len(x)) or {"features": torch.zeros(len(x), 1)}
    )
    extractor(images(130), spatial=True)
    assert sizes == [64, 64, 64]
