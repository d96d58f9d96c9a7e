"""Pickles of EDM: what the original code returned, and what is refused. The pickles are written by stand-in classes."""

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from edm_files import (
    CASES,
    GOLDEN,
    network,
    snapshot,
    use_original_names,
)
from filled import filled, image
from torch import nn

from scoreline.checkpoints import Card, load_model, save_model
from scoreline.denoiser import Denoiser
from scoreline.descriptions.specs import rebuild
from scoreline.errors import InputError
from scoreline.foreign import edm
from scoreline.foreign.translation import ForeignModel, skeleton
from scoreline.parameterisations import EDMPreconditioning, Parameterisation
from scoreline.safe_pickle.torch_files import read
from scoreline.schedules.base import NoiseSchedule
from scoreline.schedules.ve import EDM, VE
from scoreline.schedules.vp import LinearVP


@pytest.fixture(autouse=True)
def original_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """pickle finds the stand-ins under the names of the original; afterwards, the canary is not there."""
    use_original_names(monkeypatch, tmp_path / "canary")
    yield
    assert not (tmp_path / "canary").exists()


def pickled(folder: Path, content: Any) -> Any:
    path = folder / "network-snapshot.pkl"
    path.write_bytes(pickle.dumps(content))
    return read(path, edm.INERT)


def denoiser(imported: ForeignModel) -> Denoiser:
    net = rebuild(imported.model["network"], nn.Module)
    net.load_state_dict(imported.weights)
    return Denoiser(net.eval().requires_grad_(False), rebuild(imported.model["parameterisation"], Parameterisation))


def check_golden(imported: ForeignModel, case: dict[str, Any]) -> None:
    denoise = denoiser(imported)
    for row in case["expected"]:
        sigma, label, augment = row["sigma"], None, None
        if row["told"]:
            label = torch.tensor([2, 0]) if imported.num_classes else None
            augment = filled("augment", (2, 9)) if imported.model["network"]["augment_dim"] else None
        x = image(2, 3, 8, (sigma**2 + 0.25) ** 0.5)
        found = denoise(x, sigma, label=label, augment=augment).double().flatten()
        assert found[::48].tolist() == pytest.approx(row["entries"], abs=1e-5 * row["largest"])
        assert float(found.sum()) == pytest.approx(row["sum"], abs=1e-5 * row["largest"] * len(found))


@pytest.mark.parametrize("name", CASES)
def test_what_the_original_returns(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    tree = pickled(tmp_path, snapshot(case))
    assert edm.recognises(tree)
    imported = edm.read_model(tree, None, "ema")
    assert imported.shape == (3, 8, 8)
    assert imported.num_classes == case["arguments"].get("label_dim", 0)
    check_golden(imported, case)


def test_a_training_state_holds_the_raw_network(tmp_path: Path) -> None:
    case, path = CASES["EDMPrecond"], tmp_path / "training-state-000001.pt"
    torch.save({"net": network(case), "optimizer_state": {"state": {}, "param_groups": [{"lr": 1e-3}]}}, path)
    tree = read(path, edm.INERT)
    check_golden(edm.read_model(tree, None, "raw"), case)
    with pytest.raises(InputError, match="weights=ema: this file of EDM holds the raw weights only; use weights=raw"):
        edm.read_model(tree, None, "ema")


def test_processes_and_notes(tmp_path: Path) -> None:
    found = {name: edm.read_model(pickled(tmp_path, snapshot(case)), None, "ema") for name, case in CASES.items()}
    schedules = {name: rebuild(value.model["noise_schedule"], NoiseSchedule) for name, value in found.items()}
    assert schedules["EDMPrecond"] == EDM(t_min=0.002, t_max=80)
    assert schedules["VPPrecond"] == LinearVP(beta_min=0.1, beta_max=20.0, t_min=1e-5)
    assert schedules["VEPrecond"] == VE(0.02, 100)
    levels = CASES["iDDPMPrecond"]["attributes"]
    assert levels["sigma_min"] > 0.002
    assert levels["sigma_max"] > 80
    assert schedules["iDDPMPrecond"] == EDM(levels["sigma_min"], 80)
    notes = found["EDMPrecond"].notes
    assert json.loads(json.dumps(notes, allow_nan=False)) == notes
    assert (notes["preconditioning"], notes["network"]) == ("EDMPrecond", "SongUNet")
    assert notes["loss"] == {"class": "EDMLoss"}
    assert notes["augmentation"] == {"class": "AugmentPipe", "p": 0.12, "xflip": 1e8}
    assert notes["dataset"] == {
        "class_name": "training.dataset.ImageFolderDataset",
        "xflip": False,
        "scale": "inf",
        "sizes": [1, 2],
    }
    assert notes["arguments"]["channel_mult"] == [1, 2]


def test_our_file_of_it(tmp_path: Path) -> None:
    case = CASES["iDDPMPrecond"]
    imported = edm.read_model(pickled(tmp_path, snapshot(case)), None, "ema")
    path = tmp_path / "model.safetensors"
    save_model(path, imported.weights, Card(imported.model, imported.shape, 3, {}, {"imported": imported.notes}))
    loaded = load_model(path)
    x, label = image(2, 3, 8), torch.tensor([1, -1])
    assert torch.equal(loaded.denoiser(x, 0.5, label=label), denoiser(imported)(x, 0.5, label=label))


def test_finite_ends_and_arguments_by_place(tmp_path: Path) -> None:
    tree = pickled(tmp_path, snapshot(CASES["EDMPrecond"]))
    state = tree["ema"].arguments[0]["state"]
    state.update(sigma_min=0.01, sigma_max=70.0, sigma_data=0.7)
    inner = state["_modules"]["model"].arguments[0]["state"]
    for name in ("img_resolution", "in_channels"):
        del inner["_init_kwargs"][name]
    inner["_init_args"] = (8, 3)
    imported = edm.read_model(tree, None, "ema")
    assert rebuild(imported.model["noise_schedule"], NoiseSchedule) == EDM(0.01, 70.0)
    assert rebuild(imported.model["parameterisation"], Parameterisation) == EDMPreconditioning(0.7)
    assert imported.model["network"]["resolution"] == 8


def test_defaults_of_the_constructors() -> None:
    interface = {"img_resolution": 64, "in_channels": 3, "out_channels": 3}
    for name, parameters in (("SongUNet", 61_804_419), ("DhariwalUNet", 295_899_267 - 1000 * 768)):
        spec = edm.description(edm.Persistent(name, {}, (), interface), factor=1)
        assert sum(p.numel() for p in skeleton(spec).parameters()) == parameters


def test_a_table_names_every_weight() -> None:
    for case in GOLDEN:
        arguments = {"img_resolution": 8, "in_channels": 3, "out_channels": 3, **case["arguments"]}
        kind = arguments.pop("model_type")
        net = skeleton(edm.description(edm.Persistent(kind, {}, (), arguments), factor=1))
        assert {name: rule.sources for name, rule in edm.table(net).items()} == {n: (n,) for n in case["shapes"]}


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"channel_mult_emb": 3}, "SongUNet: channel_mult_emb=3 is not supported, only 4 is"),
        ({"channel_mult_noise": 2}, "SongUNet: channel_mult_noise=2 is not supported, only 1 is"),
        ({"out_channels": 4}, "SongUNet: out_channels=4 is not supported, only 3 is"),
        ({"num_block": 2}, "SongUNet: its argument num_block is unknown; did you mean .num_blocks"),
        ({"img_resolution": "8"}, "SongUNet: img_resolution='8' must be an integer"),
        ({"embedding_type": "learned"}, "model.network.embedding=learned: .*fourier"),
        ({"model_type": "SongUnet"}, "class SongUnet: no network of EDM; did you mean .SongUNet"),
        (
            {"model_channels": 32},
            r"weight map_label.weight has shape \(16, 3\), our map_label.weight needs \(32, 3\)",
        ),
    ],
)
def test_networks_that_are_refused(changed: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=sentence):
        edm.read_model(pickled(tmp_path, snapshot(CASES["EDMPrecond"], **changed)), None, "ema")


def test_files_that_are_refused(tmp_path: Path) -> None:
    case = CASES["EDMPrecond"]
    tree = pickled(tmp_path, snapshot(case))
    with pytest.raises(InputError, match="model: a file of EDM says itself which network it holds; leave model out"):
        edm.read_model(tree, {"network": {}}, "ema")
    with pytest.raises(InputError, match="weights=raw: this file of EDM holds the ema weights only; use weights=ema"):
        edm.read_model(tree, None, "raw")
    with pytest.raises(InputError, match="no network of EDM is in this file"):
        edm.read_model({"ema": {"shadow_params": []}}, None, "ema")
    for other in (None, [], {}, {"ema": None}, {"model": {}}, {"state_dict": torch.zeros(1)}):
        assert not edm.recognises(other)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (
            lambda meta: meta.update(class_name="VPrecond"),
            "class VPrecond: no preconditioning of EDM; did you mean .VPPrecond",
        ),
        (lambda meta: meta.pop("class_name"), "an object of this file is no network of EDM; the file is damaged"),
        (lambda meta: meta.pop("state"), "state is missing from an object of this file"),
        (lambda meta: meta["state"].pop("_modules"), "_modules is missing from an object of this file"),
        (lambda meta: meta["state"]["_modules"].pop("model"), "an object of this file is no network of EDM"),
        (lambda meta: meta["state"].update(sigma_data="0.5"), "EDMPrecond.sigma_data='0.5': must be a number"),
        (lambda meta: meta["state"].update(sigma_min=None), "EDMPrecond.sigma_min=None: must be a number"),
        (lambda meta: inside(meta)["_parameters"].update(extra=torch.ones(2)), "weight extra has no place"),
        (lambda meta: inside(meta)["_parameters"].update(extra="text"), "weight extra is a str; the file is damaged"),
        (lambda meta: inside(meta)["_modules"].pop("map_layer1"), r"weight map_layer1.bias is not in the file.*2 are"),
        (lambda meta: inside(meta)["_modules"].update(enc="text"), "enc is no layer of EDM; the file is damaged"),
        (lambda meta: inside(meta)["_init_kwargs"].pop("in_channels"), "SongUNet: its argument in_channels is missing"),
    ],
)
def test_damaged_files_are_refused(damage: Callable[[dict[str, Any]], Any], sentence: str, tmp_path: Path) -> None:
    tree = pickled(tmp_path, snapshot(CASES["EDMPrecond"]))
    damage(tree["ema"].arguments[0])
    with pytest.raises(InputError, match=sentence):
        edm.read_model(tree, None, "ema")


def inside(meta: dict[str, Any]) -> dict[str, Any]:
    """The attributes of the network within the wrapper."""
    found: dict[str, Any] = meta["state"]["_modules"]["model"].arguments[0]["state"]
    return found
