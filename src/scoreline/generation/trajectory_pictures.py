"""Trajectories to look at: a strip of their steps, and the same as a film."""

from pathlib import Path

import torch
from torch import Tensor

from scoreline.files import write_atomically
from scoreline.generation.trajectories import Trajectories
from scoreline.pictures import save_png, sheet, to_uint8

COLUMNS = 16
FRAME_MS = 250
LAST_FRAME_MS = 2000


def save_strip(path: Path, shown: Trajectories) -> None:
    """PNG: two rows for each seed, above x / sqrt(1 + rho^2), below the denoised image; a column for each step.

    Of more than COLUMNS states that many are shown, evenly chosen, the first and the last among them. The last column
    is the sample in both rows.
    """
    last = len(shown.rho) - 1
    columns = torch.linspace(0, last, min(COLUMNS, last + 1)).round().long()
    tiles = torch.stack([_frame(shown, int(k)) for k in columns], 2)
    save_png(path, sheet(tiles.flatten(0, 2), columns=len(columns)))


def save_film(path: Path, shown: Trajectories) -> None:
    """GIF: a frame for each state, the seeds side by side, x / sqrt(1 + rho^2) above the denoised image."""
    from PIL import Image

    seeds, frames = len(shown.seeds), []
    for k in range(len(shown.rho)):
        picture = sheet(_frame(shown, k).transpose(0, 1).flatten(0, 1), columns=seeds)
        array = picture.permute(1, 2, 0).contiguous().numpy()
        frames.append(Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array))
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    write_atomically(
        path,
        lambda temporary: frames[0].save(
            temporary, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0
        ),
    )


def _frame(shown: Trajectories, k: int) -> Tensor:
    """State k of all seeds, noisy and denoised: uint8 (S, 2, C, H, W)."""
    state = shown.x[:, k]
    if k == shown.denoised.shape[1]:
        return to_uint8(torch.stack([state, state], 1))
    return to_uint8(torch.stack([state / float(1 + shown.rho[k] ** 2) ** 0.5, shown.denoised[:, k]], 1))
