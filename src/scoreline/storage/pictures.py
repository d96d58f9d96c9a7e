"""Image values, contact sheets and PNG files."""

import io
from pathlib import Path

import torch
from torch import Tensor

from scoreline.storage.files import write_atomically

PICTURES = (1, 3)
"""Numbers of channels of a picture."""


def to_unit(images: Tensor) -> Tensor:
    """Map uint8 values 0..255 to float32 in [-1, 1]: x / 127.5 - 1. Any shape.

    Source: Karras et al. (2022), arXiv:2206.00364, reference training recipe.
    """
    return images.to(torch.float32) / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """Map [-1, 1] to uint8: floor(clip(127.5 x + 128, 0, 255)), round-half-up of 127.5 (x + 1). Any shape.

    This is the rounding rule of EDM's published protocol; another rule changes the FID.
    """
    return (x.to(torch.float32) * 127.5 + 128).clip(0, 255).to(torch.uint8)


def sheet(images: Tensor, columns: int = 8, scale: int | None = None) -> Tensor:
    """Arrange images uint8 (N, C, H, W) in a contact sheet (C, rows * s, columns * s'), row by row on white.

    An image of neither one nor three channels is a row of C grey tiles, one for each channel. Pixels are repeated
    `scale` times, by default to about 48 a side, so that 8x8 digits are visible; one white line of pixels separates
    the tiles.
    """
    if images.shape[1] not in PICTURES:
        columns, images = columns * images.shape[1], images.flatten(0, 1)[:, None]
    scale = scale or max(1, 48 // max(images.shape[2:]))
    framed = torch.nn.functional.pad(images, (0, 1, 0, 1), value=255)
    n, c, h, w = framed.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    padded = torch.cat([framed, images.new_full((rows * columns - n, c, h, w), 255)])
    tiles = padded.reshape(rows, columns, c, h, w).permute(2, 0, 3, 1, 4).reshape(c, rows * h, columns * w)
    return tiles.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def png_bytes(picture: Tensor) -> bytes:
    """Encode a picture uint8 (C, H, W) of one or three channels as a PNG file."""
    from PIL import Image

    array = picture.permute(1, 2, 0).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(file, format="PNG")
    return file.getvalue()


def save_png(path: Path, picture: Tensor) -> None:
    """Write a picture uint8 (C, H, W) of one or three channels as a PNG file, atomically."""
    write_atomically(path, lambda temporary: temporary.write_bytes(png_bytes(picture)))
