import itertools
import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from runs import tiny_fit, tiny_module

from scoreline.checkpoints import load_model
from scoreline.denoiser import Denoiser
from scoreline.errors import InputError
from scoreline.objective import Batch, DenoisingObjective, EDMWeight, InverseVariance, LogNormal, UniformTime
from scoreline.parameterisations import EDMPreconditioning
from scoreline.schedules.vp import LinearVP
from scoreline.targets import Denoising
from scoreline.training.data import EndlessBatches
from scoreline.training.ema_callback import EMACallback
from scoreline.training.fixed_loss import FixedLoss
from scoreline.training.module import DiffusionModule, step_key
from scoreline.training.preemption import Preemption
from scoreline.training.preview import Preview
from scoreline.training.training_log import TrainingProgress, keep_until
from scoreline.training.training_state import Checkpointing

VP = LinearVP()


def fit(root: Path, steps: int, it: DiffusionModule) -> list[dict]:
    callbacks = [EMACallback(1, 0.2), TrainingProgress(steps * 0.032, 0.32), Preview(0.64), Checkpointing(0.64)]
    tiny_fit(root, steps, it, [*callbacks, FixedLoss(0.96, images=40), Preemption()])
    return [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.filterwarnings("ignore:.*num_workers.*", "ignore:.*does not have many workers.*")
def test_loss_falls_and_everything_is_written(tmp_path: Path) -> None:
    it = tiny_module(batch_size=32, rampup_kimg=0.5, classes=10)
    lines = fit(tmp_path, 60, it)
    records, fixed = ([r for r in lines if key in r] for key in ("loss", "fixed_loss"))
    assert [(r["step"], r["fixed_images"]) for r in fixed] == [(30, 40), (60, 40)]
    assert fixed[0]["fixed_loss"] > fixed[1]["fixed_loss"] > 0
    assert [r["step"] for r in records] == [10, 20, 30, 40, 50, 60]
    assert [r["kimg"] for r in records] == pytest.approx([0.32, 0.64, 0.96, 1.28, 1.6, 1.92])
    assert records[0]["lr"] == pytest.approx(2e-3 * min(11 * 32 / 500, 1))
    assert records[0]["loss"] > 2 * records[-1]["loss"]
    assert all(0 < r["outside_network"] < 1 for r in records)
    assert sorted(path.name for path in (tmp_path / "previews").iterdir()) == ["000000kimg.png", "000001kimg.png"]
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == ["0000001280.ckpt", "0000001920.ckpt"]
    checkpoint = load_model(tmp_path / "model.safetensors")
    assert checkpoint.card.training["kimg"] == 1.92
    saved = torch.load(tmp_path / "checkpoints/0000001920.ckpt", weights_only=True)
    raw, averaged = saved["state_dict"], saved["callbacks"]["EMACallback"]["weights"]
    name = "stem.weight"
    assert torch.equal(checkpoint.denoiser.network.state_dict()[name], averaged[name])
    assert torch.equal(raw[f"denoiser.network.{name}"], it.denoiser.network.state_dict()[name])
    assert not torch.equal(raw[f"denoiser.network.{name}"], averaged[name])


class Scarce(DenoisingObjective):
    """Memory for `room` images at a time."""

    room = 9

    def __call__(self, denoiser: Denoiser, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        loss, rho = super().__call__(denoiser, batch)
        if len(batch.clean) > self.room:
            raise torch.OutOfMemoryError("pretended, after the forward pass")
        return loss, rho


@pytest.mark.filterwarnings("ignore:.*num_workers.*", "ignore:.*does not have many workers.*")
def test_out_of_memory_halves_the_micro_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, scarce, least = (tiny_module(batch_size=32, rampup_kimg=0.5) for _ in range(3))
    for it in (scarce, least):
        it.objective = Scarce(*(getattr(it.objective, name) for name in ("density", "weight", "target")))
    fit(tmp_path / "plain", 10, plain)
    fit(tmp_path / "scarce", 10, scarce)
    assert scarce.micro_batch == 8
    assert "out of memory with 32 images at a time; continuing with micro_batch=16" in capsys.readouterr().err
    for one, other in zip(plain.parameters(), scarce.parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=2e-4)
    monkeypatch.setattr(Scarce, "room", 0)
    with pytest.raises(InputError, match=r"micro_batch=1: .* precision=bf16-mixed"):
        fit(tmp_path / "least", 10, least)


def test_batches_are_a_stream_that_begins_anywhere() -> None:
    whole = list(islice(iter(EndlessBatches(10, 4, seed=3)), 20))
    assert list(islice(iter(EndlessBatches(10, 4, seed=3, start=7)), 13)) == whole[7:]
    first_passes = [i for batch in whole[:5] for i in batch]
    assert sorted(first_passes[:10]) == sorted(first_passes[10:]) == list(range(10))
    assert first_passes[:10] != first_passes[10:]
    assert list(islice(iter(EndlessBatches(10, 4, seed=4)), 20)) != whole


def test_ranks_share_a_batch_without_overlap() -> None:
    whole = list(islice(iter(EndlessBatches(100, 8, seed=0)), 9))
    parts = [list(islice(iter(EndlessBatches(100, 8, 0, 0, rank, 2)), 9)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole
    with pytest.raises(InputError, match="batch_size=9"):
        EndlessBatches(100, 9, 0, world=2)


def test_a_batch_larger_than_the_data() -> None:
    (batch,) = islice(iter(EndlessBatches(3, 8, seed=0)), 1)
    assert sorted(Counter(batch).values()) == [2, 3, 3]


def test_keys_of_steps_and_ranks_differ() -> None:
    purposes = ("noise", "dropout")
    named = itertools.product(range(3), range(50), range(4), purposes)
    keys = {step_key(*of) for of in named}
    assert len(keys) == 1200
    assert max(keys) >> 63


def test_records_after_the_resumed_step_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    keep_until(path, 3)
    path.write_text('{"step": 2}\n{"step": 4}\n{"st')
    keep_until(path, 3)
    assert path.read_text() == '{"step": 2}\n'


@pytest.mark.parametrize("kind", ["vp", "edm"])
def test_objective_is_minimised_by_the_exact_denoiser(kind: str) -> None:
    """For N(0, c^2) the expected loss at the optimum is E lambda(rho) c^2 rho^2 / (c^2 + rho^2)."""
    c = 0.6
    density, weight = (UniformTime(VP), InverseVariance()) if kind == "vp" else (LogNormal(), EDMWeight(0.5))

    class Exact(torch.nn.Module):
        def forward(self, x, rho, label=None):
            return x * (c**2 / (c**2 + rho**2)).to(x.dtype).reshape(-1, 1, 1, 1)

    clean = torch.randn(40_000, 1, 2, 2, generator=torch.Generator().manual_seed(1)) * c
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(len(clean), dtype=torch.float64, generator=generator)
    batch = Batch(clean, u, torch.randn(clean.shape, generator=generator))
    loss, rho = DenoisingObjective(density, weight, Denoising())(Exact(), batch)
    expected = weight(rho) * c**2 * rho**2 / (c**2 + rho**2)
    assert loss.shape == rho.shape == (40_000,)
    assert float(loss.mean()) == pytest.approx(float(expected.mean()), rel=0.02)


def test_edm_weight_makes_the_network_target_unit_variance() -> None:
    rho = torch.logspace(-2, 2, 20, dtype=torch.float64)
    torch.testing.assert_close(EDMWeight(0.5)(rho) * EDMPreconditioning(0.5)(rho).out ** 2, torch.ones_like(rho))
