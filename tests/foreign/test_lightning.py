from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from filled import filled_state, image
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.callbacks.weight_averaging import EMAWeightAveraging
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from scoreline.checkpoints import Card, load_model, save_model
from scoreline.denoiser import Denoiser
from scoreline.errors import InputError
from scoreline.foreign.conversion import card
from scoreline.foreign.families import load
from scoreline.foreign.lightning import INERT, recognises
from scoreline.foreign.translation import ForeignModel
from scoreline.networks.unet import UNet
from scoreline.objective import DenoisingObjective, InverseVariance, UniformTime
from scoreline.parameterisations import NoisePrediction
from scoreline.safe_pickle.torch_files import read
from scoreline.schedules.vp import LinearVP
from scoreline.targets import Denoising
from scoreline.training.ema_callback import EMACallback
from scoreline.training.module import DiffusionModule

SPEC = {"_target_": "scoreline.schedules.vp.LinearVP"}
SIZES = {"channels": 1, "resolution": 8, "width": 8, "blocks": 1}
MODEL = {
    "network": {"_target_": "scoreline.networks.unet.UNet", **SIZES},
    "noise_schedule": SPEC,
    "parameterisation": {"_target_": "scoreline.parameterisations.NoisePrediction", "noise_schedule": SPEC},
}


def network() -> UNet:
    return UNet(1, 8, width=8, blocks=1)


def weights(scale: float = 1.0) -> dict[str, Tensor]:
    shapes = {name: tuple(value.shape) for name, value in network().state_dict().items()}
    return {name: scale * value for name, value in filled_state(shapes).items()}


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(value, expected[name]) for name, value in found.items())


def through_file(path: Path, which: str, **parts: Any) -> ForeignModel:
    torch.save({"pytorch-lightning_version": "2.6.1", "epoch": 3, "global_step": 12, **parts}, path)
    return load(path, "lightning", MODEL, which)[1]


class Saving(Callback):
    """Saves after the second step, while averages and weights are two things."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 2:
            trainer.save_checkpoint(self.path)


def fit(module: LightningModule, callback: Callback, folder: Path) -> Path:
    """Two steps by Lightning, which writes the file."""
    pixels = torch.arange(8 * 64).reshape(8, 1, 8, 8).remainder(256).to(torch.uint8)
    loader = DataLoader(TensorDataset(pixels, torch.zeros(8, dtype=torch.int64)), batch_size=4)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=2,
        logger=False,
        callbacks=[callback, Saving(folder / "last.ckpt")],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, loader)
    return folder / "last.ckpt"


class Plain(LightningModule):
    """Somebody's module, with a network of ours and other weights besides."""

    def __init__(self, **hyper: Any) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net, self.scale = network(), nn.Linear(1, 1)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        x = batch[0] / 127.5 - 1
        loss: Tensor = (self.scale(self.net(x, torch.zeros(len(x)))[..., None])[..., 0] - x).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


class Exact(EMAWeightAveraging):
    def __init__(self) -> None:
        super().__init__(decay=0.5, update_starting_at_step=0)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*fewer than the logging interval.*")
def test_a_file_of_this_package(tmp_path: Path) -> None:
    """The module's network and the callback's average, each as it was in memory."""
    process = LinearVP()
    module = DiffusionModule(
        Denoiser(network(), NoisePrediction(process)),
        DenoisingObjective(UniformTime(process), InverseVariance(), Denoising()),
        partial(torch.optim.Adam, lr=1e-2),
        4,
        0.001,
        0,
        Card(MODEL, (1, 8, 8), 0, {}, {}),
    )
    ema = EMACallback([0.01, 50], 0.2)
    path = fit(module, ema, tmp_path)
    assert recognises(read(path, INERT))
    raw, average = load(path, None, MODEL, "raw")[1], load(path, "lightning", MODEL, "ema")[1]
    assert same(raw.weights, module.denoiser.network.state_dict())
    assert same(average.weights, ema.ema.weights)
    assert not same(raw.weights, average.weights)
    assert raw.notes["place"] == "state_dict: denoiser.network.*"
    assert average.notes["place"] == "callbacks: EMACallback"
    assert average.notes["global_step"] == 2
    with pytest.raises(InputError, match=r"model: a file of Lightning does not say what network it holds; give model="):
        load(path, "lightning", None, "ema")


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*fewer than the logging interval.*")
def test_weight_averaging_of_lightning_is_unswapped(tmp_path: Path) -> None:
    module = Plain()
    path = fit(module, Exact(), tmp_path)
    raw, average = (load(path, "lightning", MODEL, which)[1] for which in ("raw", "ema"))
    assert same(average.weights, module.net.state_dict())  # Lightning leaves them in the module when it ends
    assert not same(average.weights, raw.weights)
    held = torch.load(path, weights_only=True)["current_model_state"]
    assert same(raw.weights, {name.removeprefix("net."): v for name, v in held.items() if name.startswith("net.")})
    assert raw.notes["place"] == "current_model_state: net.*"
    assert average.notes["place"] == "state_dict (WeightAveraging): net.*"


@pytest.mark.parametrize("prefix", ["", "net.", "model.", "denoiser.network.", "net._orig_mod.", "a.b.c."])
def test_the_prefix_is_found(prefix: str, tmp_path: Path) -> None:
    others = {"loss.weight": torch.ones(3), "discriminator.conv.weight": torch.ones(2)}
    state = {**under(prefix, weights()), **(others if prefix else {})}
    found = through_file(tmp_path / "a.ckpt", "raw", state_dict=state)
    assert same(found.weights, weights())
    assert found.notes == {
        "place": f"state_dict: {prefix}*",
        "lightning_version": "2.6.1",
        "epoch": 3,
        "global_step": 12,
    }
    assert (found.model, found.shape, found.num_classes) == (MODEL, (1, 8, 8), 0)


@torch.no_grad()
def test_the_saved_model_denoises_as_the_module(tmp_path: Path) -> None:
    found = through_file(tmp_path / "a.ckpt", "raw", state_dict=under("net.", weights()))
    target = tmp_path / "model.safetensors"
    save_model(target, found.weights, card("a.ckpt", tmp_path / "a.ckpt", "lightning", found, "raw"))
    alone = network().eval()
    alone.load_state_dict(weights())
    x, rho = image(2, 1, 8, 3.0), 2.5
    expected = Denoiser(alone, NoisePrediction(LinearVP()))(x, rho)
    found_images = load_model(target).denoiser(x, rho)
    torch.testing.assert_close(found_images, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("prefix", ["ema_model.", "model_ema.", "ema.module.", "denoiser_ema.network.", "ema."])
def test_a_second_network_by_the_name_of_ema(prefix: str, tmp_path: Path) -> None:
    state = {**under("model.", weights()), **under(prefix, weights(0.5)), "ema_decay": torch.tensor(0.999)}
    average = through_file(tmp_path / "a.ckpt", "ema", state_dict=state)
    assert same(average.weights, weights(0.5))
    assert average.notes["place"] == f"state_dict: {prefix}*"
    assert same(through_file(tmp_path / "b.ckpt", "raw", state_dict=state).weights, weights())


@pytest.mark.parametrize("prefix", ["model.", "model.diffusion_model."])
def test_names_without_dots_of_latent_diffusion(prefix: str, tmp_path: Path) -> None:
    """LitEma of `model`: buffers called as parameters below it, their dots left out."""
    below = prefix.removeprefix("model.")
    average = {f"model_ema.{(below + name).replace('.', '')}": value for name, value in weights(0.5).items()}
    extra = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(12)}
    state = {**under(prefix, weights()), **average, **extra}
    assert same(through_file(tmp_path / "a.ckpt", "ema", state_dict=state).weights, weights(0.5))
    assert same(through_file(tmp_path / "b.ckpt", "raw", state_dict=state).weights, weights())
    average.popitem()
    with pytest.raises(InputError, match="holds no average that is known here"):
        through_file(tmp_path / "c.ckpt", "ema", state_dict={**under(prefix, weights()), **average})


def test_refusals(tmp_path: Path) -> None:
    def refused(said: str, which: str, state: dict[str, Tensor], **parts: Any) -> None:
        with pytest.raises(InputError, match=said):
            through_file(tmp_path / "a.ckpt", which, state_dict=state, **parts)

    plain = under("net.", weights())
    first = next(iter(weights()))
    refused(r"weights=ema: the file holds no average that is known here .*; use weights=raw$", "ema", plain)
    refused(r"several names: 'a\.', 'net\.'; save the one", "raw", {**plain, **under("a.", weights())})
    several = {**plain, **under("ema.", weights()), **under("b.ema.", weights())}
    refused(r"several averages: 'state_dict: b\.ema\.\*', 'state_dict: ema\.\*'; use weights=raw", "ema", several)
    refused(r"no weight of the file has a name that ends like those", "raw", {"conv.kernel": torch.ones(1)})
    lacking = {name: value for name, value in plain.items() if name != f"net.{first}"}
    refused(rf"weight 'net\.{first}' is not in the file, though others", "raw", lacking)
    refused(rf"weight 'net\.{first}' is not in the file, though others", "ema", lacking)
    refused(r"weight other has no place in this network", "raw", {**plain, "net.other": torch.ones(1)})
    refused(rf"weight {first} is not finite", "raw", {**plain, f"net.{first}": plain[f"net.{first}"] * float("nan")})
    refused(rf"weight {first} has shape \(3,\)", "raw", {**plain, f"net.{first}": torch.ones(3)})
    half = {name: value for name, value in weights().items() if name != first}
    refused("holds no average", "ema", plain, callbacks={"EMACallback": {"weights": half}})


def test_what_is_such_a_file() -> None:
    assert recognises({"state_dict": {}, "pytorch-lightning_version": "1.4.2"})
    for other in ({"state_dict": {}}, {"pytorch-lightning_version": "2.0"}, [], Path(), {"model": {}, "ema": {}}):
        assert not recognises(other)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_configurations_of_omegaconf_stay_inert(tmp_path: Path) -> None:
    """Every node of theirs holds its parent, which holds the node."""
    conf = OmegaConf.create({"a": [1, 2.5, None, "x", "${b}"], "b": {"c": True}, "d": Path("x"), "e": b"y"})
    state = under("net.", weights())
    found = through_file(tmp_path / "a.ckpt", "raw", state_dict=state, hyper_parameters={"cfg": conf, "a": conf.a})
    assert same(found.weights, weights())


def test_hyper_parameters_stay_inert(tmp_path: Path) -> None:
    """What Lightning and Hydra keep there is carried along as records, and nothing that it names is made."""
    ran = tmp_path / "ran"
    hyper = {
        "_instantiator": "scoreline.no_such.instantiate",
        "_class_path": "pathlib.Path.touch",
        "net": {"_target_": "pathlib.Path.touch", "self": str(ran)},
        "optimiser": partial(dict, lr=1e-3),
        "folder": Path("a/b"),
        "space": SimpleNamespace,
    }
    kept = {"hyper_parameters": hyper, "datamodule_hyper_parameters": hyper, "hparams_name": "kwargs"}
    path = tmp_path / "a.ckpt"
    state = under("net.", weights())
    with pytest.raises(InputError, match=r"types\.SimpleNamespace"):
        through_file(path, "raw", state_dict=state, **kept)
    del hyper["space"]
    assert same(through_file(path, "raw", state_dict=state, **kept).weights, weights())
    assert not ran.exists()
    hyper["bomb"] = Bomb(ran)
    with pytest.raises(InputError, match=r"pathlib|getattr"):
        through_file(path, "raw", state_dict=state, **kept)
    assert not ran.exists()
