"""scoreline likelihood [KEY=VALUE ..]
Measure bits per dimension of 8-bit images: -log2 of the model's density under
the probability-flow ODE, with uniform dequantisation. The mean over
images is an upper bound on the bits of a code for them.

  scoreline likelihood checkpoint=digits_vp images=32

checkpoint      a shipped model, a model.safetensors, or its directory
                (digits_vp)
data            digits-test, digits-train, or FILE.npz with arr_0, uint8 NHWC
                (digits-test)
images          number of images, from the first (64)
batch_size      images that share their steps (64)
divergence      rademacher or gaussian probes, or exact for small images
                (rademacher)
probes          probes per image (1)
seed            seed of dequantisation and probes (0)
--conditional   log p(x | label), with the labels of the data
method          RK45 or DOP853 (RK45)
rtol, atol      tolerances of a step, relative and absolute (1e-5)
nfe             most evaluations per batch (5000)
sigma_max       largest noise level (the model's own)
sigma_min       smallest noise level; a larger one blurs the density, which
                costs bits (the model's own, where its solvers stop: t = 1e-3
                of a linear VP process)
t_min           smallest time of the model's process, in place of sigma_min;
                published figures of score_sde's models go to 1e-5
--end-noise     begin with noise of sigma_min on the pixels, which a decoder
                removes, in place of uniform noise
prior_variance  variance of a pixel at sigma_max (the process's own)
device          auto, cpu or cuda (auto)
trust           a package from which the checkpoint may take its network
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from scoreline.checkpoints import Checkpoint, load_model
from scoreline.config import run_names
from scoreline.datasets.digits import Digits
from scoreline.errors import InputError, did_you_mean
from scoreline.likelihood import (
    PROBES,
    Divergence,
    Exact,
    bits_per_dim,
    bits_with_end_noise,
    dequantise,
    end_noise,
    hutchinson,
    log_likelihood,
    native_prior_variance,
)
from scoreline.runtime.device import choose_device
from scoreline.runtime.progress import ImageProgress
from scoreline.sampling import Eps, Progress
from scoreline.schedules.base import NoiseSchedule
from scoreline.solvers.adaptive import Adaptive, AdaptiveRun
from scoreline.storage import bounded_reading, npy

MOST_PROBES = 10_000
"""Most probes per image; each takes memory and the time of a pass."""


OWN: dict[str, str | int | float] = {
    **{"checkpoint": "digits_vp", "data": "digits-test", "images": 64, "batch_size": 64, "divergence": "rademacher"},
    **{"probes": 1, "seed": 0, "method": "RK45", "rtol": 1e-5, "atol": 1e-5, "nfe": 5000, "device": "auto"},
}


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises `InputError`."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see `scoreline likelihood --help`")


class Images(NamedTuple):
    """Images uint8 (N, C, H, W), class labels (N,) or None, and their name."""

    name: str
    pixels: Tensor
    labels: Tensor | None


class Measurement(NamedTuple):
    """Bits per dimension (N,) float64, the evaluations of each batch, and the smallest noise level."""

    bits: Tensor
    nfe: list[int]
    sigma_min: float


def main(arguments: list[str]) -> None:
    """Measure and print bits per dimension; the words are key=value or --key value.

    Raises:
        InputError: for unusable arguments or files.
    """
    options = _parser().parse_args([_as_option(word) for word in arguments])
    device = choose_device(options.device)
    checkpoint = load_model(run_names.model_path(options.checkpoint), tuple(options.trust))
    images = choose(options, checkpoint)
    checkpoint.denoiser.to(device)
    measured = _measure(options, checkpoint, images)
    print(_line(options, images.name, measured))


def _as_option(word: str) -> str:
    """Return --key=value for key=value, the form of the other commands."""
    key, equals, value = word.partition("=")
    return word if word.startswith("-") or not equals else f"--{key.replace('_', '-')}={value}"


def _parser() -> Parser:
    """Return the parser of the options."""
    it = Parser("scoreline likelihood", allow_abbrev=False, add_help=False)
    for name, default in OWN.items():
        it.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    for name in ("sigma-min", "sigma-max", "t-min", "prior-variance"):
        it.add_argument(f"--{name}", type=float)
    for name in ("conditional", "end-noise"):
        it.add_argument(f"--{name}", action="store_true")
    it.add_argument("--trust", action="append", default=[])
    return it


def choose(options: argparse.Namespace, checkpoint: Checkpoint) -> Images:
    """Return the first `--images` images of `--data`.

    Raises:
        InputError: for an option out of range, or data that do not suit the model.
    """
    for name, least in (("images", 1), ("batch_size", 1), ("probes", 1), ("seed", 0)):
        if getattr(options, name) < least:
            raise InputError(f"--{name.replace('_', '-')}={getattr(options, name)}: must be at least {least}")
    if options.probes > MOST_PROBES:
        raise InputError(f"--probes={options.probes}: must be at most {MOST_PROBES}")
    if options.seed >= 2**31:
        raise InputError(f"--seed={options.seed}: must be below 2^31")
    name, pixels, labels = _digits(options.data) if not options.data.endswith(".npz") else _read_npz(Path(options.data))
    if tuple(pixels.shape[1:]) != tuple(checkpoint.card.shape):
        raise InputError(
            f"--data={options.data}: its images are {'x'.join(map(str, pixels.shape[1:]))}, the checkpoint's are "
            f"{'x'.join(map(str, checkpoint.card.shape))} (CxHxW); choose data of that shape"
        )
    if options.images > len(pixels):
        raise InputError(f"--images={options.images}: {name} has {len(pixels)}; ask for at most these")
    chosen = slice(0, options.images)
    if not options.conditional:
        return Images(name, pixels[chosen], None)
    return Images(name, pixels[chosen], classes(name, labels, checkpoint.card.num_classes)[chosen])


def classes(name: str, labels: Tensor | None, num_classes: int) -> Tensor:
    """Return the labels for a conditional model.

    Raises:
        InputError: for an unconditional model, or missing or unsuitable labels.
    """
    if num_classes == 0:
        raise InputError("--conditional: this checkpoint is unconditional; drop the option")
    if labels is None:
        raise InputError(f"--conditional: {name} has no labels (arr_1); drop the option")
    if not bool(((labels >= 0) & (labels < num_classes)).all()):
        raise InputError(f"--conditional: {name} has labels outside the checkpoint's 0 to {num_classes - 1}; fix arr_1")
    return labels


def _digits(data: str) -> Images:
    """Return the images of `digits-test` or `digits-train`.

    Raises:
        InputError: for another name.
    """
    names = ("digits-test", "digits-train")
    if data not in names:
        raise InputError(f"--data={data}: give a FILE.npz or one of ours{did_you_mean(data, names)}")
    chosen = Digits(data.removeprefix("digits-"))
    return Images(data, chosen.images, chosen.labels)


def _read_npz(path: Path) -> Images:
    """Read arr_0 uint8 (N, H, W, C) and, if present, labels arr_1 (N,): the layout of samples.npz.

    Raises:
        InputError: if the file is damaged or has another layout.
    """
    try:
        pixels, labels = npy.member(path, "arr_0"), npy.member(path, "arr_1")
        if pixels is None:
            raise ValueError("arr_0 is not there")
    except bounded_reading.DAMAGE as error:
        raise InputError(f"--data={path}: not a readable npz file with arr_0 ({error}); write it again") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 4:
        layout = f"{pixels.dtype} {'x'.join(map(str, pixels.shape))}"
        raise InputError(f"--data={path}: arr_0 is {layout}; save uint8 images as NxHxWxC")
    if labels is not None and (labels.shape != (len(pixels),) or labels.dtype.kind not in "iu"):
        raise InputError(f"--data={path}: arr_1 must be one whole number for each of the {len(pixels)} images")
    images = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).contiguous()
    return Images(path.name, images, None if labels is None else torch.from_numpy(labels.astype(np.int64)))


def _measure(options: argparse.Namespace, checkpoint: Checkpoint, images: Images) -> Measurement:
    """Measure bits per dimension of all images, batch by batch, with a progress bar."""
    denoiser, run = checkpoint.denoiser, _span(options, checkpoint)
    prior = options.prior_variance
    if prior is None:
        prior = native_prior_variance(checkpoint.noise_schedule, float(run.rho[0]))
    device, last, bits, nfe = denoiser.device, float(run.rho[1]), [], []
    with ImageProgress(len(images.pixels), "likelihood") as progress:
        for seeds, pixels, labels in _batches(options, images):

            def eps(x: Tensor, rho: float, label: Tensor | None = labels) -> Tensor:
                return denoiser.eps(x, rho, label=None if label is None else label.to(x.device))

            x = (end_noise(pixels, seeds, last) if options.end_noise else dequantise(pixels, seeds)).to(device)
            watched = _watch(eps, run, len(x), progress.update)
            result = log_likelihood(watched, x, run, prior, _divergence(options, seeds, tuple(x.shape[1:])))
            own = bits_with_end_noise(result.values, x.cpu(), last) if options.end_noise else None
            bits.append(bits_per_dim(result.values, x[0].numel()) if own is None else own)
            nfe.append(result.nfe)
    return Measurement(torch.cat(bits), nfe, last)


def _span(options: argparse.Namespace, checkpoint: Checkpoint) -> AdaptiveRun:
    """Return the steps of the solver on the range of the options, by default the model's own."""
    native = checkpoint.noise_schedule
    first = native.finite_sigma_max if options.sigma_max is None else options.sigma_max
    last = _sigma_min(options, native)
    if not last < first:
        raise InputError(f"sigma_min={last:g} and sigma_max={first:g}: choose 0 < sigma_min < sigma_max < inf")
    return Adaptive(options.method, options.rtol, options.atol).between(first, last, options.nfe)


def _sigma_min(options: argparse.Namespace, native: NoiseSchedule) -> float:
    """Return the smallest noise level: that of the options, by level or by time, or the model's own.

    Raises:
        InputError: for both at once, or a time outside the process.
    """
    if options.t_min is None:
        return native.sigma_min if options.sigma_min is None else float(options.sigma_min)
    if options.sigma_min is not None:
        raise InputError(f"--t-min={options.t_min:g}: is another way to say sigma_min; give one of them")
    if not 0 < options.t_min < native.t_max:
        raise InputError(f"--t-min={options.t_min:g}: choose a time between 0 and the model's last, {native.t_max:g}")
    return float(native.inverse(torch.tensor(options.t_min, dtype=torch.float64)))


def _divergence(options: argparse.Namespace, seeds: list[int], shape: tuple[int, ...]) -> Divergence:
    """Return the divergence estimator: `exact`, or probes of the named distribution.

    Raises:
        InputError: for another name.
    """
    if options.divergence == "exact":
        return Exact()
    if options.divergence not in PROBES:
        wrong = did_you_mean(options.divergence, ("exact", *PROBES))
        raise InputError(f"--divergence={options.divergence}: there is no such estimator{wrong}")
    return hutchinson(seeds, shape, options.probes, options.divergence)


def _batches(options: argparse.Namespace, images: Images) -> Iterator[tuple[list[int], Tensor, Tensor | None]]:
    """Yield noise seeds, pixels and labels; image i of --seed s has the noise seed 2^32 s + i."""
    for start in range(0, len(images.pixels), options.batch_size):
        part = slice(start, start + options.batch_size)
        seeds = [(options.seed << 32) + i for i in range(len(images.pixels))[part]]
        yield seeds, images.pixels[part], None if images.labels is None else images.labels[part]


def _watch(eps: Eps, run: AdaptiveRun, images: int, update: Progress) -> Eps:
    """Return eps with progress: each call reports the covered share of the range in ln rho, times `images`.

    Args:
        eps: the noise estimate of the model.
        run: the steps of the solver.
        images: images of the batch.
        update: receives the images' worth of work.
    """
    sigma_max, sigma_min = run.rho.tolist()
    furthest = 0.0

    def watched(x: Tensor, rho: float) -> Tensor:
        nonlocal furthest
        reached = max(furthest, math.log(rho / sigma_min) / math.log(sigma_max / sigma_min))
        update(images * (reached - furthest))
        furthest = reached
        return eps(x, rho)

    return watched


def _line(options: argparse.Namespace, name: str, measured: Measurement) -> str:
    """Format the result.

    `3.210 +- 0.012 bits/dim, 64 images of digits-test, NFE 123, divergence rademacher x 1, sigma_min 0.01`
    """
    bits, low, high = measured.bits, min(measured.nfe), max(measured.nfe)
    error = f"{float(bits.std()) / math.sqrt(len(bits)):.4f}" if len(bits) > 1 else "unknown"
    nfe = f"{low}" if low == high else f"{low}-{high}"
    estimator = "exact" if options.divergence == "exact" else f"{options.divergence} x {options.probes}"
    end = f"sigma_min {measured.sigma_min:.4g}{' as end noise' * options.end_noise}"
    images = f"{len(bits)} image{'s' * (len(bits) > 1)} of {name}"
    return f"{float(bits.mean()):.4f} +- {error} bits/dim, {images}, NFE {nfe}, divergence {estimator}, {end}"
