"""Held-out and optimal losses, scores while training, the best model, and Lightning's callbacks that monitor them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from omegaconf import OmegaConf
from runs import records, script, state, tiny_fit, tiny_module, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scoreline.checkpoints import Checkpoint, load_model
from scoreline.config.heldout_images import heldout_images
from scoreline.datasets.base import ArrayDataset, ImageDataset
from scoreline.datasets.digits import Digits
from scoreline.errors import InputError
from scoreline.objective import DenoisingObjective, InverseVariance, UniformTime
from scoreline.schedules.vp import LinearVP
from scoreline.targets import Denoising
from scoreline.training import fixed_loss
from scoreline.training.augmentation import Augmentation
from scoreline.training.ema_callback import EMACallback
from scoreline.training.fixed_loss import FixedLoss, fixed_batch
from scoreline.training.keep_best import KeepBest
from scoreline.training.measurements import Measuring, publish
from scoreline.training.module import DiffusionModule
from scoreline.training.training_state import Checkpointing, list_checkpoints
from scoreline.verification.optimal_loss import optimal_losses

QUIET = pytest.mark.filterwarnings("ignore:.*num_workers.*", "ignore:.*does not have many workers.*")
SHORT = ["checkpoint_kimg=0.256", "log_kimg=0.256", "lr_rampup_kimg=0.3", "fixed_loss_kimg=0.128"]
SCORED = ["model.network.dropout=0", "metrics_every_kimg=0.256", "metrics_images=64", "keep_best=frechet_distance"]
KEPT = "+hydra.callbacks.keep._target_=witness.KeepReturned"
OBJECTIVE = DenoisingObjective(UniformTime(LinearVP()), InverseVariance(), Denoising())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 steps of 32 images, with everything that measures."""
    out = tmp_path_factory.mktemp("validation") / "run"
    train(out, *SHORT, *SCORED, KEPT, "duration_kimg=0.512", "logger=tensorboard")
    return out


@pytest.fixture(scope="module")
def last(run: Path) -> dict[str, Any]:
    return [record for record in records(run) if "fixed_loss" in record][-1]


def loss_of(model: Checkpoint, data: ImageDataset, count: int) -> float:
    """The loss on as many images of a data set, by its definition."""
    chosen = fixed_loss.np.random.Generator(fixed_loss.np.random.PCG64(0)).choice(len(data), count, replace=False)
    return float(OBJECTIVE(model.denoiser, fixed_batch(data, chosen.tolist(), False))[0].double().mean())


def test_losses_are_those_of_the_files(run: Path, last: dict[str, Any]) -> None:
    averaged, raw = load_model(run / "model.safetensors"), load_model(run / "model.safetensors")
    own = {name.removeprefix("denoiser.network."): value for name, value in state(run)["state_dict"].items()}
    raw.denoiser.network.load_state_dict(own)
    assert last["fixed_loss"] == pytest.approx(loss_of(averaged, Digits("train"), 256), rel=1e-5)
    assert last["heldout_loss"] == pytest.approx(loss_of(averaged, Digits("test"), 256), rel=1e-5)
    assert last["heldout_raw_loss"] == pytest.approx(loss_of(raw, Digits("test"), 256), rel=1e-5)
    assert len({last["fixed_loss"], last["heldout_loss"], last["heldout_raw_loss"]}) == 3
    for kind in ("heldout_", "heldout_raw_"):
        assert last[f"{kind}loss_bins"].keys() == last["fixed_loss_bins"].keys()
        assert (0 < last[f"{kind}loss_error"] < 0.1, last[f"{kind}images"]) == (True, 256)


def test_the_optimal_loss_is_that_of_the_same_batch(run: Path, last: dict[str, Any]) -> None:
    data = Digits("train")
    chosen = fixed_loss.np.random.Generator(fixed_loss.np.random.PCG64(0)).choice(1500, 256, replace=False)
    batch = fixed_batch(data, chosen.tolist(), False)
    losses, _ = optimal_losses(OBJECTIVE, batch, data.images)
    assert last["optimal_loss"] == pytest.approx(float(losses.double().mean()), rel=1e-9)
    assert last["optimal_loss_bins"].keys() == last["fixed_loss_bins"].keys()
    found = [record for record in records(run) if "fixed_loss" in record]
    assert len(found) == 4
    assert len({record["optimal_loss"] for record in found}) == 1
    assert all(0 < record["optimal_loss"] < record["fixed_loss"] for record in found)


def test_scores_are_those_of_sample_py(run: Path) -> None:
    """Its default solver and the same seeds give the same numbers, but for rounding."""
    scores = [record for record in records(run) if "frechet_distance" in record]
    assert [record["kimg"] for record in scores] == [0.256, 0.512]
    words = ["checkpoint=run", f"seeds={2**32}-{2**32 + 63}", "hydra.run.dir=sampled", "format=none"]
    script("sample.py", run.parent, *words)
    found = json.loads((run.parent / "sampled/metrics.json").read_text())["metrics"]
    for name, score in found.items():
        assert scores[-1][name] == pytest.approx(score["value"], rel=1e-3, abs=1e-3)
        assert scores[-1][f"{name}_error"] == pytest.approx(score["error"], rel=2e-2, abs=1e-3)


def test_the_best_model_says_how_good_it_is_and_can_be_sampled(run: Path) -> None:
    scores = {r["kimg"]: r for r in records(run) if "frechet_distance" in r}
    kimg = min(scores, key=lambda it: float(scores[it]["frechet_distance"]))
    about = load_model(run / "best.safetensors").card.training
    best = {key: scores[kimg][f"frechet_distance{what}"] for key, what in (("value", ""), ("error", "_error"))}
    assert (about["kimg"], about["best"]) == (kimg, {"name": "frechet_distance", **best})
    assert json.loads((run.parent / "returned.json").read_text()) == best["value"]
    words = ["checkpoint=run/best.safetensors", "seeds=0-3", "nfe=4", "metrics=none", "hydra.run.dir=best"]
    assert "4 images, NFE 4" in script("sample.py", run.parent, *words)


def test_the_last_preview_is_drawn_and_shown_by_tensorboard(run: Path) -> None:
    """The interval is longer than the training."""
    assert [path.name for path in (run / "previews").iterdir()] == ["000000kimg.png"]
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    (picture,) = events.Images("previews")
    assert (picture.step, picture.width, picture.height) == (16, 8 * 54, 8 * 54)
    assert {"train/heldout_loss", "train/frechet_distance", "train/optimal_loss_bins/1-3"} <= set(
        events.Tags()["scalars"]
    )


def test_two_processes_measure_what_one_measures(run: Path, tmp_path: Path) -> None:
    stop = "+callbacks.stop={_target_:lightning.pytorch.callbacks.EarlyStopping,monitor:kid,min_delta:1000,patience:1}"
    out = tmp_path / "two"
    said = train(out, *SHORT, *SCORED, stop, "trainer=ddp_cpu", "duration_kimg=10", size=2)
    assert "stopped early at 0.512 kimg: Monitored metric kid did not improve in the last 1 records" in said
    assert [r["kimg"] for r in records(out)] == [r["kimg"] for r in records(run)]
    for own, other in zip(records(out), records(run), strict=True):
        for key in {"fixed_loss", "heldout_loss", "heldout_raw_loss", "optimal_loss", "frechet_distance"} & own.keys():
            assert own[key] == pytest.approx(other[key], rel=1e-3)
    for file in ("best.safetensors", "model.safetensors"):
        assert load_model(out / file).card.training["kimg"] == load_model(run / file).card.training["kimg"]


def test_lightnings_callbacks_work_by_name(tmp_path: Path) -> None:
    """EarlyStopping ends the run, which stays ended; ModelCheckpoint keeps the state of its own best."""
    out = tmp_path / "run"
    words = [
        *("callbacks=early_stopping", "callbacks.early_stopping.min_delta=10", "callbacks.early_stopping.patience=2"),
        "+callbacks.models={_target_:lightning.pytorch.callbacks.ModelCheckpoint,monitor:heldout_raw_loss,dirpath:top}",
        *("duration_kimg=10", KEPT),
    ]
    said = train(out, *SHORT, *words)
    assert "stopped early at 0.384 kimg: Monitored metric heldout_loss did not improve in the last 2 records" in said
    assert "0.384 kimg -> run/model.safetensors" in said
    assert load_model(out / "model.safetensors").card.training["kimg"] == 0.384
    assert (out / "previews/000000kimg.png").is_file()
    (top,) = (tmp_path / "top").iterdir()
    losses = {record["step"]: record["heldout_raw_loss"] for record in records(out) if "heldout_raw_loss" in record}
    assert torch.load(top, weights_only=True)["global_step"] == min(losses, key=lambda step: losses[step])
    assert json.loads((tmp_path / "returned.json").read_text()) == records(out)[-1]["fixed_loss"]
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    said = train(out, *SHORT, *words)
    assert "nothing left to train: run/checkpoints/0000000384.ckpt stopped early, at 0.384 kimg" in said
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    elsewhere = tmp_path / "elsewhere"
    said = train(elsewhere, *SHORT, f"resume={out}/checkpoints/0000000384.ckpt", "duration_kimg=0.448")
    assert state(elsewhere)["images_seen"] == 448


# ---- in this process, with a script of values


class Scripted(Measuring):
    """Measures the next value of a list at every step."""

    key, every = "script", 1

    def __init__(self, values: Sequence[float], name: str = "fixed_loss") -> None:
        self.values, self.name = values, name

    def names(self, data: ImageDataset, heldout: ImageDataset | None) -> list[str]:
        return [self.name]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, DiffusionModule)
        publish(trainer, pl_module, {self.name: self.values[pl_module.global_step - 1], f"{self.name}_error": 0.125})


def scripted(root: Path, values: Sequence[float], steps: int, name: str = "fixed_loss") -> list[Callback]:
    """Train so many steps of 16 images, from the last state in the directory on; return the callbacks."""
    stop = EarlyStopping(name, patience=3, check_on_train_epoch_end=False)
    callbacks = [EMACallback(1, 0.2), Scripted(values, name), KeepBest(name), Checkpointing(0.032), stop]
    tiny_fit(root, steps, tiny_module(), callbacks)
    return callbacks


VALUES = [0.5, 0.3, 0.1, 0.4, 0.2, 1 / 3, 0.3, 0.0]
"""The third is the best of those before EarlyStopping ends the training, after six."""


@QUIET
def test_best_and_stop_survive_a_kill(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    *_, best, _, stop = scripted(whole, VALUES, 8)
    assert (best.value, stop.wait_count) == (0.1, 3)
    assert (state(whole)["global_step"], state(whole)["stopped"]) == (6, True)
    about = load_model(whole / "best.safetensors").card.training
    assert (about["kimg"], about["best"]) == (0.048, {"name": "fixed_loss", "value": 0.1, "error": 0.125})
    scripted(killed, VALUES, 4)
    for path in list_checkpoints(killed)[:1]:  # as killed at step 4, before its checkpoint: step 3 is repeated
        path.unlink()
    *_, best, _, stop = scripted(killed, VALUES, 8)
    assert (state(killed)["global_step"], best.value, stop.wait_count) == (6, 0.1, 3)
    assert (killed / "best.safetensors").read_bytes() == (whole / "best.safetensors").read_bytes()


@QUIET
def test_the_best_score_may_be_the_greatest(tmp_path: Path) -> None:
    scripted(tmp_path, [0.25, 0.5, float("nan")], 3, "recall")
    assert load_model(tmp_path / "best.safetensors").card.training["best"]["value"] == 0.5
    assert load_model(tmp_path / "best.safetensors").card.training["kimg"] == 0.032


@QUIET
def test_the_best_begins_anew_where_its_file_is_gone(tmp_path: Path) -> None:
    scripted(tmp_path, VALUES, 4)
    (tmp_path / "best.safetensors").unlink()
    *_, best, _, _ = scripted(tmp_path, VALUES, 5)
    assert best.value == 0.2


@QUIET
@pytest.mark.parametrize(("case", "known"), [("plain", True), ("augmented", False), ("large", False)])
def test_where_the_optimum_is_unknown_it_is_left_out(
    case: str, known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if case == "large":
        monkeypatch.setattr(fixed_loss, "LARGEST", 1500 * 64 - 1)
    module = tiny_module()
    if case == "augmented":
        module.augmentation = Augmentation(told=False)
    tiny_fit(tmp_path, 1, module, [EMACallback(1, 0.2), FixedLoss(0.016)])
    (record,) = records(tmp_path)
    assert ("optimal_loss" in record, "heldout_loss" in record) == (known, False)


# ---- which images are held out


def config(**keys: Any) -> Any:
    digits = {"_target_": "scoreline.datasets.digits.Digits", "split": "train"}
    whole = {"dataset": digits, "model": {"network": {}}, "validation": {"dataset": "auto"}}
    return OmegaConf.merge(OmegaConf.create(whole), OmegaConf.create(keys))


def pictures(name: str, count: int, size: int = 8) -> ArrayDataset:
    return ArrayDataset(name, torch.zeros(count, 1, size, size, dtype=torch.uint8))


def test_auto_is_the_split_that_the_data_hold_out() -> None:
    heldout = heldout_images(config(), Digits("train"))
    assert (heldout.name, len(heldout)) == ("digits-test", 297)
    for split in ("all", "test"):
        assert heldout_images(config(dataset={"split": split}), Digits(split)) is None
    assert heldout_images(config(), pictures("own", 9)) is None
    assert heldout_images(config(validation={"dataset": "none"}), Digits("train")) is None


@pytest.mark.parametrize(
    ("data", "network", "message"),
    [
        (pictures("a", 9, 16), {}, r"images of shape \[1, 16, 16\]; give such of \[1, 8, 8\]"),
        (pictures("a", 9), {"num_classes": 10}, "0 classes; give images of the 10 of digits-train"),
        (pictures("a", 1), {}, "1 images; give two at least"),
    ],
)
def test_images_that_do_not_serve_are_refused(
    data: ArrayDataset, network: dict[str, int], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scoreline.config.heldout_images.build_object", lambda node: data)
    cfg = config(validation={"dataset": {"_target_": "mine"}}, model={"network": network})
    with pytest.raises(InputError, match=f"^validation.dataset=a: {message}"):
        heldout_images(cfg, Digits("train"))


def test_a_folder_may_be_held_out(tmp_path: Path) -> None:
    from PIL import Image

    for k in range(3):
        Image.new("L", (8, 8), 80 * k).save(tmp_path / f"{k}.png")
    heldout = heldout_images(config(validation={"dataset": str(tmp_path)}), Digits("train"))
    assert (len(heldout), tuple(heldout.shape)) == (3, (1, 8, 8))
