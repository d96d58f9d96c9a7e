"""A small stand-in for denoising-diffusion-pytorch: the names of its weights and of its files, not its code."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

SOURCE = '''
"""A U-Net of two levels with the names of the weights of the U-Net of denoising-diffusion-pytorch."""

import torch
from torch import nn


class Norm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, dim, 1, 1))

    def forward(self, x):
        return nn.functional.normalize(x, dim=1) * self.g * x.shape[1] ** 0.5


class Part(nn.Module):
    def __init__(self, dim, out):
        super().__init__()
        self.proj, self.norm = nn.Conv2d(dim, out, 3, padding=1), Norm(out)

    def forward(self, x, scale=0.0):
        return nn.functional.silu(self.norm(self.proj(x)) * (scale + 1))


class Residual(nn.Module):
    def __init__(self, dim, out, time):
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time, out))
        self.block1, self.block2 = Part(dim, out), Part(out, out)
        self.res_conv = nn.Conv2d(dim, out, 1) if dim != out else nn.Identity()

    def forward(self, x, time):
        return self.block2(self.block1(x, self.mlp(time)[:, :, None, None])) + self.res_conv(x)


class Attention(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm, self.mem_kv = Norm(dim), nn.Parameter(torch.randn(2, 1, dim, 2))
        self.to_qkv, self.to_out = nn.Conv2d(dim, 3 * dim, 1, bias=False), nn.Conv2d(dim, dim, 1)

    def forward(self, x):
        q, k, v = self.to_qkv(self.norm(x)).flatten(2).chunk(3, 1)
        k, v = (torch.cat([m.expand(len(x), -1, -1), t], 2) for m, t in zip(self.mem_kv, (k, v)))
        weights = (q.transpose(1, 2) @ k / q.shape[1] ** 0.5).softmax(-1)
        return x + self.to_out((weights @ v.transpose(1, 2)).transpose(1, 2).reshape(x.shape))


class Sines(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dim = dim

    def forward(self, time):
        angle = time[:, None] * 10000 ** -torch.linspace(0, 1, self.dim // 2, device=time.device)
        return torch.cat([angle.sin(), angle.cos()], 1)


class Unet(nn.Module):
    def __init__(self, dim, dim_mults=(1, 2), channels=3):
        super().__init__()
        time, low, high = 4 * dim, dim * dim_mults[0], dim * dim_mults[1]
        self.init_conv = nn.Conv2d(channels, dim, 7, padding=3)
        self.time_mlp = nn.Sequential(Sines(dim), nn.Linear(dim, time), nn.GELU(), nn.Linear(time, time))
        level = [Residual(dim, dim, time), Residual(dim, dim, time), Attention(dim), nn.Conv2d(dim, high, 3, padding=1)]
        self.downs = nn.ModuleList([nn.ModuleList(level)])
        self.mid_block1, self.mid_attn = Residual(high, high, time), Attention(high)
        self.mid_block2 = Residual(high, high, time)
        self.ups = nn.ModuleList([nn.ModuleList([Residual(high + dim, low, time), Attention(low)])])
        self.final_res_block = Residual(low + dim, dim, time)
        self.final_conv = nn.Conv2d(dim, channels, 1)

    def forward(self, x, time, x_self_cond=None):
        first, time = self.init_conv(x), self.time_mlp(time)
        one, two, attention, down = self.downs[0]
        held = attention(two(one(first, time), time))
        middle = self.mid_block2(self.mid_attn(self.mid_block1(down(held), time)), time)
        up, attention = self.ups[0]
        upper = attention(up(torch.cat([middle, held], 1), time))
        return self.final_conv(self.final_res_block(torch.cat([upper, first], 1), time))


class GaussianDiffusion(nn.Module):
    def __init__(self, model, betas):
        super().__init__()
        self.model = model
        for name, value in {"betas": betas, "alphas_cumprod": (1 - betas).cumprod(0)}.items():
            self.register_buffer(name, value.float())
'''


def write_package(where: Path) -> Any:
    """Write and import the package denoising_diffusion_pytorch in a folder that is on Python's path."""
    sys.modules.pop("denoising_diffusion_pytorch", None)
    (where / "denoising_diffusion_pytorch").mkdir()
    (where / "denoising_diffusion_pytorch/__init__.py").write_text(SOURCE)
    return import_module("denoising_diffusion_pytorch")


def write_checkpoint(where: Path) -> tuple[Any, Any]:
    """Write results/model-10.pt as the Trainer does; return the diffusions of the step's weights and of the average."""
    package = write_package(where)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    torch.manual_seed(0)
    raw, average = (package.GaussianDiffusion(package.Unet(8), betas) for _ in range(2))
    averages = {
        f"{part}.{name}": v
        for part, it in (("online_model", raw), ("ema_model", average))
        for name, v in it.state_dict().items()
    }
    optimiser = torch.optim.Adam(raw.parameters(), 1e-4)
    (where / "results").mkdir()
    torch.save(
        {
            **{"step": 1000, "model": raw.state_dict(), "opt": optimiser.state_dict()},
            "ema": {"initted": torch.tensor(True), "step": torch.tensor(1000), **averages},
            **{"scaler": None, "version": "2.2.5"},
        },
        where / "results/model-10.pt",
    )
    return raw, average
