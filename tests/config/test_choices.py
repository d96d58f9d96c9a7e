"""Every file of every config group composes and instantiates."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from scoreline.calibration.ranking import Families
from scoreline.calibration.search import Recommendation
from scoreline.checkpoints import load_model
from scoreline.config import explain, run_names
from scoreline.config.script import match_data
from scoreline.datasets.digits import Digits
from scoreline.errors import InputError
from scoreline.records import Record
from scoreline.schedules.base import grid
from scoreline.schedules.spacings import Power
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.learned import Learned
from scoreline.solvers.tableau import Tableau, build

CONF = Path(__file__).parents[2] / "conf"
SCRIPT_OF = {
    **dict.fromkeys(
        ("dataset", "model", "objective", "target", "trainer", "logger", "callbacks", "experiment", "augmentation"),
        "train",
    ),
    **dict.fromkeys(("solver", "schedule", "metrics", "guidance", "threshold", "launcher"), "sample"),
    "calibration": "calibrate",
}
NEEDED = {
    "dataset/image_folder": ["dataset.path=pictures"],
    "dataset/zip": ["dataset.path=pictures.zip"],
    "dataset/cifar10": ["dataset.path=cifar.tar.gz"],
    "dataset/huggingface": ["dataset.path=hub/name"],
    "dataset/emoji": ["dataset.font=font.ttf"],
    "schedule/from_file": ["schedule.path=levels.txt"],
    "guidance/autoguidance": ["guidance.checkpoint=digits_vp"],
}
CHOICES = [(path.parent.name, path.stem) for path in sorted(CONF.glob("*/*.yaml")) if path.parent.name != "table"]


def composed(script: str, *overrides: str, out: Path) -> DictConfig:
    run_names.register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(script, overrides=list(overrides), return_hydra_config=True)
    cfg.hydra.runtime.output_dir = str(out)
    HydraConfig.instance().set_config(cfg)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    return cfg


def test_every_group_belongs_to_a_script() -> None:
    assert {group for group, _ in CHOICES} == set(SCRIPT_OF)


OTHERS = [(group, choice) for group, choice in CHOICES if group not in ("solver", "schedule")]
"""Solvers and schedules are composed and resolved below, where they run."""


@pytest.mark.parametrize(("group", "choice"), OTHERS, ids=["/".join(choice) for choice in OTHERS])
def test_composes_and_resolves(group: str, choice: str, tmp_path: Path) -> None:
    script, needed = SCRIPT_OF[group], NEEDED.get(f"{group}/{choice}", [])
    cfg = composed(script, f"{group}={choice}", *needed, out=tmp_path)
    if script != "train":
        adopt(cfg)
    else:
        assert "${" not in OmegaConf.to_yaml(cfg, resolve=True)


def adopt(cfg: DictConfig) -> None:
    """Add what a checkpoint gives; then every interpolation resolves."""
    checkpoint = load_model(run_names.model_path(cfg.checkpoint))
    cfg.model = {name: checkpoint.card.model[name] for name in ("network", "noise_schedule", "parameterisation")}
    cfg.digest, cfg.sigma_data = checkpoint.digest, 0.54
    if "record" in cfg:
        cfg.record = str(run_names.ASSETS / "digits_vp.score_norm.safetensors")
    assert "${" not in OmegaConf.to_yaml(cfg, resolve=True)


@pytest.fixture(scope="module")
def spacings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, tuple[float, float]]]:
    """Every schedule of conf/schedule with a range that it can be used on."""
    out = tmp_path_factory.mktemp("levels")
    found = {}
    for name in (choice for group, choice in CHOICES if group == "schedule"):
        cfg = composed("sample", f"schedule={name}", *NEEDED.get(f"schedule/{name}", []), out=out)
        adopt(cfg)
        if name == "time_quadratic_integer":
            cfg.model.noise_schedule = {"_target_": "scoreline.schedules.discrete.DiscreteVP"}
        native = instantiate(cfg.model.noise_schedule)
        if name == "from_file":
            cfg.schedule.path = str(out / "levels.txt")
            levels = grid(Power(7), native.sigma_max, native.sigma_min, 9).tolist()
            Path(cfg.schedule.path).write_text("\n".join(map(repr, levels)))
        if name == "score_optimal":
            cfg.schedule.path = str(out / "record.safetensors")
            rho = grid(Power(7), native.sigma_max, native.sigma_min, 9).flip(0)
            values = {"rho": rho, "length": torch.asinh(rho)}
            Record("score_optimal", values, {"checkpoint": cfg.digest}).save(Path(cfg.schedule.path))
        found[name] = (instantiate(cfg.schedule), (native.sigma_max, native.sigma_min))
    return found


@pytest.mark.parametrize("name", [c for g, c in CHOICES if g == "solver"])
def test_every_solver_and_schedule_spends_its_budget(name: str, spacings: dict, tmp_path: Path) -> None:
    cfg = composed("sample", f"solver={name}", "checkpoint=digits_vp", out=tmp_path)
    adopt(cfg)
    native = instantiate(cfg.model.noise_schedule)
    span_of_record = (native.sigma_max, native.sigma_min)
    if name in FOUND:
        cfg.solver.path = str(tmp_path / "record.safetensors")
        FOUND[name](span_of_record, cfg.digest).save(Path(cfg.solver.path))
    solver = instantiate(cfg.solver)
    if name == "auto":
        assert solver == Recommendation((4, 9), (("ddim", "karras"), ("heun", "cosine")), span_of_record)
        return
    budgets = sorted(solver.tableaus) if isinstance(solver, Learned) else (1, 2, 7, 20)
    for schedule, span in spacings.values():
        if isinstance(solver, Learned) and span != span_of_record:
            continue
        for nfe in budgets:
            run = expected_run(solver, schedule, span, nfe)
            if isinstance(run, Tableau) and not solver_is_measured_or_inflated(solver):
                assert run.residual < 1e-12, (schedule, nfe)


def learned_record(span: tuple[float, float], digest: str) -> Record:
    """What `calibration=tableau` writes, with DDIM's tables."""
    tables = {nfe: DDIM()(Power(7), *span, nfe) for nfe in (1, 2, 7)}
    parts = {f"{part}_{nfe}": getattr(table, part) for nfe, table in tables.items() for part in ("rho", "N")}
    return Record("tableau", {"budgets": torch.tensor(list(tables)), **parts}, {"checkpoint": digest})


def search_record(span: tuple[float, float], digest: str) -> Record:
    """What `calibration=search` writes, the best first."""
    candidates = [[[["ddim", "karras"], ["deis_tab0", "karras"]], [["heun", "karras"]]], [[["heun", "cosine"]]]]
    provenance = {"checkpoint": digest, "candidates": candidates, "span": span}
    return Record("search", {"budgets": torch.tensor([4, 9])}, provenance)


FOUND = {"learned": learned_record, "auto": search_record}
"""Records of the solvers that read what was found for a checkpoint."""


def expected_run(solver: Any, schedule: Any, span: tuple[float, float], nfe: int) -> Any:
    """The run, its NFE checked: fixed budgets round down to whole steps, and refuse less than one."""
    per_step = getattr(solver, "order", 2) if getattr(solver, "budget", "") == "fixed" else 1
    if nfe < per_step:
        with pytest.raises(InputError, match=f"nfe={nfe}: one step takes {per_step}"):
            build(solver, schedule, span, nfe, "none")
        return None
    run = build(solver, schedule, span, nfe, "none")
    assert run.nfe == nfe // per_step * per_step, (schedule, nfe)
    return run


def solver_is_measured_or_inflated(solver: Any) -> bool:
    """A scaled method is exact for constant eps / w instead; S_noise other than 1 is meant to break consistency."""
    return getattr(solver, "scale", None) is not None or getattr(solver, "S_noise", 1.0) != 1.0


@pytest.mark.parametrize("name", [c for g, c in CHOICES if g in ("metrics", "calibration")])
def test_metrics_and_calibrations_instantiate(name: str, tmp_path: Path) -> None:
    group = next(g for g, c in CHOICES if c == name and g in ("metrics", "calibration"))
    cfg = composed(SCRIPT_OF[group], f"{group}={name}", out=tmp_path)
    if name == "auto":
        assert all(callable(instantiate(choice)) for choice in cfg.metrics.values())
        return
    if "solvers" not in cfg[group]:
        assert callable(instantiate(cfg[group]))
        return
    cfg.sigma_data = 0.54
    options = {key: value for key, value in cfg[group].items() if key not in ("solvers", "schedules")}
    pools = Families({"ddim": DDIM()}, {"karras": Power(7)})
    chosen = instantiate({**options, "_partial_": True}, _convert_="all")(families=pools)
    assert callable(chosen)
    assert chosen.kind == ("search" if name == "search" else "tableau")


@pytest.mark.parametrize("experiment", [c for g, c in CHOICES if g == "experiment"])
def test_experiments_instantiate(experiment: str, tmp_path: Path) -> None:
    import torch

    cfg = composed("train", f"experiment={experiment}", out=tmp_path)
    if cfg.dataset._target_.endswith("Digits"):
        match_data(cfg.model.network, instantiate(cfg.dataset))
    with torch.device("meta"):
        network = instantiate(cfg.model.network)
    optimiser = instantiate(cfg.optimiser)(network.parameters())
    assert isinstance(optimiser, torch.optim.Adam)
    assert network.augment_dim == getattr(instantiate(cfg.augmentation), "dim", 0)
    instantiate(cfg.model.parameterisation)
    instantiate(cfg.objective)
    assert [type(instantiate(callback)).__name__ for callback in cfg.callbacks.values()] == [
        *("EMACallback", "TrainingProgress", "FixedLoss", "Preview", "Checkpointing", "Preemption")
    ]
    assert cfg.name == experiment


@pytest.mark.parametrize("logger", [c for g, c in CHOICES if g == "logger"])
def test_loggers_need_no_account(logger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    cfg = composed("train", f"logger={logger}", out=tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "kimg": 0.1, "loss": 1.5, "loss_bins": {"1-3": 2.0}}\n')
    it = instantiate(cfg.logger)
    it.log_metrics({"train/loss": 1.5}, step=3)
    it.save()
    it.finalize("success")
    if logger == "wandb":
        import wandb

        wandb.finish()
        assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    elif logger == "csv":
        text = "kimg,train/step,train/loss,train/loss_bins/1-3\r\n0.1,3,1.5,2.0\r\n"
        assert (tmp_path / "metrics.csv").read_bytes().decode() == text
    else:
        assert any(path.stat().st_size for path in (tmp_path / logger).iterdir())


@pytest.mark.parametrize("trainer", [c for g, c in CHOICES if g == "trainer"])
def test_trainers_instantiate(trainer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU; what asks for a GPU says so in one sentence where there is none."""
    import torch
    from lightning import Trainer
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "1")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    cfg = composed("train", f"trainer={trainer}", out=tmp_path)
    options = instantiate(cfg.trainer, _convert_="all")
    if cfg.trainer.accelerator == "cpu" or torch.cuda.is_available():
        assert Trainer(**options, max_steps=1, logger=False).max_steps == 1
    else:
        with pytest.raises(MisconfigurationException):
            Trainer(**options, max_steps=1, logger=False)
    assert options.get("num_nodes", 1) == (2 if trainer == "slurm" else 1)


def test_datasets_that_need_a_file_say_so(tmp_path: Path) -> None:
    for key, needed in NEEDED.items():
        group, choice = key.split("/")
        if group != "dataset":
            continue
        cfg = composed("train", f"{group}={choice}", *needed, out=tmp_path)
        if choice == "huggingface":
            cfg.dataset.path = str(tmp_path / "nothing")
        with pytest.raises(InstantiationException) as caught:
            instantiate(cfg.dataset)
        sentence = explain.explain(caught.value)
        assert sentence is not None, key
        assert "dataset." in sentence, sentence
    assert isinstance(instantiate(composed("train", out=tmp_path).dataset), Digits)
