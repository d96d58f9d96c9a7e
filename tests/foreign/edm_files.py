"""Pickles of EDM, written by stand-ins of its classes under the original names."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from filled import filled
from torch import Tensor, nn

GOLDEN = json.loads((Path(__file__).parent / "golden_edm.json").read_text())
CASES = {case["wrapper"]: case for case in GOLDEN}
TAPS = "resample_filter"


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> None:
    """In EDM this runs meta["module_src"]."""
    raise AssertionError("the reconstruction of a file was called")


class EasyDict(dict):
    pass


class Persistent:
    """An object that pickles itself as EDM's do, with source that would leave a file behind."""

    canary = Path("canary")

    def __init__(self, name: str, state: dict[str, Any]) -> None:
        self.name, self.state = name, state

    def __reduce__(self) -> tuple[Callable, tuple]:
        source = f"open({str(self.canary)!r}, 'w').close()"
        meta = {"type": "class", "version": 6, "module_src": source, "class_name": self.name, "state": self.state}
        return _reconstruct_persistent_obj, (meta,)


def use_original_names(patch: pytest.MonkeyPatch, canary: Path) -> None:
    """Let pickle find the stand-ins under the names of the original; source in the pickles would write the canary."""
    names = {"torch_utils.persistence": _reconstruct_persistent_obj, "dnnlib.util": EasyDict}
    for module, thing in names.items():
        fake = ModuleType(module)
        setattr(fake, thing.__name__, thing)
        patch.setitem(sys.modules, module.partition(".")[0], ModuleType(module.partition(".")[0]))
        patch.setitem(sys.modules, module, fake)
        patch.setattr(thing, "__module__", module)
    patch.setattr(Persistent, "canary", canary)


def attributes(**extra: Any) -> dict[str, Any]:
    """What every nn.Module has."""
    return {
        "training": False,
        "_parameters": {},
        "_buffers": {},
        "_modules": {},
        "_non_persistent_buffers_set": set(),
        "_backward_hooks": {},
        "_init_args": (),
        "_init_kwargs": {},
        **extra,
    }


def module(weights: dict[str, Tensor], path: str = "") -> Any:
    """Nested layers for a flat state dict; enc and dec are torch's own containers."""
    state = attributes(skip_scale=np.sqrt(0.5))
    state["_parameters"]["unused"] = None
    state["_buffers"]["scratch"] = torch.full((2,), float("nan"))
    state["_non_persistent_buffers_set"].add("scratch")
    for name in dict.fromkeys(name.partition(".")[0] for name in weights):
        below = {key.partition(".")[2]: value for key, value in weights.items() if key.partition(".")[0] == name}
        if "" not in below:
            state["_modules"][name] = module(below, name)
        elif name in (TAPS, "freqs"):
            state["_buffers"][name] = below[""]
        else:
            state["_parameters"][name] = nn.Parameter(below[""])
    state["_modules"]["nothing"] = None
    if path in ("enc", "dec"):
        found = nn.ModuleDict()
        found.__dict__.update(state)
        return found
    return Persistent("Layer", state)


def weights_of(case: dict[str, Any]) -> dict[str, Tensor]:
    row = torch.tensor(case["arguments"].get(TAPS, [1, 1]), dtype=torch.float32)
    kernel = torch.outer(row, row)[None, None] / row.sum() ** 2
    return {
        name: kernel.clone() if name.endswith(TAPS) else filled(name, shape) for name, shape in case["shapes"].items()
    }


def network(case: dict[str, Any], **changed: Any) -> Persistent:
    """The wrapper and the network inside."""
    arguments, factor = dict(case["arguments"]), 2 if case["wrapper"] == "iDDPMPrecond" else 1
    kind = arguments.pop("model_type")
    interface = {"img_resolution": 8, "in_channels": 3, "out_channels": 3 * factor, "label_dim": 0}
    inner = module(weights_of(case))
    inner.name = changed.pop("model_type", kind)
    inner.state["_init_kwargs"] = {**interface, **arguments, **changed}
    told = {name: float(value) if value == "inf" else value for name, value in case["attributes"].items()}
    wrapper = attributes(img_resolution=8, **told)
    wrapper["_modules"]["model"] = inner
    wrapper["_buffers"]["u"] = torch.zeros(3) if factor == 2 else None
    wrapper["_init_kwargs"] = {"img_resolution": 8, "img_channels": 3, **case["arguments"]}
    return Persistent(case["wrapper"], wrapper)


def snapshot(case: dict[str, Any], **changed: Any) -> dict[str, Any]:
    pipe = Persistent("AugmentPipe", {"p": 0.12, "_init_args": (), "_init_kwargs": {"p": 0.12, "xflip": 1e8}})
    loss = Persistent("EDMLoss", {"P_mean": -1.2, "_init_args": (), "_init_kwargs": {}})
    data = EasyDict(class_name="training.dataset.ImageFolderDataset", xflip=False, scale=float("inf"), sizes=(1, 2))
    return {"ema": network(case, **changed), "loss_fn": loss, "augment_pipe": pipe, "dataset_kwargs": data}
