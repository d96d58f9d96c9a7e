"""scoreline learn-pipeline FOLDER PROMPTS.txt nfe=N [KEY=VALUE ..]
Learn noise levels and weights of N steps for a pipeline of diffusers.

  scoreline learn-pipeline models/sd prompts.txt nfe=6 guidance_scale=7.5
  scoreline learn-pipeline models/flux prompts.txt nfe=4,8 dtype=bfloat16
  scoreline learn-pipeline models/ddpm nfe=6

FOLDER       what diffusers' save_pretrained writes; its from_pretrained loads
             it, and runs no code from the folder
PROMPTS.txt  one prompt a line; of every four, two learn, one chooses among
             tableaus and one is for the report; none for a pipeline without
nfe          numbers of steps to learn for, as in 6 or 4,6,8
out          the record (default: FOLDER.tableau.safetensors); it must not
             exist yet. In OUT.parts it keeps what is learned for each number
             of steps: a killed run goes on behind the last one
images       to learn from, a third of them to choose (default: 192)
report       images of the report, with prompts and noise of their own (64)
seed         of the noise (0)
guidance_scale, negative_prompt, height, width
             keywords of every call (default: the pipeline's own);
             call.KEY=VALUE gives others
evaluations  network calls, with derivatives, for each number of steps (20000)
fine_nfe     steps of the fine run (60)
batch        images of a step of learning (24)
batch_size   images of a call of the pipeline (8); fewer need less memory
sigma_max, sigma_min
             noise levels (default: the pipeline's own)
dtype        float32 (default) | float16 | bfloat16
device       auto (default) | cpu | cuda

Then: pipe.scheduler = ScorelineScheduler.from_config(
          pipe.scheduler.config, learned=OUT)
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from scoreline.commands.words import names, new_file, parse, refuse_blocked
from scoreline.errors import InputError, printable
from scoreline.values import check_choice, real_number, whole_number

if TYPE_CHECKING:
    from scoreline.calibration.sampler_records import LearnedRecord

EFFORT = {"images": 6, "report": 2, "evaluations": 1, "fine_nfe": 10, "batch": 1, "batch_size": 1}
"""Whole numbers of `Effort` and the least of each."""

SPAN = ("sigma_max", "sigma_min")
CALL = ("guidance_scale", "negative_prompt", "height", "width")
DTYPES = ("float32", "float16", "bfloat16")

OWN = {
    **{"nfe": "", "out": "", "seed": "0", "device": "auto", "dtype": DTYPES[0]},
    **dict.fromkeys((*EFFORT, *SPAN, *CALL), ""),
}

LARGEST_PROMPTS = 2**24
"""Most bytes of a file of prompts."""

MOST_SEED = 2**31 - 1


class Request(NamedTuple):
    """What the words of the command ask for."""

    folder: Path
    prompts: list[str] | None
    out: Path
    budgets: list[int]
    effort: dict[str, int]
    options: dict[str, Any]
    seed: int
    span: dict[str, float]
    dtype: str
    device: str


def main(words: list[str]) -> None:
    """Write the record; print each budget's distance from the fine run beside that of the best closed form.

    Raises:
        InputError: for unusable words or files, and a call that the pipeline refuses.
    """
    request = read(words)
    record = _learn(request)
    record.save(request.out)
    _parts(request).remove()
    print(_report(record))
    print(f"-> {request.out}")


def read(words: Sequence[str]) -> Request:
    """Return what the words ask for, before anything heavy is imported.

    Raises:
        InputError: naming the word and the remedy.
    """
    paths, own, overrides = parse(words, OWN, ("call",))
    if not 1 <= len(paths) <= 2:
        raise InputError(
            f"{len(paths)} places: give FOLDER and PROMPTS.txt, as in learn-pipeline models/sd a.txt nfe=6"
        )
    folder = _folder(paths[0])
    out = Path(own["out"] or f"{folder}.tableau.safetensors")
    new_file(f"out={out}", out)
    refuse_blocked(f"out={out}", out.parent)
    return Request(
        folder,
        _prompts(Path(paths[1])) if len(paths) == 2 else None,
        out,
        _budgets(own["nfe"]),
        {key: whole_number(key, _plain(own[key]), least) for key, least in EFFORT.items() if own[key]},
        _options(own, overrides),
        whole_number("seed", _plain(own["seed"]), 0, MOST_SEED),
        {key: real_number(key, _plain(own[key])) for key in SPAN if own[key]},
        check_choice("dtype", DTYPES, own["dtype"]),
        own["device"],
    )


def _folder(word: str) -> Path:
    """Return the folder of a pipeline.

    Raises:
        InputError: for a missing folder, and one without a pipeline's index.
    """
    folder = Path(word)
    if not folder.is_dir():
        raise InputError(f"{word}: no such folder; save the pipeline with pipe.save_pretrained(FOLDER)")
    if not (folder / "model_index.json").is_file():
        raise InputError(f"{word}: no pipeline, it has no model_index.json; give what pipe.save_pretrained wrote")
    return folder


def _prompts(path: Path) -> list[str]:
    """Return the lines of a file that are not empty.

    Raises:
        InputError: for a file that cannot be read, and one without prompts.
    """
    from scoreline.storage.bounded_reading import content

    try:
        text = content(path, LARGEST_PROMPTS).decode()
    except (OSError, ValueError) as error:
        reason = printable((str(error).splitlines() or [type(error).__name__])[0])
        raise InputError(
            f"{path}: no readable prompts ({reason:.80}); give a text in UTF-8, one prompt a line"
        ) from error
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise InputError(f"{path}: holds no prompts; write one a line")
    return prompts


def _budgets(value: str) -> list[int]:
    """Return the numbers of steps in `6` or `4,6,8`.

    Raises:
        InputError: for none, anything but whole numbers, and repeated ones.
    """
    if not value:
        raise InputError("nfe: has no default; give the number of steps to learn for, as in nfe=6")
    budgets = [whole_number("nfe", _plain(word)) for word in names(value)]
    if len(set(budgets)) < len(budgets) or not budgets:
        raise InputError(f"nfe={value}: give different numbers, as in nfe=4,6,8")
    return budgets


def _options(own: dict[str, str], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the keywords of every call.

    Raises:
        InputError: for a `call` without the name of a keyword.
    """
    options: dict[str, Any] = {key: own[key] for key in CALL if own[key]}
    options |= {key: whole_number(key, _plain(own[key])) for key in ("height", "width") if own[key]}
    if own["guidance_scale"]:
        options["guidance_scale"] = real_number("guidance_scale", _plain(own["guidance_scale"]), zero=True)
    for word in overrides:
        key, _, value = word.partition("=")
        name = key.removeprefix("call.")
        if name == key or not name.isidentifier():
            raise InputError(f"{key}: not of the form call.KEYWORD=VALUE, as in call.max_sequence_length=256")
        options[name] = _plain(value)
    return options


def _plain(word: str) -> Any:
    """Return the number, switch or list that a word spells, else the word."""
    try:
        return json.loads(word)
    except ValueError:
        return word


def _learn(request: Request) -> "LearnedRecord":
    """Load the pipeline and learn, with a progress bar."""
    pipe = _pipeline(request)
    from scoreline.integrations.pipeline_learning import Effort, learn_for_pipeline
    from scoreline.runtime.progress import ImageProgress

    effort = Effort(**request.effort)
    total, shown = effort.images + effort.report, 0.0
    with ImageProgress(total, "learning") as bar:

        def progress(share: float) -> None:
            nonlocal shown
            bar.update((share - shown) * total)
            shown = share

        options: dict[str, Any] = {"effort": effort, "seed": request.seed, "options": request.options, **request.span}
        options |= {"name": request.folder.name, "parts": _parts(request), "progress": progress}
        return learn_for_pipeline(pipe, request.prompts, nfe=request.budgets, **options)


def _parts(request: Request) -> Any:
    from scoreline.storage.resumable import Parts

    return Parts(Path(f"{request.out}.parts"))


def _pipeline(request: Request) -> Any:
    """Return the pipeline, on its device.

    Raises:
        InputError: if diffusers is not there, or does not load the folder.
    """
    import torch

    from scoreline.runtime.device import choose_device

    device = choose_device(request.device)
    try:
        from diffusers import DiffusionPipeline

        import scoreline.integrations.diffusers  # noqa: F401  a folder may have this scheduler
    except ImportError as error:
        raise InputError("learn-pipeline needs more packages: pip install 'scoreline[diffusers]'") from error
    _silence()
    try:
        pipe = DiffusionPipeline.from_pretrained(
            request.folder, dtype=getattr(torch, request.dtype), local_files_only=True
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError) as error:
        reason = printable(" ".join(str(error).split()) or type(error).__name__)
        raise InputError(f"{request.folder}: diffusers does not load this pipeline: {reason:.300}") from error
    return pipe.to(device)


def _silence() -> None:
    """Keep the bars and remarks of both libraries, which would come with every call, from the terminal."""
    from diffusers.utils import logging

    found: list[Any] = [logging]
    with suppress(ImportError):
        from transformers.utils import logging as of_text

        found.append(of_text)
    for each in found:
        each.disable_progress_bar()
        each.set_verbosity_error()


def _report(record: "LearnedRecord") -> str:
    from scoreline.calibration.learned.tableau_record import TableauEstimator

    about = record.provenance
    lines = TableauEstimator().summary({**record.values, "starts": about["starts"]})
    prompts = "" if not about["prompts"] else f", prompts {about['report_prompts']}"
    return f"{lines}\n{about['report']} images of the report{prompts}; fine run of {about['fine_nfe']} steps"
