"""Going on from another run's state, with other options, batches, data, or nothing left to do."""

import json
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image
from runs import assert_same_run, records, state
from runs import train as trained
from safetensors.torch import load_file

from scoreline.checkpoints import load_model
from scoreline.config import train_config
from scoreline.config.compose import script_config
from scoreline.config.model_source import with_values
from scoreline.datasets.digits import Digits
from scoreline.errors import InputError
from scoreline.training.callbacks import dispensable
from scoreline.training.data import EndlessBatches, ImageDataModule
from scoreline.training.fixed_loss import FixedLoss
from scoreline.training.preview import Preview
from scoreline.training.resume import Start, read_start, resume_from
from scoreline.training.training_log import TrainingProgress, append
from scoreline.training.training_state import Checkpointing, images_seen, list_checkpoints

SHORT = ["checkpoint_kimg=0.128", "log_kimg=0.064", "lr_rampup_kimg=0.3", "fixed_loss_kimg=0.128"]


def train(out: Path, *arguments: str) -> str:
    return trained(out, *SHORT, *arguments)


def refused(out: Path, *arguments: str) -> str:
    output = trained(out, *SHORT, *arguments, code=2)
    (line,) = [line for line in output.splitlines() if line.startswith("train.py: ")]
    return line


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 steps of 32 images."""
    out = tmp_path_factory.mktemp("going_on") / "first"
    train(out, "duration_kimg=0.256")
    return out


@pytest.fixture(scope="module")
def checkpoint(first: Path) -> Path:
    return first / "checkpoints" / "0000000256.ckpt"


@pytest.fixture(scope="module")
def whole(first: Path) -> Path:
    out = first.parent / "whole"
    train(out, "duration_kimg=0.512")
    return out


def test_resumed_elsewhere_equals_the_uninterrupted_run(first: Path, checkpoint: Path, whole: Path) -> None:
    out = first.parent / "same"
    train(out, "duration_kimg=0.512", f"resume={checkpoint}")
    assert_same_run(whole, out)
    (earlier,) = load_model(out / "model.safetensors").card.training["earlier"]
    assert (earlier["kimg"], earlier["seed"], earlier["batch_size"]) == (0.256, 0, 32)
    assert earlier["data"]["sha256"] == load_model(first / "model.safetensors").card.data["sha256"]
    assert "earlier" not in load_model(whole / "model.safetensors").card.training


def test_options_of_the_optimiser_are_the_new_commands(first: Path, checkpoint: Path) -> None:
    out = first.parent / "options"
    given = ["optimiser.lr=1e-4", "optimiser.betas=[0.5,0.6]", "lr_rampup_kimg=0.384", f"resume={checkpoint}"]
    train(out, "duration_kimg=0.512", *given)
    group = state(out)["optimizer_states"][0]["param_groups"][0]
    assert (group["lr"], group["initial_lr"], tuple(group["betas"])) == (1e-4, 1e-4, (0.5, 0.6))
    told = {r["step"]: r["lr"] for r in records(out) if "lr" in r}
    assert told == pytest.approx({step: 1e-4 * min((step + 1) * 32 / 384, 1) for step in (10, 12, 14, 16)})
    assert "lr: 0.0001" in (out / "config.yaml").read_text()


def test_images_stay_counted_with_another_batch_size(first: Path, checkpoint: Path) -> None:
    out, halves = first.parent / "larger", first.parent / "larger_halves"
    given = ["batch_size=64", f"resume={checkpoint}", "lr_rampup_kimg=1"]
    train(out, "duration_kimg=0.512", *given)
    assert [(r["step"], r["kimg"]) for r in records(out) if "lr" in r] == [
        (9, 0.32),
        (10, 0.384),
        (11, 0.448),
        (12, 0.512),
    ]
    assert [r["lr"] for r in records(out) if "lr" in r] == pytest.approx(
        [2e-3 * n / 1000 for n in (384, 448, 512, 576)]
    )
    assert [(r["step"], r["kimg"]) for r in records(out) if "fixed_loss" in r] == [(10, 0.384), (12, 0.512)]
    assert [path.name for path in list_checkpoints(out)] == ["0000000512.ckpt", "0000000384.ckpt"]
    assert (state(out)["global_step"], state(out)["images_seen"]) == (12, 512)
    assert load_model(out / "model.safetensors").card.training["kimg"] == 0.512
    train(halves, "duration_kimg=0.384", *given)
    train(halves, "duration_kimg=0.512", *given)
    assert_same_run(out, halves)


def test_image_stream_continues_where_it_was() -> None:
    stream = [index for batch in islice(EndlessBatches(50, 4, seed=1), 40) for index in batch]
    for size in (3, 7, 64):
        later = EndlessBatches(50, size, seed=1, start=8, offset=32 - 8 * size)
        assert [index for batch in islice(later, 2) for index in batch] == stream[32 : 32 + 2 * size]
        assert later.at(8) == stream[32 : 32 + size]


def test_stable_targets_know_the_batch_they_are_of(first: Path) -> None:
    """The reference begins with the batch itself: were it another one, the weights of the sources would be lost."""
    out, more = first.parent / "stf", ["target=stf", "target.references=96"]
    train(out, "duration_kimg=0.128", *more)
    train(
        first.parent / "stf_larger", "duration_kimg=0.256", *more, "batch_size=64", f"resume={list_checkpoints(out)[0]}"
    )
    losses = [[r["loss"] for r in records(run) if "loss" in r] for run in (out, first.parent / "stf_larger")]
    assert losses[1][-1] < losses[0][0]


def old(path: Path, where: Path, name: str = "0000000256.ckpt", **changes: Any) -> Path:
    """The checkpoint as version 0.7 wrote it."""
    held = torch.load(path, weights_only=True)
    for key in ("images_seen", "run"):
        del held[key]
    torch.save(held | changes, where / name)
    return where / name


def test_old_checkpoint_is_counted_by_its_name(checkpoint: Path, tmp_path: Path) -> None:
    found = read_start(old(checkpoint, tmp_path), False, 64)
    assert (found.step, found.images, found.run) == (8, 256, {})
    assert found.steps_until(512, 64) == 12
    assert read_start(old(checkpoint, tmp_path, "mine.ckpt"), False, 64).images == 512
    assert images_seen({"global_step": 8}, Path("0000000257.ckpt")) is None
    assert images_seen({"global_step": 8}, Path("0000000000.ckpt")) is None
    assert images_seen({"global_step": 0}, Path("0000000000.ckpt")) == 0
    train(tmp_path / "out", "duration_kimg=0.32", "batch_size=64", f"resume={tmp_path / '0000000256.ckpt'}")
    assert state(tmp_path / "out")["images_seen"] == 320
    assert load_model(tmp_path / "out/model.safetensors").card.training["earlier"] == [{"kimg": 0.256}]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            ["model.network.width=16"],
            r"model\.network\.width=16: .* was trained with 8; give model\.network\.width=8, or",
        ),
        (["model=digits_edm", "objective=edm"], r"model\.[\w.]+=\S+: .* was trained with"),
        (["model.noise_schedule.beta_max=19"], r"model\.noise_schedule\.beta_max=19: .* was trained with 20"),
        (["objective.weight._target_=scoreline.objective.EDMWeight"], r"objective\.weight\._target_=scoreline"),
        (["target=stf"], r"target\._target_=scoreline\.targets\.StableTarget: .* with scoreline\.targets\.Denoising"),
        (
            ["optimiser._target_=torch.optim.SGD", "~optimiser.betas", "~optimiser.eps"],
            r"optimiser\._target_=torch\.optim\.SGD: .* was trained with torch\.optim\.Adam",
        ),
        (["+optimiser.amsgrad=true"], r"optimiser: keeps exp_avg, exp_avg_sq, max_exp_avg_sq, step of a parameter"),
    ],
)
def test_what_has_to_be_the_same_is_named(given: list[str], sentence: str, first: Path, checkpoint: Path) -> None:
    out = first.parent / "another"
    line = refused(out, "duration_kimg=0.512", f"resume={checkpoint}", *given)
    assert re.search(sentence, line), line
    assert not (out / "config.yaml").exists()
    assert not (out / "model.safetensors").exists()


def test_files_without_settings_are_compared_by_weights(first: Path, checkpoint: Path, tmp_path: Path) -> None:
    path = old(checkpoint, tmp_path)
    line = refused(first.parent / "another", f"resume={path}", "model.network.width=16")
    assert re.search(r"model\.network: denoiser\.\S+ is \(64, 16\), in \S+ it is \(32, 8\); give", line), line
    sgd = ["optimiser._target_=torch.optim.SGD", "~optimiser.betas", "~optimiser.eps"]
    assert "optimiser: keeps nothing of a parameter" in refused(first.parent / "another", f"resume={path}", *sgd)
    line = refused(first.parent / "another", f"resume={old(checkpoint, tmp_path, callbacks={})}")
    assert f"resume={path}: no state of a training by train.py" in line


def test_directory_with_an_unfit_state_is_untouched(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    kept = tmp_path / "run/checkpoints" / checkpoint.name
    shutil.copy(checkpoint, kept)
    line = refused(tmp_path / "run", "model.network.width=16")
    shown = "model.network.width=16: run/checkpoints/0000000256.ckpt was trained with 8; give model.network.width=8, or"
    assert line == f"train.py: {shown} choose another directory"
    assert kept.read_bytes() == checkpoint.read_bytes()
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"checkpoints", "train.log", ".hydra"}


def test_a_model_file_is_no_state(first: Path, checkpoint: Path, tmp_path: Path) -> None:
    model = first / "model.safetensors"
    either = f"averaged weights only, .*; use resume={checkpoint}, or init={model}, which starts a new training"
    with pytest.raises(InputError, match=either):
        resume_from(tmp_path, str(model), 32)
    with pytest.raises(InputError, match=f"a directory; use resume={checkpoint}, or init={first}, "):
        resume_from(tmp_path, str(first), 32)
    with pytest.raises(InputError, match=r"a directory; use a file of checkpoints/"):
        resume_from(tmp_path, str(tmp_path), 32)


def test_another_run_is_not_overwritten(first: Path, whole: Path) -> None:
    """Hydra's own notes apart."""
    found = [path for path in whole.rglob("*") if path.is_file() and path.parent.name != ".hydra"]
    kept = {path: path.read_bytes() for path in found}
    line = refused(whole, "seed=1", f"resume={list_checkpoints(first)[0]}")
    assert "hydra.run.dir=whole: holds run" in line
    assert {path: path.read_bytes() for path in kept} == kept


def files(out: Path) -> dict[str, tuple[int, int]]:
    """Which file stands behind each name."""
    found = [*out.glob("*.safetensors"), *out.glob("checkpoints/*")]
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def test_nothing_left_to_train_still_writes_the_model(first: Path, checkpoint: Path) -> None:
    out, given = first.parent / "done", ["duration_kimg=0.256", "ema.half_life_kimg=[10,50]", f"resume={checkpoint}"]
    said = train(out, *given)
    assert f"nothing left to train: {checkpoint} has 0.256 kimg, duration_kimg=0.256" in said
    assert "0.256 kimg -> done/model.safetensors" in said
    made, model = load_file(out / "model.safetensors"), load_model(first / "model.safetensors")
    assert all(torch.equal(made[name], value) for name, value in model.denoiser.network.state_dict().items())
    assert load_model(out / "model.safetensors").card.training["kimg"] == 0.256
    written = files(out)
    assert set(written) == {"model.safetensors", "model-ema50kimg.safetensors", "0000000256.ckpt"}
    train(out, *given)
    assert files(out) == written, "what is there is left alone"
    (out / "model.safetensors").unlink()
    shutil.copy(first / "checkpoints/0000000128.ckpt", out / "checkpoints")
    said = train(out, *given)
    assert "nothing left to train: done/checkpoints/0000000256.ckpt has 0.256 kimg" in said
    assert all(torch.equal(value, made[name]) for name, value in load_file(out / "model.safetensors").items())


def test_model_older_than_its_checkpoint_is_written_again(whole: Path, first: Path) -> None:
    """Killed after the last checkpoint and before the last model file."""
    out = first.parent / "behind"
    shutil.copytree(whole, out)
    shutil.copy(first / "model.safetensors", out)
    train(out, "duration_kimg=0.512")
    assert load_model(out / "model.safetensors").card.training["kimg"] == 0.512
    assert_same_run(whole, out)


def pictures(folder: Path, count: int) -> list[str]:
    folder.mkdir(exist_ok=True)
    draw = np.random.default_rng(count)
    for number in range(count):
        Image.fromarray(draw.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{number}.png")
    return ["dataset=image_folder", f"dataset.path={folder}", "model.network.num_classes=0"]


def test_other_pictures_are_refused_or_told(tmp_path: Path) -> None:
    given = pictures(tmp_path / "shown", 6)
    train(tmp_path / "run", "duration_kimg=0.128", *given)
    former = load_model(tmp_path / "run/model.safetensors").card.data
    pictures(tmp_path / "shown", 5)
    state_file = list_checkpoints(tmp_path / "run")[0]
    (tmp_path / "run/config.yaml").unlink()
    line = refused(tmp_path / "run", "duration_kimg=0.256", *given)
    assert line.startswith(
        f"train.py: dataset: run/{state_file.relative_to(tmp_path / 'run')} was trained on other data"
    )
    assert f"(shown {former['sha256'][:12]}, now shown " in line
    said = train(tmp_path / "other", "duration_kimg=0.256", *given, f"resume={state_file}")
    card = load_model(tmp_path / "other/model.safetensors").card
    assert f"trained on shown {former['sha256'][:12]}, continues with shown {card.data['sha256'][:12]}" in said
    assert [it["data"] for it in card.training["earlier"]] == [former]
    assert card.data["sha256"] != former["sha256"]
    train(tmp_path / "other", "duration_kimg=0.288", *given, f"resume={state_file}")
    again = load_model(tmp_path / "other/model.safetensors").card
    assert (again.data, again.training["earlier"]) == (card.data, card.training["earlier"])


def test_averages_for_later_need_steps_of_one_size(checkpoint: Path, first: Path) -> None:
    out = first.parent / "post_hoc"
    train(out, "duration_kimg=0.128", "ema.post_hoc=[0.1]")
    given = [f"resume={list_checkpoints(out)[0]}", "ema.post_hoc=[0.1]", "batch_size=64"]
    assert "ema.post_hoc=[0.1]: `scoreline ema` needs steps of one size" in refused(first.parent / "sizes", *given)


def test_a_damaged_description_is_no_traceback(checkpoint: Path, tmp_path: Path) -> None:
    held = torch.load(checkpoint, weights_only=True)
    for changes in (
        {"run": [1]},
        {"run": {"settings": 3}},
        {"run": {"training": {"earlier": {}}}},
        {"run": {"data": torch.zeros(1)}},
        {"global_step": -1},
        {"global_step": "8"},
        {"images_seen": 1.5},
        {"images_seen": "x"},
        {"state_dict": {"a": 1}},
        {"optimizer_states": []},
    ):
        torch.save(held | changes, tmp_path / "changed.ckpt")
        with pytest.raises(InputError, match="no state of a training by train"):
            read_start(tmp_path / "changed.ckpt", False, 32)


def test_moved_class_is_the_same_class() -> None:
    former = {"objective": {"density": {"_target_": "scoreline.objective.LogNormal", "std": 1}}}
    start = Start(Path("x.ckpt"), False, run={"settings": former})
    start._check_settings({"objective": {"density": {"_target_": "scoreline.objective.LogNormal", "std": 1.0}}})
    for target in ("scoreline.objective.Normal", "mine.LogNormal"):
        with pytest.raises(InputError, match=r"objective\.density\._target_"):
            start._check_settings({"objective": {"density": {"_target_": target, "std": 1}}})
    with pytest.raises(InputError, match=r"objective\.density\.mean=2: x\.ckpt was trained with nothing"):
        start._check_settings({"objective": {"density": {**former["objective"]["density"], "mean": 2}}})


def test_a_sweeper_gets_the_last_fixed_loss(first: Path, tmp_path: Path) -> None:
    keep = "+hydra.callbacks.keep._target_=witness.KeepReturned"
    said = train(tmp_path / "run", "duration_kimg=0.256", keep)
    value = json.loads((tmp_path / "returned.json").read_text())
    assert value == records(first)[-1]["fixed_loss"] > 0
    assert "fixed_loss_kimg" not in said
    swept = [f"hydra.sweep.dir={tmp_path / 'sweep'}", "duration_kimg=0.064"]
    said = train(tmp_path / "run", *swept, keep, "-m")
    assert "no fixed_loss was measured" not in said, "a grid compares nothing"
    assert json.loads((tmp_path / "returned.json").read_text()) is None


@pytest.fixture(scope="module")
def plain() -> Iterator[DictConfig]:
    """The config of train.py without overrides."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCORELINE_SCRIPT", "train.py")
        yield script_config("train", ["hydra.runtime.output_dir=out"])


def read_with(cfg: DictConfig, key: str, value: Any) -> train_config.TrainConfig:
    return train_config.read(with_values(cfg, **{key: value}))


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 1e-9, "x", None, True])
def test_less_than_one_image_is_refused(value: Any, plain: DictConfig) -> None:
    makers: dict[str, Callable[[], object]] = {
        "checkpoint_kimg": lambda: Checkpointing(value),
        "preview_kimg": lambda: Preview(value),
        "fixed_loss_kimg": lambda: FixedLoss(value),
        "log_kimg": lambda: TrainingProgress(1, value),
        "duration_kimg": lambda: TrainingProgress(value, 1),
    }
    for key, make in makers.items():
        with pytest.raises(InputError, match=f"^{key}={value}: "):
            make()
        with pytest.raises(InputError, match=f"^{key}={value}: "):
            read_with(plain, key, value)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("workers", [-1, 1.5, "x", True, None]),
        ("seed", [-1, 2**64, "x", None]),
        ("micro_batch", [0, -4, 1.5, "x"]),
        ("lr_rampup_kimg", [-1, float("nan"), float("inf"), "x"]),
        ("loss_scale", [0, -1, float("nan"), "x"]),
        ("device_mib", [-1, float("nan"), "x"]),
        ("optimiser.lr", [-1, float("nan"), float("inf"), "x", True]),
    ],
)
def test_numbers_out_of_range_are_refused_early(key: str, values: list[Any], plain: DictConfig) -> None:
    for value in values:
        with pytest.raises(InputError, match=rf"^{re.escape(key)}={re.escape(str(value))}: "):
            read_with(plain, key, value)
    with pytest.raises(InputError, match="workers=-1"):
        ImageDataModule(Digits(), 8, 0, -1)


def test_record_without_room_leaves_no_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, limits = tmp_path / "metrics.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    append(path, {"step": 1})
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
        append(path, {"step": 2, "loss": 0.123456789})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == '{"step": 1}\n'
    assert f"{path}: not written" in capsys.readouterr().err
    append(path, {"step": 3})
    assert path.read_text() == '{"step": 1}\n{"step": 3}\n'


def test_defect_is_no_full_disk() -> None:
    with pytest.raises(ZeroDivisionError), dispensable(Path("x")):
        raise ZeroDivisionError
