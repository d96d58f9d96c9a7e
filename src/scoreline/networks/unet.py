"""A compact U-Net for images of 8x8 to 64x64."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention, silu

from scoreline.errors import InputError
from scoreline.networks.embeddings import Fourier, Sinusoidal

EMBEDDINGS = {"sinusoidal": Sinusoidal, "fourier": Fourier}


def _norm(channels: int) -> nn.GroupNorm:
    groups = next(g for g in range(min(32, max(1, channels // 4)), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, eps=1e-5)


def _zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


class Attention(nn.Module):
    """x + proj(softmax(q k^T / sqrt(d)) v) over all positions; (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, head_channels: int = 32) -> None:
        super().__init__()
        self.heads = max(1, channels // head_channels)
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = _zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w).transpose(-1, -2)
        mixed = scaled_dot_product_attention(qkv[:, 0], qkv[:, 1], qkv[:, 2])
        out: Tensor = x + self.proj(mixed.transpose(-1, -2).reshape(b, c, h, w))
        return out


class Block(nn.Module):
    """Residual block: GroupNorm, SiLU, 3x3 twice, the second norm scaled and shifted by the embedding."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float, attention: bool) -> None:
        super().__init__()
        self.norm0, self.conv0 = _norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.affine = nn.Linear(embedding, 2 * outputs)
        self.norm1, self.conv1 = _norm(outputs), _zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        self.attention = Attention(outputs) if attention else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        hidden = self.conv0(silu(self.norm0(x)))
        scale, shift = self.affine(embedding)[:, :, None, None].chunk(2, dim=1)
        hidden = silu(torch.addcmul(shift, self.norm1(hidden), scale + 1))
        hidden = self.skip(x) + self.conv1(self.dropout(hidden))
        out: Tensor = self.attention(hidden)
        return out


class Down(nn.Module):
    """3x3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class Up(nn.Module):
    """Nearest neighbour twice as large, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class UNet(nn.Module):
    """F(image (B, channels, R, R), noise label (B,), class label (B,) or None) -> (B, channels, R, R).

    Residual blocks with GroupNorm and SiLU, `blocks` per level of width `width * multipliers[level]`, self-attention at
    the resolutions in `attention` and in the bottleneck, additive noise and class embeddings. With `num_classes` > 0
    the class label is replaced by the null class with probability `label_dropout` while training, and always where it
    is None or negative, so that one network serves unconditional, conditional and guided use.

    Raises:
        InputError: if the resolution is not divisible by 2^(levels - 1), or the embedding is unknown.

    Source: Ronneberger et al. (2015), arXiv:1505.04597; Ho et al. (2020), arXiv:2006.11239; scale-shift conditioning
    and attention at several resolutions after Dhariwal & Nichol (2021), arXiv:2105.05233.
    """

    def __init__(
        self,
        channels: int,
        resolution: int,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 2,
        attention: Sequence[int] = (),
        embedding: str = "sinusoidal",
        dropout: float = 0.0,
        num_classes: int = 0,
        label_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        _check(resolution, len(multipliers), embedding)
        self.resolution, self.num_classes, self.label_dropout = resolution, num_classes, label_dropout
        features = 4 * width
        self.embed = EMBEDDINGS[embedding](width)
        self.map = nn.Sequential(nn.Linear(width, features), nn.SiLU(), nn.Linear(features, features))
        self.classes = nn.Embedding(num_classes + 1, features) if num_classes else None
        widths = [width * m for m in multipliers]
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()

        def block(inputs: int, outputs: int, level: int) -> Block:
            return Block(inputs, outputs, features, dropout, resolution >> level in attention)

        skips, current = [width], width
        for level, outputs in enumerate(widths):
            for _ in range(blocks):
                self.encoder.append(block(current, outputs, level))
                skips.append(current := outputs)
            if level < len(widths) - 1:
                self.encoder.append(Down(outputs))
                skips.append(outputs)
        self.middle = nn.ModuleList(Block(current, current, features, dropout, a) for a in (True, False))
        for level, outputs in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.decoder.append(block(current + skips.pop(), outputs, level))
                current = outputs
            if level:
                self.decoder.append(Up(outputs))
        self.norm, self.head = _norm(current), _zeroed(nn.Conv2d(current, channels, 3, padding=1))

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        embedding = self.map(self.embed(noise))
        if self.classes is not None:
            embedding = embedding + self.classes(self._label(label, len(x), x.device))
        embedding = silu(embedding)
        x = self.stem(x)
        skips = [x]
        for module in self.encoder:
            x = module(x) if isinstance(module, Down) else module(x, embedding)
            skips.append(x)
        for module in self.middle:
            x = module(x, embedding)
        for module in self.decoder:
            x = module(x) if isinstance(module, Up) else module(torch.cat([x, skips.pop()], dim=1), embedding)
        out: Tensor = self.head(silu(self.norm(x)))
        return out

    def _label(self, label: Tensor | None, count: int, device: torch.device) -> Tensor:
        if label is None:
            return torch.full((count,), self.num_classes, device=device)
        null = label < 0
        if self.training and self.label_dropout:
            null = null | (torch.rand(count, device=device) < self.label_dropout)
        return torch.where(null, self.num_classes, label)


def _check(resolution: int, levels: int, embedding: str) -> None:
    if resolution % 2 ** (levels - 1):
        raise InputError(
            f"model.network.resolution={resolution} cannot be halved {levels - 1} times; "
            "use fewer model.network.multipliers or another resolution"
        )
    if embedding not in EMBEDDINGS:
        raise InputError(f"model.network.embedding={embedding}: choose from {', '.join(sorted(EMBEDDINGS))}")
