"""A TorchScript file of the interface and the layer names of inception-2015-12-05.pt, small and with random weights."""

import warnings
from collections import OrderedDict

import torch
from torch import nn

WIDTH, FEATURES, CLASSES = 8, 320, 10
"""More features than `frechet.LARGE`, as the published file has, so that errors take the same path."""

SIDE = 9
"""Spatial features are 7 x SIDE x SIDE."""


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1), nn.ReLU())
        self.tower = nn.Conv2d(WIDTH, WIDTH, 1)

    def forward(self, x):
        return torch.cat([self.conv(x)[:, :4], self.tower(x)[:, 4:]], 1)


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        layers = [("conv", nn.Sequential(nn.Conv2d(3, WIDTH, 3, stride=36), nn.ReLU()))]
        layers += [(name, nn.Identity()) for name in ("conv_1", "conv_2", "pool0", "conv_3", "conv_4", "pool1")]
        layers += [("mixed", nn.Identity())] + [(f"mixed_{k}", nn.Identity()) for k in range(1, 6)]
        layers += [("mixed_6", Mixed())] + [(f"mixed_{k}", nn.Identity()) for k in (7, 8, 9)]
        layers += [("mixed_10", nn.Sequential(nn.Conv2d(WIDTH, FEATURES, 1), nn.ReLU()))]
        layers += [("pool2", nn.AdaptiveAvgPool2d(1))]
        self.layers = nn.Sequential(OrderedDict(layers))
        self.output = nn.Linear(FEATURES, CLASSES)

    def forward(
        self,
        img: torch.Tensor,
        return_features: bool = False,
        use_fp16: bool = False,
        no_output_bias: bool = False,
    ):
        n, channels, height, width = img.shape
        theta = torch.eye(2, 3, device=img.device)
        theta[0, 2] += 1.0 / width - 1.0 / 299
        theta[1, 2] += 1.0 / height - 1.0 / 299
        theta = theta.unsqueeze(0).repeat([n, 1, 1])
        grid = nn.functional.affine_grid(theta, [n, channels, 299, 299], align_corners=False)
        x = nn.functional.grid_sample(img.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
        features = self.layers((x - 128) / 128).reshape(-1, 320)
        if return_features:
            return features
        bias = torch.zeros_like(self.output.bias) if no_output_bias else self.output.bias
        return nn.functional.softmax(nn.functional.linear(features, self.output.weight, bias), dim=1)


class Shifted(Tiny):
    """Its layers do not lead to its features."""

    def forward(self, img: torch.Tensor, return_features: bool = False):
        return self.layers(nn.functional.interpolate(img.float(), (299, 299)) / 255).reshape(-1, 320)


class Bare(nn.Module):
    """Only the interface, 6 features."""

    def forward(self, img: torch.Tensor, return_features: bool = False):
        return img.float().flatten(2)[:, :, :2].reshape(-1, 6)


class Plain(nn.Module):
    """2048 features quickly, and no layers."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(3 * 32 * 32, 2048)
        self.output = nn.Linear(2048, CLASSES)

    def forward(self, img: torch.Tensor, return_features: bool = False, no_output_bias: bool = False):
        x = nn.functional.adaptive_avg_pool2d((img.float() - 128) / 128, [32, 32])
        features = torch.relu(self.hidden(x.flatten(1)))
        if return_features:
            return features
        return nn.functional.softmax(self.output(features), dim=1)


def write(path, kind=Tiny, seed=0):
    """Script and save `kind` with random weights; the path."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = kind().eval()
        for value in module.parameters():
            nn.init.normal_(value, std=0.5 if value.ndim > 1 else 0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(module), path)
    return path


def load(path):
    """The file as torch loads it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.load(path)
