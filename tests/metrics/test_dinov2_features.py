"""DINOv2's features on random weights of its shape, beside the network's equations written out."""

import builtins

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import conv2d, gelu, interpolate, layer_norm, linear

from scoreline.config.compose import complete_config
from scoreline.datasets.base import ArrayDataset
from scoreline.doctor.assets import assets
from scoreline.errors import InputError
from scoreline.metrics.dinov2_features import Dinov2Features, pixels
from scoreline.metrics.fidelity import Fidelity
from scoreline.storage.files import sha256

WIDTH, HEADS, LAYERS, PATCH, GRID = 128, 2, 2, 14, 37


def images(n, shape=(3, 32, 32)):
    return torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def random_weights():
    """The names of Hugging Face's files; layer norms and scales too are no ones."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape, centre=0.0):
        return centre + 0.2 * torch.randn(shape, generator=generator)

    weights = {
        "embeddings.cls_token": draw(1, 1, WIDTH),
        "embeddings.mask_token": draw(1, WIDTH),
        "embeddings.position_embeddings": draw(1, 1 + GRID**2, WIDTH),
        "embeddings.patch_embeddings.projection.weight": draw(WIDTH, 3, PATCH, PATCH),
        "embeddings.patch_embeddings.projection.bias": draw(WIDTH),
        "layernorm.weight": draw(WIDTH, centre=1.0),
        "layernorm.bias": draw(WIDTH),
    }
    for layer in range(LAYERS):
        start = f"encoder.layer.{layer}"
        for norm in ("norm1", "norm2"):
            weights |= {f"{start}.{norm}.weight": draw(WIDTH, centre=1.0), f"{start}.{norm}.bias": draw(WIDTH)}
        for name in ("attention.attention.query", "attention.attention.key", "attention.attention.value"):
            weights |= {f"{start}.{name}.weight": draw(WIDTH, WIDTH), f"{start}.{name}.bias": draw(WIDTH)}
        weights |= {f"{start}.attention.output.dense.weight": draw(WIDTH, WIDTH)}
        weights |= {f"{start}.attention.output.dense.bias": draw(WIDTH)}
        weights |= {f"{start}.mlp.fc1.weight": draw(4 * WIDTH, WIDTH), f"{start}.mlp.fc1.bias": draw(4 * WIDTH)}
        weights |= {f"{start}.mlp.fc2.weight": draw(WIDTH, 4 * WIDTH), f"{start}.mlp.fc2.bias": draw(WIDTH)}
        weights |= {f"{start}.layer_scale{place}.lambda1": draw(WIDTH, centre=0.5) for place in (1, 2)}
    return weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("dinov2")
    save_file(random_weights(), place / "model.safetensors")
    return place


@pytest.fixture(scope="module")
def extractor(folder):
    return Dinov2Features(str(folder), device="cpu")


def by_hand(w, images):
    """The class token of a vision transformer with scaled residual branches, in float64."""
    w = {name: value.double() for name, value in w.items()}

    def affine(x, name):
        return linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def normed(x, name):
        return layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def heads(x, name):
        return affine(x, name).unflatten(2, (HEADS, -1)).transpose(1, 2)

    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()).resize((224, 224), 3) for image in images]
    x = torch.from_numpy(np.stack([np.array(picture) for picture in pictures])).double().permute(0, 3, 1, 2) / 255
    mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).double()[..., None, None]
    patches = w["embeddings.patch_embeddings.projection.weight"], w["embeddings.patch_embeddings.projection.bias"]
    tokens = conv2d((x - mean) / deviation, *patches, stride=PATCH).flatten(2).transpose(1, 2)
    x = torch.cat([w["embeddings.cls_token"].expand(len(x), -1, -1), tokens], 1)
    places = w["embeddings.position_embeddings"][0]
    grid = places[1:].reshape(GRID, GRID, WIDTH).permute(2, 0, 1)[None]
    grid = interpolate(grid, scale_factor=16.1 / GRID, mode="bicubic")[0].flatten(1).T
    x = x + torch.cat([places[:1], grid])
    for layer in range(LAYERS):
        start = f"encoder.layer.{layer}"
        y = normed(x, f"{start}.norm1")
        q, k, v = (heads(y, f"{start}.attention.attention.{name}") for name in ("query", "key", "value"))
        y = (torch.softmax(q @ k.mT / (WIDTH // HEADS) ** 0.5, -1) @ v).transpose(1, 2).flatten(2)
        x = x + w[f"{start}.layer_scale1.lambda1"] * affine(y, f"{start}.attention.output.dense")
        y = affine(gelu(affine(normed(x, f"{start}.norm2"), f"{start}.mlp.fc1")), f"{start}.mlp.fc2")
        x = x + w[f"{start}.layer_scale2.lambda1"] * y
    return normed(x, "layernorm")[:, 0]


def test_features_are_the_class_token_of_the_equations(folder, extractor):
    x = images(3)
    found = extractor(x)
    assert (found.shape, found.dtype, extractor.dimension) == ((3, WIDTH), torch.float64, WIDTH)
    torch.testing.assert_close(found, by_hand(load_file(folder / "model.safetensors"), x), rtol=1e-3, atol=1e-4)


def test_features_do_not_depend_on_the_batch(extractor):
    x = images(35)
    whole = extractor(x)
    assert torch.equal(whole[33:], extractor(x[33:]))


def test_grey_images_become_three_equal_channels(extractor):
    grey = images(1, (1, 8, 8))
    assert torch.equal(pixels(grey), pixels(grey.repeat(1, 3, 1, 1)))
    extractor.check((1, 8, 8))
    with pytest.raises(InputError, match="1xHxW and 3xHxW"):
        extractor.check((4, 8, 8))


def test_a_distance_names_the_weights(folder, extractor):
    data = ArrayDataset("noise-train", images(8))
    metrics = Fidelity(data, extractor)
    assert metrics.protocol["extractor"] == f"dinov2:{sha256(folder / 'model.safetensors')[:8]}"
    assert metrics.protocol["resize"] == "Pillow bicubic 224"
    assert metrics.keeps_features
    assert metrics(data)["frechet_distance"]["value"] == pytest.approx(0, abs=1e-6)


def test_other_weights_are_refused(folder, tmp_path):
    whole = random_weights()
    files = {
        "missing": {name: value for name, value in whole.items() if name != "layernorm.bias"},
        "more": {**whole, "encoder.layer.0.gate": torch.zeros(2)},
        "shape": {**whole, "layernorm.bias": torch.zeros(3)},
        "another": {"weight": torch.zeros(2)},
    }
    for name, weights in files.items():
        save_file(weights, tmp_path / f"{name}.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    for name in (*files, "text"):
        with pytest.raises(InputError, match=rf"path=.*{name}\.safetensors: not the weights of a DINOv2") as caught:
            Dinov2Features(str(tmp_path / f"{name}.safetensors"), device="cpu").check((3, 8, 8))
        assert "\n" not in str(caught.value)


def test_a_missing_file_package_or_checksum_is_one_sentence(folder, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"metrics=dinov2: there are no weights; give metrics\.extractor\.path=FOLDER"):
        Dinov2Features().check((3, 8, 8))
    with pytest.raises(InputError, match=r"path=.*: no file model\.safetensors there"):
        Dinov2Features(str(tmp_path)).check((3, 8, 8))
    with pytest.raises(InputError, match=r"its SHA-256 is \w+, not 00"):
        Dinov2Features(str(folder), sha256="00").check((3, 8, 8))
    with pytest.raises(InputError, match=r"url=https://example\.org/d\.safetensors: give metrics\.extractor\.sha256"):
        Dinov2Features(url="https://example.org/d.safetensors")
    own = builtins.__import__

    def without(name, *rest, **words):
        if name == "transformers":
            raise ImportError(name)
        return own(name, *rest, **words)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"needs the package transformers; pip install scoreline\[dinov2\]"):
        Dinov2Features(str(folder)).check((3, 8, 8))


def test_a_job_names_the_file_it_needs(folder):
    def extractors(*words):
        cfg = complete_config(["metrics=dinov2", *words])
        return [it for it in assets("sample", cfg) if it.key.startswith("metrics.extractor")]

    (none,) = extractors()
    assert (none.source, none.is_there) == ("user", None)
    assert none.finding().status == "fail"
    (own,) = extractors(f"metrics.extractor.path={folder}")
    assert own.is_there
    words = ["metrics.extractor.url=https://example.org/d.safetensors", "metrics.extractor.sha256='00'"]
    (fetched,) = extractors(*words)
    assert (fetched.source, fetched.sha256) == ("url", "00")
