"""The workers of a Ray cluster: the bytes of one process, whoever dies on the way."""

import hashlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from small_models import save_small

from scoreline.checkpoints import load_model
from scoreline.denoiser import Denoising
from scoreline.errors import InputError
from scoreline.execution import Execution
from scoreline.generation import fleet
from scoreline.generation.batches import Sampler
from scoreline.generation.fleet import Cargo, Desk, Fleet, Worker, meet, versions, weights_digest
from scoreline.generation.loop import sample_missing
from scoreline.generation.replica import Replica
from scoreline.generation.shards import Shards
from scoreline.guidance import classifier_free
from scoreline.runtime.distributed import Group
from scoreline.runtime.ray_cluster import RayCluster
from scoreline.schedules.spacings import Power
from scoreline.solvers.adaptive import Adaptive
from scoreline.solvers.ancestral import EulerAncestral
from scoreline.solvers.tableau import build
from scoreline.thresholding import DynamicThreshold

ROOT = Path(__file__).parents[2]
COUNT, CLASSES = 50, 3


class TestDesk:
    def test_ranges_are_the_batches_of_one_process(self) -> None:
        assert Desk([0, 1, 2, 5, 6, 9, 10], 3).ranges == [[0, 1, 2], [5, 6, 9], [10]]
        assert not Desk([], 3).left

    def test_a_worker_holds_two_ranges_and_gets_the_next_when_it_returns_one(self) -> None:
        desk = Desk(range(10), 2)
        assert [desk.next(0), desk.next(0), desk.next(0), desk.next(1)] == [0, 1, None, 2]
        assert desk.returned(0, 0)
        assert [desk.next(0), desk.next(0)] == [3, None]

    def test_ranges_of_a_lost_worker_come_first(self) -> None:
        desk = Desk(range(10), 2)
        taken = [desk.next(0), desk.next(0), desk.next(1)]
        assert desk.returned(0, 0)
        desk.lost(0)
        desk.lost(0)
        assert taken == [0, 1, 2]
        assert [desk.next(1), desk.next(2), desk.next(2), desk.next(3)] == [1, 3, 4, None]

    def test_a_range_counts_once(self) -> None:
        desk = Desk(range(4), 2)
        desk.next(0)
        desk.lost(0)
        desk.next(1)
        assert desk.returned(0, 0), "the lost worker was only slow"
        assert not desk.returned(1, 0)
        assert desk.left == {1}


def test_other_versions_are_refused_in_one_line() -> None:
    with pytest.raises(
        InputError, match=r"^launcher=ray: the worker on \S+ has NUMERICS_VERSION \d+ in place of 0; inst"
    ):
        fleet.refuse_other_versions({**versions(), "NUMERICS_VERSION": "0"})
    with pytest.raises(InputError, match=r"torch .* in place of 1\.0"):
        fleet.refuse_other_versions({**versions(), "torch": "1.0"})
    fleet.refuse_other_versions(versions())


def denoiser(folder: Path) -> Denoising:
    checkpoint = load_model(save_small(folder / "small.safetensors", classes=CLASSES))
    return DynamicThreshold(classifier_free(checkpoint, scale=2.0), 0.995)


def replica(denoising: Denoising, solver: Any = None, batch_size: int = 8) -> Replica:
    tableau = build(solver or EulerAncestral(), Power(7), (10.0, 0.1), 3 if solver is None else 200, "none")
    return Replica(Sampler(denoising, tableau, batch_size, 4), Execution())


def shards(folder: Path, dtype: torch.dtype = torch.uint8) -> Shards:
    return Shards(folder, "stamp", list(range(7, 7 + COUNT)), torch.arange(COUNT) % CLASSES, (1, 8, 8), dtype)


def contents(place: Shards) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in place.folder.iterdir()}


def test_a_worker_returns_the_images_of_the_pickled_replica(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Ray, whose part is one function."""
    work, place = replica(denoiser(tmp_path)), shards(tmp_path / "one")
    content = pickle.dumps(Cargo(work, place.state_shape, place.dtype))
    exceptions = SimpleNamespace(RaySystemError=RuntimeError)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=lambda reference: pickle.loads(content)))
    monkeypatch.setitem(sys.modules, "ray.exceptions", exceptions)
    worker = Worker(weights_digest(work.sampler), versions(), "cpu")
    assert worker.ready(["reference"])
    sampler = work.on(torch.device("cpu"))
    sample_missing(sampler, place, Group())
    index = list(range(8, 16))
    images = worker.images(["reference"], [place.seeds[i] for i in index], place.label(torch.tensor(index)).tolist())
    again = replace(place, folder=tmp_path / "again")
    fleet._write(again, index, images)
    assert contents(again).items() <= contents(place).items()
    with pytest.raises(InputError, match="arrived damaged"):
        fleet._write(again, index, images._replace(digest="0"))
    with pytest.raises(InputError, match="the model arrived damaged"):
        Worker("0", versions(), "cpu").ready(["reference"])


class Mortal(Denoising):
    """Ends its process, outside of this one, in the first call that finds no file `died`."""

    def __init__(self, folder: Path, often: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1), requires_grad=False)
        self.folder, self.often, self.home = folder, often, os.getpid()

    def forward(self, x: torch.Tensor, rho: Any, **condition: Any) -> torch.Tensor:
        return x - float(rho) * self.eps(x, rho)

    def eps(self, x: torch.Tensor, rho: Any, **condition: Any) -> torch.Tensor:
        if os.getpid() != self.home and (self.often or not (self.folder / "died").exists()):
            (self.folder / "died").touch()
            os._exit(1)
        return x * 0.1

    def calls(self, rho: float) -> int:
        return 0


@pytest.fixture(scope="module")
def workers() -> Iterator[Fleet]:
    """Two workers on a cluster of this machine."""
    ray = pytest.importorskip("ray")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # which the workers cannot import
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # which would write a token into the home
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
        yield meet(RayCluster("local", 2), "cpu", 1)
        ray.shutdown()


@pytest.mark.slow
class TestWithRay:
    @pytest.mark.parametrize("kind", ["noise", "adaptive", "float32"])
    def test_two_workers_write_the_shards_of_one_process(self, kind: str, workers: Fleet, tmp_path: Path) -> None:
        solver = Adaptive(rtol=0.1, atol=0.1) if kind == "adaptive" else None
        work = replica(denoiser(tmp_path), solver)
        dtype = torch.float32 if kind == "float32" else torch.uint8
        (tmp_path / "small.safetensors").unlink()  # of which the workers know nothing
        alone, together = shards(tmp_path / "one", dtype), shards(tmp_path / "two", dtype)
        sampled = workers.sample(work, together)
        sample_missing(work.on(torch.device("cpu")), alone, Group())
        assert contents(together) == contents(alone)
        assert (sampled.images, sampled.processes, len(contents(alone))) == (COUNT, 2, 7)
        assert sampled.memory["cpu"] > 0
        assert workers.sample(work, together).images == 0

    def test_a_worker_that_dies_is_replaced(self, workers: Fleet, tmp_path: Path) -> None:
        work = replica(Mortal(tmp_path))
        together, alone = shards(tmp_path / "two"), shards(tmp_path / "one")
        assert workers.sample(work, together).images == COUNT
        assert (tmp_path / "died").exists()
        sample_missing(work.on(torch.device("cpu")), alone, Group())
        assert contents(together) == contents(alone)

    def test_when_all_die_one_line_says_so(
        self, workers: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fleet, "RESTARTS", 0)
        with pytest.raises(InputError, match=r"launcher=ray: all workers are gone; .") as refusal:
            workers.sample(replica(Mortal(tmp_path, often=True)), shards(tmp_path / "two"))
        assert "\n" not in str(refusal.value)

    def test_a_worker_of_another_version_is_refused(
        self, workers: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fleet, "versions", lambda: {**versions(), "NUMERICS_VERSION": "0"})
        with pytest.raises(InputError, match=r"^launcher=ray: the worker on \S+ has NUMERICS_VERSION"):
            workers.sample(replica(denoiser(tmp_path)), shards(tmp_path / "two"))
        assert not list((tmp_path / "two").glob("*"))

    def test_a_worker_without_the_users_code_is_one_line(
        self, workers: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module = ModuleType("at_home")
        monkeypatch.setitem(sys.modules, "at_home", module)
        module.Own = type("Own", (Mortal,), {"__module__": "at_home"})  # type: ignore[attr-defined]
        with pytest.raises(InputError, match=r"No module named 'at_home'.*; install what it needs there"):
            workers.sample(replica(module.Own(tmp_path)), shards(tmp_path / "two"))

    def test_a_driver_that_is_stopped_and_killed_resumes(self, workers: Fleet, tmp_path: Path) -> None:
        save_small(tmp_path / "small.safetensors", classes=CLASSES)
        own = ("checkpoint=small.safetensors", "seeds=0-399", "nfe=20", "device=cpu", "metrics=none", "solver=ddim")
        words = [sys.executable, str(ROOT / "sample.py"), *own, "batch_size=16", "network_batch=8"]
        address = workers.ray.get_runtime_context().gcs_address
        ray = ["launcher=ray", f"launcher.address={address}", "launcher.workers=2", "hydra.run.dir=two"]
        subprocess.run([*words, "hydra.run.dir=one"], cwd=tmp_path, check=True, capture_output=True, timeout=120)
        for number, code in ((signal.SIGUSR1, 75), (signal.SIGKILL, -9)):
            before = kept(tmp_path / "two")
            driver = subprocess.Popen([*words, *ray], cwd=tmp_path)
            until = time.monotonic() + 120
            while kept(tmp_path / "two") < before + 3:
                assert driver.poll() is None
                assert time.monotonic() < until
                time.sleep(0.01)
            driver.send_signal(number)
            assert driver.wait(60) == code
            assert kept(tmp_path / "two") < 25
            assert not (tmp_path / "two/manifest.csv").exists()
        done = subprocess.run([*words, *ray], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=120)
        assert "400 images" in done.stdout
        for name in ("manifest.csv", "samples.npz"):
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def kept(run: Path) -> int:
    return len(list((run / "shards").glob("[0-9]*")))
