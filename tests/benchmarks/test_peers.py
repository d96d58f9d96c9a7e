"""The benchmark beside peers, at tiny sizes, with diffusers only."""

import importlib.util
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scoreline.denoiser import Denoiser
from scoreline.execution import Execution
from scoreline.parameterisations import EDMPreconditioning
from scoreline.solvers.dpm_multistep import DPMMultistep
from scoreline.solvers.tableau import build_tableau

if importlib.util.find_spec("diffusers") is None:
    pytest.skip("needs the extra `diffusers`", allow_module_level=True)
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from peers import clones, command, diffusers_vp, models, tables
from peers.chosen import CLONES, pairs_of
from peers.modes import CORES, MODES
from peers.pairs import Missing, Pair, Preconditioned, compared, counted, images
from peers.timing import forward, spread
from peers.workers import Job, Turn, Worker

# diffusers under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

SEEDS = [0, 1, 2]
KEY = ("diffusers", "DDIMScheduler")


@pytest.fixture(scope="module")
def model() -> models.Model:
    return models.digits(tiny=True)


@pytest.fixture(scope="module")
def pairs(model: models.Model) -> dict[str, Pair]:
    return {pair.method: pair for pair in diffusers_vp.pairs(model, 10) if isinstance(pair, Pair)}


def test_both_sides_call_the_network_equally_often(model: models.Model, pairs: dict[str, Pair]) -> None:
    assert len(pairs) == 8
    for pair in pairs.values():
        with counted(model.denoiser.network) as theirs:
            pair.theirs(model.denoiser, model.latents(SEEDS))
        with counted(model.denoiser.network) as ours:
            images(model, pair.run, SEEDS)
        assert len(theirs) == len(ours) == pair.nfe
    assert {pair.method: pair.nfe for pair in pairs.values() if pair.nfe != 10} == {"HeunDiscreteScheduler": 9}


def test_their_ends_are_ours(model: models.Model, pairs: dict[str, Pair]) -> None:
    """Rounding is larger where noise is removed in few long steps, as by Heun's method."""
    assert compared(model, pairs["DDIMScheduler"], SEEDS) < 1e-5
    assert max(compared(model, pair, SEEDS) for pair in pairs.values()) < 1e-4


def test_edm_schedulers() -> None:
    model = models.ddpmpp(tiny=True)
    found, missing = pairs_of(model, 10, None)
    assert len(found) == 3
    assert len(missing) == len(CLONES)
    assert max(compared(model, pair, [0]) for pair in found) < 1e-5


def test_a_wrong_pair_shows(model: models.Model, pairs: dict[str, Pair]) -> None:
    euler = pairs["DDIMScheduler"]
    other = build_tableau(DPMMultistep(2, "data"), model.spacing, model.ends, 10, "none")
    assert compared(model, replace(euler, run=other), SEEDS) > 1e-2
    shorter = build_tableau(DPMMultistep(2, "data"), model.spacing, model.ends, 9, "none")
    with pytest.raises(RuntimeError, match="called the network 10 times and ddim 9 times; the pair says 10"):
        compared(model, replace(euler, run=shorter), SEEDS)


def test_betas_give_the_levels_back(model: models.Model) -> None:
    levels = model.levels(10)
    abar = (1 - torch.tensor(diffusers_vp.betas(levels), dtype=torch.float64)).cumprod(0)
    torch.testing.assert_close(((1 - abar) / abar).sqrt().flip(0), levels, rtol=1e-11, atol=0)


@pytest.mark.parametrize("sigma", [torch.tensor(2.0), torch.tensor([2.0]), torch.tensor([2.0, 0.5, 40.0])])
@pytest.mark.parametrize("edm", [False, True])
def test_the_denoiser_that_peers_call(model: models.Model, sigma: Tensor, edm: bool) -> None:
    parameterisation = EDMPreconditioning() if edm else model.denoiser.parameterisation
    denoiser = Denoiser(model.denoiser.network, parameterisation)
    x = 2 * model.latents(SEEDS).double()
    found = Preconditioned(denoiser)(x, sigma)
    assert found.dtype == torch.float32
    expected = denoiser(x, sigma.double().expand(3))
    torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=2e-5)


def test_bare_calls_are_counted(model: models.Model) -> None:
    with counted(model.denoiser.network) as calls:
        forward(model.denoiser, model.latents(SEEDS), 4)
    assert len(calls) == 4


def test_printed_tables() -> None:
    """Without clones, without modes: one table, whose rows without numbers say why."""
    printed: list[str] = []
    words = ["--model", "digits", "--batch", "2", "--rounds", "1", "--modes", "--nfe", "4"]
    command.main(words, printed.append)
    rows = [line.split(" | ") for line in "\n".join(printed).splitlines() if line.startswith("| ")]
    assert "digits_vp, 0.30 M weights, 2 images of (1, 8, 8) a call" in printed[1]
    assert [row[-1].strip(" |") for row in rows if row[1] == "all"] == [
        f"no clone of {peer.REPOSITORY} (--peers)" for peer in CLONES
    ]
    assert sum(row[3] in ("3", "4") for row in rows) == 8
    assert printed[-1].startswith("\nFastest peer: diffusers ")


def test_chosen_rows() -> None:
    printed: list[str] = []
    words = ["--model", "digits", "--batch", "1", "--rounds", "1", "--modes", "--only", "DDIM", "Euler", "--nfe", "4"]
    command.main(words, printed.append)
    rows = [line.split(" | ")[1] for line in printed[2].splitlines() if line.startswith("| diffusers")]
    assert rows == ["DDIMScheduler", "EulerDiscreteScheduler", "PNDMScheduler"]
    command.main([*words, "--against", "no such row"], printed.append)
    assert printed[-1].startswith("| peer |")


def test_rows_and_the_fastest(model: models.Model, pairs: dict[str, Pair]) -> None:
    """It is the least of theirs over bare; an odd number of calls does not compete unless it is asked for."""
    slow, fast, odd = (pairs[name] for name in ("DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"))
    rows = [
        tables._row(pair, 0.0, 6, [[1.0, 1.0, 1.0], [t, 3 * t, t], [0.5, 0.5, 0.5]])
        for pair, t in ((slow, 2.0), (fast, 1.5), (odd, 1.0))
    ]
    assert (rows[0].theirs.median, rows[0].ours.median, rows[0].gain.median) == (3.0, 12.0, 4.0)
    assert (rows[0].theirs_over_bare.median, rows[0].ours_over_bare.median) == (2.0, 0.5)
    assert tables.fastest(rows, 10) is rows[1]
    assert tables.fastest(rows, 10, "Heun") is rows[2]
    assert tables.fastest(rows, 12) is None
    lost = tables.pairs_table(rows, [Missing("DEIS", "th_deis", "no jax")])[-1]
    assert lost.startswith("| DEIS | th_deis | - |")
    assert lost.endswith("| no jax |")


def test_spread() -> None:
    assert spread([3.0, 1.0, 2.0, 5.0, 4.0]) == (3.0, 1.0, 5.0)
    assert spread([7.0]) == (7.0, 0.0, 7.0)


def test_turns_rotate() -> None:
    asked: list[str] = []

    def worker(side: str) -> Turn:
        asked.append(side)
        return Turn(2.0, 6)

    assert tables.in_turns([(worker, side) for side in tables.SIDES], 2) == [[3.0, 3.0]] * 3
    assert asked == ["bare", "theirs", "ours", "theirs", "ours", "bare"]


@pytest.fixture(scope="module")
def job() -> Job:
    return Job("digits", True, "cpu", None, 4, 2, KEY, "plain")


def test_modes_in_processes(job: Job) -> None:
    """Our side in a mode of several threads computes a batch for each, as large as the card says; a peer one of two."""
    with Worker(replace(job, mode="sample.py")) as worker:
        turns = {side: worker(side) for side in tables.SIDES}
    both = 128 * CORES
    assert {side: turn.images for side, turn in turns.items()} == {"bare": both, "theirs": 2, "ours": both}
    assert min(turn.seconds for turn in turns.values()) > 0


def test_table_of_modes_and_steady_run(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    class Fake:
        """Two images a turn; plain mode takes 4 s, others 1 s, our side half of that."""

        def __init__(self, job: Job) -> None:
            self.job = job
            made.append(job.mode)

        def __call__(self, side: str) -> Turn:
            return Turn((4.0 if self.job.mode == "plain" else 1.0) / (2 if side == "ours" else 1), 2)

        def __enter__(self) -> "Fake":
            return self

        def __exit__(self, *_: object) -> None:
            made.remove(self.job.mode)

    monkeypatch.setattr(tables, "Worker", Fake)
    rows = [line.strip("| ").split(" | ") for line in tables.modes_table(job, ["plain", "layout"], 3)[2:]]
    values = [[float(cell.split()[0]) for cell in row[1:]] for row in rows]
    assert [row[0] for row in rows] == ["plain", "layout"]
    assert values == [[0.5, 0.5, 1.0, 0.5, 2.0, 2.0], [2.0, 2.0, 4.0, 0.5, 2.0, 8.0]]
    steady = [line.strip("| ").split(" | ") for line in tables.steady_table(job, "layout", 6.0)[2:]]
    assert [row[1:] for row in steady] == [["4", "8.0", "0.5", "1666.7"], ["24", "6.0", "4.0", "208.3"]]
    assert made == []


def test_a_mode_leaves_the_model_alone(model: models.Model) -> None:
    before = model.denoiser.network.stem.weight.stride()
    prepared = MODES["layout"].apply(model)
    assert MODES["layout"].execution == Execution(channels_last=True)
    assert model.denoiser.network.stem.weight.stride() == before
    assert prepared.network.decoder[0].conv0.weight.is_contiguous(memory_format=torch.channels_last)


def test_the_mode_of_sample_py_follows_the_card(model: models.Model) -> None:
    emoji = models.emoji32(tiny=True)
    assert [MODES["sample.py"].images(one, 2) for one in (model, emoji)] == [128, 16]
    assert MODES["sample.py"].apply(emoji).network.head.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_line_for_each_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "digits", "--batch", "1", "--rounds", "2", "--modes", "--only", "DDIM", "--nfe", "4"]
    command.main(words, list[str]().append)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("] ")[2].partition(":")[0] for line in lines] == [
        f"round {number}/2, diffusers DDIMScheduler" for number in (1, 2)
    ]


def test_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    tiny = command.arguments(["--self-check", "--device", "cuda"])
    assert (tiny.model, tiny.batch, tiny.device) == (sorted(models.MODELS), [2], "cpu")
    quick = command.arguments(["--quick"])
    assert (quick.rounds, quick.only, quick.modes) == (3, list(command.QUICK), ["plain", "sample.py"])
    for words, reason in ((["--modes", "graphs"], "need --device cuda"), (["--nfe", "3"], "at least 4")):
        with pytest.raises(SystemExit):
            command.arguments(words)
        assert reason in capsys.readouterr().err


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Path]:
    """A peer's clone: a package whose __init__ fails, and a module that imports what is not installed."""
    package = tmp_path / "owner+peer" / "peer_code"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('not to be run')")
    (package / "helper.py").write_text("def double(x):\n    return 2 * x\n")
    lines = ["import math", "import not_there", "from not_there.deep import function", "from . import helper"]
    (package / "solver.py").write_text("\n".join([*lines, "def solve(x):", "    return helper.double(x)", ""]))
    yield tmp_path
    assert not any(name.startswith(("peer_code", "not_there")) for name in sys.modules)


def test_code_of_clones(clone: Path) -> None:
    path = clones.clone(clone, "owner/peer")
    assert path == clone / "owner+peer"
    assert clones.revision(path) == "unknown"
    before = list(sys.path)
    module = clones.load(path, "peer_code.solver", ("not_there", "not_there.deep"), package=True)
    assert module.solve(21) == 42
    assert module.math is math
    with pytest.raises(ImportError, match=r"not_there\.deep\.function is not installed"):
        module.function()
    with pytest.raises(ImportError, match="not_there"):
        clones.load(path, "peer_code.solver", package=True)
    with pytest.raises(ImportError, match="not to be run"):
        clones.load(path, "peer_code.solver")
    assert sys.path == before


def test_clones_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "peer").mkdir()
    assert clones.clone(tmp_path, "owner/peer") == tmp_path / "peer"
    assert clones.clone(tmp_path, "owner/other") is None
    assert clones.clone(None, "owner/peer") is None
