"""Small folders of diffusers, as its save_pretrained writes them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import DDPMPipeline, UNet2DModel
from filled import filled_state

from scoreline.checkpoints import Checkpoint, load_model, save_model
from scoreline.foreign.conversion import card
from scoreline.foreign.families import load

TWO = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
TINY = {"sample_size": 8, "block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1, **TWO}

SCHEDULER = "scheduler/scheduler_config.json"
CONFIG = "unet/config.json"


def unet(config: dict[str, Any]) -> UNet2DModel:
    network = UNet2DModel(**config).eval()
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    network.load_state_dict(filled_state(shapes))
    return network


def saved(folder: Path, network: UNet2DModel, scheduler: Any, **how: Any) -> Path:
    DDPMPipeline(network, scheduler).save_pretrained(folder, **how)
    return folder


def parts(folder: Path, **components: Any) -> Path:
    """A folder of components alone, without model_index.json."""
    for name, component in components.items():
        component.save_pretrained(folder / name)
    return folder


def converted(folder: Path, weights: str = "ema") -> Checkpoint:
    """Through the file that is kept."""
    _, found = load(folder, "diffusers", None, weights)
    target = folder.parent / f"{folder.name}.safetensors"
    save_model(target, found.weights, card("source", folder, "diffusers", found, weights))
    return load_model(target)


def changed(folder: Path, **values: Any) -> Callable[[str], None]:
    """Change keys of a JSON file of the folder; `absent` removes one."""

    def change(name: str) -> None:
        path = folder / name
        content = json.loads(path.read_text())
        content.update(values)
        path.write_text(json.dumps({key: value for key, value in content.items() if value != "absent"}))

    return change
