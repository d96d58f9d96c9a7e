"""What the denoiser regresses on: the clean image itself, or its mean over a reference batch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scoreline.errors import InputError, did_you_mean
from scoreline.pictures import to_unit

ELEMENTS = 2**22
"""Pixels of the data that are held in float64 at a time: 32 MiB, whatever the number of images."""


@dataclass(frozen=True)
class Reference:
    """The images that compete for being the source of a noisy one; every source is among them.

    Attributes:
        images: (n, *) uint8, or floating point in [-1, 1].
        source: (B,) int64, the row that each image of the batch is.
        label: classes (n,) int64 or None.
        augment: augmentation labels (n, A) or None.
    """

    images: Tensor
    source: Tensor
    label: Tensor | None = None
    augment: Tensor | None = None


Target = Callable[[Tensor, Tensor, Tensor, Tensor | None, Reference | None], Tensor]
"""(x (B, *), rho (B,), clean (B, *), label (B,) as the network is told it or None, reference) -> target (B, *).

Attribute `references`: how many images the reference has, 0 for none.
"""


@dataclass(frozen=True)
class Denoising:
    """Plain denoising score matching: the target is the clean image itself.

    Source: Vincent (2011), doi:10.1162/NECO_a_00142.
    """

    references = 0

    def __call__(
        self, x: Tensor, rho: Tensor, clean: Tensor, label: Tensor | None, reference: Reference | None
    ) -> Tensor:
        return clean


CHOICES = {"scope": ("all", "process"), "classes": ("same", "mixed"), "augmented": ("independent", "match", "none")}


@dataclass(frozen=True)
class StableTarget:
    """Stable target field: the posterior mean of the clean image over a reference batch (`posterior_mean`).

    With the source always inside and the others drawn from the data, the expectation of this target given x is the
    posterior mean over all data for every n, as that of plain denoising score matching is; its covariance is smaller.
    That is lost where the references' classes or augmentations are not those that the network is told.

    Attributes:
        references: n, the source included. Published checkpoints of CIFAR-10: 1024.
        scope: `all`: one reference of n images for the whole global batch, which is inside, the same on every process,
            so that their number changes nothing. `process`: as released, every process has n of its own, its share of
            the batch and others, hence processes * n in all.
        classes: for a network that is told classes. `same`: only images of the source's class have weight, all where
            the label was dropped. `mixed`: labels are ignored, as released; that target does not tend to the
            conditional mean.
        augmented: references are augmented by draws of their own, and weigh whatever their draw (`independent`, as
            released), or only with the same labels but for the horizontal flip (`match`); `none` forbids augmentation.

    Source: Xu, Tong & Jaakkola (2023), arXiv:2302.00670; released code github.com/Newbeeer/stf (n is per process
    there, though documented as total).

    Raises:
        InputError: for n below 1 or an unknown choice.
    """

    references: int = 1024
    scope: str = "all"
    classes: str = "same"
    augmented: str = "independent"

    def __post_init__(self) -> None:
        if isinstance(self.references, bool) or not isinstance(self.references, int) or self.references < 1:
            raise InputError(f"target.references={self.references}: must be a whole number, at least 1")
        for key, choices in CHOICES.items():
            if (value := getattr(self, key)) not in choices:
                raise InputError(f"target.{key}={value}: there is no such choice{did_you_mean(str(value), choices)}")

    def __call__(
        self, x: Tensor, rho: Tensor, clean: Tensor, label: Tensor | None, reference: Reference | None
    ) -> Tensor:
        if reference is None:
            raise ValueError("a stable target needs a reference")
        return posterior_mean(x, rho, reference.images, self._allowed(label, reference))

    def _allowed(self, label: Tensor | None, reference: Reference) -> Tensor | None:
        """Which images may have weight, (B, n), or None for all."""
        masks = []
        if self.classes == "same" and label is not None:
            if reference.label is None:
                raise ValueError("classes=same needs the classes of the reference")
            masks.append((label[:, None] == reference.label) | (label < 0)[:, None])
        if self.augmented == "match" and reference.augment is not None:
            told = reference.augment[:, 1:]
            masks.append((told[reference.source, None] == told).all(-1))
        if not masks:
            return None
        allowed = torch.stack(masks).all(0)
        allowed[torch.arange(len(allowed), device=allowed.device), reference.source] = True
        return allowed


@torch.no_grad()
def posterior_mean(x: Tensor, rho: Tensor, data: Tensor, allowed: Tensor | None = None) -> Tensor:
    """E[x_0 | x_0 + rho eps = x] for x_0 uniform on the images y_1 .. y_n:

        sum_i w_i y_i,    w_i = exp(l_i) / sum_j exp(l_j),    l_i = -|x - y_i|^2 / (2 rho^2).

    The same sum serves as stable target (data: a reference batch), as the denoiser of an empirical distribution and as
    the oracle of tests. Everything is in float64, which neither autocast nor TF32 touches: single products have errors
    of about 1e-3 in |x - y|^2, and TF32 changes the weights where they matter. Distances are sums of squared
    differences, not differences of products, which would cancel where rho is small: l_i has a relative error of a few
    2^-53, and since all pairs are summed in the same order, equal images have the same l_i, to the bit, on any
    processor and device. The largest l_i is subtracted as chunks of the data go by, so no epsilon is needed. Memory is
    that of B n weights and a fixed number of pixels, not of B n d.

    Args:
        x: (B, *), any floating dtype.
        rho: (B,) or a scalar, positive.
        data: (n, *) uint8, or floating point in [-1, 1]; on the device of x.
        allowed: (B, n) bool, images that may have weight: at least one in every row.

    Returns:
        (B, *) of x's dtype.
    """
    flat = x.flatten(1).double()
    variance = torch.as_tensor(rho, dtype=torch.float64, device=x.device).reshape(-1, 1) ** 2
    top = torch.full((len(flat), 1), torch.finfo(torch.float64).min, dtype=torch.float64, device=x.device)
    total, mean = torch.zeros_like(top), torch.zeros_like(flat)
    step = max(1, ELEMENTS // flat.shape[1])
    for start in range(0, len(data), step):
        part = _pixels(data[start : start + step])
        height = _heights(flat, variance, part, None if allowed is None else allowed[:, start : start + step])
        peak = torch.maximum(top, height.amax(1, keepdim=True))
        share, keep = (height - peak).exp_(), (top - peak).exp_()
        total = total * keep + share.sum(1, keepdim=True)
        mean = torch.addmm(mean * keep, share, part)
        top = peak
    return (mean / total).to(x.dtype).reshape(x.shape)


@torch.no_grad()
def posterior_weights(x: Tensor, rho: Tensor, data: Tensor, allowed: Tensor | None = None) -> Tensor:
    """The weights w of `posterior_mean`, (B, n) float64, every row of sum 1."""
    variance = torch.as_tensor(rho, dtype=torch.float64, device=x.device).reshape(-1, 1) ** 2
    flat, step = x.flatten(1).double(), max(1, ELEMENTS // x[0].numel())
    chunks = [slice(start, start + step) for start in range(0, len(data), step)]
    masks = [None if allowed is None else allowed[:, chunk] for chunk in chunks]
    parts = zip(chunks, masks, strict=True)
    return torch.cat([_heights(flat, variance, _pixels(data[chunk]), mask) for chunk, mask in parts], 1).softmax(1)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2 from the differences, of rows x (m, d) and y (n, d) of one dtype: (m, n), in memory of that size.

    Equal rows of y have the same distances, to the bit, which the columns of a matrix product do not promise.
    """
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()


def effective_size(weights: Tensor) -> Tensor:
    """Effective sample size 1 / sum_i w_i^2 of weights (.., n) of sum 1. Source: Kong (1992), Univ. Chicago TR 348."""
    return 1 / weights.square().sum(-1)


def _pixels(images: Tensor) -> Tensor:
    return (to_unit(images) if images.dtype == torch.uint8 else images).flatten(1).double()


def _heights(flat: Tensor, variance: Tensor, data: Tensor, allowed: Tensor | None) -> Tensor:
    """l_i, -inf where not allowed."""
    height = squared_distances(flat, data) / (-2 * variance)
    return height if allowed is None else height.masked_fill(~allowed, -torch.inf)
