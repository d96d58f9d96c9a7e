import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from scoreline.checkpoints import Card, load_model, save_model
from scoreline.errors import InputError
from scoreline.networks.unet import UNet
from scoreline.schedules.base import NoiseSchedule
from scoreline.schedules.vp import LinearVP
from scoreline.specs import rebuild

VP = {"_target_": "scoreline.schedules.vp.LinearVP", "beta_min": 0.1, "beta_max": 20.0}
NETWORK = {"_target_": "scoreline.networks.unet.UNet", "channels": 1, "resolution": 8, "width": 8, "blocks": 1}
MODEL = {
    "network": NETWORK,
    "noise_schedule": VP,
    "parameterisation": {"_target_": "scoreline.parameterisations.NoisePrediction", "noise_schedule": VP},
}


def card(**changes) -> Card:
    model = {**MODEL, **changes}
    return Card(model, (1, 8, 8), 0, {"name": "digits-train"}, {"kimg": 1.5})


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return UNet(1, 8, width=8, blocks=1).state_dict()


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, weights(), card())
    checkpoint = load_model(path)
    assert checkpoint.card == card()
    assert checkpoint.noise_schedule == LinearVP(0.1, 20.0)
    assert not checkpoint.denoiser.training
    for name, value in checkpoint.denoiser.network.state_dict().items():
        assert torch.equal(value, weights()[name])
    assert len(checkpoint.digest) == 64
    assert list(tmp_path.iterdir()) == [path]


EVIL = [
    {"_target_": "os.system", "command": "touch {marker}"},
    {"_target_": "builtins.eval", "x": "open('{marker}', 'w')"},
    {"_target_": "subprocess.Popen", "args": ["touch", "{marker}"]},
    {"_target_": "scoreline.networks.unet.torch.load", "f": "x"},
    {"_target_": "scoreline.networks.unet.interpolate", "input": 1},
    {"_target_": "scoreline.networks.unet.nn.Linear", "in_features": 1, "out_features": 1},
    {"_target_": "scoreline.files.write_atomically", "path": "{marker}"},
    {"_target_": "scoreline.networks_evil.Net"},
    {**NETWORK, "width": {"_target_": "os.system", "command": "touch {marker}"}},
    {**NETWORK, "multipliers": [{"_target_": "os.system", "command": "touch {marker}"}]},
    {**NETWORK, "embedding": "${oc.env:HOME}"},
    {**NETWORK, "_partial_": True},
    {"no": "target"},
    {"_target_": 7},
]


@pytest.mark.parametrize("spec", EVIL, ids=lambda spec: str(spec)[:60])
def test_a_card_cannot_choose_what_code_runs(spec: dict, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = tmp_path / "model.safetensors"
    network = json.loads(json.dumps(spec).replace("{marker}", str(marker)))
    save_model(path, weights(), card(network=network))
    with pytest.raises(InputError, match="checkpoint"):
        load_model(path)
    assert not marker.exists()


def test_trusted_packages_are_named_by_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mynets.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Linear):\n    pass\n\n\nclass Cellar:\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = {"_target_": "mynets.Net", "in_features": 1, "out_features": 2}
    with pytest.raises(InputError, match=r"trust=\[mynets\]"):
        rebuild(spec, torch.nn.Module)
    assert rebuild(spec, torch.nn.Module, ("mynets",)).out_features == 2
    with pytest.raises(InputError, match="no network"):
        rebuild({"_target_": "mynets.Cellar"}, torch.nn.Module, ("mynets",))
    with pytest.raises(InputError, match="is no NoiseSchedule"):
        rebuild(NETWORK, NoiseSchedule)
    with pytest.raises(InputError, match="refuses its arguments"):
        rebuild({**NETWORK, "depth": 3}, torch.nn.Module)


def test_missing_foreign_truncated_and_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(InputError, match="no such file"):
        load_model(path)
    path.write_bytes(b"not a model")
    with pytest.raises(InputError, match="not a readable safetensors file"):
        load_model(path)
    save_model(path, weights(), card())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a readable safetensors file"):
        load_model(path)
    save_file(weights(), path)
    with pytest.raises(InputError, match="its format is None"):
        load_model(path)
    save_file(weights(), path, {"format": "scoreline/model/1", "model": "{", "shape": "[1]", "num_classes": "0"})
    with pytest.raises(InputError, match="card is damaged"):
        load_model(path)


def test_weights_that_do_not_fit_or_are_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, weights(), card(network={**NETWORK, "width": 16}))
    with pytest.raises(InputError, match="do not fit"):
        load_model(path)
    broken = weights()
    broken["stem.weight"][0] = float("nan")
    save_model(path, broken, card())
    with pytest.raises(InputError, match=r"stem\.weight is not finite"):
        load_model(path)


def test_a_killed_write_leaves_the_former_file(tmp_path: Path) -> None:
    from scoreline.files import write_atomically

    path = tmp_path / "file"
    path.write_text("former")

    def die(temporary: Path) -> None:
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, die)
    assert path.read_text() == "former"
    assert list(tmp_path.iterdir()) == [path]
