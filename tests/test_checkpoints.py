import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from scoreline.checkpoints import Card, load_model, save_model
from scoreline.config.run_names import ASSETS
from scoreline.descriptions.specs import rebuild
from scoreline.errors import InputError
from scoreline.networks.unet import UNet
from scoreline.schedules.base import NoiseSchedule
from scoreline.schedules.vp import LinearVP
from scoreline.storage.files import sha256

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


def test_weights_that_share_memory_are_saved_apart(tmp_path: Path) -> None:
    """Tied weights of another project's file; safetensors alone refuses them."""
    found = weights()
    names = [name for name, value in found.items() if value.shape == found["stem.weight"].shape][:2]
    tied = {**found, **dict.fromkeys(names, found[names[0]]), "map.0.weight": found["map.0.weight"].T.T[:]}
    save_model(tmp_path / "model.safetensors", tied, card())
    network = load_model(tmp_path / "model.safetensors").denoiser.network
    for name, value in network.state_dict().items():
        assert torch.equal(value, tied[name])


@pytest.mark.parametrize("counts", [[3, 4], [0, 0, 0], [1, 2, -1], [1, 2, 0.5], "312"])
def test_class_counts_belong_to_the_classes(counts: object, tmp_path: Path) -> None:
    path, network = tmp_path / "model.safetensors", UNet(1, 8, width=8, blocks=1, num_classes=3)
    model = {**MODEL, "network": {**NETWORK, "num_classes": 3}}
    save_model(path, network.state_dict(), Card(model, (1, 8, 8), 3, {"class_counts": [5, 0, 2]}, {}))
    assert load_model(path).card.class_counts == [5, 0, 2]
    save_model(path, network.state_dict(), Card(model, (1, 8, 8), 3, {"class_counts": counts}, {}))
    with pytest.raises(InputError, match=r"its card is damaged \(data\.class_counts"):
        load_model(path)


EVIL = [
    {"_target_": "os.system", "command": "touch {marker}"},
    {"_target_": "builtins.eval", "x": "open('{marker}', 'w')"},
    {"_target_": "subprocess.Popen", "args": ["touch", "{marker}"]},
    {"_target_": "scoreline.networks.unet.torch.load", "f": "x"},
    {"_target_": "scoreline.networks.unet.interpolate", "input": 1},
    {"_target_": "scoreline.networks.unet.nn.Linear", "in_features": 1, "out_features": 1},
    {"_target_": "scoreline.storage.files.write_atomically", "path": "{marker}"},
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
    with pytest.raises(InputError, match="Cellar"):
        rebuild({"_target_": "mynets.Cellar"}, torch.nn.Module, ("mynets",))
    with pytest.raises(InputError, match="NoiseSchedule"):
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


def test_wrong_weights_are_refused(tmp_path: Path) -> None:
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
    from scoreline.storage.files import write_atomically

    path = tmp_path / "file"
    path.write_text("former")

    def die(temporary: Path) -> None:
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, die)
    assert path.read_text() == "former"
    assert list(tmp_path.iterdir()) == [path]


NETWORKS = {
    "unet": {**NETWORK, "attention": [4], "num_classes": 3, "augment_dim": 2},
    "unet_fourier": {**NETWORK, "embedding": "fourier"},
    "ddpmpp": {
        "_target_": "scoreline.networks.song_unet.SongUNet",
        "channels": 1,
        "resolution": 8,
        "width": 32,
        "multipliers": [1, 2],
        "blocks": 1,
        "attention": [4],
    },
    "adm": {
        "_target_": "scoreline.networks.adm.DhariwalUNet",
        "channels": 1,
        "resolution": 8,
        "width": 64,
        "multipliers": [1, 2],
        "blocks": 1,
        "attention": [4],
        "num_classes": 3,
    },
    "ddpm": {
        "_target_": "scoreline.networks.ddpm_unet.DDPMUNet",
        "channels": 1,
        "resolution": 8,
        "width": 32,
        "multipliers": [1, 2],
        "blocks": 1,
        "attention": [4],
    },
    "mixture": {
        "_target_": "scoreline.networks.gaussian_mixture.GaussianMixtureScore",
        "components": 5,
        "channels": 1,
        "resolution": 8,
    },
}
NETWORKS["ncsnpp"] = {
    **NETWORKS["ddpmpp"],
    "embedding": "fourier",
    "encoder": "residual",
    "resample_filter": [1, 3, 3, 1],
}


def random_network(spec: dict) -> nn.Module:
    """In which every weight matters."""
    torch.manual_seed(1)
    network: nn.Module = rebuild(spec, nn.Module).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.rand_like(parameter) / max(1, parameter[0].numel()) ** 0.5)
    return network.requires_grad_(False)


def output(network: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    image = torch.randn(2, 1, 8, 8, generator=generator).to(dtype)
    value: Tensor = network(image, torch.tensor([0.3, -0.7], dtype=dtype))
    return value


def saved(tmp_path: Path, spec: dict, network: nn.Module) -> Path:
    path = tmp_path / "model.safetensors"
    save_model(path, network.state_dict(), card(network=spec))
    return path


def mapping(path: Path) -> tuple[range, str]:
    """Addresses at which this process has the file mapped, and the permissions."""
    line = next(line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path)))
    addresses, permissions = line.split()[:2]
    return range(*(int(address, 16) for address in addresses.split("-"))), permissions


@pytest.mark.parametrize("name", NETWORKS)
def test_a_loaded_network_is_the_saved_one(name: str, tmp_path: Path) -> None:
    """With all constants that the file does not hold."""
    network = random_network(NETWORKS[name])
    loaded = load_model(saved(tmp_path, NETWORKS[name], network)).denoiser.network
    assert output(network).std() > 0.01
    assert torch.equal(output(loaded), output(network))
    assert list(loaded.state_dict()) == list(network.state_dict())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert not any(module.training for module in loaded.modules())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
@pytest.mark.parametrize("name", NETWORKS)
def test_weights_are_the_pages_of_the_file_itself(name: str, tmp_path: Path) -> None:
    path = saved(tmp_path, NETWORKS[name], random_network(NETWORKS[name]))
    network = load_model(path).denoiser.network
    addresses, permissions = mapping(path)
    assert permissions == "rw-p"
    assert all(weight.data_ptr() in addresses for weight in network.state_dict().values())


def test_writes_to_weights_never_reach_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path, NETWORK, random_network(NETWORK))
    before = path.read_bytes()
    checkpoint, other = load_model(path), load_model(path)
    with torch.no_grad():
        for weight in checkpoint.denoiser.network.state_dict().values():
            weight.fill_(3.0)
    assert path.read_bytes() == before
    assert torch.equal(output(other.denoiser.network), output(load_model(path).denoiser.network))
    assert checkpoint.digest == sha256(path)


def test_weights_outlive_their_file(tmp_path: Path) -> None:
    """Training replaces model.safetensors while it is in use."""
    network = random_network(NETWORK)
    path = saved(tmp_path, NETWORK, network)
    loaded, gone = load_model(path).denoiser.network, load_model(path).denoiser.network
    save_model(path, {name: torch.zeros_like(w) for name, w in network.state_dict().items()}, card())
    path.unlink()
    assert torch.equal(output(loaded), output(network))
    assert torch.equal(output(gone), output(network))


def test_a_model_is_saved_over_its_own_file(tmp_path: Path) -> None:
    path = saved(tmp_path, NETWORK, random_network(NETWORK))
    before = path.read_bytes()
    save_model(path, load_model(path).denoiser.network.state_dict(), card())
    assert path.read_bytes() == before


def test_loaded_networks_are_copied_cast_compiled_and_trained(tmp_path: Path) -> None:
    path = saved(tmp_path, NETWORK, random_network(NETWORK))
    before = path.read_bytes()
    loaded = load_model(path).denoiser.network
    wanted = output(loaded)
    twin = copy.deepcopy(loaded)
    assert torch.equal(output(torch.compile(loaded, backend="aot_eager")), wanted)
    assert (output(copy.deepcopy(loaded).double(), torch.float64) - wanted).abs().max() < 1e-5
    twin.requires_grad_(True)
    optimiser = torch.optim.Adam(twin.parameters(), lr=0.1)
    output(twin).square().mean().backward()
    optimiser.step()
    assert not torch.equal(output(twin), wanted)
    assert torch.equal(output(loaded), wanted)
    loaded.requires_grad_(True).train()
    torch.optim.SGD(loaded.parameters(), lr=0.0).step()
    assert path.read_bytes() == before


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_take_the_precision_of_the_network(dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, {name: weight.to(dtype) for name, weight in weights().items()}, card())
    loaded = load_model(path).denoiser.network.state_dict()
    assert all(torch.equal(loaded[name], weight.to(dtype).float()) for name, weight in weights().items())


COMPUTES = """
import torch
from torch import nn


class Net(nn.Linear):
    def __init__(self, kind):
        super().__init__(3, 3)
        if kind == "value":
            self.first = float(self.weight[0, 0]) * 0 + 2
        elif kind == "array":
            self.first = float(self.weight.detach().numpy()[0, 0]) * 0 + 2
        elif kind == "plain":
            self.first = torch.empty(1).fill_(2.0)
        elif kind == "buffer":
            self.register_buffer("first", torch.empty(1).fill_(2.0), persistent=False)
        elif kind == "tied":
            self.other, self.first = nn.Linear(3, 3, bias=False), 2.0
            self.other.weight = self.weight

    def forward(self, x, noise):
        return self.first * super().forward(x)
"""


@pytest.mark.parametrize("kind", ["value", "array", "plain", "buffer", "tied"])
def test_other_packages_may_compute_in_constructors(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "computes.py").write_text(COMPUTES)
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = {"_target_": "computes.Net", "kind": kind}
    path = tmp_path / "model.safetensors"
    values = {
        "weight": torch.eye(3),
        "bias": torch.ones(3),
        **({"other.weight": torch.eye(3)} if kind == "tied" else {}),
    }
    save_model(path, values, card(network=spec))
    loaded = load_model(path, ("computes",)).denoiser.network
    assert torch.equal(loaded(torch.arange(3.0), None), 2 * torch.arange(1.0, 4.0))


def header_and_data(path: Path) -> tuple[dict, bytes]:
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def test_files_are_as_they_were(tmp_path: Path) -> None:
    """But for the order of their metadata, which safetensors left to chance."""
    shipped, path = ASSETS / "digits_vp.safetensors", tmp_path / "model.safetensors"
    checkpoint = load_model(shipped)
    save_model(path, checkpoint.denoiser.network.state_dict(), checkpoint.card)
    (header, data), (first, first_data) = header_and_data(path), header_and_data(shipped)
    assert data == first_data
    assert header == first
    assert [name for name in header if name != "__metadata__"] == [name for name in first if name != "__metadata__"]
    assert path.stat().st_size == shipped.stat().st_size
    assert list(header["__metadata__"]) == sorted(header["__metadata__"])


def test_the_same_model_makes_the_same_bytes(tmp_path: Path) -> None:
    unusual = Card(MODEL, (1, 8, 8), 0, {"name": 'Gefäß \U0001f600 \x7f \x01 \n " \\ /'}, {"kimg": 1.5})
    paths = [tmp_path / str(number) for number in range(6)]
    for path in paths:
        save_model(path, weights(), unusual)
    assert len({path.read_bytes() for path in paths}) == 1
    assert load_model(paths[0]).card == unusual
    with safe_open(paths[0], framework="pt") as file:
        assert set(file.keys()) == set(weights())


def test_views_of_one_memory_are_saved_apart(tmp_path: Path) -> None:
    """As weights of imported files are: pieces of one map, in any order and not aligned."""
    plain = weights()
    flat = torch.cat([torch.zeros(1), *(weight.flatten() for weight in plain.values())])
    views, start = {}, 1
    for name, weight in plain.items():
        views[name] = flat[start : start + weight.numel()].view(weight.shape)
        start += weight.numel()
    save_model(tmp_path / "views", views, card())
    save_model(tmp_path / "plain", plain, card())
    assert (tmp_path / "views").read_bytes() == (tmp_path / "plain").read_bytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, -1])
def test_one_nonfinite_number_in_a_million_is_found(value: float, place: int, tmp_path: Path) -> None:
    spec = {**NETWORKS["mixture"], "components": 20_000}
    network = rebuild(spec, nn.Module)
    network.means.view(-1)[place] = value
    with pytest.raises(InputError, match="weight means is not finite"):
        load_model(saved(tmp_path, spec, network))
