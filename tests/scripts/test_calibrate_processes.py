"""Calibration in parts: by several processes, killed and started again, always to the bit."""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from forks import ended
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from scoreline.calibration.score_norm import ScoreNorm
from scoreline.calibration.subject import Subject
from scoreline.checkpoints import Checkpoint, load_model
from scoreline.config import calibrate_config, launch, run_names
from scoreline.config.launch import refuse_sweep
from scoreline.config.run_names import model_path
from scoreline.config.script import leave
from scoreline.datasets.digits import Digits
from scoreline.errors import InputError
from scoreline.records import Record, load_record
from scoreline.runtime.device import choose_device
from scoreline.runtime.distributed import Group, current
from scoreline.sampling import count_calls
from scoreline.schedules.spacings import Polynomial
from scoreline.scripts import calibrate
from scoreline.solvers.deis import DEIS
from scoreline.storage.resumable import Parts

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "calibrate.py")
ASKED = ("nfe=12", "seeds=0-23", "batch_size=3", "hydra.run.dir=run")


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_model(model_path("digits_vp"))


def subject(checkpoint: Checkpoint, parts: Parts, nfe: int = 6, count: int = 20, batch_size: int = 4) -> Subject:
    schedule = checkpoint.noise_schedule
    run = DEIS(2, schedule)(Polynomial(schedule, 1), schedule.sigma_max, schedule.sigma_min, nfe)
    return Subject(checkpoint.denoiser, run, checkpoint.card.shape, range(count), batch_size, None, parts)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_calibration_resumed_elsewhere_is_bitwise_equal(statistic: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Of three processes the first is done, the second was stopped in its second part; one process goes on alone."""
    estimator = ScoreNorm(statistic, per_channel=True)
    alone = estimator(subject(checkpoint, Parts()))
    with count_calls(checkpoint.denoiser) as first, pytest.raises(InputError, match="which this one cannot read"):
        estimator(subject(checkpoint, Parts(tmp_path, "s", 0, 3)))
    with count_calls(checkpoint.denoiser) as second, pytest.raises(KeyboardInterrupt):
        estimator(subject(checkpoint, Parts(tmp_path, "s", 1, 3)), stop_in_evaluation(8))
    assert (first.count, second.count) == (12, 8)
    assert sorted(path.name[:6] for path in tmp_path.iterdir()) == ["000000", "000001", "000003"]
    again = subject(checkpoint, Parts(tmp_path, "s"))
    assert again.done == 12
    told: list[float] = []
    with count_calls(checkpoint.denoiser) as last:
        assert equal(estimator(again, told.append), alone)
    assert last.count == 12
    assert sum(told) == pytest.approx(8)
    with count_calls(checkpoint.denoiser) as none:
        assert equal(estimator(subject(checkpoint, Parts(tmp_path, "s", 1, 2))), alone)
    assert none.count == 0


def stop_in_evaluation(number: int) -> Callable[[float], None]:
    told: list[float] = []

    def progress(images: float) -> None:
        told.append(images)
        if len(told) == number:
            raise KeyboardInterrupt

    return progress


def test_damaged_and_foreign_parts_are_made_again(tmp_path: Path) -> None:
    made: list[int] = []

    def make(number: int) -> dict[str, Tensor]:
        made.append(number)
        return {"value": torch.tensor([1.0, number], dtype=torch.float64), "count": torch.tensor(number)}

    first = Parts(tmp_path, "one")(4, make)
    whole = (tmp_path / "000002.safetensors").read_bytes()
    for damage in (whole[:-3], whole[:5], b"", b"\xff" * 40):
        (tmp_path / "000002.safetensors").write_bytes(damage)
        assert Parts(tmp_path, "one").existing(4) == [0, 1, 3]
        made.clear()
        assert all(equal(a, b) for a, b in zip(Parts(tmp_path, "one")(4, make), first, strict=True))
        assert made == [2]
    assert Parts(tmp_path, "two").existing(4) == []
    assert Parts(tmp_path, "one").existing(5) == [0, 1, 2, 3]
    Parts(tmp_path, "one").remove()
    assert not tmp_path.exists()
    made.clear()
    assert len(Parts()(3, make)) == 3
    assert made == [0, 1, 2]


def test_a_folder_that_is_not_shared_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"hydra\.run\.dir: .*000001\.safetensors.*choose a directory that all"):
        Parts(tmp_path, size=2)(2, lambda number: {"value": torch.zeros(1)})


def test_progress_of_one_process_speaks_for_all(tmp_path: Path) -> None:
    Parts(tmp_path)(1, lambda number: {"value": torch.zeros(1)})
    assert Parts(tmp_path, rank=0, size=2).share(6) == pytest.approx(5 / 2)
    assert Parts(tmp_path, rank=1, size=2).share(6) == pytest.approx(5 / 3)
    assert Parts().share(6) == 1


def test_who_this_process_is() -> None:
    assert current({}) == Group(0, 1, 0)
    assert current({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == Group(5, 8, 1)
    step = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4"}
    assert current(step) == Group(3, 4, 1)
    assert current({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}) == Group(), "sbatch without srun"
    with pytest.raises(InputError, match=r"WORLD_SIZE=two: must be a whole number"):
        current({"RANK": "0", "WORLD_SIZE": "two", "LOCAL_RANK": "0"})
    with pytest.raises(InputError, match=r"RANK=4: must be below WORLD_SIZE=4"):
        current({"RANK": "4", "WORLD_SIZE": "4", "LOCAL_RANK": "0"})


@pytest.mark.parametrize(
    ("nodes", "first"), [("node[07-09,12]", "node07"), ("a1,b2", "a1"), ("gpu3", "gpu3"), ("n-x[1,3]", "n-x1")]
)
def test_processes_of_srun_meet_at_the_first_node(nodes: str, first: str) -> None:
    step = {"SLURM_STEP_NODELIST": nodes, "SLURM_JOB_ID": "123456", "SLURM_STEP_ID": "2"}
    met = launch._meeting_point(step)
    assert met["MASTER_ADDR"] == first
    assert 1024 < int(met["MASTER_PORT"]) < 32768
    assert launch._meeting_point({**step, "SLURM_STEP_ID": "3"})["MASTER_PORT"] != met["MASTER_PORT"]
    assert launch._meeting_point({}) == {}


@pytest.mark.parametrize("word", ["-m", "--multirun", "hydra.mode=MULTIRUN"])
def test_a_sweep_is_refused_in_several_processes(word: str) -> None:
    with pytest.raises(InputError, match="a sweep runs in one process; start it without torchrun and srun"):
        refuse_sweep(["nfe=3,4", word])
    refuse_sweep(["nfe=3", "calibration=score_norm", "hydra.run.dir=m"])


def group_of(count: int, main: Callable[[], None], where: Path, *arguments: str) -> list[tuple[int, str]]:
    """What `launch.run(main)` ends in and says in each of `count` real processes, forked so as to start at once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children = []
    for rank in range(count):
        own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        children.append(forked(main, where / str(rank), own, *arguments))
    ends = [ended(child) for child in children]
    return [(end, (where / str(rank)).read_text()) for rank, end in enumerate(ends)]


def forked(main: Callable[[], None], says: Path, environment: dict[str, str], *arguments: str) -> int:
    """A process that runs `main` in the directory of the file that takes what it says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: of threads, which the child does not use
        child = os.fork()
    if child:
        return child
    os.chdir(says.parent)
    os.environ.update(environment)
    code = 0
    with open(says, "w", buffering=1) as file:
        sys.stdout = sys.stderr = file
        sys.argv = [SCRIPT, *arguments]
        try:
            launch.run(main)
        except SystemExit as leaving:
            code = int(str(leaving.code))
        except BaseException as error:
            print(repr(error), file=file)
            code = 1
    os._exit(code)


def mistake() -> None:
    leave(InputError("nfe=0: must be a whole number"))


def test_mistake_of_all_processes_is_reported_once(tmp_path: Path) -> None:
    assert group_of(3, mistake, tmp_path) == [(2, "calibrate.py: nfe=0: must be a whole number\n"), (2, ""), (2, "")]


def test_mistake_of_one_process_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "MOMENT", timedelta(seconds=0.5))

    def main() -> None:
        if current().rank == 1:
            mistake()
        current().barrier()

    first, second = group_of(2, main, tmp_path)
    assert second == (2, "calibrate.py: nfe=0: must be a whole number\n")
    assert first[0] == 1


def test_kill_9_of_one_process_ends_the_others(tmp_path: Path) -> None:
    def main() -> None:
        current().barrier()
        if current().rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        current().barrier()

    assert [code for code, _ in group_of(2, main, tmp_path)] == [1, -9]


def test_only_first_process_prints_and_writes(tmp_path: Path) -> None:
    def main() -> None:
        group = current()
        (tmp_path / f"{group.rank}.json").write_text(json.dumps([group.first, sys.argv[1:]]))

    assert group_of(2, main, tmp_path, "nfe=3") == [(0, ""), (0, "")]
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert found == [[True, ["nfe=3"]], [False, ["nfe=3"]]]
    sentence = "calibrate.py: -m: a sweep runs in one process; start it without torchrun and srun\n"
    assert group_of(2, main, tmp_path, "-m", "nfe=3,4") == [(2, sentence), (2, "")]
    assert group_of(2, lambda: print("help"), tmp_path, "--help") == [(0, "help\n"), (0, "")]


def test_torchrun_resumes_after_kill_9(tmp_path: Path, checkpoint: Checkpoint) -> None:
    """To the bit what one process measures that nobody kills, on the checkpoint that ships with the package."""
    kept, record = tmp_path / "run/parts", tmp_path / "run/score_norm.safetensors"
    child = forked(lambda: runpy.run_path(SCRIPT, run_name="__main__") and None, tmp_path / "said", {}, *ASKED)
    while not (kept / "000001.safetensors").exists():
        assert os.waitpid(child, os.WNOHANG) == (0, 0), (tmp_path / "said").read_text()
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    assert ended(child) == -9
    assert 2 <= len(list(kept.glob("[0-9]*.safetensors"))) < 8
    assert not record.exists()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", SCRIPT]
    more = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run([*launcher, *ASKED], cwd=tmp_path, env=more, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("24 images, NFE 12 -> run/score_norm.safetensors") == 1
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        *("config.yaml", "score_norm.png", "score_norm.safetensors")
    }
    alone = ScoreNorm()(subject(checkpoint, Parts(), nfe=12, count=24, batch_size=3))
    assert equal(load_record(record, "score_norm", checkpoint.digest).values, alone)


def composed(*overrides: str, out: Path) -> DictConfig:
    run_names.register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("calibrate", overrides=list(overrides), return_hydra_config=True)
    cfg.hydra.runtime.output_dir = str(out)
    HydraConfig.instance().set_config(cfg)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    return cfg


def measured(cfg: DictConfig, checkpoint: Checkpoint) -> Record:
    config = calibrate_config.read(cfg)
    components = config.components(checkpoint)
    given, estimator = calibrate.build_subject(config, components, checkpoint), components.estimator()
    values = calibrate.measure(estimator, given)
    return calibrate.build_record(config, components, checkpoint, given, estimator, values)


def levels(name: str, *overrides: str, out: Path) -> Tensor:
    """Noise levels of the default calibration of a shipped model."""
    config = calibrate_config.read(composed(f"checkpoint={name}", "nfe=300", *overrides, out=out))
    checkpoint = load_model(model_path(name))
    return calibrate.build_subject(config, config.components(checkpoint), checkpoint).levels


def test_levels_are_dense_at_low_noise_whatever_the_process(tmp_path: Path) -> None:
    assert levels("emoji32_edm", "schedule=time_uniform", out=tmp_path)[-1] > 0.2  # EDM's time is rho itself
    found = levels("emoji32_edm", out=tmp_path)
    assert found[-1] < 0.03
    assert int((found < 1).sum()) > len(found) / 4
    ours, published = levels("digits_vp", out=tmp_path), levels("digits_vp", "schedule=time_uniform", out=tmp_path)
    torch.testing.assert_close(ours, published, rtol=1e-12, atol=0)


def done(cfg: DictConfig, checkpoint: Checkpoint) -> int:
    """Images of the run directory that need not be measured again."""
    config = calibrate_config.read(cfg)
    return calibrate.build_subject(config, config.components(checkpoint), checkpoint).done


def test_noised_states_of_a_chosen_data_set(tmp_path: Path, checkpoint: Checkpoint) -> None:
    asked = ("calibration.states=noised", "dataset=digits", "dataset.split=test", "device=cpu")
    record = measured(composed(*ASKED[:3], *asked, out=tmp_path), checkpoint)
    data = Digits("test")
    assert record.provenance["states"] == "noised"
    assert record.provenance["dataset"] == {"name": "digits-test", "sha256": data.digest}
    given = replace(subject(checkpoint, Parts(), nfe=12, count=24, batch_size=3), data=data)
    assert equal(record.values, ScoreNorm(states="noised")(given))
    assert len(list((tmp_path / "parts").iterdir())) == 8
    smaller = composed(*ASKED[:2], "batch_size=2", *asked, out=tmp_path)
    assert done(smaller, checkpoint) == 0, "parts of another batch size"
    trajectory = composed(*ASKED[:3], "device=cpu", out=tmp_path)
    assert trajectory.dataset is None
    assert done(trajectory, checkpoint) == 0, "parts of another config"


def test_labels_of_real_images_are_their_own() -> None:
    def data(rule: str, classes: int) -> None:
        calibrate.refuse_other_classes(Digits("train"), rule, classes)

    for fine in (("random", 10), ("none", 3), ("fixed:3", 0)):
        data(*fine)
    with pytest.raises(InputError, match=r"labels=fixed:3: images of digits-train have their own"):
        data("fixed:3", 10)
    with pytest.raises(InputError, match=r"digits-train has 10 classes, not the model's 3; labels=none"):
        data("random", 3)


def test_each_process_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "empty", lambda *size, device: None)
    assert [str(choose_device("auto", local)) for local in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert str(choose_device("cuda", 1)) == "cuda:1"
    assert str(choose_device("cuda:0", 1)) == "cuda:0"
    assert str(choose_device("cpu", 1)) == "cpu"
