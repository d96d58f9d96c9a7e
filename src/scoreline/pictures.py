"""Pictures people look at."""

import io
from pathlib import Path

import torch
from torch import Tensor

from scoreline.files import write_atomically


def sheet(images: Tensor, columns: int = 8, scale: int | None = None) -> Tensor:
    """Contact sheet: uint8 (N, C, H, W) -> (C, rows * s, columns * s'), row by row, white where nothing is left.

    Pixels are repeated `scale` times, by default to about 48 a side, so that 8x8 digits can be seen; tiles are
    set apart by one white line of pixels.
    """
    scale = scale or max(1, 48 // max(images.shape[2:]))
    framed = torch.nn.functional.pad(images, (0, 1, 0, 1), value=255)
    n, c, h, w = framed.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    padded = torch.cat([framed, images.new_full((rows * columns - n, c, h, w), 255)])
    tiles = padded.reshape(rows, columns, c, h, w).permute(2, 0, 3, 1, 4).reshape(c, rows * h, columns * w)
    return tiles.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def png_bytes(picture: Tensor) -> bytes:
    """uint8 (C, H, W), one or three channels, as the content of a PNG file."""
    from PIL import Image

    array = picture.permute(1, 2, 0).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(file, format="PNG")
    return file.getvalue()


def save_png(path: Path, picture: Tensor) -> None:
    """The same as a file, atomically."""
    write_atomically(path, lambda temporary: temporary.write_bytes(png_bytes(picture)))
