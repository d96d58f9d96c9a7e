"""Sharded weights on two processes (gloo) train as whole ones do, and any trainer continues from either's files."""

import math
import os
import signal
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runs import PARTS, assert_same_run, flat, group, records, state, train, wait_for
from safetensors.torch import load_file
from torch import Tensor, nn

from scoreline.errors import InputError
from scoreline.networks.adm import DhariwalUNet
from scoreline.networks.ddpm_unet import DDPMUNet
from scoreline.networks.song_unet import SongUNet
from scoreline.networks.unet import UNet
from scoreline.training.ema import PowerFunctionEMA
from scoreline.training.gradients import Gradients
from scoreline.training.sharding import assemble, blank, divide, is_sharded, own_part, shard
from scoreline.training.strategies import Sharded, _divided_state

FSDP = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"]
COMMON = ["model.network.blocks=1", "checkpoint_kimg=0.32", "log_kimg=0.16", "ema.half_life_kimg=[1,50]"]
NOISELESS = ["model.network.dropout=0", "ema.post_hoc=[0.1]", "gradients.clip=0.5", "fixed_loss_kimg=0.32"]
LEARNED = ["experiment=digits_edm", "objective=edm_learned"]
"""Weights beside the network's are sharded too."""
RUN = [*COMMON, *NOISELESS, *LEARNED, "duration_kimg=0.64"]
HALFWAY = Path("checkpoints") / "0000000320.ckpt"
IMAGES, LEVELS = (4, 2, 8, 8), 4


# Parts: no trainer, two processes that test one thing after another.


def networks() -> dict[str, nn.Module]:
    """Every kind, small, with weights that none of its gradients vanishes for."""
    torch.manual_seed(0)
    options = {"width": 8, "blocks": 1, "attention": (4,), "num_classes": 3, "augment_dim": 5}
    found: dict[str, nn.Module] = {
        "unet": UNet(2, 8, **options),
        "recomputed": UNet(2, 8, **options, checkpointing=True),
        "ddpmpp": SongUNet(2, 8, multipliers=(1, 2), **options),
        "ncsnpp": SongUNet(
            2, 8, multipliers=(1, 2), embedding="fourier", encoder="residual", resample_filter=(1, 3, 3, 1), **options
        ),
        "adm": DhariwalUNet(2, 8, multipliers=(1, 2), head_channels=4, dropout=0.0, **options),
        "ddpm": DDPMUNet(2, 8, multipliers=(1, 2), dropout=0.0, **options),
    }
    for network in found.values():
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.1)
    return found


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(IMAGES, generator=generator),
        "noise": torch.rand(LEVELS, generator=generator),
        "label": torch.tensor([0, 2, -1, 1]),
        "augment": torch.randn(LEVELS, 5, generator=generator),
    }


def backward(network: nn.Module, rows: slice) -> None:
    """The gradient of a mean over images, in two micro-batches."""
    count = rows.stop - rows.start
    for row in range(rows.start, rows.stop, count // 2):
        given = {name: value[row : row + count // 2] for name, value in inputs().items()}
        (network(**given).square().flatten(1).mean(1).sum() / count).backward()


def gradients_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def measured(rank: int, mesh: Any) -> dict[str, Any]:
    """What one of two processes finds; the first one has whole tensors."""
    found: dict[str, Any] = {}
    for name, network in networks().items():
        empty = blank(network)
        shard(network, mesh)
        backward(network, slice(2 * rank, 2 * rank + 2))
        found[name] = {"gradients": assemble(gradients_of(network)), "weights": assemble(network.state_dict())}
        found[name]["parts"] = sum(isinstance(m, nn.Module) and hasattr(m, "unshard") for m in network.modules())
        if rank == 0:
            empty.load_state_dict(found[name]["weights"], assign=True)
            found[name]["output"] = empty(**inputs())
    return found | stepped(rank, mesh)


def stepped(rank: int, mesh: Any) -> dict[str, Any]:
    """Steps with Adam and an average, a broken gradient on the second process, and states that go back and forth."""
    network = networks()["unet"]
    shard(network, mesh)
    optimiser, average, rule = torch.optim.Adam(network.parameters(), 1e-2), PowerFunctionEMA(0.1), Gradients(clip=0.1)
    average.start(network)
    strategy: Any = SimpleNamespace()
    norms = []
    for step in range(3):
        optimiser.zero_grad()
        backward(network, slice(2 * rank, 2 * rank + 2))
        if step == 1 and rank == 1:
            own_part(last(network).grad)[-1] = math.inf
        rule(network.parameters())
        norms.append(float(rule.norm))
        optimiser.step()
        average.update(network, 4 * step, 4)
    held = [*optimiser.state.values()]
    own = {
        "weights": sum(own_part(p).numel() for p in network.parameters()),
        "average": sum(own_part(average.weights[name]).numel() for name, _ in network.named_parameters()),
        "states": sum(own_part(v).numel() for values in held for k, v in values.items() if k != "step"),
        "gradients": sum(own_part(p.grad).numel() for p in network.parameters()),
    }
    found = {"norms": norms, "bad": rule.bad_steps, "own": own, "average": assemble(average.weights)}
    saved = [Sharded.optimizer_state(strategy, optimiser)]
    torch.distributed.broadcast_object_list(saved)
    again = torch.optim.Adam(network.parameters(), 1)
    again.load_state_dict(_divided_state(again, saved[0]))
    found["optimiser"] = saved[0]
    found["restored"] = all(
        torch.equal(own_part(value), own_part(again.state[parameter][name]))
        and is_sharded(value) == is_sharded(again.state[parameter][name])
        for parameter, values in optimiser.state.items()
        for name, value in values.items()
    )
    found["lr"] = again.param_groups[0]["lr"]
    whole = [average.weights["stem.weight"].full_tensor()]
    found["divided"] = torch.equal(
        own_part(divide(whole[0], network.stem.weight)), own_part(average.weights["stem.weight"])
    )
    return found


def last(network: nn.Module) -> nn.Parameter:
    return dict(network.named_parameters())["stem.weight"]


def process(rank: int, folder: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(measured(rank, init_device_mesh("cpu", (2,))), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("parts")
    torch.multiprocessing.start_processes(process, (str(folder),), nprocs=2, start_method="fork")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", ["unet", "recomputed", "ddpmpp", "ncsnpp", "adm", "ddpm"])
def test_every_network_has_the_gradient_of_one_process(ranks: list[dict[str, Any]], name: str) -> None:
    network = networks()[name]
    backward(network, slice(0, 4))
    wanted, found = gradients_of(network), ranks[0][name]["gradients"]
    assert wanted.keys() == found.keys()
    for key, value in wanted.items():
        scale = float(value.abs().max())
        assert scale > 0, key
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5 * scale)
    assert all(torch.equal(value, ranks[0][name]["weights"][key]) for key, value in network.state_dict().items())
    assert torch.equal(ranks[0][name]["output"], network(**inputs()))
    assert ranks[0][name]["parts"] > 5
    assert ranks[1][name]["gradients"] == ranks[1][name]["weights"] == {}


def test_each_process_holds_half(ranks: list[dict[str, Any]]) -> None:
    """Weights, average, gradients; Adam's states are two numbers for each weight."""
    total = sum(parameter.numel() for parameter in networks()["unet"].parameters())
    for what, copies in (("weights", 1), ("average", 1), ("gradients", 1), ("states", 2)):
        held = [found["own"][what] for found in ranks]
        assert sum(held) == copies * total
        assert max(held) < 0.51 * copies * total


def test_sharded_steps_equal_those_of_one_process(ranks: list[dict[str, Any]]) -> None:
    """Also where one process alone sees that a gradient is not finite."""
    network = networks()["unet"]
    optimiser, average, rule = torch.optim.Adam(network.parameters(), 1e-2), PowerFunctionEMA(0.1), Gradients(clip=0.1)
    average.start(network)
    norms = []
    for step in range(3):
        optimiser.zero_grad()
        backward(network, slice(0, 4))
        if step == 1:
            last(network).grad[-1] = math.inf
        rule(network.parameters())
        norms.append(float(rule.norm))
        optimiser.step()
        average.update(network, 4 * step, 4)
    assert norms[0] > 0.1
    assert norms[1] == math.inf
    assert ranks[0]["norms"] == ranks[1]["norms"] == pytest.approx(norms, rel=1e-5)
    assert ranks[0]["bad"] == ranks[1]["bad"] == 1
    for name, value in average.weights.items():
        torch.testing.assert_close(ranks[0]["average"][name], value, rtol=1e-4, atol=1e-4)
    assert ranks[1]["average"] == {}


def test_optimiser_state_is_saved_whole(ranks: list[dict[str, Any]]) -> None:
    network = networks()["unet"]
    optimiser = torch.optim.Adam(network.parameters(), 1)
    optimiser.load_state_dict(ranks[0]["optimiser"])
    for parameter, values in optimiser.state.items():
        assert values["exp_avg"].shape == values["exp_avg_sq"].shape == parameter.shape
        assert float(values["step"]) == 3
    assert all(found["restored"] and found["divided"] and found["lr"] == 1e-2 for found in ranks)


def test_weights_that_are_whole_stay_as_they_are() -> None:
    network = UNet(1, 8, width=8, blocks=1)
    weights = network.state_dict()
    assert assemble(weights) is weights
    value = weights["stem.weight"]
    assert divide(value, value) is own_part(value) is value
    empty = blank(network)
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert not any(parameter.is_meta for parameter in network.parameters())
    assert not empty.embed.frequencies.is_meta
    assert deepcopy(empty).stem is not empty.stem


FAILING = """
import sys, time
from types import SimpleNamespace
from lightning.pytorch.plugins.environments import LightningEnvironment
from scoreline.training import strategies

strategies.PAUSE = 0.05
command = [sys.executable, "-c", "raise SystemExit(3)"]
strategy = SimpleNamespace(cluster_environment=LightningEnvironment(), num_processes=2, num_nodes=1, command=command)
strategies.Launcher(strategy).launch(time.sleep, 100)
"""


def test_a_process_that_fails_ends_all() -> None:
    """The first process sleeps here as it would wait in a collective."""
    done = subprocess.run([sys.executable, "-c", FAILING], capture_output=True, text=True, timeout=100)
    assert done.returncode == -signal.SIGKILL
    assert "exit code 3" in done.stderr


def test_what_cannot_be_had_is_refused() -> None:
    with pytest.raises(InputError, match="precision=16-mixed: not with trainer=fsdp; use 32-true or bf16-mixed"):
        Sharded(precision="16-mixed")
    with pytest.raises(InputError, match="compile=default: not with trainer=fsdp"):
        Sharded(compile="default")
    with pytest.raises(InputError, match="channels_last=true: not with trainer=fsdp"):
        Sharded(channels_last=True)


# Runs of train.py.


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sharded") / "one"
    train(out, *RUN)
    return out


@pytest.fixture(scope="module")
def two(one: Path) -> Path:
    """Two processes, each in two micro-batches of 8 of its 16 images."""
    out = one.parent / "two"
    output = train(out, *RUN, *FSDP, "micro_batch=8", "preview_kimg=0.64", size=2)
    assert output.count("kimg ->") == 1
    return out


def assert_close_runs(a: Path, b: Path, steps: int) -> None:
    """Checkpoints of the same names, types and shapes, equal but for float32 rounding; models and snapshots too."""
    one, two = (flat({part: state(run)[part] for part in PARTS}) for run in (a, b))
    assert one.keys() == two.keys()
    assert state(b)["global_step"] == steps
    for name, value in one.items():
        other = two[name]
        if not isinstance(value, Tensor):
            assert value == other, name
            continue
        assert type(other) is Tensor
        assert (value.dtype, value.shape, value.device) == (other.dtype, other.shape, other.device), name
        assert float((other - value).abs().max()) <= 1e-4 * float(value.abs().max()), name
    for file in ("model.safetensors", "model-ema50kimg.safetensors", "ema/0000000640-0.1.safetensors"):
        models = [load_file(run / file) for run in (a, b)]
        assert models[0].keys() == models[1].keys()
        for name, value in models[0].items():
            torch.testing.assert_close(models[1][name], value, rtol=1e-4, atol=1e-4)


COMPARED = {"loss", "fixed_loss", "heldout_loss", "heldout_raw_loss", "optimal_loss", "gradient_norm"}


def test_losses_and_files_are_those_of_one_process(one: Path, two: Path) -> None:
    curves = [records(out) for out in (one, two)]
    assert [r["step"] for r in curves[0]] == [r["step"] for r in curves[1]] == [5, 10, 10, 15, 20, 20]
    for a, b in zip(*curves, strict=True):
        for key in COMPARED & a.keys():
            assert b[key] == pytest.approx(a[key], rel=1e-4)
    assert_close_runs(one, two, 20)
    assert (two / "previews" / "000000kimg.png").is_file()


@pytest.mark.parametrize(("start", "trainer"), [("two", []), ("one", FSDP)], ids=["to_one", "to_two"])
def test_another_trainer_resumes(one: Path, two: Path, start: str, trainer: list[str]) -> None:
    out = one.parent / f"{start}_resumed"
    train(out, *RUN, *trainer, f"resume={one.parent / start / HALFWAY}", size=2 if trainer else 1)
    assert [r["step"] for r in records(out)] == [15, 20, 20]
    assert_close_runs(one, out, 20)


@pytest.mark.slow
def test_killed_sharded_run_ends_equal(two: Path) -> None:
    out = two.parent / "killed"
    arguments = [*RUN, *FSDP, "micro_batch=8", "preview_kimg=0.64"]
    process = group(out, *arguments)
    wait_for(lambda: (out / HALFWAY).exists(), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert state(out)["global_step"] == 10
    train(out, *arguments)
    assert_same_run(two, out)


@pytest.mark.slow
def test_a_signal_stops_both(two: Path) -> None:
    out = two.parent / "told"
    arguments = [*RUN, *FSDP, "micro_batch=8", "preview_kimg=0.64"]
    process = group(out, *arguments)
    wait_for(lambda: (out / "metrics.jsonl").exists(), process)
    process.send_signal(signal.SIGUSR1)
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 75
    assert "SIGUSR1: stopped at" in said
    train(out, *arguments)
    assert_same_run(two, out)


@pytest.mark.slow
def test_bfloat16_and_dropout_train_too(one: Path) -> None:
    out = one.parent / "bfloat16"
    train(out, *COMMON, "duration_kimg=0.64", *FSDP, "precision=bf16-mixed", "+optimiser.foreach=true")
    losses = [r["loss"] for r in records(out)]
    exact = [r["loss"] for r in records(one) if "loss" in r]
    assert losses == pytest.approx(exact, rel=0.1)
    assert losses != pytest.approx(exact, rel=1e-6)
    assert all(value.dtype == torch.float32 for value in load_file(out / "model.safetensors").values())


@pytest.mark.slow
def test_online_schedules_are_refused(tmp_path: Path) -> None:
    output = train(tmp_path / "online", *RUN, *FSDP, "callbacks=online_schedule", code=2)
    assert "train.py: callbacks=online_schedule: not with trainer=fsdp; use trainer=ddp" in output


@pytest.mark.slow
def test_infinite_gradients_stop_both_processes(tmp_path: Path) -> None:
    out = tmp_path / "bad"
    output = train(out, *RUN, *FSDP, "loss_scale=1e40", "gradients.patience=3", code=2)
    assert "train.py: gradients.patience=3: " in output
    assert state(out)["global_step"] == 2
    assert state(out)["gradients"] == {"bad_steps": 3, "in_a_row": 3}
