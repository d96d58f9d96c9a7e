"""How networks are run changes their arithmetic, never what is computed or counted."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scoreline.checkpoints import load_model
from scoreline.config.run_names import model_path
from scoreline.denoiser import Denoiser
from scoreline.errors import InputError
from scoreline.execution import MODES, Execution
from scoreline.generation.auto_batch import MOST, largest_batch, memory_limit
from scoreline.generation.batches import Batch, Sampler, generate
from scoreline.generation.cuda_graphs import Replayed, recorder
from scoreline.guidance import Autoguidance
from scoreline.parameterisations import VarianceExploding
from scoreline.runtime.cores import threads_of, usable_cores
from scoreline.runtime.threads import beside, in_order
from scoreline.sampling import count_calls
from scoreline.schedules.spacings import Power
from scoreline.solvers.adaptive import Adaptive
from scoreline.solvers.ancestral import EulerAncestral
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.deis import DEIS
from scoreline.solvers.tableau import build
from scoreline.values import COMPILE, PRECISION

CPU = torch.device("cpu")
SHAPE = (1, 8, 8)
SPAN = (10.0, 0.1)


def digits() -> Denoiser:
    return load_model(model_path("digits_vp")).denoiser


def table(solver: object = None, nfe: int = 6):
    return build(solver or DDIM(), Power(7.0), SPAN, nfe, "none")


def x_of(batches: Iterator[Batch]) -> Tensor:
    return torch.cat([batch.x for batch in batches])


@pytest.mark.parametrize("solver", [DDIM(), EulerAncestral()], ids=["ddim", "ancestral"])
@pytest.mark.parametrize(("batch", "size"), [(5, 4), (3, 8), (50, 4), (7, 7)])
def test_threads_change_no_bit_and_no_order(solver: object, batch: int, size: int) -> None:
    model, run, labels = digits(), table(solver), None
    alone = list(generate(model, run, SHAPE, range(30), batch, labels, size))
    several = list(generate(model, run, SHAPE, range(30), batch, labels, size, threads=3))
    assert [one.seeds for one in several] == [one.seeds for one in alone]
    assert [len(one.seeds) for one in alone] == [batch] * (30 // batch) + [30 % batch] * (30 % batch > 0)
    assert torch.equal(x_of(iter(several)), x_of(iter(alone)))


def test_threads_work_at_the_same_time() -> None:
    """Three units must meet at a barrier, which one thread alone would never pass."""
    meeting = threading.Barrier(3, timeout=30)

    class Meeting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
            meeting.wait()
            return x * self.weight

    model = Denoiser(Meeting(), VarianceExploding())
    done = list(generate(model, table(nfe=2), SHAPE, range(6), 2, None, 2, threads=3))
    assert [batch.network_calls for batch in done] == [2, 2, 2]


def test_calls_are_counted_in_each_thread_apart() -> None:
    model = digits()
    guided = Autoguidance(model, digits(), 2.0, 0.5, 3.0)
    run = table(nfe=5)
    one, three = (list(generate(guided, run, SHAPE, range(20), 4, None, 4, threads=threads)) for threads in (1, 3))
    assert {batch.network_calls for batch in one} == {batch.network_calls for batch in three}
    assert 5 < one[0].network_calls < 10
    with count_calls(model) as calls:
        elsewhere = threading.Thread(target=lambda: model(torch.zeros(1, *SHAPE), 1.0))
        elsewhere.start()
        elsewhere.join()
        assert calls.count == 0
        model(torch.zeros(1, *SHAPE), 1.0)
    assert calls.count == 1


def test_an_abandoned_run_stops_its_threads() -> None:
    calls: dict[int, int] = {}
    second, gate = threading.Event(), threading.Event()
    labels = torch.tensor([0, 0, 1, 1, 2, 2])

    class Gated(nn.Module):
        """The first unit goes through; the others wait within their second call."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
            assert label is not None
            unit = int(label[0])
            calls[unit] = calls.get(unit, 0) + 1
            if unit > 0 and calls[unit] == 2:
                if unit == 1:
                    second.set()
                assert gate.wait(30)
            return x * self.weight

    batches = generate(Denoiser(Gated(), VarianceExploding()), table(nfe=5), SHAPE, range(6), 2, labels, 2, threads=2)
    next(batches)
    assert second.wait(30)
    batches.close()
    gate.set()
    for worker in threading.enumerate():
        if worker.name.startswith("scoreline"):
            worker.join(30)
    assert (calls[0], calls[1]) == (5, 2)
    assert calls.get(2, 0) <= 2


def test_an_error_in_a_thread_keeps_its_place() -> None:
    def work(number: int) -> int:
        if number == 3:
            raise ZeroDivisionError("three")
        return number

    for threads in (1, 2):
        found = in_order(work, range(9), threads)
        assert [next(found) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ZeroDivisionError, match="three"):
            next(found)


def test_items_are_read_little_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            taken.append(number)
            yield number

    for number in in_order(lambda value: value, items(), 3):
        assert len(taken) <= number + 5
    assert len(taken) == 20


def test_writers_finish_when_the_loop_fails() -> None:
    kept: list[int] = []

    def items() -> Iterator[int]:
        yield from range(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        beside(kept.append, items(), 2)
    assert sorted(kept) == [0, 1, 2]
    with pytest.raises(TypeError):
        beside(lambda value: value + "", range(3), 2)


def exact(model: Denoiser, count: int) -> Tensor:
    """The same images in float64."""
    model.network.double()
    found = x_of(generate(model, table(), SHAPE, range(count), count, None, count))
    model.network.float()
    return found


@pytest.mark.parametrize(
    ("execution", "rms"),
    [
        (Execution(), 3e-6),
        (Execution(channels_last=True), 3e-6),
        (Execution(precision="bf16-mixed"), 0.05),
        (Execution(precision="bf16-mixed", channels_last=True), 0.05),
    ],
    ids=str,
)
def test_images_move_by_the_rounding_that_was_chosen(execution: Execution, rms: float) -> None:
    truth = exact(digits(), 16)
    model = digits()
    execution.apply(model)
    found = x_of(generate(model, table(), SHAPE, range(16), 16, None, 16))
    assert found.dtype == torch.float32
    distance = float((found - truth).square().mean().sqrt())
    assert 0 < distance < rms
    if execution.precision != "32-true":
        assert distance > 1e-4


def test_autocast_reaches_convolutions_only() -> None:
    seen: dict[str, list[torch.dtype]] = {"conv": [], "label": [], "input": []}
    model = digits()
    network = model.network
    network.stem.register_forward_hook(lambda module, given, found: seen["conv"].append(found.dtype))
    network.register_forward_pre_hook(lambda module, given: seen["label"].append(given[1].dtype))
    network.register_forward_pre_hook(lambda module, given: seen["input"].append(given[0].dtype))
    Execution(precision="bf16-mixed").apply(model)
    list(generate(model, table(nfe=2), SHAPE, range(2), 2))
    assert set(seen["conv"]) == {torch.bfloat16}
    assert set(seen["label"]) == set(seen["input"]) == {torch.float32}


@pytest.mark.parametrize("seeds", [[4, 5, 6], [29], range(30)])
def test_images_belong_to_their_seeds_with_channels_last(seeds: Sequence[int]) -> None:
    """Other batches, neighbours, padding and threads: the same bits, of one process or of several that share seeds."""
    model = digits()
    Execution(channels_last=True).apply(model)
    whole = x_of(generate(model, table(), SHAPE, range(30), 30, None, 8))
    part = x_of(generate(model, table(), SHAPE, seeds, 5, None, 8, threads=2))
    assert torch.equal(part, whole[list(seeds)])


def test_channels_last_reaches_the_weights_and_the_activations() -> None:
    model = digits()
    Execution(channels_last=True).apply(model)
    strides: list[bool] = []
    model.network.head.register_forward_pre_hook(
        lambda module, given: strides.append(given[0].is_contiguous(memory_format=torch.channels_last))
    )
    list(generate(model, table(nfe=2), SHAPE, range(2), 2))
    assert strides == [True, True]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_network_is_counted_and_agrees(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a process of its own: the compiler leaves threads and caches behind."""
    program = """
import torch
from scoreline.checkpoints import load_model
from scoreline.config.run_names import model_path
from scoreline.execution import Execution
from scoreline.generation.batches import generate
from scoreline.networks.unet import UNet
from scoreline.denoiser import Denoiser
from scoreline.parameterisations import EDMPreconditioning
from scoreline.schedules.spacings import Power
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.tableau import build
torch.set_num_threads(1)
torch.manual_seed(0)
network = UNet(channels=1, resolution=8, width=8, multipliers=(1,), blocks=1).eval()
torch.nn.init.normal_(network.head.weight, std=0.1)
model = Denoiser(network, EDMPreconditioning())
run = build(DDIM(), Power(7.0), (10.0, 0.1), 4, "none")
def images(threads):
    return torch.cat([batch.x for batch in generate(model, run, (1, 8, 8), range(12), 4, None, 4, threads=threads)])
plain = images(1)
Execution(compile="default").apply(model)
import torch._dynamo.utils as utils
compiled = images(2)
frames = utils.counters["stats"]["unique_graphs"]
again = images(1)
assert torch.equal(compiled, again)
assert frames == utils.counters["stats"]["unique_graphs"] == 1, utils.counters
print(float((compiled - plain).abs().max() / plain.abs().max()))
"""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) < 1e-5
    written = [path.read_text() for path in tmp_path.rglob("*.cpp")]
    assert any("gil_scoped_release" in text for text in written), "threads would wait for each other's kernels"


def rerun(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A recording without a GPU: computed once for its memory, then again into it."""
    place = function().clone()
    return lambda: place.copy_(function())


def replayed(function: Callable[..., Tensor], examples: Sequence[Tensor]) -> Replayed:
    return Replayed(function, examples, rerun)


def test_a_recording_is_fed_by_copies() -> None:
    seen: list[int] = []
    model, run = digits(), table(DEIS(3, Power(7.0)))
    plain = list(Sampler(model, run, 4, 4).batches(SHAPE, range(10)))
    handle = model.network.register_forward_pre_hook(lambda module, given: seen.append(1))
    made: list[int] = []

    def record(function: Callable[..., Tensor], examples: Sequence[Tensor]) -> Replayed:
        made.append(len(examples))
        return replayed(function, examples)

    told: list[float] = []
    found = list(Sampler(model, run, 4, 4, record=record).batches(SHAPE, range(10), progress=told.append))
    handle.remove()
    assert made == [1]
    assert sum(told) == pytest.approx(10)
    assert torch.equal(x_of(iter(found)), x_of(iter(plain)))
    assert [(batch.nfe, batch.network_calls) for batch in found] == [(6, 6)] * 3
    assert [len(batch.seeds) for batch in found] == [4, 4, 2]


def test_recordings_are_refused_where_they_would_lie() -> None:
    with pytest.raises(InputError, match=r"^graphs=true: needs a CUDA GPU, device is cpu; use graphs=false$"):
        recorder(True, CPU, table())
    for run in (table(EulerAncestral()), build(Adaptive("RK45"), Power(7.0), SPAN, 99, "none")):
        with pytest.raises(InputError, match="graphs=true: a recording cannot draw noise"):
            recorder(True, torch.device("cuda"), run)
    assert recorder(False, CPU, table()) is None
    assert recorder(True, torch.device("cuda"), table()) is Replayed
    sampler = Sampler(digits(), table(EulerAncestral()), 2, 64, record=lambda f, given: Replayed(f, given, rerun))
    with pytest.raises(ValueError, match="draws noise"):
        list(sampler.batches(SHAPE, range(2)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"precision": "bf16"}, "precision=bf16: there is no such choice"),
        ({"compile": True}, "compile=True: there is no such choice"),
        ({"compile": "defualt"}, "compile=defualt: there is no such choice"),
        ({"channels_last": 1}, "channels_last=1: must be true or false"),
    ],
)
def test_unknown_choices_are_named(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(InputError) as told:
        Execution(**arguments)  # type: ignore[arg-type]
    assert str(told.value).startswith(words)


def test_choices_of_the_compiler_are_torchs() -> None:
    assert PRECISION["32-true"] is None
    assert COMPILE["none"] is None
    for mode, options in MODES.items():
        of_torch = torch._inductor.list_mode_options(mode)
        assert options == {key: value for key, value in of_torch.items() if "cudagraphs" not in key}


def test_cores_are_those_that_were_allowed() -> None:
    assert usable_cores({"OMP_NUM_THREADS": "3"}) == 3
    assert usable_cores({}) == len(os.sched_getaffinity(0))
    assert usable_cores({"OMP_NUM_THREADS": "no"}) == usable_cores({})
    assert threads_of(5) == 5
    assert threads_of("auto") == usable_cores()
    for wrong in (0, True, "many", 1.5):
        with pytest.raises(InputError, match=f"threads={wrong}: must be auto or a whole number"):
            threads_of(wrong)


def test_the_largest_fitting_call_is_a_power() -> None:
    def call(images: int) -> Tensor:
        return torch.zeros(images, 1000, dtype=torch.uint8) + 1

    each = 2000
    for limit, size in ((each * 33, 32), (each * 31.9, 16), (each * 1e6, MOST["cpu"]), (each, 1)):
        assert largest_batch(call, limit, CPU, 50_000) == size
    for images, size in ((1, 64), (64, 64), (511, 64), (512, 128), (1023, 128), (1024, 256), (50_000, 256)):
        assert largest_batch(call, each * 1e6, CPU, images) == size
    with pytest.raises(InputError, match="network_batch=auto: one image takes 0 MiB of activations"):
        largest_batch(call, each - 1, CPU, 50_000)


def test_a_limit_is_given_or_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from scoreline.generation import auto_batch as module

    assert memory_limit(3.0, CPU) == 3 * 2**20
    monkeypatch.setattr(module, "free_memory", lambda device: 1000)
    assert memory_limit(None, CPU) == 800
    monkeypatch.setattr(module, "free_memory", lambda device: None)
    with pytest.raises(InputError, match="memory_mib: this system does not report"):
        memory_limit(None, CPU)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_kept_memory_is_not_mapped_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Page faults of the same work in a process of its own; a threshold that is set does not adapt."""
    program = """
import resource, torch
from scoreline.runtime.memory import keep_freed_memory
torch.set_num_threads(1)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2_000_000).add(1).sum()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
plain = faults()
agreed = keep_freed_memory()
faults()
print(agreed, plain, faults())
"""
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    agreed, plain, kept = done.stdout.split()
    assert agreed == "True"
    assert int(plain) > 20 * 2 * 8_000_000 / 2**21  # two blocks each time, even in pages of 2 MiB
    assert int(kept) < int(plain) / 10
