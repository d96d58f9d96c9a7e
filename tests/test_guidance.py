"""Guidance against mixtures whose conditional and unconditional denoisers are known exactly."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from images import images_of
from omegaconf import OmegaConf
from torch import Tensor, nn

from scoreline.checkpoints import Card, Checkpoint, load_model, save_model
from scoreline.config import calibrate_config, compose, run_names, sample_config
from scoreline.config.conf_folder import compose_config
from scoreline.denoiser import Denoiser
from scoreline.errors import InputError
from scoreline.generation.batches import generate
from scoreline.generation.labels import plan_labels
from scoreline.guidance import Autoguidance, ClassifierFree, autoguidance, classifier_free
from scoreline.networks.exact import GaussianMixture
from scoreline.networks.unet import UNet
from scoreline.parameterisations import EDMPreconditioning, NoisePrediction, VarianceExploding
from scoreline.records import load_record
from scoreline.schedules.spacings import Polynomial, Power
from scoreline.schedules.vp import LinearVP
from scoreline.scripts import calibrate
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.deis import DEIS
from scoreline.solvers.learned import Learned
from scoreline.solvers.runge_kutta import heun
from scoreline.solvers.tableau import build
from scoreline.thresholding import DynamicThreshold

VP = LinearVP()
SAMPLE = Path(__file__).parents[1] / "sample.py"
GENERATOR = torch.Generator().manual_seed(3)
CLASSES = [
    GaussianMixture(
        torch.randn(2, 4, dtype=torch.float64, generator=GENERATOR),
        torch.tensor(stds, dtype=torch.float64),
        torch.tensor(weights, dtype=torch.float64),
    )
    for stds, weights in (((0.5, 0.3), (0.35, 0.65)), ((0.2, 0.7), (0.8, 0.2)))
]
TOGETHER = GaussianMixture(*(torch.cat([getattr(c, part) for c in CLASSES]) for part in ("means", "stds", "weights")))
LABELS = torch.tensor([0, 1, 1, 0, 1])
SOLVERS = [DDIM(), heun(), DEIS(3, VP)]


class Exact(nn.Module):
    """F = -eps, the right network under `VarianceExploding`: of the class where labelled, of all classes where not."""

    def __init__(self) -> None:
        super().__init__()
        self.precision = nn.Parameter(torch.zeros((), dtype=torch.float64), requires_grad=False)
        self.seen: list[tuple[float, bool]] = []

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        rho = 2 * noise.exp()
        self.seen.append((float(rho[0]), label is not None))
        models = [TOGETHER] * len(x) if label is None else [CLASSES[k] for k in label.tolist()]
        rows = [m.eps(row[None], float(r)) for m, row, r in zip(models, x.flatten(1), rho, strict=True)]
        return -torch.cat(rows).view_as(x)


def exact() -> Denoiser:
    return Denoiser(Exact(), VarianceExploding())


def conditional(form: str, x: Tensor, rho: float) -> Tensor:
    flat = x.flatten(1)
    return torch.cat([getattr(CLASSES[k], form)(flat[i : i + 1], rho) for i, k in enumerate(LABELS)]).view_as(x)


def unconditional(form: str, x: Tensor, rho: float) -> Tensor:
    return getattr(TOGETHER, form)(x.flatten(1), rho).view_as(x)


def states(rho: float = 1.0) -> Tensor:
    noise = torch.randn(5, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return noise * (1 + rho**2) ** 0.5


@pytest.mark.parametrize("rho", [0.01, 0.7, 40.0])
@pytest.mark.parametrize("scale", [-0.5, 0.0, 0.4, 1.0, 3.0])
def test_classifier_free_is_its_formula(rho: float, scale: float) -> None:
    x, guided = states(rho), ClassifierFree(exact(), scale)
    for form, evaluate in (("denoise", guided), ("eps", guided.eps)):
        strong, weak = conditional(form, x, rho), unconditional(form, x, rho)
        assert float((strong - weak).abs().max()) > 1e-4
        torch.testing.assert_close(
            evaluate(x, rho, label=LABELS), weak + scale * (strong - weak), rtol=1e-9, atol=1e-10
        )


def test_scales_one_and_zero_are_the_branches() -> None:
    x, plain = states(), exact()
    one, zero = ClassifierFree(plain, 1.0), ClassifierFree(plain, 0.0)
    for form in ("forward", "eps"):
        strong, weak = (getattr(plain, form)(x, 0.7, label=label) for label in (LABELS, None))
        assert torch.equal(getattr(one, form)(x, 0.7, label=LABELS), strong)
        assert torch.equal(getattr(zero, form)(x, 0.7, label=LABELS), weak)
    assert (one.calls(0.7), zero.calls(0.7)) == (1, 2)


def test_eps_keeps_its_accuracy_at_small_rho() -> None:
    rho, x = 1e-4, states().float()
    strong, weak = (model("eps", x.double(), rho) for model in (conditional, unconditional))
    truth, guided = weak + 3 * (strong - weak), ClassifierFree(exact(), 3.0)
    error = float((guided.eps(x, rho, label=LABELS).double() - truth).abs().max())
    naive = float((((x - guided(x, rho, label=LABELS)) / rho).double() - truth).abs().max())
    assert error < 1e-6
    assert naive > 1e-4


@pytest.mark.parametrize(("rho", "inside"), [(0.5, False), (0.5000001, True), (2.0, True), (2.0000001, False)])
def test_the_interval_is_open_below_and_closed_above(rho: float, inside: bool) -> None:
    plain = exact()
    guided, x = ClassifierFree(plain, 3.0, 0.5, 2.0), states()
    full = ClassifierFree(plain, 3.0)
    for form in ("forward", "eps"):
        wanted = getattr(full if inside else plain, form)(x, rho, label=LABELS)
        assert torch.equal(getattr(guided, form)(x, rho, label=LABELS), wanted)
    assert guided.calls(rho) == 1 + inside


def test_one_level_per_image() -> None:
    rho = torch.tensor([0.4, 0.6, 1.0, 2.0, 2.5], dtype=torch.float64)
    guided, x = ClassifierFree(exact(), 3.0, 0.5, 2.0), states()
    for form in ("forward", "eps"):
        single = [getattr(guided, form)(x[i : i + 1], float(r), label=LABELS[i : i + 1]) for i, r in enumerate(rho)]
        together = getattr(guided, form)(x, rho, label=LABELS)
        torch.testing.assert_close(together, torch.cat(single), rtol=1e-12, atol=1e-13)


def test_autoguidance_by_a_model_that_predicts_something_else() -> None:
    class Blurred(nn.Module):
        """A guide that believes in one wide Gaussian, N(0, 4 I): D = 4 x / (4 + rho^2), under EDM's preconditioning."""

        def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
            rho = (4 * noise).exp().reshape(-1, 1, 1, 1)
            skip, out, state = 0.25 / (rho**2 + 0.25), rho * 0.5 / (rho**2 + 0.25).sqrt(), x * (rho**2 + 0.25).sqrt()
            return (4 * state / (4 + rho**2) - skip * state) / out

    guided = Autoguidance(exact(), Denoiser(Blurred(), EDMPreconditioning(0.5)), 2.5)
    for rho in (0.05, 3.0):
        x = states(rho)
        weak = 4 * x / (4 + rho**2)
        clean = weak + 2.5 * (conditional("denoise", x, rho) - weak)
        torch.testing.assert_close(guided(x, rho, label=LABELS), clean, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(guided.eps(x, rho, label=LABELS), (x - clean) / rho, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS, ids=["ddim", "heun", "deis3"])
@pytest.mark.parametrize("separate", [False, True], ids=["classifier_free", "autoguidance"])
def test_network_calls_are_counted_exactly(solver, separate: bool) -> None:
    plain, guide = exact(), exact()
    low, high = 0.3, 5.0
    guided = Autoguidance(plain, guide, 2.0, low, high) if separate else ClassifierFree(plain, 2.0, low, high)
    table = build(solver, Polynomial(VP, 2), (VP.sigma_max, VP.sigma_min), 9, "denoise")
    levels = [rho for rho, call in zip(table.rho.tolist(), table.calls, strict=False) if call]
    inside = sum(low < rho <= high for rho in levels)
    assert 0 < inside < 9
    (batch,) = generate(guided, table, (1, 2, 2), range(5), 5, LABELS, network_batch=2)
    assert (batch.nfe, batch.network_calls) == (9, 9 + inside)
    first, second = plain.network.seen, guide.network.seen
    assert len(first) + len(second) == 3 * (9 + inside), "three network batches hold five images"
    weak = [rho for rho, labelled in first + second if not labelled] if not separate else [rho for rho, _ in second]
    assert len(weak) == 3 * inside
    assert all(low < rho <= high for rho in weak)


def test_misstated_calls_are_an_error() -> None:
    class Modest(ClassifierFree):
        def calls(self, rho: float) -> int:
            return 1

    table = build(DDIM(), Power(7), (10.0, 0.1), 3, "none")
    with pytest.raises(RuntimeError, match="called 6 times an image, 3 evaluations take 3"):
        list(generate(Modest(exact(), 2.0), table, (1, 2, 2), range(5), 5, LABELS))


def unet(classes: int = 3, **options) -> UNet:
    torch.manual_seed(0)
    net = UNet(1, 8, width=8, blocks=1, num_classes=classes, **options)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize("batch_size", [1, 7, 20])
def test_guided_images_do_not_depend_on_batches(batch_size: int) -> None:
    plain = Denoiser(unet(), NoisePrediction(VP))
    denoiser = DynamicThreshold(ClassifierFree(plain, 3.0, 0.1, 20.0))
    table, labels = build(DEIS(3, VP), Polynomial(VP, 2), (VP.sigma_max, VP.sigma_min), 5, "none"), torch.arange(20) % 3

    def run(size: int, what=denoiser) -> Tensor:
        return torch.cat([b.x for b in generate(what, table, (1, 8, 8), range(20), size, labels, network_batch=8)])

    together = run(20)
    assert torch.equal(run(batch_size), together)
    assert float((together - run(20, plain)).abs().mean()) > 1e-3


def test_refusals_of_the_wrappers() -> None:
    class Insists(nn.Module):
        def forward(self, x: Tensor, noise: Tensor, label: Tensor) -> Tensor:
            return x * label.reshape(-1, 1, 1, 1)

    x = states()
    for evaluate in (ClassifierFree(exact(), 2.0), ClassifierFree(exact(), 2.0).eps):
        with pytest.raises(InputError, match="guidance=classifier_free: there are no labels"):
            evaluate(x, 1.0, label=None)
    with pytest.raises(InputError, match="guidance=classifier_free: this network cannot be called without labels"):
        ClassifierFree(Denoiser(Insists(), VarianceExploding()), 2.0).eps(x, 1.0, label=LABELS)
    for scale in (float("nan"), float("inf"), "two", True, None):
        with pytest.raises(InputError, match=f"guidance.scale={scale}: must be a finite number"):
            ClassifierFree(exact(), scale)
    for low, high in ((2.0, 1.0), (1.0, 1.0), (-1.0, 1.0), (float("nan"), 1.0), (0.0, "far")):
        with pytest.raises(InputError, match=f"guidance.low={low}, guidance.high={high}: choose"):
            ClassifierFree(exact(), 2.0, low, high)


def save(path: Path, classes: int, resolution: int = 8, seed: int = 0, **options) -> Path:
    torch.manual_seed(seed)
    size = {"channels": 1, "resolution": resolution, "width": 8, "blocks": 1, "num_classes": classes, **options}
    net = UNet(**size)
    nn.init.normal_(net.head.weight, std=0.3)
    if net.classes is not None:
        nn.init.normal_(net.classes.weight, std=3.0)
    schedule = {"_target_": "scoreline.schedules.vp.LinearVP", "beta_min": 0.1, "beta_max": 20.0}
    model = {
        "network": {"_target_": "scoreline.networks.unet.UNet", **size},
        "noise_schedule": schedule,
        "parameterisation": {"_target_": "scoreline.parameterisations.NoisePrediction", "noise_schedule": schedule},
    }
    save_model(path, net.state_dict(), Card(model, (1, resolution, resolution), classes, {}, {}))
    return path


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("guidance")
    for name, classes, options in (
        *(("main", 10, {}), ("plain", 0, {}), ("five", 5, {}), ("large", 10, {"resolution": 16})),
        ("undropped", 10, {"label_dropout": 0}),
    ):
        save(root / f"{name}.safetensors", classes, **options)
    (root / "guide").mkdir()
    save(root / "guide/model.safetensors", 10, seed=1)
    return root


def test_checkpoints_that_cannot_be_guided(workplace: Path) -> None:
    def load(name: str) -> Checkpoint:
        return load_model(workplace / f"{name}.safetensors")

    with pytest.raises(InputError, match="guidance=classifier_free: this checkpoint is unconditional"):
        classifier_free(load("plain"), 2.0)
    with pytest.raises(InputError, match="trained with label_dropout=0 and has no unconditional branch"):
        classifier_free(load("undropped"), 2.0)
    for name, sentence in (
        ("nowhere", r"guidance\.checkpoint=.*nowhere\.safetensors: no such file"),
        ("large", "its images are 1x16x16, those of checkpoint= are 1x8x8"),
        ("five", "it has 5 classes, checkpoint= has 10"),
    ):
        with pytest.raises(InputError, match=sentence):
            autoguidance(load("main"), str(workplace / f"{name}.safetensors"), 2.0)
    assert isinstance(autoguidance(load("main"), str(workplace / "plain.safetensors"), 2.0), Autoguidance)


def test_a_guide_of_other_content_is_another_run(workplace: Path, tmp_path: Path) -> None:
    guide = save(tmp_path / "g.safetensors", 10)
    config = {"checkpoint": str(workplace / "main.safetensors"), "guidance": {"checkpoint": str(guide)}}
    names = [run_names.run_digest("sample", _root_=OmegaConf.create(config))]
    save(guide, 10, seed=7)
    names.append(run_names.run_digest("sample", _root_=OmegaConf.create(config)))
    config["guidance"] = {"scale": 2.0}
    names.append(run_names.run_digest("sample", _root_=OmegaConf.create(config)))
    assert len(set(names)) == 3


def call(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    given = ["checkpoint=main.safetensors", "seeds=0-15", "nfe=4", "metrics=none", *arguments]
    return subprocess.run([sys.executable, str(SAMPLE), *given], capture_output=True, text=True, cwd=cwd, timeout=120)


def test_guided_and_thresholded_from_the_command_line(workplace: Path) -> None:
    options = ("guidance=classifier_free", "guidance.scale=3", "guidance.high=50", "threshold=dynamic")
    options += ("solver=deis_tab3", "schedule=time_quadratic")
    done = call(*options, "hydra.run.dir=guided", cwd=workplace)
    assert done.returncode == 0, done.stderr
    result = json.loads((workplace / "guided/metrics.json").read_text())
    assert (result["nfe"], result["network_calls"]) == (4, 7)
    assert done.stdout.startswith("16 images, NFE 4 (7 network calls), ")
    assert result["guidance"] == "classifier_free(high=50.0, low=0.0, scale=3.0)"
    assert result["threshold"] == "dynamic(ceiling=inf, quantile=0.995)"
    checkpoint = load_model(workplace / "main.safetensors")
    labels, span = plan_labels("random", range(16), 10), (VP.sigma_max, VP.sigma_min)
    table = build(DEIS(3, VP), Polynomial(VP, 2), span, 4, "none")
    denoiser = DynamicThreshold(ClassifierFree(checkpoint.denoiser, 3.0, high=50.0))
    images = images_of(checkpoint, table, range(16), labels, 16, denoiser)
    written = np.load(workplace / "guided/samples.npz")["arr_0"]
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), written)
    assert not torch.equal(images, images_of(checkpoint, table, range(16), labels, 16))


def test_autoguided_from_the_command_line(workplace: Path) -> None:
    done = call("guidance=autoguidance", "guidance.checkpoint=guide", "hydra.run.dir=auto", cwd=workplace)
    assert done.returncode == 0, done.stderr
    result = json.loads((workplace / "auto/metrics.json").read_text())
    digest = load_model(workplace / "guide/model.safetensors").digest[:16]
    assert result["guidance"] == f"autoguidance(checkpoint={digest}, high=inf, low=0.0, scale=2.0)"
    assert (result["nfe"], result["network_calls"], result["threshold"]) == (4, 8, "none")
    assert "(8 network calls)" in done.stdout


def configured(script: str, out: Path, *words: str) -> Any:
    """What the script reads of its command line."""
    cfg = compose.script_config(script, words)
    OmegaConf.set_readonly(cfg.hydra, False)
    OmegaConf.set_struct(cfg, False)
    cfg.hydra.runtime.output_dir = str(out)
    HydraConfig.instance().set_config(cfg)
    del cfg["hydra"]
    return {"sample": sample_config, "calibrate": calibrate_config}[script].read(cfg)


def recorded(path: Path, checkpoint: Checkpoint, *words: str) -> Path:
    """A record of one tableau as `calibration=tableau` writes it under these words; DDIM stands for a learned one."""
    given = (f"checkpoint={checkpoint.path}", "calibration=tableau", "nfe=4", "seeds=0-5", "device=cpu", *words)
    config = configured("calibrate", path.parent, *given)
    parts = config.components(checkpoint)
    subject = calibrate.build_subject(config, parts, checkpoint)
    assert isinstance(subject.denoiser, ClassifierFree) == bool(words)
    table = DDIM()(Power(7), *subject.span, 4)
    values = {"budgets": torch.tensor([4]), "rho_4": table.rho, "N_4": table.N, "starts": [["ddim", "karras"]]}
    kind = SimpleNamespace(kind="tableau", states="trajectory")
    calibrate.build_record(config, parts, checkpoint, subject, kind, values).save(path)
    return path


def test_a_tableau_learned_under_guidance_is_refused_at_another(workplace: Path, tmp_path: Path) -> None:
    checkpoint = load_model(workplace / "main.safetensors")
    two = ("guidance=classifier_free", "guidance.scale=2")
    paths = {"two": recorded(tmp_path / "two.safetensors", checkpoint, *two)}
    paths["none"] = recorded(tmp_path / "none.safetensors", checkpoint)
    old = load_record(paths["two"], "tableau", checkpoint.digest)
    del old.provenance["guidance"]
    old.save(tmp_path / "old.safetensors")
    paths["old"] = tmp_path / "old.safetensors"

    def sampled_with(record: str, *words: str) -> object:
        given = (f"checkpoint={checkpoint.path}", "solver=learned", f"solver.path={paths[record]}", "nfe=4", *words)
        return configured("sample", tmp_path / "run", *given).components(checkpoint).solver

    for record, words in (("two", two), ("none", ()), ("old", ()), ("old", two)):
        assert isinstance(sampled_with(record, *words), Learned)
    for record, words in (("two", ()), ("two", (*two[:1], "guidance.scale=3")), ("none", two)):
        with pytest.raises(InputError, match=r"guidance=.*learned with guidance=.*calibration=tableau"):
            sampled_with(record, *words)


def test_other_records_are_of_the_model_without_guidance(workplace: Path, tmp_path: Path) -> None:
    words = (f"checkpoint={workplace / 'main.safetensors'}", "guidance=classifier_free", "device=cpu")
    config = configured("calibrate", tmp_path, *words)
    estimator = config.components(load_model(workplace / "main.safetensors")).estimator()
    with pytest.raises(InputError, match=r"guidance=classifier_free.*score_norm"):
        calibrate.refuse_guidance(config, estimator)


def test_without_guidance_a_calibration_has_the_identity_of_before() -> None:
    run_names.register_resolvers()
    cfg = compose_config("calibrate", [])
    OmegaConf.set_struct(cfg, False)
    before = cfg.copy()
    del before["guidance"]
    guided = compose_config("calibrate", ["guidance=classifier_free"])
    names = [run_names.run_sha256(each, "calibrate") for each in (before, cfg, guided)]
    assert names[0] == names[1] != names[2]


def test_a_mistake_is_one_sentence(workplace: Path) -> None:
    done = call("guidance=classifier_free", "+guidance.foo=1", cwd=workplace)
    assert done.returncode == 2
    assert done.stderr.startswith("sample.py: ")
    assert done.stderr.count("\n") == 1
    assert "guidance: classifier_free() got an unexpected keyword" in done.stderr
