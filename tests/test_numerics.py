"""Golden numbers: random numbers, tables, images and weights after training, beside this file.

`python tests/test_numerics.py` makes them again, once NUMERICS_VERSION is raised. Integers and text are compared
exactly, the others in units of the largest number of an entry, within BOUNDS.
"""

import json
import logging
import math
import operator
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning import Trainer
from omegaconf import DictConfig, OmegaConf
from torch import Generator, Tensor

from scoreline.checkpoints import Card, Checkpoint, load_model
from scoreline.config import run_names
from scoreline.datasets.digits import Digits
from scoreline.denoiser import Denoiser
from scoreline.generation.batches import generate
from scoreline.generation.labels import plan_labels
from scoreline.interface.sample_function import sample
from scoreline.networks.exact import GaussianMixture
from scoreline.numerics import NUMERICS_VERSION
from scoreline.runtime import seeded_noise
from scoreline.runtime.seeded_noise import seed_default, seed_generator
from scoreline.schedules.spacings import Polynomial, Power
from scoreline.solvers.adaptive import Adaptive
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.learned import Learned
from scoreline.solvers.tableau import build
from scoreline.targets import StableTarget
from scoreline.training.augmentation import Augmentation
from scoreline.training.data import DeviceData, EndlessBatches, ImageDataModule
from scoreline.training.ema_callback import EMACallback
from scoreline.training.module import DiffusionModule, step_key
from scoreline.training.stf_references import References

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).with_suffix(".json")
CHANGED = (
    "numbers changed: raise NUMERICS_VERSION in src/scoreline/numerics.py and make the golden file again with "
    "`python tests/test_numerics.py`"
)
NFE, BATCH, STEPS = 7, 32, 5
RHO = torch.tensor([0.05, 0.3, 1.0, 5.0, 40.0], dtype=torch.float64)
NEED_MORE = ("from_file", "score_optimal", "time_quadratic_integer")
"""Schedules that need a file, or a discrete model."""

Numbers = dict[str, list[int] | list[float] | str]
"""Entries by name."""


def composed(script: str, *overrides: str) -> DictConfig:
    run_names.register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(script, overrides=list(overrides))


def shipped() -> Checkpoint:
    return load_model(run_names.model_path("digits_vp"))


def of_sample(checkpoint: Checkpoint, *overrides: str) -> DictConfig:
    """sample.py's config with the shipped model and its records filled in."""
    cfg = composed("sample", *overrides)
    cfg.model, cfg.digest = checkpoint.card.model, checkpoint.digest
    cfg.record = str(run_names.record_beside(checkpoint.path, "score_norm"))
    cfg.sigma_data = 0.54
    return cfg


def each(checkpoint: Checkpoint, group: str, left_out: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """What every file of a group makes. To compose anew, which takes long, is needed for files that build on others."""
    base = of_sample(checkpoint)
    for path in sorted((ROOT / "conf" / group).glob("*.yaml")):
        if path.stem in left_out:
            continue
        given = OmegaConf.load(path)
        assert isinstance(given, DictConfig)
        base[group] = of_sample(checkpoint, f"{group}={path.stem}")[group] if "defaults" in given else given
        if path.stem == "learned":
            base[group].path = str(run_names.record_beside(checkpoint.path, "tableau"))
        yield path.stem, instantiate(base[group])


def told(name: str, **tensors: Tensor) -> dict[str, list[float]]:
    """Two sums over all numbers of each tensor with uneven weights, and one of their sizes."""
    found = {}
    for part, tensor in tensors.items():
        values = tensor.detach().double().flatten().tolist()
        uneven = [[1 + (i * 0.6180339887498949 + start) % 1 for i in range(len(values))] for start in (0.5, 0.25)]
        sums = [math.fsum(map(operator.mul, values, weights)) for weights in uneven]
        found[f"{name}: {part}"] = [*sums, math.fsum(map(abs, values))]
    return found


def random_numbers() -> Numbers:
    """Whatever draws integers, or the first words of a stream of floating point numbers."""
    drawn = Augmentation(0.5).draw(24, Generator().manual_seed(0), "cpu")
    gates = [drawn.x_flip, drawn.y_flip, drawn.scale != 0, drawn.angle != 0, drawn.stretch != 0, drawn.axis != 0]
    batches, data = EndlessBatches(1500, 64, seed=3), DeviceData(Digits("train"))
    reference = References(data, StableTarget(128), 64, 3).draw(5, 0, 1, torch.device("cpu")).images
    labels = plan_labels("random", range(24), 10)
    assert labels is not None
    numbers: Numbers = {
        "labels of seeds": labels.tolist(),
        "order of the data": batches.at(0)[:12] + batches.at(47)[:12],
        "digits": Digits("all").digest,
        "reference of a step": reference.flatten(1).long().sum(1)[::8].tolist(),
        "augmented images": torch.stack([*gates, drawn.shift.any(1)]).int().flatten().tolist(),
    }
    for purpose in ("noise", "dropout", "augmentation", "fixed_loss", "online_schedule"):
        stream = seed_generator(Generator(), step_key(3, 5, 1, purpose))
        numbers[f"stream of {purpose}"] = torch.randint(2**32, (3,), generator=stream).tolist()
    return numbers


def initial_noise() -> Numbers:
    seeds = [0, 1, 2**40]
    return {
        f"noise {purpose} {step}": seeded_noise.normal(seeds, (3, 5), purpose, step).flatten().tolist()
        for purpose, step in (("initial", 0), ("solver", 3))
    }


PAIR = GaussianMixture(
    torch.tensor([[1.2, -0.4], [-0.7, 0.9]], dtype=torch.float64),
    torch.tensor([0.5, 0.3], dtype=torch.float64),
    torch.tensor([0.35, 0.65], dtype=torch.float64),
)
START = 80.0 * torch.tensor([[0.3, -1.1], [0.9, 0.2]], dtype=torch.float64)


def tables() -> Numbers:
    """rho, S, N and B of every solver's table on the shipped model; an adaptive one's end on two Gaussians."""
    checkpoint, found = shipped(), Numbers()
    native = checkpoint.noise_schedule
    span = (native.sigma_max, native.sigma_min)
    for name, solver in each(checkpoint, "solver", ["auto"]):
        if isinstance(solver, Adaptive):
            end = sample(PAIR.denoise, START, solver, Power(7), nfe=2000, sigma_min=0.01, sigma_max=80.0)
            found[f"solver {name}"] = end.flatten().tolist()
        else:
            nfe = sorted(solver.tableaus)[0] if isinstance(solver, Learned) else NFE
            run = build(solver, Polynomial(native, 2), span, nfe, "none")
            found |= told(f"solver {name}", rho=run.rho, S=run.S, N=run.N, B=run.B)
    for name, schedule in each(checkpoint, "schedule", NEED_MORE):
        found |= told(f"schedule {name}", rho=build(DDIM(), schedule, span, NFE, "none").rho)
    return found


MODELS = {
    **{"vp": "digits_vp", "edm": "cifar10_ncsnpp_edm", "ddpm": "cifar10_ddpm", "iddpm": "digits_edm"},
    **{"ve": "cifar10_ncsnpp_ve", "flow": "digits_flow", "vp_min_snr": "digits_vp", "ddpm_min_snr": "cifar10_ddpm"},
    "edm_learned": "cifar10_ncsnpp_edm",
}
"""Models of each objective, which between them have all parameterisations."""


def formulas() -> Numbers:
    """What models multiply by, and the levels and weights of objectives."""
    found: Numbers = {}
    assert set(MODELS) == {path.stem for path in (ROOT / "conf" / "objective").glob("*.yaml")}
    for name, model in MODELS.items():
        cfg = composed("train", f"objective={name}", f"model={model}")
        if name == "iddpm":
            cfg.model.parameterisation = {"_target_": "scoreline.parameterisations.IDDPM"}
        objective = instantiate(cfg.objective)
        rho = objective.density.inverse(torch.tensor([0.02, 0.3, 0.6, 0.97], dtype=torch.float64))
        found |= told(f"objective {name}", rho=rho, weight=objective.weight(rho))
        found |= told(f"model of {name}", **instantiate(cfg.model.parameterisation)(RHO)._asdict())
    return found


RUNS = {
    "velocity_ab3": ("solver=velocity_ab3", "schedule=linear_vp_few"),
    "velocity_abm2_open": ("solver=velocity_abm2_open", "schedule=linear_vp_quadratic"),
    "deis_tab3": ("solver=deis_tab3", "schedule=time_quadratic"),
    "heun": ("solver=heun", "schedule=karras", "final=denoise"),
    "dpmpp_2m_sde": ("solver=dpmpp_2m_sde", "schedule=log_snr"),
}


def images() -> Numbers:
    """Pixels of four seeds each, as networks leave them."""
    checkpoint, found = shipped(), Numbers()
    native = checkpoint.noise_schedule
    for name, overrides in RUNS.items():
        cfg = of_sample(checkpoint, *overrides)
        run = build(
            instantiate(cfg.solver), instantiate(cfg.schedule), (native.sigma_max, native.sigma_min), NFE, cfg.final
        )
        batch = next(generate(checkpoint.denoiser, run, checkpoint.card.shape, [0, 1, 2, 2**40], 4, None, 4))
        found[f"images of {name}"] = [float(f"{value:.8g}") for value in batch.x.flatten().tolist()]
    return found


TRAININGS = {
    "DSM": ("experiment=digits_vp",),
    "STF": ("experiment=digits_edm_stf", "target.references=96"),
}


def trained(*overrides: str) -> tuple[DiffusionModule, EMACallback, dict[str, Tensor]]:
    """A few steps with classes, dropped labels and augmentations, and the weights that they began from.

    The rate is full at once, and `eps` of Adam so large that it does not blow up what rounds to zero.
    """
    small = ("model.network.width=8", "model.network.num_classes=10", "model.network.augment_dim=9", "augmentation=edm")
    cfg = composed("train", *overrides, *small, "lr_rampup_kimg=0", "optimiser.lr=0.02", "optimiser.eps=0.01")
    data = DeviceData(Digits("train"))
    seed_default(cfg.seed)
    denoiser = Denoiser(instantiate(cfg.model.network), instantiate(cfg.model.parameterisation))
    objective = instantiate(cfg.objective)
    references = References(data, objective.target, BATCH, cfg.seed) if objective.target.references else None
    module = DiffusionModule(
        *(denoiser, objective, instantiate(cfg.optimiser), BATCH, cfg.lr_rampup_kimg, cfg.seed),
        *(Card({}, (1, 8, 8), 10, {}, {}), instantiate(cfg.gradients), instantiate(cfg.augmentation), references),
    )
    before = {name: weight.clone() for name, weight in denoiser.network.state_dict().items()}
    average = EMACallback(0.05, 0.2)
    with tempfile.TemporaryDirectory() as root:
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        options = {"accelerator": "cpu", "max_steps": STEPS, "max_epochs": -1, "use_distributed_sampler": False}
        trainer = Trainer(**options, **quiet, callbacks=[average], default_root_dir=root)
        trainer.fit(module, ImageDataModule(data, BATCH, cfg.seed))
    return module, average, before


def weights() -> Numbers:
    """By how much training moved the weights of each tensor, and their averages."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    found: Numbers = {}
    for name, overrides in TRAININGS.items():
        module, average, before = trained(*overrides)
        after = module.denoiser.network.state_dict()
        for kind, reached in (("weights", after), ("averages", average.ema.weights)):
            found |= told(f"{kind} after {name}", **{part: reached[part].cpu() - before[part] for part in before})
    return found


BOUNDS: dict[Callable[[], Numbers], float] = {
    random_numbers: 0.0,
    tables: 1e-11,
    formulas: 1e-11,
    initial_noise: 1e-6,
    images: 1e-3,
    weights: 1e-4,
}
"""In units of the largest number of an entry.

Kernels for AVX-512, AVX2 and neither (ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA, MKL_CBWR) were found apart by less than
1e-12 in float64, not at all in noise, and by 5e-5 in images and 9e-6 in weights, whose networks are float32. A
coefficient off by 1e-6 moves a table by 2e-8, another stream of noise, probability or rate some weights by 2e-2 and
more.
"""


def apart(found: Any, golden: Any) -> float:
    """Largest difference in units of the largest number; infinite for another length, text or integer."""
    if isinstance(golden, str) or all(isinstance(value, int) for value in golden):
        return 0.0 if found == golden else math.inf
    if len(found) != len(golden):
        return math.inf
    return max(abs(a - b) for a, b in zip(found, golden, strict=True)) / (max(map(abs, golden)) or 1.0)


def differences(bound: float, found: Numbers, golden: Numbers) -> dict[str, float]:
    """Entries of the golden file that are not the same, with how far they are apart."""
    distance = {name: apart(found.get(name, ""), entry) for name, entry in golden.items()}
    return {name: by for name, by in distance.items() if not by <= bound}


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(GOLDEN.read_text())
    return found


@pytest.mark.filterwarnings("ignore:.*num_workers.*", "ignore:.*does not have many workers.*")
@pytest.mark.parametrize("make", BOUNDS, ids=lambda make: make.__name__)
def test_numbers_stay_what_they_were(make: Callable[[], Numbers], golden: dict[str, Any]) -> None:
    found, kept = make(), golden[make.__name__]
    assert not differences(BOUNDS[make], found, kept), CHANGED
    assert set(found) == set(kept), "new numbers: make the golden file again with `python tests/test_numerics.py`"


def test_the_version_is_that_of_the_golden_file(golden: dict[str, Any]) -> None:
    assert golden["version"] == NUMERICS_VERSION, "make the golden file again with `python tests/test_numerics.py`"
    assert GOLDEN.stat().st_size < 100_000


def laid_out(value: Any) -> str:
    """JSON with an entry a line, numbers to 13 digits."""
    if isinstance(value, dict):
        return "{\n" + ",\n".join(f"{json.dumps(name)}: {laid_out(entry)}" for name, entry in value.items()) + "\n}"
    if isinstance(value, list):
        return json.dumps([float(f"{each:.13g}") if isinstance(each, float) else each for each in value])
    return json.dumps(value)


def main() -> None:
    """Write the golden file; numbers that changed need another version first."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    kept = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {"version": 0}
    made: dict[str, Any] = {"version": NUMERICS_VERSION}
    changed: dict[str, float] = {}
    for make, bound in BOUNDS.items():
        made[make.__name__] = make()
        changed |= differences(bound, made[make.__name__], kept.get(make.__name__, {}))
    if changed and kept["version"] == NUMERICS_VERSION:
        sys.exit(f"{CHANGED}: {changed}")
    GOLDEN.write_text(laid_out(made) + "\n")


if __name__ == "__main__":
    main()
