"""Images of seeds in memory, as a run writes them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from scoreline.checkpoints import Checkpoint
from scoreline.denoiser import Denoising
from scoreline.generation.batches import generate
from scoreline.solvers.tableau import Tableau
from scoreline.storage.pictures import to_uint8


def images_of(
    checkpoint: Checkpoint,
    tableau: Tableau,
    seeds: Sequence[int],
    labels: Tensor | None,
    batch_size: int,
    denoiser: Denoising | None = None,
) -> Tensor:
    """uint8 (len(seeds), C, H, W), from network calls on 64 images."""
    found = generate(denoiser or checkpoint.denoiser, tableau, checkpoint.card.shape, seeds, batch_size, labels)
    return torch.cat([to_uint8(batch.x) for batch in found])
