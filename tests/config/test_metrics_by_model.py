"""metrics=auto: which metrics a model gets, and that runs of earlier versions keep their names."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import save_small

from scoreline.checkpoints import load_model
from scoreline.config import conf_folder, run_names
from scoreline.config.compose import plain_config, script_config
from scoreline.config.metrics_by_model import chosen
from scoreline.config.run_names import ASSETS
from scoreline.storage.tensor_files import read_metadata

OLD = {
    "checkpoint=digits_vp solver=velocity_ab3 schedule=linear_vp_few": "7d7e23e2",
    "checkpoint=digits_vp solver=deis_sn schedule=linear_vp_few nfe=7": "d1a18718",
}
"""Identities that version 0.11.0, whose NUMERICS_VERSION was 1, gave to runs with its defaults, named here."""


@pytest.mark.parametrize("words", OLD)
def test_directories_of_0_11_are_recognised(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_names, "NUMERICS_VERSION", 1)
    former = ["channels_last=false", "network_batch=64"]  # its defaults, which its config.yaml records
    for more in ([], ["metrics=fidelity"], ["metrics=digits"]):
        assert script_config("sample", [*words.split(), *former, *more]).identity == OLD[words]


def test_the_choice_counts_as_its_name(tmp_path: Path) -> None:
    for word, name in (("emoji32_edm", "emoji"), ("digits_vp", "digits")):
        auto, named = (script_config("sample", [f"checkpoint={word}", *more]) for more in ([], [f"metrics={name}"]))
        assert auto.metrics == named.metrics
        assert auto.identity == named.identity
    other = script_config("sample", [f"checkpoint={tmp_path}/other.pt"])
    assert other.metrics._target_ == "scoreline.metrics.no_metrics.NoMetrics"
    assert "metrics=imagenet" in other.metrics.note


def test_a_small_model_of_that_shape_is_measured_as_before(tmp_path: Path) -> None:
    small = save_small(tmp_path / "small.safetensors")
    assert plain_config([f"checkpoint={small}"]).metrics == plain_config(["metrics=digits"]).metrics


def metadata(**changes: Any) -> dict[str, str]:
    entries = {"shape": [3, 32, 32], "data": {"name": "emoji-train"}, "model": {}}
    return {key: json.dumps(value) for key, value in {**entries, **changes}.items()}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "emoji"),
        ({"data": {"name": "cifar10-train"}}, "other"),
        ({"shape": [3, 64, 64]}, "other"),
        ({"shape": [1, 8, 8], "data": {}}, "digits"),
        ({"shape": [1, 8, 8], "model": {"decoder": {}}}, "other"),
        ({"data": ["emoji"]}, "other"),
        ({"shape": None}, "other"),
        ({"model": 3}, "other"),
    ],
)
def test_what_the_card_says_decides(changes: dict[str, Any], name: str) -> None:
    assert chosen(metadata(**changes)) == name


def test_files_that_are_no_models_have_no_metadata(tmp_path: Path) -> None:
    for content in (b"", b"PK" * 40, (9).to_bytes(8, "little") + b"[1, 2, 3]", (2**40).to_bytes(8, "little")):
        (tmp_path / "file").write_bytes(content)
        assert read_metadata(tmp_path / "file") == {}
    assert read_metadata(tmp_path) == read_metadata(tmp_path / "nowhere") == {}


def test_the_note_names_choices_that_exist() -> None:
    note = plain_config(["checkpoint=nowhere.pt"]).metrics.note
    named = {word.strip(",;.") for word in note.split() if word.startswith("metrics=")}
    assert {word.removeprefix("metrics=") for word in named} <= set(conf_folder.files("metrics"))


def test_the_colour_model_that_ships() -> None:
    """Whatever its weights: bfloat16 in the file, float32 in the network, and a card that tells their losses."""
    path = ASSETS / "emoji32_edm.safetensors"
    assert path.stat().st_size < 6e6
    model = load_model(path)
    assert {weight.dtype for weight in model.denoiser.parameters()} == {torch.float32}
    training, data = model.card.training, model.card.data
    assert set(training["held_out"]["losses"]) == {"float32", "bfloat16"}
    assert training["held_out"]["data"] == "emoji-test"
    assert data["name"] == "emoji-train"
    assert "Open Font License" in data["licence"]
    assert training["curve"]["rows"][-1][0] <= training["kimg"]
    assert "train.py experiment=emoji32_edm" in training["command"]
