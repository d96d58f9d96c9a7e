"""`scoreline doctor`: what it counts is what jobs do, what is missing is found, and nothing is written."""

import io
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from scoreline.checkpoints import load_model, save_model
from scoreline.commands import doctor
from scoreline.commands.composition import built
from scoreline.doctor import assets, disk, forecast, measuring, sampling, training, versions
from scoreline.doctor.findings import Finding, amount, duration, failed, table
from scoreline.doctor.job import composed
from scoreline.doctor.live import peak_bytes
from scoreline.generation import run as generation_run
from scoreline.generation.batches import Sampler, generate
from scoreline.generation.formats import FORMATS
from scoreline.generation.shards import Shards
from scoreline.guidance import Autoguidance
from scoreline.metrics.no_metrics import NoMetrics
from scoreline.processes import Group
from scoreline.run_names import model_path
from scoreline.sampling import count_calls, integrate
from scoreline.schedules.spacings import Power
from scoreline.solvers.adaptive import Adaptive
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.tableau import build

CPU = torch.device("cpu")
GONE = "http://127.0.0.1:9/model.pth"


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORELINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SCORELINE_OFFLINE", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(measuring, "SECONDS", 0.05)
    monkeypatch.setattr(measuring.measure, "__defaults__", (0.05,))


def lines(*words: str) -> dict[str, list[Finding]]:
    script, overrides, quick = doctor.parse(words)
    found: dict[str, list[Finding]] = {}
    for finding in doctor.examined(composed(script, overrides), quick):
        found.setdefault(finding.topic, []).append(finding)
    return found


def only(found: dict[str, list[Finding]], topic: str) -> Finding:
    (finding,) = found[topic]
    return finding


def test_a_job_that_can_be_done_is_all_right_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.main(["sample", "nfe=4", "seeds=0-9", "device=cpu"]) == 0
    told = capsys.readouterr().out
    assert {line.split()[0] for line in told.splitlines()} == {"ok"}
    assert "10 images 1x8x8, NFE 4, 4 network calls of 64 images" in told
    assert f"torch {torch.__version__}" in told
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["work"]


def test_quick_measures_nothing() -> None:
    found = lines("sample", "--quick", "device=cpu")
    assert "time" not in found
    assert "activations not measured" in only(found, "memory").text
    assert "time" in lines("sample", "device=cpu", "seeds=0-1", "network_batch=2")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["smaple"], "smaple: there is no such script; did you mean 'sample'?"),
        (["sample", "--quik"], "--quik: there is no such option; did you mean '--quick'?"),
        (["sample", "nfa=3"], "nfa: there is no such key"),
        (["train", "target=stable"], "target=stable: there is no such choice"),
        (["sample", "schedule=from_file"], "schedule.path: has no default"),
        (["train", "dataset=zip"], "dataset.path: has no default"),
    ],
)
def test_what_is_no_job_is_refused(words: list[str], reason: str) -> None:
    from scoreline.mistakes import explain

    with pytest.raises(Exception) as refused:  # noqa: PT011
        doctor.main(words)
    assert reason in str(explain(refused.value))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["checkpoint=nothing"], "checkpoint=nothing: not there"),
        (["nfe=0"], "nfe=0: must be a whole number"),
        (["seeds=5-2"], "seeds=5-2"),
        (["format=jpeg"], "format=jpeg"),
        (["labels=classes.txt"], "labels=classes.txt: not there; give a file of classes"),
        (["metrics=inception"], "metrics.reference: nothing to compare with"),
        (["metrics=inception", "metrics.reference=m.npz"], "metrics.reference=m.npz: not there; scoreline reference"),
        (["metrics=inception", "metrics.extractor.path=i.pt"], "metrics.extractor.path=i.pt: not there; fetch https"),
        (["guidance=autoguidance", "guidance.checkpoint=g"], "guidance.checkpoint=g: not there"),
        (["solver=deis_sn", "record=r.safetensors"], "solver.scale.path=r.safetensors: not there"),
        (["+dataset@metrics.reference=cifar10"], "metrics.reference.path=data/cifar-10-python.tar.gz: not there"),
    ],
)
def test_what_is_missing_fails(words: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["sample", "--quick", "device=cpu", *words]) == 1
    failures = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fail")]
    assert any(reason in line for line in failures)


def test_a_record_that_the_solver_needs_is_named_with_its_command(tmp_path: Path) -> None:
    checkpoint = load_model(model_path("digits_vp"))
    path = tmp_path / "own" / "model.safetensors"
    save_model(path, checkpoint.denoiser.network.state_dict(), checkpoint.card)
    found = lines("sample", "--quick", f"checkpoint={path.parent}", "schedule=score_optimal")
    missing = next(finding for finding in found["asset"] if finding.status == "fail")
    assert missing.text.startswith(f"schedule.path={path.with_name('model.score_optimal.safetensors')}: not there")
    assert missing.text.endswith(f"python calibrate.py checkpoint={path.parent} calibration=score_optimal")


def test_what_the_job_fetches_itself_is_a_warning_unless_that_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("sample", "--quick", f"checkpoint={GONE}", "model=cifar10_ddpm")
    found = lines(*words)
    assert only(found, "asset").status == "warn"
    assert "scoreline prefetch" in only(found, "asset").text
    assert only(found, "forecast").status == "warn"
    monkeypatch.setenv("SCORELINE_OFFLINE", "1")
    assert only(lines(*words), "asset").status == "fail"
    assert "SCORELINE_OFFLINE forbids" in only(lines(*words), "asset").text


def test_a_device_that_is_not_there_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    found = lines("sample", "device=cuda:7")
    assert only(found, "device").status == "fail"
    assert "device=cuda:7: not available here" in only(found, "device").text
    assert "time" not in found
    if not torch.cuda.is_available():
        assert "trainer=gpu: needs a GPU" in only(lines("train", "--quick", "trainer=gpu"), "device").text


def test_missing_extras_fail_only_where_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(versions.EXTRAS, "tensorboard", ("no_such_module",))
    assert [finding.status for finding in lines("train", "--quick", "trainer=cpu")["extras"]] == ["ok"]
    found = lines("train", "--quick", "trainer=cpu", "logger=tensorboard")["extras"]
    assert (found[0].status, found[0].text) == (
        "fail",
        "this job needs tensorboard: pip install 'scoreline[tensorboard]'",
    )


def test_a_package_that_is_not_installed_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "PACKAGES", ("torch", "no-such-package"))
    assert [finding.status for finding in versions.versions()] == ["ok", "fail"]


def test_folders_are_judged_by_room_and_rights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert disk.judged("run", tmp_path / "a" / "b").status == "ok"
    (tmp_path / "file").touch()
    assert "is a file" in disk.judged("run", tmp_path / "file" / "b").text
    assert disk.judged("run", tmp_path, needed=1e30).status == "fail"
    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert [disk.judged("run", tmp_path, needed=it).status for it in (900, 950, 1001)] == ["ok", "warn", "fail"]
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_favail=10))
    assert [disk.judged("run", tmp_path, files=it).status for it in (10, 11)] == ["ok", "fail"]
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "may not be written to" in disk.judged("run", tmp_path).text


def test_memory_is_judged_by_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "free_memory", lambda device: 1000)
    found = [sampling.judged_memory(total, "", CPU, "batch_size").status for total in (800, 801, 1001)]
    assert found == ["ok", "warn", "fail"]


SOLVERS = ["ddim", "heun", "deis_tab3", "dpmpp_2m", "unipc_3", "edm_stochastic"]


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_states_counted_are_those_that_the_loop_holds(solver: str) -> None:
    cfg = composed("sample", [f"solver={solver}"]).cfg
    checkpoint = load_model(model_path("digits_vp"))
    cfg.model = {"noise_schedule": checkpoint.card.model["noise_schedule"]}
    native = checkpoint.noise_schedule
    run = build(built(cfg.solver), built(cfg.schedule), (native.sigma_max, native.sigma_min), 12, "none")
    x = torch.ones(1000)

    def draw(row: int) -> Tensor:
        return torch.ones(1000)

    with torch.no_grad():
        peak = peak_bytes(lambda: integrate(lambda state, rho: state * 0.5, x, run, draw), CPU)
    assert (forecast.held(run) - 1) * x.nbytes == pytest.approx(peak, abs=x.nbytes)


def test_an_adaptive_run_holds_more_than_its_stages() -> None:
    assert forecast.held(build(Adaptive("RK45"), Power(7.0), (10.0, 0.1), 50, "none")) >= 2 * 7
    assert forecast.held(build(Adaptive("DOP853"), Power(7.0), (10.0, 0.1), 50, "none")) >= 2 * 16


@pytest.mark.parametrize(
    ("images", "batch", "network_batch", "guided"),
    [(7, 5, 2, True), (7, 3, None, False), (4, 4, 8, True), (6, 2, 2, False)],
)
def test_the_calls_counted_are_those_that_are_made(
    images: int, batch: int, network_batch: int | None, guided: bool
) -> None:
    denoiser = load_model(model_path("digits_vp")).denoiser
    guide = load_model(model_path("digits_vp")).denoiser
    main = Autoguidance(denoiser, guide, 2.0, 0.5, 3.0) if guided else denoiser
    run = build(DDIM(), Power(7.0), (10.0, 0.1), 6, "denoise")
    planned = forecast.calls(main, run, images, batch, network_batch)
    seen: list[int] = []
    handle = denoiser.network.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    with count_calls(main) as made:
        list(generate(main, run, (1, 8, 8), range(images), batch, None, network_batch))
    handle.remove()
    assert made.count == planned.network
    assert len(seen) == planned.evaluations
    assert max(seen) == planned.size
    assert (planned.network > planned.evaluations) is guided


def test_live_bytes_are_those_of_a_hand_count() -> None:
    x = torch.ones(1000)

    def compute() -> Tensor:
        y = x * 2
        z = y.reshape(10, 100).t()
        y = z + 1
        del z
        return (y * 3)[:5]

    assert peak_bytes(compute, CPU) == 2 * x.nbytes
    assert peak_bytes(lambda: x.add_(1), CPU) == 0
    assert peak_bytes(lambda: [x + k for k in range(5)], CPU) == 5 * x.nbytes


def test_costs_are_linear_in_images(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    asked: list[int] = []
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: clock.now)

    def call(images: int) -> Tensor:
        asked.append(images)
        clock.now += 0.01 * images
        return torch.empty(1000 * images + 500, dtype=torch.uint8)

    cost = measuring.measure(call, 64, CPU, seconds=3.0)
    assert cost.images == 50
    assert cost.seconds == pytest.approx(0.5)
    assert cost.error == pytest.approx(0, abs=1e-9)
    assert cost.bytes_for(64) == 64500
    assert cost.seconds_for(1000) == pytest.approx((10.0, 0.0), abs=1e-9)
    assert max(asked) <= 64
    assert measuring.measure(call, 8, CPU, seconds=3.0).images == 8


def test_the_error_of_a_time_is_the_standard_error_of_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, steps = SimpleNamespace(now=0.0), iter([1.0, 1.0, 1.0, 1.0, 2.0, 3.0, 4.0] + [0.0] * 50)

    def call(images: int) -> None:
        clock.now += next(steps)

    monkeypatch.setattr(measuring.time, "perf_counter", lambda: clock.now)
    cost = measuring.measure(call, 1, CPU, seconds=6.0)
    assert cost.calls == 4
    assert cost.seconds == pytest.approx(2.5)
    assert cost.error == pytest.approx((5 / 3) ** 0.5 / 2)


@pytest.mark.parametrize("choice", [*FORMATS, "none"])
def test_files_and_bytes_are_those_of_a_run(choice: str, tmp_path: Path) -> None:
    denoiser = load_model(model_path("digits_vp")).denoiser
    run = build(DDIM(), Power(7.0), (10.0, 0.1), 1, "none")
    out, shape, batch = tmp_path / "run", (1, 8, 8), 16
    shards = Shards(out / generation_run.SHARDS, "stamp", list(range(70)), None, shape)
    generation_run.finish(
        Sampler(denoiser, run, batch, batch), shards, generation_run.Outputs(choice, NoMetrics()), Group()
    )
    made = [path for path in out.rglob("*") if path.is_file()]
    kept = sum(path.stat().st_size for path in made if path.parent == shards.folder)
    images = [path for path in made if path.parent != shards.folder]
    block = forecast.BLOCK if choice == "png" else 1
    size = sum(-(-path.stat().st_size // block) * block for path in images)
    expected = forecast.of_samples(choice, 70, shape, batch, labelled=False)
    assert expected.files == len(images) + 3  # config.yaml, metrics.json and the lock
    assert size <= expected.bytes <= size + 20 * forecast.BLOCK + 70 * 2048
    assert kept <= expected.most - expected.bytes <= 1.5 * kept
    folders = {path.parent for path in images if path.parent != out}
    assert forecast.folders(choice, 70) == len(folders)


@pytest.mark.parametrize(
    ("optimiser", "share"),
    [
        (partial(torch.optim.Adam, lr=1e-3), 2),
        (partial(torch.optim.AdamW, lr=1e-3, amsgrad=True), 3),
        (partial(torch.optim.SGD, lr=1e-3), 0),
        (partial(torch.optim.SGD, lr=1e-3, momentum=0.9), 1),
    ],
)
def test_the_state_of_an_optimiser_is_found_by_a_step(optimiser: Callable[..., object], share: float) -> None:
    assert forecast.optimiser_share(optimiser) == share


def test_what_a_training_holds_is_what_its_state_weighs() -> None:
    network = nn.Linear(400, 400, bias=False)
    optimiser = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 400)).sum().backward()
    optimiser.step()
    content = io.BytesIO()
    average = {name: value.clone() for name, value in network.state_dict().items()}
    torch.save({"weights": network.state_dict(), "optimiser": optimiser.state_dict(), "average": average}, content)
    held = forecast.of_training(160_000, 2, 1)
    assert held.weights == held.gradients == held.averages == network.weight.nbytes
    written = forecast.of_checkpoints(held, model_files=1, snapshots=0)
    assert written.bytes - held.weights == pytest.approx(2 * len(content.getvalue()), rel=0.01)
    assert written.most - written.bytes == pytest.approx(len(content.getvalue()) + held.weights, rel=0.01)


def test_a_training_is_forecast() -> None:
    found = lines("train", "trainer=cpu", "batch_size=8", "duration_kimg=0.8")
    whole = load_model(model_path("digits_vp")).denoiser
    numbers = sum(parameter.numel() for parameter in whole.parameters())
    assert f"{numbers:,} parameters" in only(found, "network").text
    assert "100 steps of 8 images" in only(found, "network").text
    assert only(found, "dataset").text.startswith("digits-train: 1,500 images 1x8x8")
    assert "activations" in only(found, "memory").text
    assert " of forward and backward passes on 1 process" in only(found, "time").text
    assert not failed(finding for group in found.values() for finding in group)
    quick = only(lines("train", "--quick", "trainer=cpu", "batch_size=8", "duration_kimg=0.8"), "network")
    assert quick == only(found, "network")


def test_images_that_are_kept_on_the_device_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,500 images of 64 bytes."""
    held = forecast.Training(10, 10, 10, 10)
    monkeypatch.setattr(sampling, "free_memory", lambda device: 96_039)
    found = [
        training.memory(composed("train", ["trainer=cpu", *words]), held, None, CPU)
        for words in ([], ["device_mib=0.09"], ["dataset=zip", "dataset.path=nowhere.zip"])
    ]
    assert [finding.status for finding in found] == ["fail", "ok", "ok"]
    assert "images 93.8 KiB" in found[0].text
    assert found[0].text.endswith("lower micro_batch, device_mib")
    assert "images" not in found[1].text
    assert "images not counted" in found[2].text


def test_a_size_that_is_fitted_later_does_not_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "free_memory", lambda device: 1)
    found = only(lines("sample", "--quick", "network_batch=auto", "device=cpu"), "memory")
    assert found.status == "ok"
    assert found.text.startswith("at most ")
    assert "network_batch=auto takes fewer images where that does not fit" in found.text


def test_images_that_do_not_fit_the_network_fail() -> None:
    job = composed("train", ["trainer=cpu", "model.network.resolution=16"])
    found = training.data(job)
    assert found is not None
    assert found.status == "fail"
    assert "model.network.resolution=16" in found.text


def test_averages_and_processes_of_a_training_are_counted() -> None:
    words = ["trainer=ddp_cpu", "trainer.devices=2", "ema.half_life_kimg=[5,10]", "ema.post_hoc=[0.05,0.1]"]
    job = composed("train", [*words, "batch_size=64", "micro_batch=20"])
    held = training.expected(job, training.denoiser(job, quick=True))
    assert held.averages == 4 * held.weights
    assert (training.processes(job), training.micro_batch(job)) == (2, 20)


def test_a_calibration_that_is_more_than_its_run_is_not_forecast() -> None:
    assert only(lines("calibrate", "--quick", "calibration=search"), "forecast").status == "warn"
    assert "1,000 network calls" in only(lines("calibrate", "--quick"), "network").text


def test_a_table_lines_up_and_knows_failure() -> None:
    found = [Finding("ok", "a", "x"), Finding("warn", "long", "y")]
    assert table(found) == "ok    a     x\nwarn  long  y"
    assert not failed(found)
    assert failed([*found, Finding("fail", "b", "")])


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**30, "1 GiB"), (3 * 2**40, "3 TiB")]
)
def test_amounts(count: float, shown: str) -> None:
    assert amount(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.25, "0.25 s"), (45, "45 s"), (600, "10 min"), (7200, "2 h"), (432000, "5 days")]
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_names_on_the_hub_are_told_from_paths(tmp_path: Path) -> None:
    node = composed("train", ["dataset=celeba64"]).cfg.dataset
    for path, place in (("owner/name", None), ("./a/b", Path("a/b")), ("data/faces.zip", Path("data/faces.zip"))):
        node.path = path
        (found,) = assets.dataset("dataset", node)
        assert found.place == place
    assert replace(found, place=tmp_path).there
    assert replace(found, place=None).there is None
