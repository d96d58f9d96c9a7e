"""Small untrained models for the tests of the scripts."""

from pathlib import Path

import torch

from scoreline.checkpoints import Card, save_model
from scoreline.networks.unet import UNet

SIZES = {"channels": 1, "resolution": 8, "width": 8, "blocks": 1}
VP = {"_target_": "scoreline.schedules.vp.LinearVP", "beta_min": 0.1, "beta_max": 20.0}
NOISE_PREDICTION = {"_target_": "scoreline.parameterisations.NoisePrediction", "noise_schedule": VP}


def save_small(path: Path, classes: int = 0, head: float = 0.05, channels: int = 1) -> Path:
    """Save a U-Net for images of 8 x 8 pixels whose last layer is not zero, so that its images depend on all inputs."""
    torch.manual_seed(0)
    sizes = {**SIZES, "channels": channels}
    network = UNet(**sizes, num_classes=classes)
    torch.nn.init.constant_(network.head.weight, head)
    model = {
        "network": {"_target_": "scoreline.networks.unet.UNet", **sizes, "num_classes": classes},
        "noise_schedule": VP,
        "parameterisation": NOISE_PREDICTION,
    }
    save_model(path, network.state_dict(), Card(model, (channels, 8, 8), classes, {}, {}))
    return path
