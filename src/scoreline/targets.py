"""Training targets: the clean image (denoising score matching), or its mean over a reference (STF, StableVM)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scoreline.errors import InputError
from scoreline.storage.pictures import to_unit
from scoreline.values import check_choice, is_whole

ELEMENTS = 2**22
"""Pixels of the data that are in float64 at a time: 32 MiB, whatever the number of images."""


@dataclass(frozen=True)
class Reference:
    """The reference batch of a stable target; the clean image of every noisy one is among its images.

    Attributes:
        images: (n, *) uint8, or floating point in [-1, 1].
        source: (B,) int64, the row of each clean image of the batch.
        label: classes (n,) int64 or None.
        augment: augmentation labels (n, A) or None.
    """

    images: Tensor
    source: Tensor
    label: Tensor | None = None
    augment: Tensor | None = None


Target = Callable[[Tensor, Tensor, Tensor, Tensor | None, Reference | None], Tensor]
"""(x (B, *), rho (B,), clean (B, *), the network's label (B,) or None, reference) -> target (B, *).

Its attribute `references` is the number of images of the reference, 0 for none.
"""


@dataclass(frozen=True)
class Denoising:
    """Plain denoising score matching (DSM): the target is the clean image itself. Use this unless you train with STF.

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
    """The stable target field (STF): the posterior mean of the clean image over a reference batch (`posterior_mean`).

    The source is always in the reference and the others are drawn from the data. So the expectation of this target
    given x is the posterior mean over all data for every n, as it is in plain denoising score matching, and its
    covariance is smaller. That holds only if the references have the classes and augmentations of the network's labels.

    Use this to train with fewer images where the reference is a large share of the data; on digits (1024 of 1500) it
    needs 83, 72 and 53 % of them for the Frechet distance that the plain target has after 16, 32 and 96 kimg (each
    +- 4 %, three trainings). `calibration=target_variance` measures what it would gain on other data.

    Attributes:
        references: n, the source included. Published checkpoints of CIFAR-10: 1024.
        scope: `all` shares one reference of n images, the global batch among them, between all processes, whose number
            then changes nothing. `process`, as released, gives every process n images of its own, its share of the
            batch among them, hence processes * n in all.
        classes: for a conditional network. `same` gives weight only to images of the source's class, and to all where
            the label was dropped. `mixed` ignores labels, as released; that target does not tend to the conditional
            mean.
        augmented: references are augmented by draws of their own. `independent`, as released, gives them weight
            whatever the draw, `match` only if their labels equal the source's but for the horizontal flip; `none`
            forbids augmentation.

    Source: Xu, Tong & Jaakkola (2023), arXiv:2302.00670; released code github.com/Newbeeer/stf (n is per process
    there, though documented as total).

    Raises:
        InputError: for n below 1 or an unknown choice.
    """

    references: int = 1024
    scope: str = "all"
    classes: str = "same"
    augmented: str = "independent"

    mixture = False

    def __post_init__(self) -> None:
        if not is_whole(self.references):
            raise InputError(f"target.references={self.references}: must be a whole number, at least 1")
        for key, choices in CHOICES.items():
            check_choice(f"target.{key}", choices, getattr(self, key))

    def __call__(
        self, x: Tensor, rho: Tensor, clean: Tensor, label: Tensor | None, reference: Reference | None
    ) -> Tensor:
        if reference is None:
            raise ValueError("a stable target needs a reference")
        return posterior_mean(x, rho, reference.images, self._allowed(label, reference))

    def _allowed(self, label: Tensor | None, reference: Reference) -> Tensor | None:
        """Return which images may have weight, (B, n), or None for all."""
        masks = []
        if self.classes == "same" and label is not None:
            if reference.label is None:
                raise ValueError("classes=same needs the classes of the reference")
            masks.append((label[:, None] == reference.label) | (label < 0)[:, None])
        if self.augmented == "match" and reference.augment is not None:
            labels = reference.augment[:, 1:]  # all but the horizontal flip
            masks.append((labels[reference.source, None] == labels).all(-1))
        if not masks:
            return None
        allowed = torch.stack(masks).all(0)
        allowed[torch.arange(len(allowed), device=allowed.device), reference.source] = True
        return allowed


class StableVM(StableTarget):
    """The target of stable velocity matching: `StableTarget`, with noisy images from the mixture over the reference:

        R = {y_1 .. y_n} from the data,    x ~ (1 / n) sum_i N(y_i, rho^2),    target = sum_i w_i y_i over R.

    Sources are drawn evenly from R with replacement, so one reference serves any number of noisy images and may be
    smaller than the batch. The velocity eps - x_0 of a flow model is affine in x_0 at given x, so the same target
    serves it: (x - target) / rho - target is the published mean of the velocities, with `FlowWeight` its loss.

    The source and the other images of R have the joint law that they have in `StableTarget`: a uniform set of n images,
    one of them marked evenly. So the target has the same mean given x, the posterior mean over all data, and the same
    variance for every n. What differs is the batch: here images repeat within it, there every image comes once in an
    epoch.

    Use this to follow the paper, or for batches larger than the reference; otherwise `StableTarget` uses more images.

    Attributes:
        references: n. Published: 256 of each class on ImageNet, 2048 on a mixture in the plane.
        scope: `all` shares one reference between all processes, `process`, as released, gives each its own.
        classes: as in `StableTarget`. With `same` the images of R of the source's class are a reference of that class,
            whose size varies; the released code keeps the last 256 images of every class and draws classes evenly.
        augmented: as in `StableTarget`.

    Source: Yang et al. (2026), arXiv:2602.05435; released code github.com/linYDTHU/StableVelocity, which keeps the
    plain target for t < 0.5.

    Raises:
        InputError: as `StableTarget`.
    """

    mixture = True


@torch.no_grad()
def posterior_mean(x: Tensor, rho: Tensor, data: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Compute E[x_0 | x_0 + rho eps = x] for x_0 uniform on the images y_1 .. y_n:

        sum_i w_i y_i,    w_i = exp(l_i) / sum_j exp(l_j),    l_i = -|x - y_i|^2 / (2 rho^2).

    This is the STF target (data: a reference batch) and the exact denoiser of an empirical distribution: use it to see
    how far a network is from the denoiser of its own training images.

    Everything is in float64, which neither autocast nor TF32 touches: in float32 |x - y|^2 has errors of about 1e-3,
    and TF32 changes the weights where they matter. Distances are sums of squared differences, not differences of
    products, which would cancel where rho is small: l_i has a relative error of a few 2^-53, and since all pairs are
    summed in the same order, equal images have the same l_i, to the bit, on any processor and device. Memory is that of
    B n weights and a fixed number of pixels, not of B n d.

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
    # A running softmax over chunks of the data: `top` is the largest l_i so far, and earlier sums shrink as it grows.
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
    """Compute the weights w of `posterior_mean`, (B, n) float64, whose rows sum to 1.

    Use them to see which images compete at a noise level.
    """
    variance = torch.as_tensor(rho, dtype=torch.float64, device=x.device).reshape(-1, 1) ** 2
    flat, step = x.flatten(1).double(), max(1, ELEMENTS // x[0].numel())
    chunks = [slice(start, start + step) for start in range(0, len(data), step)]
    masks = [None if allowed is None else allowed[:, chunk] for chunk in chunks]
    parts = zip(chunks, masks, strict=True)
    return torch.cat([_heights(flat, variance, _pixels(data[chunk]), mask) for chunk, mask in parts], 1).softmax(1)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Compute |x_i - y_j|^2 from the differences of rows x (m, d) and y (n, d) of one dtype: (m, n).

    Equal rows of y have the same distances, to the bit, which the columns of a matrix product do not guarantee.
    """
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()


def effective_size(weights: Tensor) -> Tensor:
    """Return the effective sample size 1 / sum_i w_i^2 of weights (.., n) of sum 1.

    Source: Kong (1992), Univ. Chicago TR 348.
    """
    return 1 / weights.square().sum(-1)


def _pixels(images: Tensor) -> Tensor:
    return (to_unit(images) if images.dtype == torch.uint8 else images).flatten(1).double()


def _heights(flat: Tensor, variance: Tensor, data: Tensor, allowed: Tensor | None) -> Tensor:
    """Compute l_i, -inf where not allowed: (B, n)."""
    height = squared_distances(flat, data) / (-2 * variance)
    return height if allowed is None else height.masked_fill(~allowed, -torch.inf)
