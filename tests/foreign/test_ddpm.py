"""Files of pytorch_diffusion, DDIM and PNDM: the original's outputs, their weights by hand, conventions, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from filled import filled_state, image
from published import assert_golden, assert_half_precision, assert_refusal, described, network_of, sources
from torch import Tensor, nn

from scoreline.denoiser import Denoiser
from scoreline.descriptions.specs import rebuild
from scoreline.errors import InputError
from scoreline.foreign.ddpm import INERT, MODELS, read_model, recognises, table
from scoreline.networks.ddpm_unet import DDPMUNet
from scoreline.parameterisations import NoisePrediction, Parameterisation
from scoreline.safe_pickle.torch_files import read
from scoreline.schedules.discrete import DiscreteVP

GOLDEN = json.loads((Path(__file__).parent / "golden_ddpm.json").read_text())
"""Names and shapes of a narrow network of pytorch_diffusion, and what it made of filled weights."""


def narrow(**options: Any) -> dict[str, Any]:
    network = {"_target_": "scoreline.networks.ddpm_unet.DDPMUNet", **GOLDEN["network"], **options}
    return {**described("cifar10_ddpm"), "network": network}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return filled_state(GOLDEN["shapes"])


def saved(path: Path, content: Any) -> Any:
    """The content of a file, read as any foreign file is."""
    torch.save(content, path)
    return read(path, INERT)


def test_outputs_of_the_original(state: dict[str, Tensor], tmp_path: Path) -> None:
    tree = saved(tmp_path / "model-790000.ckpt", state)
    assert recognises(tree)
    model = read_model(tree, narrow(), "ema")
    assert (model.shape, model.num_classes) == ((3, 16, 16), 0)
    assert_golden(network_of(model)(image(2, 3, 16), torch.tensor(GOLDEN["labels"])), GOLDEN)


def test_q_k_and_v_are_interleaved(state: dict[str, Tensor]) -> None:
    weights = read_model(state, narrow(), "raw").weights
    for ours, theirs in (
        ("enc.8x8_block0", "down.1.attn.0"),
        ("dec.8x8_in0", "mid.attn_1"),
        ("dec.16x16_block1", "up.0.attn.1"),
    ):
        for kind in ("weight", "bias"):
            rows = (
                weights[f"{ours}.qkv.{kind}"].flatten(1) if kind == "weight" else weights[f"{ours}.qkv.{kind}"][:, None]
            )
            for row in (0, 1, 127):
                for part, letter in enumerate("qkv"):
                    expected = state[f"{theirs}.{letter}.{kind}"][row].flatten()
                    assert torch.equal(rows[3 * row + part], expected), (ours, kind, row, letter)


@pytest.mark.parametrize("name", MODELS)
def test_every_published_weight_has_a_place(name: str) -> None:
    assert sources(name, DDPMUNet, table)


def listed(state: dict[str, Tensor], *rest: Any) -> list[Any]:
    """As DDIM saves it: the state of DataParallel, the optimiser, epoch 3, step 5, and what follows."""
    optimiser = {"state": {0: {"step": 5, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 2e-4, "params": [0]}]}
    return [{f"module.{name}": value for name, value in state.items()}, optimiser, 3, 5, *rest]


def test_choice_of_the_average_in_a_list(state: dict[str, Tensor], tmp_path: Path) -> None:
    average = {name: value + 1 for name, value in state.items()}
    tree = saved(tmp_path / "ckpt.pth", listed(state, average))
    assert recognises(tree)
    raw, ema = read_model(tree, narrow(), "raw"), read_model(tree, narrow(), "ema")
    assert torch.equal(raw.weights["map_layer0.weight"], state["temb.dense.0.weight"])
    assert torch.equal(ema.weights["map_layer0.weight"], state["temb.dense.0.weight"] + 1)
    assert raw.notes == {"weights": "raw", "epoch": 3, "step": 5}
    assert ema.notes == {"weights": "ema", "epoch": 3, "step": 5}


def test_a_list_without_an_average(state: dict[str, Tensor]) -> None:
    assert torch.equal(read_model(listed(state), narrow(), "raw").weights["out_conv.bias"], state["conv_out.bias"])
    with pytest.raises(InputError, match=r"^weights=ema: the file holds no averaged weights; give weights=raw"):
        read_model(listed(state), narrow(), "ema")


def test_a_single_set_is_taken_as_stored(state: dict[str, Tensor]) -> None:
    for weights in ("ema", "raw"):
        assert read_model(state, narrow(), weights).notes["weights"].startswith("as stored")


def test_half_precision_becomes_float32(state: dict[str, Tensor]) -> None:
    assert_half_precision(read_model, state, narrow(), "conv_out.weight")


class Listening(nn.Module):
    """Remembers the labels it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[float] = []

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        self.heard += noise.tolist()
        return torch.zeros_like(x)


@pytest.mark.parametrize(("name", "shift"), [("celeba64_ddpm", 0), ("celeba64_pndm", -1), ("lsun_church256_ddpm", 0)])
def test_the_label_of_an_index(name: str, shift: int) -> None:
    """Index i is the level after i + 1 betas; PNDM calls it i - 1."""
    alpha2 = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    network = Listening()
    denoiser = Denoiser(network, rebuild(described(name)["parameterisation"], Parameterisation))
    for index in (1, 2, 500, 999):
        denoiser(torch.zeros(1, 1, 2, 2, dtype=torch.float64), float(((1 - alpha2[index]) / alpha2[index]).sqrt()))
    assert network.heard == pytest.approx([1 + shift, 2 + shift, 500 + shift, 999 + shift], abs=1e-6)


def test_other_content_is_not_recognised(state: dict[str, Tensor]) -> None:
    assert recognises(listed(state))
    for content in ({}, [], [{}, {}, 0, 0], {"state_dict": state}, "text", None, [state], {1: 2}):
        assert not recognises(content)
    with pytest.raises(InputError, match=r"^holds no U-Net of pytorch_diffusion, DDIM or PNDM"):
        read_model({"state_dict": state}, narrow(), "raw")


GUIDED = {"_target_": "scoreline.networks.adm.DhariwalUNet", "channels": 3, "resolution": 64, "width": 128}


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (None, "model: a file of ddpm does not say what network it holds; give model= one of cifar10_ddpm, celeba64"),
        ({"network": GUIDED}, "model.network: files of ddpm hold a DDPMUNet, not a DhariwalUNet; give model= one of"),
        (narrow(num_classes=10), "model.network.num_classes=10: files of ddpm have no weights for it; use 0"),
        (narrow(augment_dim=9), "model.network.augment_dim=9: files of ddpm have no weights for it; use 0"),
        (
            narrow(width=64),
            "model.network: normalises 64 channels in 16 groups and ddpm in 32; only networks with at least 128",
        ),
        (
            narrow(multipliers=[1, 2, 2]),
            r"weight down\.1\.downsample\.conv\.bias is not in the file .*\(\d+ are missing\); give the m",
        ),
        (
            narrow(blocks=2),
            r"weight down\.0\.attn\.1\.k\.bias is not in the file.*; give the model=\.\.\. that it was trained as",
        ),
        (
            narrow(attention=[8]),
            r"weight down\.0\.attn\.0\.k\.bias has no place in this network \(\d+ have none\); give the mo",
        ),
        (narrow(multipliers=[1, 1]), r"weight down\.1\.block\.0\.nin_shortcut\.bias has no place in this network"),
        (
            narrow(channels=1),
            r"weight conv_out\.weight has shape \(3, 128, 3, 3\), our out_conv\.weight needs \(1, 128, 3, 3\)",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_model_gives_one_sentence(model: Any, sentence: str, state: dict[str, Tensor]) -> None:
    assert_refusal(read_model, state, model, sentence)


def test_entries_that_are_no_tensors_are_refused(state: dict[str, Tensor]) -> None:
    with pytest.raises(InputError, match=r"^weight config is no tensor but a dict; give a file of weights only"):
        read_model({**state, "config": {}}, narrow(), "raw")


def test_fractional_labels_reach_the_network_as_they_are() -> None:
    schedule = DiscreteVP()
    between = schedule.inverse(torch.tensor([10.25], dtype=torch.float64))
    assert NoisePrediction(schedule, 1.0)(between).noise.tolist() == pytest.approx([10.25], abs=1e-9)
