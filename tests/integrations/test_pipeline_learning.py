"""Tableaus learned for pipelines of diffusers: the network call, the gain on unseen noise, the command, the page."""

import copy
import functools
import json
import math
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from integrations.tiny_pipelines import TINY, ddpm, flux, noise, sd, text_parts
from torch import Tensor

import scoreline
from scoreline.calibration.sampler_records import LearnedRecord
from scoreline.commands import learn_pipeline
from scoreline.errors import InputError, NotFiniteError
from scoreline.integrations.diffusers import ScorelineScheduler
from scoreline.integrations.k_diffusion import learned_sigmas, sampler
from scoreline.integrations.pipeline_denoiser import PipelineDenoiser, frozen
from scoreline.integrations.pipeline_learning import Effort, Prompts, learn_for_pipeline
from scoreline.runtime import seeded_noise
from scoreline.schedules.flow import RectifiedFlow
from scoreline.schedules.ve import EDM
from scoreline.solvers.tableau import Tableau
from scoreline.storage.resumable import Parts

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"),
    pytest.mark.usefixtures("quiet_diffusers"),
]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/programs/learn_pipeline.md").read_text()
SHORT = "nfe=3 images=24 report=12 evaluations=400 fine_nfe=20 batch=8 batch_size=12"
TEXTS = ["a cat", "a dog", "the sea", "blue", "two birds"]
SMALL = Effort(images=6, report=2, evaluations=30, fine_nfe=10, batch=4, batch_size=6)


def scale(denoiser: PipelineDenoiser, rho: float) -> float:
    """The factor between x and the sample that a pipeline holds."""
    if isinstance(denoiser.noise_schedule, EDM):
        return 1.0
    if isinstance(denoiser.noise_schedule, RectifiedFlow):
        return 1.0 if rho == math.inf else 1 / (1 + rho)
    return 1.0 if rho == math.inf else 1 / math.hypot(1, rho)


def recorded(scheduler: Any) -> list[tuple[Tensor, Tensor]]:
    """The sample and E[x_0 | x] of every step that this scheduler will make."""
    step, steps = scheduler.step, list[tuple[Tensor, Tensor]]()

    @functools.wraps(step)
    def kept(output: Tensor, timestep: Any, sample: Tensor, **options: Any) -> Any:
        returned = step(output, timestep, sample, **options)
        steps.append((sample, returned[1]))
        return returned

    scheduler.step = kept
    return steps


@pytest.mark.parametrize("name", sorted(TINY))
def test_the_denoiser_is_the_network_call_of_the_pipelines_own_run(name: str) -> None:
    tiny = TINY[name]
    pipe = tiny.pipeline()
    call = {**tiny.options(), **tiny.size} | ({} if tiny.guidance is None else {"guidance_scale": tiny.guidance})
    denoiser, scheduler = PipelineDenoiser(pipe, call), pipe.scheduler
    pipe.scheduler = ScorelineScheduler.from_config(scheduler.config, solver="ddim")
    steps = recorded(pipe.scheduler)
    tiny.call(pipe, 4)
    sigmas = pipe.scheduler.sigmas.double()
    rho = sigmas / (1 - sigmas) if isinstance(denoiser.noise_schedule, RectifiedFlow) else sigmas
    images = len(call.get("class_labels", [0]))
    assert len(steps) == 4
    for level, (sample, denoised) in zip(rho.tolist()[:4], steps, strict=True):
        found = denoiser(sample[:images] / scale(denoiser, level), level, **call)
        torch.testing.assert_close(found, denoised[:images], rtol=2e-4, atol=2e-4)


def test_its_derivative_is_that_of_the_function() -> None:
    """In double precision, beside central differences; the pipeline keeps its scheduler and its gradients' switches."""
    pipe, call = sd().to(torch.float64), {**TINY["sd"].options(), "guidance_scale": 5.0}
    call = {key: value.double() if isinstance(value, Tensor) else value for key, value in call.items()}
    scheduler, free = pipe.scheduler, [weight.requires_grad for weight in pipe.unet.parameters()]
    denoiser = PipelineDenoiser(pipe, call)
    x, along = noise(1, *denoiser.shape).double().requires_grad_(), noise(1, *denoiser.shape, seed=1).double()
    with frozen(pipe):
        (slope,) = torch.autograd.grad(denoiser(x, 2.0, **call).square().sum(), x)
        assert not any(weight.requires_grad for weight in pipe.unet.parameters())
    with torch.no_grad():
        high, low = (denoiser(x + step * along, 2.0, **call).square().sum() for step in (1e-5, -1e-5))
    assert float((slope * along).sum()) == pytest.approx(float(high - low) / 2e-5, rel=1e-6)
    assert pipe.scheduler is scheduler
    assert [weight.requires_grad for weight in pipe.unet.parameters()] == free
    assert any(free), "otherwise nothing was switched"


def test_text_is_encoded_once() -> None:
    pipe = sd(**text_parts())
    call, calls = {"prompt": ["a cat"], "guidance_scale": 5.0}, []
    pipe.text_encoder.register_forward_pre_hook(lambda module, arguments: calls.append(module))
    denoiser = PipelineDenoiser(pipe, call)
    first = len(calls)
    once = denoiser(noise(1, *denoiser.shape), 2.0, **call)
    assert len(calls) == first > 0
    other = denoiser(noise(1, *denoiser.shape), 2.0, **{**call, "prompt": ["a dog"]})
    assert len(calls) == 2 * first
    assert not torch.equal(once, other)


class Comparison:
    """A record's distances from a fine run on noise that it has never seen, and its run through the scheduler."""

    def __init__(self, pipe: Any, record: LearnedRecord, call: dict[str, Any], images: int) -> None:
        self.pipe, self.record, self.call = pipe, record, call
        (self.nfe,) = record.part.tableaus
        self.denoiser = PipelineDenoiser(pipe, call)
        seeds = range(10**6, 10**6 + images)
        self.z = seeded_noise.normal(seeds, self.denoiser.shape, "unseen")
        self.span = {"sigma_max": record.provenance["span"][0], "sigma_min": record.provenance["span"][1]}

    def end(self, solver: Any, schedule: str, nfe: int) -> Tensor:
        """Where a run ends from this noise, in unit-signal coordinates."""
        x = self.z * self.denoiser.initial_scale(self.span["sigma_max"])
        denoise = functools.partial(self.denoiser, **self.call)
        native = self.denoiser.noise_schedule
        found: Tensor = scoreline.sample(
            denoise,
            x,
            solver,
            schedule,
            nfe=nfe,
            final="none",
            **self.span,
            noise_schedule=native,
            sigma_data=self.record.provenance["sigma_data"],
        )
        return found

    def ratio(self) -> float:
        """The learned tableau's mean distance from a fine run over that of the closed form that it is compared with."""
        fine, ((solver, schedule),) = self.end("unipc_3", "linear_vp_quadratic", 80), self.record.provenance["starts"]
        runs = (self.end(self.record, "karras", self.nfe), self.end(solver, schedule, self.nfe))
        learned, start = (float((run - fine).flatten(1).square().mean(1).sqrt().mean()) for run in runs)
        return learned / start

    def through_the_scheduler(self, path: Path) -> Tensor:
        """The latents of the pipeline with the record in its scheduler, in unit-signal coordinates."""
        pipe = copy.copy(self.pipe)
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = ScorelineScheduler.from_config(pipe.scheduler.config, learned=str(path))
        options = {"latents": self.z, "output_type": "latent", "return_dict": False, **self.call}
        (latents, *_) = pipe(num_inference_steps=self.nfe, **options)
        found: Tensor = latents / scale(self.denoiser, self.span["sigma_min"])
        return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which the commands of the page have run, with less work."""
    where: Path = tmp_path_factory.mktemp("page")
    sd(**text_parts()).save_pretrained(where / "models/sd")
    (where / "prompts.txt").write_text("\n".join([*TEXTS, "", " "]))
    (command,) = re.findall(r"^```bash\n(.*?)\n```$", PAGE, re.S | re.M)
    verb, *words = shlex.split(command.replace("nfe=6", SHORT))[1:]
    assert verb == "learn-pipeline"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        learn_pipeline.main(words)
    return where


def test_the_record_of_stable_diffusion_is_closer_on_unseen_noise(place: Path) -> None:
    path = place / "models/sd.tableau.safetensors"
    record = scoreline.calibrate.load(path)
    assert isinstance(record, LearnedRecord)
    pipe = diffusers.DiffusionPipeline.from_pretrained(place / "models/sd")
    seen = Comparison(pipe, record, {"prompt": ["a fish"] * 16, "guidance_scale": 7.5}, 16)
    assert seen.ratio() < 0.8
    values = record.values
    assert float(values["learned"] + values["learned_error"]) < float(values["start"] - values["start_error"])
    ours, theirs = seen.end(record, "karras", 3), seen.through_the_scheduler(path)
    assert float((ours - theirs).abs().max() / ours.abs().max()) < 1e-5
    noised = seen.z * seen.denoiser.initial_scale(seen.span["sigma_max"])
    model = functools.partial(lambda x, sigma, **call: seen.denoiser(x, sigma[0], **call), **seen.call)
    others = sampler(learned=path)(model, noised, learned_sigmas(path, 3), disable=True)
    assert float((ours - others).abs().max() / ours.abs().max()) < 1e-5
    assert record.provenance["pipeline"] == "StableDiffusionPipeline"
    assert record.provenance["guidance"] == "StableDiffusionPipeline, guidance_scale=7.5"
    assert (record.provenance["prompts"], record.provenance["report_prompts"]) == (5, "its own")
    assert record.provenance["name"] == "sd"
    assert sorted(path.name for path in (place / "models").iterdir()) == ["sd", "sd.tableau.safetensors"]


def test_noise_of_another_level_than_the_first_call_is_told_has_its_own_size(place: Path, tmp_path: Path) -> None:
    """Records of calibrate.py learn the level that the first call is told, too."""
    record = scoreline.calibrate.load(place / "models/sd.tableau.safetensors")
    values = {**record.values, "query_3": record.values["query_3"] * torch.tensor([0.9, 1, 1])}
    other = LearnedRecord(record.kind, values, record.provenance)
    other.save(tmp_path / "other.safetensors")
    pipe = diffusers.DiffusionPipeline.from_pretrained(place / "models/sd")
    seen = Comparison(pipe, other, {"prompt": ["a fish"] * 2, "guidance_scale": 7.5}, 2)
    theirs, first = seen.through_the_scheduler(tmp_path / "other.safetensors"), seen.span["sigma_max"]
    seen.z = seen.z * first / seen.denoiser.initial_scale(first)
    ours = seen.end(other, "karras", 3)
    assert float((ours - theirs).abs().max() / ours.abs().max()) < 1e-5


def test_the_record_of_flux_is_closer_on_unseen_noise(tmp_path: Path) -> None:
    pipe = flux()

    def calls(numbers: list[int]) -> dict[str, Tensor]:
        drawn = torch.stack([noise(16, 32, seed=number) for number in numbers])
        return {"prompt_embeds": drawn, "pooled_prompt_embeds": drawn[:, 0]}

    options = {"height": 16, "width": 16}
    effort = Effort(images=24, report=12, evaluations=1200, fine_nfe=30, batch=8, batch_size=12)
    shares: list[float] = []
    record = learn_for_pipeline(pipe, calls, nfe=3, options=options, effort=effort, progress=shares.append)
    record.save(tmp_path / "flux.safetensors")
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    seen = Comparison(pipe, record, {**options, **calls(list(range(90, 98)))}, 8)
    assert seen.ratio() < 0.8
    ours, theirs = seen.end(record, "karras", 3), seen.through_the_scheduler(tmp_path / "flux.safetensors")
    assert float((ours - theirs).abs().max() / ours.abs().max()) < 1e-5
    table: Tableau = record.part.tableaus[3]
    assert float(table.query_levels[0]) == float(table.rho[0]) == 1000.0


def test_the_page_runs_as_it_is_written(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    use, learn = re.findall(r"^```python\n(.*?)^```$", PAGE, re.S | re.M)
    names: dict[str, Any] = {}
    exec(compile(use.replace("_steps=6", "_steps=3"), "learn_pipeline.md", "exec"), names)
    assert names["image"].size == (16, 16)
    learn = learn.replace("nfe=6", "nfe=2").replace("images=48, evaluations=5000", "12, 6, 60, 20, 6")
    exec(compile(learn, "learn_pipeline.md", "exec"), names)
    assert list(scoreline.calibrate.load("sd.safetensors").part.tableaus) == [2]


class LeftError(Exception):
    pass


def test_a_restart_goes_on_behind_the_last_budget(tmp_path: Path) -> None:
    pipe, parts = ddpm(), Parts(tmp_path / "parts")
    learn = functools.partial(learn_for_pipeline, pipe, None, nfe=[1, 2], effort=SMALL, sigma_data=0.5)

    def leave(share: float) -> None:
        if list(tmp_path.rglob("*.safetensors")):
            raise LeftError

    with pytest.raises(LeftError):
        learn(parts=parts, progress=leave)
    (first,) = tmp_path.rglob("*.safetensors")
    before = first.stat().st_mtime_ns
    resumed, whole = learn(parts=parts), learn()
    assert first.stat().st_mtime_ns == before
    for name, value in whole.values.items():
        assert torch.equal(value, resumed.values[name]), name
    learn(parts=parts, seed=1)
    assert first.stat().st_mtime_ns != before


def test_prompts_of_the_three_parts_are_apart() -> None:
    prompts = Prompts([f"w{i}" for i in range(10)], images=30)
    texts = prompts(list(range(50)))["prompt"]
    choosing, report = {text for i, text in enumerate(texts[:30]) if i % 3 == 2}, set(texts[30:])
    learning = {text for i, text in enumerate(texts[:30]) if i % 3 < 2}
    assert learning == {"w0", "w1", "w4", "w5", "w8", "w9"}
    assert (choosing, report) == ({"w2", "w6"}, {"w3", "w7"})
    assert set(Prompts(["a", "b", "c"], 30)(list(range(30, 33)))["prompt"]) == {"a", "b", "c"}


def test_refusals_of_the_function() -> None:
    pipe, text = ddpm(), sd()
    refusals: list[tuple[Any, str]] = [
        (lambda: learn_for_pipeline(pipe, ["a cat"], nfe=3), "DDPMPipeline takes no prompt"),
        (lambda: learn_for_pipeline(text, None, nfe=3), "StableDiffusionPipeline takes no batch_size"),
        (lambda: learn_for_pipeline(text, [], nfe=3), "give a list of one text or more"),
        (lambda: learn_for_pipeline(text, "a cat", nfe=3), "give a list of one text or more"),
        (lambda: learn_for_pipeline(pipe, None, nfe=0), "0"),
        (lambda: learn_for_pipeline(pipe, None, nfe=3, sigma_min=5.0, sigma_max=2.0), "sigma_min=5, sigma_max=2"),
        (lambda: learn_for_pipeline(pipe, None, nfe=3, options={"bach_size": 3}), "did you mean 'batch_size'"),
        (lambda: learn_for_pipeline(pipe, None, nfe=3, options={"generator": 3}), "generator: this keyword is set"),
        (lambda: learn_for_pipeline(text, lambda numbers: {}, nfe=3), "it refuses this call"),
        (lambda: learn_for_pipeline(object(), None, nfe=3), "object"),
        (lambda: PipelineDenoiser(object(), {}), "it has no scheduler"),
        (lambda: Effort(images=3), "images=3"),
        (lambda: Effort(batch_size=0), "batch_size=0"),
    ]
    for call, words in refusals:
        with pytest.raises(InputError, match=re.escape(words)):
            call()
    denoiser = PipelineDenoiser(pipe, {"batch_size": 1})
    with pytest.raises(NotFiniteError, match="sigma=2"):
        denoiser(torch.full((1, *denoiser.shape), math.nan), 2.0, batch_size=1)


def test_a_pipeline_that_detaches_its_network_call_is_refused() -> None:
    class Detached(diffusers.DDPMPipeline):  # type: ignore[misc]  # diffusers' types are not read
        def __call__(self, batch_size: int = 1, num_inference_steps: int = 3) -> Any:
            self.scheduler.set_timesteps(num_inference_steps)
            x = torch.zeros(batch_size, 3, 16, 16)
            for t in self.scheduler.timesteps:
                x = self.scheduler.step(self.unet(x, t).sample.detach(), t, x, return_dict=False)[0]
            return x

    pipe = ddpm(Detached)
    denoiser = PipelineDenoiser(pipe, {"batch_size": 1})
    with frozen(pipe), pytest.raises(InputError, match="Detached: it calls its network without derivatives"):
        denoiser(noise(1, *denoiser.shape).requires_grad_(), 2.0, batch_size=1)


REFUSED = [
    ("", "0 places: give FOLDER and PROMPTS.txt"),
    ("pipe a.txt b.txt nfe=3", "3 places"),
    ("nowhere a.txt nfe=3", "nowhere: no such folder"),
    ("empty a.txt nfe=3", "empty: no pipeline, it has no model_index.json"),
    ("pipe none.txt nfe=3", "none.txt: no readable prompts"),
    ("pipe blank.txt nfe=3", "blank.txt: holds no prompts"),
    ("pipe bytes.txt nfe=3", "bytes.txt: no readable prompts"),
    ("pipe a.txt", "nfe: has no default"),
    ("pipe a.txt nfe=3.5", "nfe=3.5: must be a whole number"),
    ("pipe a.txt nfe=six", "nfe=six: must be a whole number"),
    ("pipe a.txt nfe=0", "nfe=0: must be a whole number"),
    ("pipe a.txt nfe=4,4", "nfe=4,4: give different numbers"),
    ("pipe a.txt nfe=3 heigt=16", "heigt: there is no such key; did you mean 'height'?"),
    ("pipe a.txt nfe=3 height=x", "height=x: must be a whole number"),
    ("pipe a.txt nfe=3 guidance_scale=-1", "guidance_scale=-1: must be a number"),
    ("pipe a.txt nfe=3 images=2", "images=2: must be a whole number, at least 6"),
    ("pipe a.txt nfe=3 sigma_max=high", "sigma_max=high: must be a number"),
    ("pipe a.txt nfe=3 seed=-1", "seed=-1: must be a whole number"),
    ("pipe a.txt nfe=3 dtype=int8", "dtype=int8"),
    ("pipe a.txt nfe=3 call.=3", "call.: not of the form call.KEYWORD=VALUE"),
    ("pipe a.txt nfe=3 out=a.txt", "out=a.txt: is there already and is not overwritten"),
    ("pipe a.txt nfe=3 out=a.txt/record", "is a file, no folder"),
]
"""Words of the command and what it says of them, before torch is there."""

WITHOUT_TORCH = """
import json, sys
sys.modules.update(dict.fromkeys(("torch", "numpy", "diffusers", "transformers")))
from scoreline.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv[1:] = ["learn-pipeline", *words.split()]
    try:
        main()
    except SystemExit as left:
        print(left.code)
"""


def test_refusals_of_the_command_come_in_one_line_before_torch(tmp_path: Path) -> None:
    for folder in ("pipe", "empty"):
        (tmp_path / folder).mkdir()
    (tmp_path / "pipe/model_index.json").write_text("{}")
    (tmp_path / "a.txt").write_text("a cat\n")
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    program = [sys.executable, "-c", WITHOUT_TORCH, json.dumps([words for words, _ in REFUSED])]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["2"] * len(REFUSED), done.stderr
    for line, (words, sentence) in zip(done.stderr.splitlines(), REFUSED, strict=True):
        assert line.startswith("scoreline learn-pipeline: "), words
        assert sentence in line, words


def test_folders_that_diffusers_does_not_load_are_refused(tmp_path: Path) -> None:
    """Code beside the weights is not run."""
    (tmp_path / "a.txt").write_text("a cat\n")
    index = '{"_class_name": ["own", "Own"], "_diffusers_version": "0.42.0", "unet": ["own", "Own"]}'
    for name, text in (("code", index), ("empty", "{}"), ("damaged", "{")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_index.json").write_text(text)
        (tmp_path / name / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
        with pytest.raises(InputError, match=f"{name}: diffusers does not load this pipeline"):
            learn_pipeline.main([str(tmp_path / name), str(tmp_path / "a.txt"), "nfe=3"])
    assert not (tmp_path / "ran").exists()


def test_generators_of_the_pipeline_are_left_alone() -> None:
    """A pipeline without latents draws noise that is thrown away; torch's own generator does not move."""
    pipe = ddpm()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    denoiser = PipelineDenoiser(pipe, {"batch_size": 2})
    assert denoiser(noise(2, *denoiser.shape), 1.0, batch_size=2).shape == (2, 3, 16, 16)
    assert torch.equal(torch.rand(2), expected)
