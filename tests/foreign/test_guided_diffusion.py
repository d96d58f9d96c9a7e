"""Files of guided-diffusion and improved-diffusion: the original's outputs, conventions, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from filled import filled_state, image
from published import assert_golden, assert_half_precision, assert_refusal, described, network_of, sources
from torch import Tensor

from scoreline.denoiser import Denoiser
from scoreline.descriptions.specs import rebuild
from scoreline.errors import InputError
from scoreline.foreign.guided_diffusion import INERT, MODELS, read_model, recognises, table
from scoreline.networks.adm import DhariwalUNet
from scoreline.parameterisations import Parameterisation
from scoreline.safe_pickle.torch_files import read

GOLDEN: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "golden_guided.json").read_text())
"""Names and shapes of narrow networks of guided-diffusion, and what they made of filled weights."""

FULL, ADDED, PLAIN = GOLDEN
"""With every choice of the largest models; without scale and shift; with means and nearest neighbours."""


def narrow(case: str, **options: Any) -> dict[str, Any]:
    network = {"_target_": "scoreline.networks.adm.DhariwalUNet", **GOLDEN[case]["network"], **options}
    model = described("imagenet256_guided")
    factor = GOLDEN[case]["network"]["output_factor"]
    return {**model, "network": network, "parameterisation": {**model["parameterisation"], "output_factor": factor}}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return filled_state(GOLDEN[FULL]["shapes"])


@pytest.mark.parametrize("case", GOLDEN)
def test_outputs_of_the_original(case: str, tmp_path: Path) -> None:
    golden = GOLDEN[case]
    torch.save(filled_state(golden["shapes"]), tmp_path / "ema_0.9999_001234.pt")
    tree = read(tmp_path / "ema_0.9999_001234.pt", INERT)
    assert recognises(tree)
    model = read_model(tree, narrow(case), "ema")
    assert (model.shape, model.num_classes) == ((3, 16, 16), 7 if golden["classes"] else 0)
    assert model.notes["weights"].startswith("as stored")
    label = torch.tensor(golden["classes"]) if golden["classes"] else None
    out = network_of(model)(image(2, 3, 16), torch.tensor(golden["labels"]), label)
    assert_golden(out, golden)


def test_golden_outputs_distinguish_qkv_orders_and_classes(state: dict[str, Tensor]) -> None:
    golden = GOLDEN[FULL]
    noise, label = torch.tensor(golden["labels"]), torch.tensor(golden["classes"])
    for options, classes in (({"qkv_order": "heads_first"}, label), ({}, None)):
        net = network_of(read_model(state, narrow(FULL, **options), "raw"))
        found = net(image(2, 3, 16), noise, classes).flatten()[golden["at"]].tolist()
        assert found != pytest.approx(golden["entries"], abs=1e-3 * golden["largest"])


def test_the_class_embedding_is_transposed(state: dict[str, Tensor]) -> None:
    weights = read_model(state, narrow(FULL), "raw").weights
    assert torch.equal(weights["map_label.weight"][:, 6], state["label_emb.weight"][6])
    assert weights["map_label.weight"].shape == (512, 7)


def test_the_channels_of_the_learned_variance_are_dropped(state: dict[str, Tensor]) -> None:
    model = read_model(state, narrow(FULL), "raw")
    net = network_of(model)
    denoiser = Denoiser(net, rebuild(model.model["parameterisation"], Parameterisation))
    alpha2 = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    rho = ((1 - alpha2[400]) / alpha2[400]).sqrt()
    x, label = image(2, 3, 16, scale=2), torch.tensor([0, 6])
    native = (x.double() * alpha2[400].sqrt()).float()
    both = net(native, torch.full((2,), 400.0), label)
    assert both.shape == (2, 6, 16, 16)
    torch.testing.assert_close(denoiser.eps(x, rho, label=label), both[:, :3], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(denoiser(x, rho, label=label), x - float(rho) * both[:, :3], rtol=1e-4, atol=1e-4)
    assert float((both[:, :3] - both[:, 3:]).abs().max()) > 1


def test_half_precision_becomes_float32(state: dict[str, Tensor]) -> None:
    assert_half_precision(read_model, state, narrow(FULL), "out.2.weight")


@pytest.mark.parametrize("name", MODELS)
def test_every_published_weight_has_a_place(name: str) -> None:
    assert sources(name, DhariwalUNet, table)


def test_lsun_models_differ_in_weights_only() -> None:
    for what in ("cat", "horse"):
        assert described(f"lsun_{what}256_guided") == described("lsun_bedroom256_guided")


@pytest.mark.parametrize(
    ("name", "steps", "factor"),
    [("imagenet64_guided", 1000, 1.0), ("imagenet64_iddpm", 4000, 0.25), ("imagenet64_cond_iddpm", 4000, 1.0)],
)
def test_cosine_betas_give_label_and_alpha(name: str, steps: int, factor: float) -> None:
    """The product of 1 - beta telescopes to f((i + 1) / steps) / f(0) as long as no beta is cut off."""
    parameterisation = rebuild(described(name)["parameterisation"], Parameterisation)
    for index in (0, 3, steps // 2):
        t = torch.tensor([(index + 1) / steps, 0.0], dtype=torch.float64)
        f = torch.cos((t + 0.008) / 1.008 * torch.pi / 2) ** 2
        rho = (f[1] / f[0] - 1).sqrt()
        scalings = parameterisation(rho[None])
        assert scalings.noise.tolist() == pytest.approx([factor * index], abs=1e-6)
        assert scalings.in_.tolist() == pytest.approx([float((f[0] / f[1]).sqrt())], rel=1e-9)


def test_other_content_is_not_recognised(state: dict[str, Tensor]) -> None:
    for content in ({}, [], [state], {"model": state}, "text", None, {1: 2}):
        assert not recognises(content)
    with pytest.raises(InputError, match=r"^holds no U-Net of guided-diffusion or improved-diffusion"):
        read_model({"model": state}, narrow(FULL), "raw")


DDPM = {"_target_": "scoreline.networks.ddpm_unet.DDPMUNet", "channels": 3, "resolution": 32}
LAYER = r"input_blocks\.1\.0\.emb_layers\.1\.weight"


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (None, "model: a file of guided_diffusion does not say what network it holds; give model= one of imagenet64_g"),
        (
            {"network": DDPM},
            "model.network: files of guided_diffusion hold a DhariwalUNet, not a DDPMUNet; give model=",
        ),
        (
            narrow(FULL, qkv_order="interleaved"),
            "model.network.qkv_order=interleaved: files of guided_diffusion are heads_first, or qkv_first if they were",
        ),
        (described("imagenet64_adm"), "model.network.qkv_order=interleaved: files of guided_diffusion are heads_first"),
        (narrow(FULL, augment_dim=9), "model.network.augment_dim=9: files of guided_diffusion have no weights for it"),
        (narrow(FULL, width=64), "model.network: normalises 64 channels in 16 groups and guided_diffusion in 32"),
        (narrow(FULL, num_classes=0), r"weight label_emb\.weight has no place in this network; give the model="),
        (narrow(FULL, num_classes=8), r"weight label_emb\.weight has shape \(7, 512\), our map_label\.weight needs"),
        (narrow(FULL, scale_shift_norm=False), rf"weight {LAYER} has shape \(256, 512\), our enc\.16x16_block0\.affin"),
        (narrow(FULL, resampling="convolution"), r"weight input_blocks\.2\.0\.op\.bias is not in the file"),
        (
            narrow(FULL, blocks=2),
            r"is not in the file.*\(\d+ are missing\); give the model=\.\.\. that it was trained as",
        ),
        (
            narrow(FULL, output_factor=1),
            "model.parameterisation.output_factor=2: the network's is 1; give both the same",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_model_gives_one_sentence(model: Any, sentence: str, state: dict[str, Tensor]) -> None:
    assert_refusal(read_model, state, model, sentence)
