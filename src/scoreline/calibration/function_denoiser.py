"""A function denoise(x, sigma) as the model that calibrations measure, with any conditions."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.denoiser import Denoiser, Denoising, per_image
from scoreline.errors import InputError, NotFiniteError
from scoreline.interface.conditions import Denoise
from scoreline.interface.outputs import check_denoised
from scoreline.parameterisations import DataPrediction
from scoreline.schedules.ve import EDM

Condition = Mapping[str, Any] | Callable[[list[int]], Mapping[str, Any]]
"""Keywords of every call, or a function from the seeds of its images to them."""

STEP = 0.002
"""Relative step in sigma of the central difference, in float32 and float64. Networks read the level through sines of
high frequency: on the digits model the derivative errs by 0.4 % at most, and by 20 % with ten times the step."""

ITSELF = DataPrediction(EDM(), 1.0)
"""The parameterisation of a function of x and sigma: its noise label is sigma."""


class FunctionNetwork(nn.Module):
    """A function as the network of a `Denoiser`: one level for all images of a call, and a checked output.

    A function is given sigma as a number, so the derivative by each image's level, which learned tableaus follow, is a
    central difference of two more calls. It also serves functions that read sigma as a Python number or round it.

    Args:
        denoise: the function. The parameters of a module decide on dtype and device.
        dtype: dtype of x and sigma for a function without parameters.
        device: device of a function without parameters.
    """

    def __init__(self, denoise: Denoise, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.denoise = partial(denoise)  # not a part of this module, whose calls are counted as one
        own = next(denoise.parameters(), None) if isinstance(denoise, nn.Module) else None
        like = torch.empty(0, dtype=dtype, device=device) if own is None else own.new_empty(0)
        self.register_buffer("like", like, persistent=False)

    like: Tensor

    def forward(self, x: Tensor, noise: Tensor, **condition: Any) -> Tensor:
        """Return E[x_0 | x] (B, *) at the levels noise (B,), which are all the same."""
        sigma = noise[0].detach().to(self.like.dtype)
        denoised = self._call(x, sigma, condition)
        if not (noise.requires_grad and torch.is_grad_enabled()):
            return denoised
        with torch.no_grad():
            step = max(STEP, 0.4 * torch.finfo(sigma.dtype).eps ** (1 / 3))  # more where rounding weighs more
            high, low = sigma * (1 + step), sigma * (1 - step)
            slope = (self._call(x, high, condition) - self._call(x, low, condition)) / (float(high) - float(low))
        return denoised + per_image(noise - noise.detach(), x) * slope

    def _call(self, x: Tensor, sigma: Tensor, condition: dict[str, Any]) -> Tensor:
        denoised = check_denoised(self.denoise(x.to(self.like.dtype), sigma, **condition), x)
        if not bool(denoised.isfinite().all()):
            raise NotFiniteError(f"sigma={float(sigma):.6g}: numbers that denoise returns are")
        return denoised


class Conditioned(Denoising):
    """A denoiser with the keywords of a `Condition`; its `label` (B,) is the numbers of a call's images among `seeds`.

    Args:
        denoiser: the model.
        condition: keywords, passed as they are; or a function from seeds to keywords, whose tensors have one row for
            each seed. Its latest results are kept, since the calls of a run are for the same images.
        seeds: of all images.
    """

    def __init__(self, denoiser: Denoising, condition: Condition, seeds: Sequence[int]) -> None:
        super().__init__()
        self.denoiser, self.condition, self.seeds = denoiser, condition, seeds
        self._of_images = lru_cache(maxsize=4)(self._evaluate)

    def forward(self, x: Tensor, rho: Tensor | float, **condition: Tensor | None) -> Tensor:
        denoised: Tensor = self.denoiser(x, rho, **self._keywords(condition.get("label")))
        return denoised

    def eps(self, x: Tensor, rho: Tensor | float, **condition: Tensor | None) -> Tensor:
        return self.denoiser.eps(x, rho, **self._keywords(condition.get("label")))

    def calls(self, rho: float) -> int:
        return self.denoiser.calls(rho)

    def _keywords(self, label: Tensor | None) -> Mapping[str, Any]:
        if label is None:
            assert isinstance(self.condition, Mapping)
            return self.condition
        return self._of_images(*label.tolist())

    def _evaluate(self, *numbers: int) -> Mapping[str, Any]:
        assert callable(self.condition)
        # ordinary tensors, which may take part in derivatives later
        with torch.inference_mode(mode=False), torch.no_grad():
            keywords = self.condition([self.seeds[number] for number in numbers])
        if not isinstance(keywords, Mapping):
            raise InputError(
                f"condition: returns a {type(keywords).__name__}; return a mapping of keywords, as in "
                "lambda seeds: {'label': classes[seeds]}"
            )
        return keywords


def as_denoising(denoise: Denoise | Denoising, dtype: torch.dtype, device: torch.device) -> Denoising:
    """Return a denoiser as it is, in evaluation mode or not, and a function as a `Denoiser` of a `FunctionNetwork`.

    Raises:
        InputError: for anything else.
    """
    if isinstance(denoise, Denoising):
        return denoise
    if not callable(denoise):
        raise InputError(f"denoise={denoise!r:.60}: give a function denoise(x, sigma), or a scoreline.Denoiser")
    return Denoiser(FunctionNetwork(denoise, dtype, device), ITSELF)
