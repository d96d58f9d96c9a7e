"""The published U-Nets evaluated from their weights by name, by loops and formulas, in float64."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad, silu

Weights = dict[str, Tensor]


def random_weights(net: nn.Module) -> Weights:
    """Draw every weight of a network in float64, none of them zero, and return its state dict."""
    for p in net.double().parameters():
        nn.init.normal_(p, std=0.2)
    return net.requires_grad_(False).eval().state_dict()


def filter_matrix(taps: tuple[float, ...], size: int) -> Tensor:
    """(size / 2, size): row i weighs pixel 2 i - (n - 1) // 2 + k by tap k over the sum of the n taps."""
    matrix = torch.zeros(size // 2, size, dtype=torch.float64)
    for i in range(size // 2):
        for k, tap in enumerate(taps):
            column = 2 * i - (len(taps) - 1) // 2 + k
            if 0 <= column < size:
                matrix[i, column] += tap / sum(taps)
    return matrix


def halved(x: Tensor, taps: tuple[float, ...]) -> Tensor:
    matrix = filter_matrix(taps, x.shape[-1])
    return matrix @ x @ matrix.T


def doubled(x: Tensor, taps: tuple[float, ...]) -> Tensor:
    matrix = 2 * filter_matrix(taps, 2 * x.shape[-1])
    return matrix.T @ x @ matrix


def conv(w: Weights, name: str, x: Tensor) -> Tensor:
    weight = w[f"{name}.weight"]
    return conv2d(x, weight, w[f"{name}.bias"], padding=weight.shape[-1] // 2)


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    out = x @ w[f"{name}.weight"].T
    return out + w[f"{name}.bias"] if f"{name}.bias" in w else out


def norm(w: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    groups = x.reshape(len(x), min(32, x.shape[1] // 4), -1)
    centred = groups - groups.mean(2, keepdim=True)
    out = (centred / (centred.square().mean(2, keepdim=True) + eps).sqrt()).reshape(x.shape)
    return out * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]


def attention(qkv: Tensor, heads: int) -> Tensor:
    """Channel h 3 d + 3 c + (0, 1, 2) is channel c of (q, k, v) of head h."""
    b, total, height, width = qkv.shape
    d = total // (3 * heads)
    out = torch.empty(b, heads * d, height * width, dtype=qkv.dtype)
    for image in range(b):
        for h in range(heads):
            rows = [[qkv[image, 3 * h * d + 3 * c + part].flatten() for c in range(d)] for part in range(3)]
            q, k, v = (torch.stack(part) for part in rows)
            for position in range(height * width):
                logits = torch.stack([q[:, position] @ k[:, other] for other in range(height * width)]) / math.sqrt(d)
                share = (logits - logits.max()).exp()
                out[image, h * d : (h + 1) * d, position] = v @ (share / share.sum())
    return out.reshape(b, heads * d, height, width)


@dataclass(frozen=True)
class ByHand:
    """A network of `levels` levels with `blocks` blocks each.

    `kind` is song, adm or ddpm; `head_channels` 0 is one head.
    """

    w: Weights
    kind: str
    resolution: int
    levels: int
    blocks: int
    taps: tuple[float, ...] = (1.0, 1.0)
    head_channels: int = 0

    @property
    def factor(self) -> float:
        return math.sqrt(0.5) if self.kind == "song" else 1.0

    @property
    def eps(self) -> float:
        return 1e-5 if self.kind == "adm" else 1e-6

    def resampled(self, x: Tensor, name: str) -> Tensor:
        if self.kind == "ddpm" or not name.endswith(("_down", "_up")):
            return x
        return halved(x, self.taps) if name.endswith("_down") else doubled(x, self.taps)

    def block(self, name: str, x: Tensor, vector: Tensor) -> Tensor:
        w, eps = self.w, self.eps
        hidden = self.resampled(silu(norm(w, f"{name}.norm0", x, eps)), name)
        hidden, told = conv(w, f"{name}.conv0", hidden), linear(w, f"{name}.affine", vector)[:, :, None, None]
        if self.kind == "adm":
            c = hidden.shape[1]
            hidden = norm(w, f"{name}.norm1", hidden, eps) * (1 + told[:, :c]) + told[:, c:]
        else:
            hidden = norm(w, f"{name}.norm1", hidden + told, eps)
        bypass = self.resampled(x, name)
        if f"{name}.skip.weight" in w:
            bypass = conv(w, f"{name}.skip", bypass)
        x = (bypass + conv(w, f"{name}.conv1", silu(hidden))) * self.factor
        if f"{name}.qkv.weight" not in w:
            return x
        heads = x.shape[1] // self.head_channels if self.head_channels else 1
        mixed = attention(conv(w, f"{name}.qkv", norm(w, f"{name}.norm2", x, eps)), heads)
        return (x + conv(w, f"{name}.proj", mixed)) * self.factor

    def change(self, name: str, x: Tensor, vector: Tensor) -> Tensor:
        """To the next level."""
        if self.kind != "ddpm":
            return self.block(name, x, vector)
        if name.endswith("_up"):
            return conv(self.w, f"{name}.conv", x.repeat_interleave(2, -1).repeat_interleave(2, -2))
        weight, bias = self.w[f"{name}.conv.weight"], self.w[f"{name}.conv.bias"]
        return conv2d(pad(x, (0, 1, 0, 1)), weight, bias, stride=2)

    def __call__(self, image: Tensor, vector: Tensor) -> Tensor:
        """The output for the embedding that reaches the blocks."""
        w, sizes = self.w, [self.resolution // 2**level for level in range(self.levels)]
        x = conv(w, f"enc.{sizes[0]}x{sizes[0]}_conv", image)
        kept, auxiliary = [x], image
        for level, size in enumerate(sizes):
            if level:
                x = self.change(f"enc.{size}x{size}_down", x, vector)
                if (name := f"enc.{size}x{size}_aux_residual") + ".weight" in w:
                    auxiliary = x = (x + self.auxiliary(name, auxiliary)) / math.sqrt(2)
                kept.append(x)
            for k in range(self.blocks):
                x = self.block(f"enc.{size}x{size}_block{k}", x, vector)
                kept.append(x)
        for level, size in reversed(list(enumerate(sizes))):
            if level == self.levels - 1:
                x = self.block(f"dec.{size}x{size}_in0", x, vector)
                x = self.block(f"dec.{size}x{size}_in1", x, vector)
            else:
                x = self.change(f"dec.{size}x{size}_up", x, vector)
            for k in range(self.blocks + 1):
                x = self.block(f"dec.{size}x{size}_block{k}", torch.cat([x, kept.pop()], 1), vector)
        assert not kept
        head = f"dec.{sizes[0]}x{sizes[0]}_aux" if self.kind == "song" else "out"
        return conv(w, f"{head}_conv", silu(norm(w, f"{head}_norm", x, self.eps)))

    def auxiliary(self, name: str, x: Tensor) -> Tensor:
        """A 3x3 convolution of the image within enough zeros for it and the filter, filtered at every second pixel."""
        rim = (len(self.taps) - 1) // 2
        wide = conv2d(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"], padding=1 + rim)
        size = wide.shape[-1] - 2 * rim
        rows = torch.zeros(size // 2, size + 2 * rim, dtype=torch.float64)
        for i in range(size // 2):
            for k, tap in enumerate(self.taps):
                rows[i, 2 * i + k] = tap / sum(self.taps)
        return rows @ wide @ rows.T


def sinusoids(c: Tensor, dim: int, last: int) -> tuple[Tensor, Tensor]:
    """cos and sin of c 10000^(-k / last), k = 0 .. dim / 2 - 1."""
    angle = np.outer(c.numpy(), 10000.0 ** (-np.arange(dim // 2) / last))
    return torch.from_numpy(np.cos(angle)), torch.from_numpy(np.sin(angle))
