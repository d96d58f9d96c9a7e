"""kill -9 at any moment, in any script: the same command goes on and ends in the same bytes.

A few kills each by default; `-m slow` does as many as the README promises, `-rP` tells where they fell.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from crashes import ROOT, TORCHRUN, Job, crash

from scoreline.checkpoints import Card, save_model
from scoreline.networks.unet import UNet

VP = {"_target_": "scoreline.schedules.vp.LinearVP", "beta_min": 0.1, "beta_max": 20.0}
NETWORK = {"channels": 1, "resolution": 8, "width": 8, "blocks": 1}

TRAIN = [
    *(str(ROOT / "train.py"), "hydra.run.dir=run", "duration_kimg=1.92", "batch_size=32", "model.network.width=8"),
    *("model.network.dropout=0.1", "checkpoint_kimg=0.32", "log_kimg=0.16", "fixed_loss_kimg=0.64"),
    *("preview_kimg=0.96", "lr_rampup_kimg=0.5"),
]
DSM = ["ema.post_hoc=[0.05,0.1]", "keep_best=heldout_loss"]
"""Snapshots of averages and the best model too."""

STF = [
    *("target=stf", "target.references=96", "callbacks=online_schedule", "callbacks.online_schedule.levels=9"),
    *("callbacks.online_schedule.visits=2", "callbacks.online_schedule.burn_in_kimg=0.3"),
]
"""Schedules learnt on the way too."""

LEARNED = ["experiment=digits_edm", "objective=edm_learned", "target=stablevm", "target.references=24"]
"""A network of the noise level is trained too, and noisy images come from a reference smaller than the batch."""

TWO = ["trainer=ddp_cpu", "model.network.dropout=0"]

TABLE = """\
title: Toy
metric: frechet_distance
needs: [the toy model]
base: [checkpoint=toy.safetensors, metrics=digits, metrics.groups=4, metrics.neighbours=1, device=cpu]
budgets: {smoke: {ranges: ["0-3", "4-7"]}}
columns: {label: NFE, key: nfe, values: [4]}
rows:
  - name: DDIM
    overrides: [solver=ddim]
  - name: tAB3
    overrides: [solver=deis_tab3]
"""


def nothing(where: Path) -> None:
    """Training makes its own data."""


def model(where: Path) -> None:
    """toy.safetensors, an untrained network."""
    torch.manual_seed(0)
    network = UNet(**NETWORK)
    torch.nn.init.normal_(network.head.weight, std=0.05)
    about = {
        "network": {"_target_": "scoreline.networks.unet.UNet", **NETWORK},
        "noise_schedule": VP,
        "parameterisation": {"_target_": "scoreline.parameterisations.NoisePrediction", "noise_schedule": VP},
    }
    save_model(where / "toy.safetensors", network.state_dict(), Card(about, (1, 8, 8), 0, {}, {}))


def table(where: Path) -> None:
    model(where)
    (where / "conf/table").mkdir(parents=True)
    (where / "conf/table/toy.yaml").write_text(TABLE)


def calibration(kind: str, *words: str) -> Job:
    asked = (f"calibration={kind}", "checkpoint=toy.safetensors", "device=cpu", "hydra.run.dir=run")
    return Job(model, [[str(ROOT / "calibrate.py"), *asked, *words]])


FEW = ("calibration.budgets=[2,3]", "calibration.solvers=[ddim,deis_tab2]", "calibration.schedules=[karras]", "nfe=20")

DRAW = [
    *("checkpoint=toy.safetensors", "seeds=0-199", "nfe=4", "batch_size=16", "network_batch=16", "device=cpu"),
    *("metrics=none", "hydra.run.dir=run"),
]
SAMPLE = [str(ROOT / "sample.py"), *DRAW]

JOBS: dict[str, Callable[[], Job]] = {
    "DSM": lambda: Job(nothing, [[*TRAIN, *DSM]]),
    "STF": lambda: Job(nothing, [[*TRAIN, *STF]]),
    "StableVM with learned weighting": lambda: Job(nothing, [[*TRAIN, *LEARNED]]),
    "DSM in two processes": lambda: Job(nothing, [[*TRAIN, *DSM, *TWO]]),
    "STF in two processes": lambda: Job(nothing, [[*TORCHRUN, *TRAIN, *STF, *TWO]]),
    "table": lambda: Job(
        table, [[str(ROOT / "sample.py"), "--config-dir", "conf", "table=toy", "budget=smoke", "hydra.run.dir=run"]]
    ),
    "tables that race": lambda: Job(
        table,
        [
            [
                *(str(ROOT / "sample.py"), "--config-dir", "conf", "table=toy"),
                *("budget=smoke", "hydra.run.dir=run", way),
            ]
            for way in ("lock=wait", "lock=refuse")
        ],
        spares=True,
    ),
    "score_norm": lambda: calibration("score_norm", "nfe=40", "seeds=0-31", "batch_size=4"),
    "search": lambda: calibration("search", "seeds=0-7", *FEW),
    "tableau": lambda: calibration("tableau", "seeds=0-11", "calibration.evaluations=200", *FEW),
    "samplers that race": lambda: Job(model, [[*SAMPLE, "lock=refuse"], [*SAMPLE, "lock=wait"]]),
    "png files": lambda: Job(model, [[*SAMPLE, "format=png", "lock=refuse"], [*SAMPLE, "format=png", "lock=wait"]]),
    "sweep": lambda: Job(
        model, [[str(ROOT / "sample.py"), "-m", *DRAW[:-1], "solver=ddim,deis_tab2", "hydra.sweep.dir=run"]]
    ),
    "one and two samplers": lambda: Job(model, [[*TORCHRUN, *SAMPLE, "lock=wait"], [*SAMPLE, "lock=wait"]]),
}

FULL = {
    **{"DSM": 15, "STF": 15, "DSM in two processes": 10, "STF in two processes": 10},
    **{"StableVM with learned weighting": 10},
    **{"table": 10, "tables that race": 10},
    **{"score_norm": 8, "search": 6, "tableau": 6},
    **{"samplers that race": 8, "png files": 6, "one and two samplers": 6},
    **{"sweep": 6},
}
"""60 kills in training, 20 in a table, 20 in calibration, 20 while two commands race for a directory; 6 in a sweep."""

SHORT = {"score_norm": 1, "png files": 1}
"""Every time; trainings are killed in tests/training every time."""


@pytest.mark.parametrize("name", SHORT)
def test_a_few_kills_leave_the_same_results(name: str, tmp_path: Path) -> None:
    assert crash(JOBS[name](), tmp_path, SHORT[name], seed=1).runs >= 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FULL)
def test_killed_many_times_the_results_are_the_same(name: str, tmp_path: Path) -> None:
    tally = crash(JOBS[name](), tmp_path, FULL[name], seed=2)
    print(f"{name}: {tally}")
    assert tally.kills.total() >= FULL[name]
