"""Guidance: a denoiser extrapolated away from a weaker one."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scoreline.checkpoints import Checkpoint, load_model
from scoreline.denoiser import Denoising, per_image
from scoreline.errors import InputError
from scoreline.values import is_number


class Autoguidance(Denoising):
    """D = D_guide + scale (D_main - D_guide) at noise levels low < rho <= high, D_main elsewhere; eps likewise.

    Use this if you have a worse model of the same data, smaller or trained less; it sees the same conditions. Scale 1
    is no guidance, scale 0 the guide alone; the guide is not evaluated where D_main stands alone. eps is combined from
    both eps, by the same weights because rho is the same, and so keeps their accuracy at small rho.

    Args:
        denoiser: D_main.
        guide: D_guide, on images of the same shape.
        scale: any finite number.
        low: noise level rho above which to guide.
        high: largest noise level rho at which to guide.

    Raises:
        InputError: if the scale is not finite, or low < high does not hold.

    Source: Karras et al. (2024), arXiv:2406.02507 (their w); the interval: Kynkaanniemi et al. (2024),
    arXiv:2404.07724.
    """

    def __init__(
        self, denoiser: Denoising, guide: Denoising, scale: float, low: float = 0.0, high: float = math.inf
    ) -> None:
        super().__init__()
        if not (is_number(scale) and math.isfinite(scale)):
            raise InputError(f"guidance.scale={scale}: must be a finite number; 1 is no guidance")
        if not (is_number(low) and is_number(high) and 0 <= low < high):
            raise InputError(f"guidance.low={low}, guidance.high={high}: choose noise levels with 0 <= low < high")
        self.denoiser, self.guide = denoiser, guide
        self.noise_schedule = denoiser.noise_schedule
        self.scale, self.low, self.high = float(scale), float(low), float(high)

    def forward(self, x: Tensor, rho: Tensor | float, **condition: Tensor | None) -> Tensor:
        return self._mix(self.denoiser, self.guide, x, rho, condition)

    def eps(self, x: Tensor, rho: Tensor | float, **condition: Tensor | None) -> Tensor:
        return self._mix(self.denoiser.eps, self.guide.eps, x, rho, condition)

    def calls(self, rho: float) -> int:
        """Return the calls of D_main, plus those of D_guide where it has a weight."""
        return self.denoiser.calls(rho) + (0 if float(self._weight(rho)) == 1 else self.guide.calls(rho))

    def _mix(
        self,
        main: Callable[..., Tensor],
        guide: Callable[..., Tensor],
        x: Tensor,
        rho: Tensor | float,
        condition: dict[str, Tensor | None],
    ) -> Tensor:
        weight, strong = self._weight(rho), main(x, rho, **condition)
        if bool((weight == 1).all()):
            return strong
        weak = guide(x, rho, **condition)
        return weak + per_image(weight, x) * (strong - weak)

    def _weight(self, rho: Tensor | float) -> Tensor:
        level = torch.as_tensor(rho, dtype=torch.float64)
        return torch.ones_like(level).masked_fill((level > self.low) & (level <= self.high), self.scale)


class Unlabelled(Denoising):
    """A denoiser called without its `label`: E[x_0 | x] over all classes."""

    def __init__(self, denoiser: Denoising) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor, rho: Tensor | float, **condition: Tensor | None) -> Tensor:
        return self._without(self.denoiser, x, rho, condition)

    def eps(self, x: Tensor, rho: Tensor | float, **condition: Tensor | None) -> Tensor:
        return self._without(self.denoiser.eps, x, rho, condition)

    def calls(self, rho: float) -> int:
        """Return the calls of the denoiser."""
        return self.denoiser.calls(rho)

    @staticmethod
    def _without(
        form: Callable[..., Tensor], x: Tensor, rho: Tensor | float, condition: dict[str, Tensor | None]
    ) -> Tensor:
        if condition.get("label") is None:
            raise InputError(
                "guidance=classifier_free: there are no labels to guide towards, because of labels=none or because "
                "this checkpoint is unconditional; choose other labels or guidance=none"
            )
        try:
            return form(x, rho, **{**condition, "label": None})
        except (TypeError, AttributeError, ValueError) as error:  # it has just worked with labels
            raise InputError(
                f"guidance=classifier_free: this network cannot be called without labels ({error}); "
                "use guidance=autoguidance or none"
            ) from error


class ClassifierFree(Autoguidance):
    """D = D_u + scale (D_c - D_u) at noise levels low < rho <= high, D_c elsewhere; eps likewise.

    D_c is the denoiser with its `label`, D_u the same with label None. Use this for a conditional network that was
    trained with labels dropped at random (`model.network.label_dropout`). Scale 1 is no guidance: Ho & Salimans' w is
    scale - 1. An evaluation takes two network calls where it is guided, one elsewhere.

    Args:
        denoiser: D_c.
        scale: any finite number.
        low: noise level rho above which to guide.
        high: largest noise level rho at which to guide.

    Raises:
        InputError: as `Autoguidance`; when evaluated without labels, or if the network cannot be called without them.

    Source: Ho & Salimans (2022), arXiv:2207.12598, Eq. 6; the interval: Kynkaanniemi et al. (2024), arXiv:2404.07724.
    """

    def __init__(self, denoiser: Denoising, scale: float, low: float = 0.0, high: float = math.inf) -> None:
        super().__init__(denoiser, Unlabelled(denoiser), scale, low, high)


def unguided(main: Checkpoint) -> Denoising:
    """Return the checkpoint's denoiser itself (guidance=none)."""
    return main.denoiser


def classifier_free(main: Checkpoint, scale: float, low: float = 0.0, high: float = math.inf) -> Denoising:
    """Return `ClassifierFree` of a conditional checkpoint (guidance=classifier_free).

    Raises:
        InputError: if the checkpoint is unconditional, or its network never saw a dropped label.
    """
    if main.card.num_classes == 0:
        raise InputError(
            "guidance=classifier_free: this checkpoint is unconditional; use guidance=autoguidance or none, "
            "or a checkpoint trained with labels"
        )
    if getattr(main.denoiser.network, "label_dropout", None) == 0:
        raise InputError(
            "guidance=classifier_free: this network was trained with label_dropout=0 and has no unconditional branch; "
            "train one with model.network.label_dropout=0.1"
        )
    return ClassifierFree(main.denoiser, scale, low, high)


def autoguidance(
    main: Checkpoint,
    checkpoint: str,
    scale: float,
    low: float = 0.0,
    high: float = math.inf,
    trust: Sequence[str] = (),
) -> Denoising:
    """Return `Autoguidance` of one checkpoint by another (guidance=autoguidance).

    The guide may be unconditional; a conditional one gets the labels of the main model. Their parameterisations and
    noise schedules may differ; set `high` if the guide's own sigma_max is lower.

    Args:
        main: the model to guide.
        checkpoint: model file of the guide.
        scale: as in `Autoguidance`.
        low: as in `Autoguidance`.
        high: as in `Autoguidance`.
        trust: as in `checkpoints.load_model`, for the guide.

    Raises:
        InputError: if the guide cannot be loaded, or its images or classes are not those of the main model.
    """
    try:
        guide = load_model(checkpoint, tuple(trust))
    except InputError as error:
        raise InputError(f"guidance.{error}") from error
    if guide.card.shape != main.card.shape:
        raise InputError(
            f"guidance.checkpoint={checkpoint}: its images are {_shown(guide.card.shape)}, those of checkpoint= are "
            f"{_shown(main.card.shape)}; give a guide for the same images"
        )
    if guide.card.num_classes not in (0, main.card.num_classes):
        raise InputError(
            f"guidance.checkpoint={checkpoint}: it has {guide.card.num_classes} classes, checkpoint= has "
            f"{main.card.num_classes}; give a guide with the same classes or an unconditional one"
        )
    return Autoguidance(main.denoiser, guide.denoiser, scale, low, high)


def _shown(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
