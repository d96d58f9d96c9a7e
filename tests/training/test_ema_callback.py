"""Several averages in one training: what is tracked, saved, resumed and refused."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from runs import tiny_fit, tiny_module
from safetensors.torch import load_file
from torch import Tensor

from scoreline.commands import ema as command
from scoreline.errors import InputError
from scoreline.training.ema import EMA, PowerFunctionEMA, gamma_of
from scoreline.training.ema_callback import EMACallback, ema_of
from scoreline.training.ema_snapshots import list_snapshots
from scoreline.training.module import DiffusionModule
from scoreline.training.training_state import Checkpointing


class Walking(DiffusionModule):
    """Counts steps by itself and moves its weights at random, a pure function of the step."""

    global_step = 0

    def step(self) -> None:
        generator = torch.Generator().manual_seed(self.global_step)
        with torch.no_grad():
            for parameter in self.denoiser.network.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)
        self.global_step += 1


def walking() -> Walking:
    return tiny_module(Walking, 64, 0.5)  # type: ignore[return-value]


def walk(callback: EMACallback, module: Walking, steps: int, root: Path) -> EMACallback:
    trainer: Any = SimpleNamespace(default_root_dir=str(root), is_global_zero=True)
    callback.on_fit_start(trainer, module)
    callback.on_train_start(trainer, module)
    for _ in range(steps):
        module.step()
        callback.on_train_batch_end(trainer, module)
    return callback


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def test_several_are_each_what_it_is_alone(tmp_path: Path) -> None:
    together = walk(EMACallback([0.2, 50, 0.05], 0.2, [0.05, 0.1]), walking(), 40, tmp_path)
    assert list(together.averages) == ["", "-ema50kimg", "-ema0.05kimg"]
    assert together.ema is together.averages[""]
    for suffix, half_life in (("", 0.2), ("-ema50kimg", 50), ("-ema0.05kimg", 0.05)):
        alone = walk(EMACallback(half_life, 0.2), walking(), 40, tmp_path)
        assert list(alone.averages) == [""]
        assert alone.powers == []
        assert same(together.averages[suffix].weights, alone.ema.weights), suffix
    for power in together.powers:
        (alone_power,) = walk(EMACallback(1, 0.2, power.sigma_rel), walking(), 40, tmp_path).powers
        assert same(power.weights, alone_power.weights)
    every = [average.weights["stem.weight"] for average in (*together.averages.values(), *together.powers)]
    assert len({float(weight.double().sum()) for weight in every}) == 5, "all differ"


def test_step_without_optimiser_step_is_not_averaged(tmp_path: Path) -> None:
    module, callback = walking(), EMACallback(1, 0.2)
    walk(callback, module, 3, tmp_path)
    former = {name: value.clone() for name, value in callback.ema.weights.items()}
    torch.nn.init.zeros_(module.denoiser.network.stem.weight)
    callback.on_train_batch_end(SimpleNamespace(), module)  # type: ignore[arg-type]
    assert same(callback.ema.weights, former)


def written(callback: EMACallback, path: Path) -> dict[str, Any]:
    torch.save(callback.state_dict(), path)
    return torch.load(path, weights_only=True)


def test_resuming_is_exact(tmp_path: Path) -> None:
    def fresh() -> EMACallback:
        return EMACallback([0.1, 50], 0.2, [0.05, 0.1])

    whole = walk(fresh(), walking(), 30, tmp_path)
    module = walking()
    half = walk(fresh(), module, 13, tmp_path)
    state = written(half, tmp_path / "state")
    assert set(state["averages"]) == {"ema0.1kimg", "ema50kimg", "sigma0.05", "sigma0.1"}
    rest = fresh()
    rest.load_state_dict(state)
    walk(rest, module, 17, tmp_path)
    for name, weights in whole.state_dict()["averages"].items():
        assert same(rest.state_dict()["averages"][name], weights), name
    assert rest.step == whole.step == 30


def test_main_average_is_stored_once(tmp_path: Path) -> None:
    callback = walk(EMACallback(1, 0.2), walking(), 1, tmp_path)
    written(callback, tmp_path / "twice")
    torch.save({"weights": callback.ema.weights, "step": 1}, tmp_path / "once")
    one, two = ((tmp_path / name).stat().st_size for name in ("once", "twice"))
    assert two - one < 0.5 * sum(value.nbytes for value in callback.ema.weights.values())


def test_a_state_of_the_former_format(tmp_path: Path) -> None:
    module = walking()
    former = walk(EMACallback(0.05, 0.2), module, 9, tmp_path)
    state = {"weights": former.ema.weights, "step": former.step}
    kept = {name: value.clone() for name, value in former.ema.weights.items()}
    resumed = EMACallback([0.05, 50], 0.2)
    resumed.load_state_dict(state)
    assert resumed.step == 9
    assert same(resumed.ema.weights, kept)
    assert same(resumed.averages["-ema50kimg"].weights, kept), "it goes on from the main one"
    walk(resumed, module, 1, tmp_path)
    assert not same(resumed.ema.weights, resumed.averages["-ema50kimg"].weights)
    assert same(former.ema.weights, kept), "the state is not written to"


def test_averages_are_found_by_name_whatever_their_order(tmp_path: Path) -> None:
    state = walk(EMACallback([0.05, 50], 0.2), walking(), 9, tmp_path).state_dict()
    assert not same(*state["averages"].values())
    swapped = EMACallback([50, 0.05], 0.2)
    swapped.load_state_dict(state)
    assert same(swapped.ema.weights, state["averages"]["ema50kimg"])
    assert same(swapped.averages["-ema0.05kimg"].weights, state["averages"]["ema0.05kimg"])


def test_power_functions_cannot_begin_in_the_middle(tmp_path: Path) -> None:
    state = walk(EMACallback(1, 0.2, [0.05]), walking(), 9, tmp_path).state_dict()
    with pytest.raises(InputError, match=r"ema.post_hoc=\[0.05, 0.1\]: the checkpoint .* averaged with 0.1 from its"):
        EMACallback(1, 0.2, [0.05, 0.1]).load_state_dict(state)
    untouched = EMACallback(1, 0.2)
    untouched.on_fit_start(SimpleNamespace(), walking())  # type: ignore[arg-type]
    module, later = walking(), EMACallback(1, 0.2, [0.1])
    later.load_state_dict(untouched.state_dict())
    walk(later, module, 5, tmp_path)
    assert same(later.powers[0].weights, walk(EMACallback(1, 0.2, 0.1), walking(), 5, tmp_path).powers[0].weights)


def test_repeated_snapshots_go_and_missing_ones_come(tmp_path: Path) -> None:
    module, callback = walking(), EMACallback(1, 0.2, [0.05, 0.1])
    walk(callback, module, 0, tmp_path)
    callback.save_snapshots(tmp_path, 0)
    assert not (tmp_path / "ema").exists(), "there is no average of nothing"
    for _ in range(3):
        walk(callback, module, 2, tmp_path)
        callback.save_snapshots(tmp_path, module.images_seen)
    names = [path.name for path in sorted((tmp_path / "ema").iterdir())]
    assert names == [f"{images:010d}-{s}.safetensors" for images in (128, 256, 384) for s in (0.05, 0.1)]
    lost = tmp_path / "ema/0000000256-0.1.safetensors"
    expected = {name: value.clone() for name, value in load_file(lost).items()}
    resumed, again = EMACallback(1, 0.2, [0.05, 0.1]), walking()
    walk(resumed, again, 4, tmp_path / "elsewhere")
    lost.unlink()
    walk(resumed, again, 0, tmp_path)
    assert [it.images for it in list_snapshots(tmp_path)] == [128, 128, 256, 256]
    assert same(load_file(lost), expected)
    walk(EMACallback(1, 0.2), walking(), 0, tmp_path)
    assert len(list_snapshots(tmp_path)) == 4, "without power functions snapshots are left alone"
    walk(EMACallback(1, 0.2, 0.05), walking(), 0, tmp_path)
    assert not list((tmp_path / "ema").iterdir()), "a run that begins anew"


def test_other_processes_touch_no_file(tmp_path: Path) -> None:
    module, callback = walking(), EMACallback(1, 0.2, [0.05])
    walk(callback, module, 2, tmp_path)
    callback.save_snapshots(tmp_path, 128 * 9)
    other: Any = SimpleNamespace(default_root_dir=str(tmp_path), is_global_zero=False)
    callback.on_train_start(other, module)
    assert [it.images for it in list_snapshots(tmp_path)] == [128 * 9]


WRONG: list[tuple[dict[str, Any], str]] = [
    *(({"half_life_kimg": value}, f"ema.half_life_kimg={value}: ") for value in (0, math.nan, math.inf, "10,50", True)),
    ({"half_life_kimg": None}, r"ema.half_life_kimg=None: "),
    ({"half_life_kimg": [10, -3]}, r"ema.half_life_kimg=\[10, -3\]: -3 "),
    ({"half_life_kimg": []}, r"ema.half_life_kimg=\[\]: "),
    ({"half_life_kimg": [10, 50, 10.00000001]}, r"10 is there more than once"),
    *(({"rampup": value}, f"ema.rampup={value}: ") for value in (0, math.nan, None)),
    ({"post_hoc": [0.05, 0.3]}, r"ema.post_hoc=\[0.05, 0.3\]: 0.3 .* 0.0001 to 0.288675"),
    *(({"post_hoc": value}, f"ema.post_hoc={value}: ") for value in (0, "0.05")),
    ({"post_hoc": [0.1, 0.10]}, r"ema.post_hoc=\[0.1, 0.1\]: 0.1 is there more than once"),
]


@pytest.mark.parametrize(("options", "sentence"), WRONG)
def test_wrong_settings(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        EMACallback(**{"half_life_kimg": 10, "rampup": 0.2, **options})


def test_settings_as_configs_give_them() -> None:
    cfg = OmegaConf.create({"half_life_kimg": [10, 50], "rampup": float("inf"), "post_hoc": [0.05, 0.10]})
    callback = EMACallback(cfg.half_life_kimg, cfg.rampup, cfg.post_hoc)
    assert [average.half_life_kimg for average in callback.averages.values()] == [10, 50]
    assert [power.gamma for power in callback.powers] == [gamma_of(0.05), gamma_of(0.1)]
    assert EMACallback(10, 0.2, []).powers == []
    assert isinstance(callback.ema, EMA)
    assert isinstance(callback.powers[0], PowerFunctionEMA)


def fit(root: Path, steps: int) -> EMACallback:
    """A training of two half-lives and two power functions, a checkpoint every 5 steps."""
    callbacks = [EMACallback([0.1, 0.5], 0.2, [0.05, 0.1]), Checkpointing(0.08)]
    return ema_of(tiny_fit(root, steps, tiny_module(), callbacks))


@pytest.mark.filterwarnings("ignore:.*num_workers.*", "ignore:.*does not have many workers.*")
def test_n_and_n_steps_equal_2n_in_files(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", 50)
    fit(tmp_path / "halves", 23)
    kill = sorted((tmp_path / "halves/checkpoints").glob("*.ckpt"))[-1]
    assert kill.stem == f"{23 * 16:010d}"
    kill.unlink()
    halves = fit(tmp_path / "halves", 50)
    for name, weights in whole.state_dict()["averages"].items():
        assert same(halves.state_dict()["averages"][name], weights), name
    files = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.safetensors")]
    assert {str(path) for path in files} == {
        *("model.safetensors", "model-ema0.5kimg.safetensors"),
        *(f"ema/{80 * k:010d}-{sigma}.safetensors" for k in range(1, 11) for sigma in (0.05, 0.1)),
    }
    assert len(list((tmp_path / "halves").rglob("*.safetensors"))) == len(files)
    for path in files:
        assert same(load_file(tmp_path / "whole" / path), load_file(tmp_path / "halves" / path)), path
    assert same(load_file(tmp_path / "whole/model-ema0.5kimg.safetensors"), whole.averages["-ema0.5kimg"].weights)
    destination = tmp_path / "post.safetensors"
    command.main([str(tmp_path / "whole"), "half_life_kimg=0.1", "rampup=0.2", str(destination)])
    wanted, found = whole.ema.weights, load_file(destination)
    last = load_file(tmp_path / "whole/ema/0000000800-0.05.safetensors")
    far = math.sqrt(sum(float((wanted[name] - last[name]).double().square().sum()) for name in wanted))
    error = math.sqrt(sum(float((wanted[name] - found[name]).double().square().sum()) for name in wanted))
    assert error < 0.02 * far, "of the way between two averages of one training"
