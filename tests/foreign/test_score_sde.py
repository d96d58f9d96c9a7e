"""Checkpoints of score_sde: what the original code returned, the order of the EMA, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filled import filled, image
from published import described, sources
from torch import Tensor

from scoreline.checkpoints import Card, load_model, save_model
from scoreline.errors import InputError
from scoreline.foreign import score_sde
from scoreline.networks.song_unet import SongUNet
from scoreline.safe_pickle.torch_files import read

GOLDEN = json.loads((Path(__file__).parent / "golden_score_sde.json").read_text())


def saved(folder: Path, case: dict[str, Any], prefix: str = "module.") -> Any:
    """The file as score_sde writes it: the EMA is a list in the order of what is trained."""
    largest, smallest, count = case["sigmas"]
    shapes = case["shapes"]
    weights: dict[str, Tensor] = {prefix + "sigmas": torch.logspace(1, -1, count)}
    weights[prefix + "sigmas"][[0, -1]] = torch.tensor([largest, smallest])
    weights |= {prefix + name: filled(name, shape) for name, shape in shapes.items()}
    averages = [filled(f"ema.{name}", shape) for name, shape in shapes.items() if name != "all_modules.0.W"]
    content = {
        "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 2e-4}]},
        "model": weights,
        "ema": {"decay": 0.999, "num_updates": 5, "shadow_params": averages},
        "step": 7,
    }
    path = folder / "checkpoint_1.pth"
    torch.save(content, path)
    return read(path, score_sde.INERT)


@pytest.mark.parametrize("name", GOLDEN)
def test_what_the_original_returns(name: str, tmp_path: Path) -> None:
    case = GOLDEN[name]
    tree = saved(tmp_path, case)
    assert score_sde.recognises(tree)
    for weights in ("ema", "raw"):
        imported = score_sde.read_model(tree, case["model"], weights)
        assert (imported.shape, imported.num_classes) == ((3, 8, 8), 0)
        path = tmp_path / f"{weights}.safetensors"
        save_model(path, imported.weights, Card(imported.model, imported.shape, 0, {}, imported.notes))
        denoise = load_model(path).denoiser
        for row in (row for row in case["expected"] if row["weights"] == weights):
            rho = row["rho"]
            found = denoise(image(2, 3, 8, (rho**2 + 0.25) ** 0.5), rho).double().flatten()
            assert found[::48].tolist() == pytest.approx(row["entries"], abs=1e-5 * row["largest"])
            assert float(found.sum()) == pytest.approx(row["sum"], abs=1e-5 * row["largest"] * len(found))


def test_notes_and_files_without_data_parallel_prefix(tmp_path: Path) -> None:
    case = GOLDEN["ncsnpp_ve"]
    (tmp_path / "plain").mkdir()
    plain = score_sde.read_model(saved(tmp_path / "plain", case, prefix=""), case["model"], "ema")
    usual = score_sde.read_model(saved(tmp_path, case), case["model"], "ema")
    assert plain.notes == usual.notes == {"step": 7, "decay": 0.999, "updates": 5}
    assert all(torch.equal(usual.weights[name], weight) for name, weight in plain.weights.items())
    assert score_sde.read_model(saved(tmp_path, case), case["model"], "raw").notes == {"step": 7}


def test_attention_joins_three_matrices(tmp_path: Path) -> None:
    """Row 3 c + (0, 1, 2) of ours is column c of theirs, of q, k and v."""
    case = GOLDEN["ddpmpp_vp"]
    found = score_sde.read_model(saved(tmp_path, case), case["model"], "raw").weights
    name = next(name for name in case["shapes"] if name.endswith("NIN_0.W"))
    parts = [filled(name.replace("NIN_0", f"NIN_{part}"), case["shapes"][name]) for part in range(3)]
    first = next(weight for name, weight in found.items() if name.endswith("qkv.weight"))
    for part in range(3):
        for c in range(len(parts[0])):
            assert torch.equal(first[3 * c + part, :, 0, 0], parts[part][:, c])


TENSORS = {"ddpmpp": 564, "ddpmpp_deep": 956, "ncsnpp": 570, "ncsnpp_deep": 962, "skips256": 645, "skips1024": 553}
"""In the state dicts of the original's models, without `sigmas`; with Fourier features one more."""


def kind(network: dict[str, Any]) -> str:
    name = {"standard": "ddpmpp", "residual": "ncsnpp", "skip": f"skips{network['resolution']}"}[network["encoder"]]
    return f"{name}_deep" if network["blocks"] == 8 else name


@pytest.mark.parametrize("name", score_sde.MODELS)
def test_the_published_models_use_every_weight_once(name: str) -> None:
    network = described(name)["network"]
    names = sources(name, SongUNet, score_sde.table)
    fourier = network["embedding"] == "fourier" and network["encoder"] == "residual"
    assert len(names) == TENSORS[kind(network)] + fourier
    places = {int(source.split(".")[1]) for source in names}
    assert places == set(range(len(places)))


def test_the_sign_of_discrete_ve_models(tmp_path: Path) -> None:
    """Their networks return minus eps; the description says eps."""
    case = GOLDEN["ncsnpp_discrete_ve"]
    found = score_sde.read_model(saved(tmp_path, case), case["model"], "raw").weights
    last = max(int(name.split(".")[1]) for name in case["shapes"])
    for part in ("weight", "bias"):
        name = f"all_modules.{last}.{part}"
        assert torch.equal(found[f"dec.8x8_aux_conv.{part}"], -filled(name, case["shapes"][name]))


def changed(case: dict[str, Any], part: str, **values: Any) -> dict[str, Any]:
    model = case["model"]
    return {**model, part: {**model[part], **values}}


def test_models_that_are_refused(tmp_path: Path) -> None:
    case = GOLDEN["ncsnpp_ve"]
    tree = saved(tmp_path, case)
    with pytest.raises(InputError, match="model: a file of score_sde does not say what network it holds; give model= "):
        score_sde.read_model(tree, None, "ema")
    with pytest.raises(InputError, match=r"model.network: files of score_sde hold a SongUNet, not a DDPMUNet"):
        score_sde.read_model(tree, described("cifar10_ddpm"), "ema")
    for key in ("num_classes", "augment_dim"):
        with pytest.raises(InputError, match=f"model.network.{key}=9: files of score_sde have no weights for it"):
            score_sde.read_model(tree, changed(case, "network", **{key: 9}), "ema")
    with pytest.raises(InputError, match=r"scale_max=696: the file was trained with 50 for images in .0, 1.; use 100"):
        score_sde.read_model(tree, changed(case, "noise_schedule", scale_max=696.0), "ema")
    with pytest.raises(InputError, match=r"scale_min=0.01: the file was trained with 0.01 .*; use 0.02"):
        score_sde.read_model(tree, changed(case, "noise_schedule", scale_min=0.01), "ema")
    with pytest.raises(InputError, match=r"weight all_modules\..* give the model=... that it was trained as"):
        score_sde.read_model(tree, changed(case, "network", encoder="standard"), "ema")
    with pytest.raises(InputError, match=r"weight all_modules\.\d+\..* \(\d+ are missing\)"):
        score_sde.read_model(tree, changed(case, "network", blocks=2), "raw")
    with pytest.raises(InputError, match=r"weight all_modules\.\d+\..*has shape"):
        score_sde.read_model(tree, changed(case, "network", width=32), "raw")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda tree: tree.pop("ema"), "weights=ema: this file of score_sde holds no EMA; use weights=raw"),
        (lambda tree: tree["ema"].update(shadow_params=[]), "weights=ema: this file of score_sde holds no EMA"),
        (
            lambda tree: tree["ema"]["shadow_params"].pop(),
            r"weights=ema: \d+ averages for \d+ weights; the file is dam",
        ),
        (lambda tree: tree["ema"]["shadow_params"].insert(3, torch.ones(1)), r"weights=ema: \d+ averages for \d+ w"),
        (
            lambda tree: tree["ema"]["shadow_params"].__setitem__(0, torch.ones(2)),
            "the average of all_modules.1.weight",
        ),
        (
            lambda tree: tree["ema"]["shadow_params"].reverse(),
            r"weights=ema: the average of all_modules.1.weight has sha",
        ),
        (
            lambda tree: tree["ema"]["shadow_params"].__setitem__(0, "text"),
            "all_modules.1.weight is no tensor but a str",
        ),
        (lambda tree: tree["ema"]["shadow_params"][4].fill_(float("nan")), r"weight all_modules\..* is not finite"),
        (lambda tree: tree["model"].pop("module.all_modules.1.weight"), r"weights=ema: \d+ averages for \d+ weights"),
        (lambda tree: tree["model"].update(extra=torch.ones(1)), r"weights=ema: \d+ averages for \d+ weights"),
        (lambda tree: tree.update(model={"conv.weight": torch.ones(1)}), "holds no DDPM.. or NCSN.. of score_sde"),
    ],
)
def test_damaged_files_are_refused(damage: Callable[[dict[str, Any]], Any], sentence: str, tmp_path: Path) -> None:
    case = GOLDEN["ncsnpp_ve"]
    tree = saved(tmp_path, case)
    damage(tree)
    with pytest.raises(InputError, match=sentence):
        score_sde.read_model(tree, case["model"], "ema")


def test_the_raw_weights_need_no_average(tmp_path: Path) -> None:
    case = GOLDEN["ncsnpp_ve"]
    tree = saved(tmp_path, case)
    expected = score_sde.read_model(tree, case["model"], "raw").weights
    del tree["ema"], tree["step"]
    found = score_sde.read_model(tree, case["model"], "raw")
    assert found.notes == {}
    assert all(torch.equal(found.weights[name], weight) for name, weight in expected.items())


def test_content_of_other_families() -> None:
    for other in (None, [], {}, {"model": None}, {"model": {"enc.conv": 1}}, {"state_dict": {"all_modules.1.W": 1}}):
        assert not score_sde.recognises(other)
