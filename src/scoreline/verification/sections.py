"""The checks, each as a table, its verdicts and the measurements behind them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoreline.runtime.progress import ImageProgress
from scoreline.verification.channels import judge_channels, measure_reversed
from scoreline.verification.convergence import judge_convergence, measure_convergence
from scoreline.verification.ddim import DDIM_STEPS, ddim_differences, judge_ddim
from scoreline.verification.diagnosis import TRIED, remedies
from scoreline.verification.loss import FACTORS, Losses, above_linear, failed_levels, judge_losses, measure_losses
from scoreline.verification.measurement_plan import Plan, evaluations, small_levels
from scoreline.verification.noise_labels import SHIFTS, SMALL_LABELS, best_factors, judge_labels, measure_shifts
from scoreline.verification.scale import Scale, judge_scale, measure_scale
from scoreline.verification.verdicts import Verdict, mean


@dataclass(frozen=True)
class Section:
    """A table, its verdicts, and the measurements behind them as plain values."""

    text: str
    verdicts: list[Verdict]
    values: dict[str, Any]


def loss_section(plan: Plan) -> Section:
    """Check loss, labels and, for colour images, the order of channels."""
    if plan.real is None:
        text = f"no real images: {plan.no_data}"
        return Section(f"Loss and labels: {text}", [Verdict(name, "skip", text) for name in ("loss", "labels")], {})
    denoiser, real, size = plan.runs.denoiser, plan.real, plan.runs.batch_size
    small, flipped, shifted = small_levels(plan), None, None
    with ImageProgress(evaluations(plan)["loss"], "loss") as progress:
        losses = measure_losses(denoiser, real, plan.rho, size, progress.update)
        if plan.runs.shape[0] == 3:
            flipped = measure_reversed(denoiser, real, plan.rho, size, progress.update)
        if small:
            shifted = measure_shifts(denoiser, real, small, size, progress.update)
    verdicts = [
        judge_losses(losses, lambda rho: _mended(plan, rho)),
        judge_labels(losses),
    ]
    verdicts += [] if flipped is None else [judge_channels(losses.by_factor[0], flipped)]
    texts = [_loss_table(losses), _label_table(losses)] + ([] if shifted is None else [_shift_table(small, shifted)])
    return Section("\n\n".join(texts), verdicts, _loss_values(losses, flipped, shifted))


def _mended(plan: Plan, rho: Tensor) -> list[str]:
    assert plan.real is not None
    with ImageProgress(TRIED * len(plan.real.clean), "looking for the mistake") as progress:
        return remedies(plan.runs.denoiser, plan.real, rho, plan.runs.batch_size, progress.update)


def _loss_table(losses: Losses) -> str:
    """Return a line for each level."""
    own, linear, rho = mean(losses.by_factor[0]), losses.linear.mean(-1), losses.rho
    wrong = failed_levels(losses.by_factor[0], losses.linear, rho, losses.variance)
    marks = ["fail" if w else "above linear" * a for w, a in zip(wrong, above_linear(losses), strict=True)]
    lines = ["Loss E|D - x0|^2 / d, beside the best linear denoiser and D = x"]
    lines += [f"{'rho':>9} {'loss':>10} {'+-':>8} {'linear':>10} {'D = x':>10} {'of linear':>10}"]
    for k, level in enumerate(rho.tolist()):
        share = float(own.value[k] / linear[k])
        numbers = (
            f"{level:9.4g} {own.value[k]:10.4g} {own.error[k]:8.2g} {linear[k]:10.4g} {level**2:10.4g} {share:10.3g}"
        )
        lines.append(f"{numbers}  {marks[k]}".rstrip())
    return "\n".join(lines)


def _label_table(losses: Losses) -> str:
    """Change of the loss with the label, a line for each level."""
    order = sorted(range(1, len(FACTORS)), key=lambda f: FACTORS[f])
    change = (losses.by_factor / losses.by_factor[0].mean(-1)[:, None]).mean(-1) - 1
    best = best_factors(losses)
    lines = ["Change of the loss with the label of f rho (the state still has noise rho)"]
    lines += [f"{'rho':>9} " + " ".join(f"{f'f = {FACTORS[f]:g}':>9}" for f in order) + f" {'best f':>7}"]
    for k, level in enumerate(losses.rho.tolist()):
        cells = [_change(float(change[f, k])) for f in order]
        lines.append(f"{level:9.4g} " + " ".join(cells) + f" {best[k]:7g}")
    return "\n".join(lines)


def _change(share: float) -> str:
    """Return `+3.20%`, from 1000 % on `x 45.2`; `-` for a label out of range."""
    if not math.isfinite(share):
        return f"{'-':>9}"
    return f"{share:+9.2%}" if share < 10 else f"{f'x {1 + share:.3g}':>9}"


def _shift_table(rho: Sequence[float], shifted: Tensor) -> str:
    """Change of the loss with labels one off."""
    change = mean(shifted[1:] / shifted[0].mean(-1)[:, None] - shifted[0] / shifted[0].mean(-1)[:, None])
    lines = ["Change of the loss with labels one off, at small labels: tiny, reported and not judged"]
    lines += [f"{'rho':>9} {'time':>6} " + " ".join(f"{f'label {shift:+d}':>20}" for shift in SHIFTS[1:])]
    for k, level in enumerate(rho):
        cells = [
            f"{float(change.value[s, k]):+10.3%} +- {float(change.error[s, k]):.3%}" for s in range(len(change.value))
        ]
        lines.append(f"{level:9.4g} {SMALL_LABELS[k]:6} " + " ".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


def _loss_values(losses: Losses, flipped: Tensor | None, shifted: Tensor | None) -> dict[str, Any]:
    """Return means and standard errors over images; null where a label leaves the range."""
    own = mean(losses.by_factor)
    values = {
        "rho": losses.rho.tolist(),
        "factors": list(FACTORS),
        "loss": _plain(own.value),
        "loss_error": _plain(own.error),
        "linear": losses.linear.mean(-1).tolist(),
        "data_variance": losses.variance,
    }
    for name, part in (("loss_reversed_channels", flipped), ("loss_shifted_labels", shifted)):
        if part is not None:
            values |= {
                name: _plain(mean(part).value),
                f"{name}_error": _plain(mean(part).error),
            }
    return values


def _plain(values: Tensor) -> Any:
    return [_plain(part) for part in values] if values.ndim else float(values) if values.isfinite() else None


def ddim_section(plan: Plan) -> Section:
    """Compare first-order solvers with DDIM."""
    z, label = plan.runs.start()
    with ImageProgress(evaluations(plan)["ddim"], "DDIM") as progress:
        differences = ddim_differences(plan.runs.denoiser, plan.runs.process, z, label, progress.update)
    lines = [f"First-order solvers beside DDIM in native coordinates, states float64, NFE {DDIM_STEPS}"]
    lines += [f"{name:>22} {value:9.1e}" for name, value in differences.items()]
    verdict = judge_ddim(differences, next(plan.runs.denoiser.parameters()).dtype)
    values = {name: _plain(torch.tensor(value)) for name, value in differences.items()}
    return Section("\n".join(lines), [verdict], {"ddim": values})


def sample_section(plan: Plan) -> Section:
    """Convergence to the fine run, and sizes at both of its ends."""
    with ImageProgress(evaluations(plan)["samples"], "sampling") as progress:
        convergence = measure_convergence(plan.runs, plan.nfe, progress.update)
    scale = measure_scale(plan.runs, convergence.reference)
    data = None if plan.real is None else plan.real.clean
    verdicts = [judge_convergence(convergence), judge_scale(scale, data)]
    distance, slope = mean(convergence.distances), mean(convergence.slopes())
    lines = [f"DEIS-tAB3 beside Heun's method with {plan.nfe} evaluations, {len(plan.runs.seeds)} seeds"]
    lines += [f"{'NFE':>9} {'distance':>10} {'+-':>8}"]
    lines += [
        f"{nfe:9} {value:10.3g} {error:8.2g}"
        for nfe, value, error in zip(convergence.nfe, distance.value.tolist(), distance.error.tolist(), strict=True)
    ]
    values = {
        "nfe": list(convergence.nfe),
        "distance": _plain(distance.value),
        "distance_error": _plain(distance.error),
        "slope": [_plain(part) for part in slope],
        "scale": {key: _plain(value) if isinstance(value, Tensor) else value for key, value in vars(scale).items()},
    }
    return Section("\n".join(lines) + "\n\n" + _scale_table(scale, data), verdicts, values)


def _scale_table(scale: Scale, data: Tensor | None) -> str:
    """Return sizes beside those of the data."""
    lines = ["Sizes, by channel, beside the real images"]
    rows: list[tuple[str, Tensor, Callable[[Tensor], Tensor]]] = [
        ("mean of images", scale.mean, lambda x: x.mean((0, 2, 3))),
        ("standard deviation", scale.std, lambda x: x.std((0, 2, 3))),
        ("mean of D, sigma_max", scale.denoised, lambda x: x.mean((0, 2, 3))),
    ]
    for name, value, of in rows:
        beside = "" if data is None else f"  data {_numbers(of(data.double()))}"
        lines.append(f"{name:>22}  {_numbers(value)}{beside}")
    lines.append(f"{'eps at sigma_max':>22}  {scale.eps_size:.4f} times as large as the noise")
    lines.append(f"{'pixels out of range':>22}  {scale.outside:.2%}")
    return "\n".join(lines)


def _numbers(values: Tensor) -> str:
    return " ".join(f"{value:+.3f}" for value in values.tolist())
