"""Images per call and layout: found once for a run directory, whatever memory and defaults are when it goes on."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from forks import call
from omegaconf import OmegaConf

from scoreline.checkpoints import Card
from scoreline.execution import U_NETS, is_u_net
from scoreline.generation.auto_batch import card_batch

U_NET = "scoreline.networks.unet.UNet"


def started(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return call(
        "sample", "checkpoint=digits_vp", f"hydra.run.dir={folder}", "network_batch=auto", *words, cwd=folder.parent
    )


def test_the_first_start_fixes_it(tmp_path: Path) -> None:
    words = ("metrics=none", "nfe=4", "seeds=0-9")
    first = started(tmp_path / "run", *words, "memory_mib=3")
    assert first.returncode == 0, first.stderr
    size = OmegaConf.load(tmp_path / "run" / "config.yaml").network_batch
    assert 1 < size < 64
    assert size & (size - 1) == 0
    images = (tmp_path / "run" / "samples.npz").read_bytes()
    for name in ("metrics.json", "samples.npz"):
        (tmp_path / "run" / name).unlink()
    again = started(tmp_path / "run", *words, "memory_mib=3000", "threads=2")
    assert again.returncode == 0, again.stderr
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").network_batch == size
    assert (tmp_path / "run" / "samples.npz").read_bytes() == images


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("memory_mib=0.001",), "network_batch=auto: one image takes"),
        (("memory_mib=-1",), "memory_mib=-1: must be a number greater than 0"),
    ],
)
def test_what_cannot_fit_is_told(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    done = started(tmp_path / "run", *words)
    assert done.returncode == 2
    assert done.stderr.startswith(f"sample.py: {said}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("network", "side", "device", "images"),
    [
        *(
            (U_NET, side, "cpu", images)
            for side, images in ((4, 128), (8, 128), (16, 32), (28, 16), (32, 16), (256, 16))
        ),
        (U_NET, 8, "cuda", 64),
        ("scoreline.networks.diffusers_unet.DiffusersUNet", 8, "cpu", 64),
        ("mine.UNet", 8, "cpu", 64),
    ],
)
def test_a_card_decides(network: str, side: int, device: str, images: int) -> None:
    card = Card({"network": {"_target_": network}}, (3, side, side), 0, {}, {})
    assert card_batch(card, torch.device(device)) == images
    assert is_u_net(card.model) == (network == U_NET)


def test_u_nets_exist() -> None:
    for name in U_NETS:
        module, _, kind = name.rpartition(".")
        assert isinstance(getattr(__import__(module, fromlist=[kind]), kind), type)


def test_a_run_begun_with_other_defaults_goes_on_with_them(tmp_path: Path) -> None:
    """Its config gives a layout and a number where the defaults leave both to the card."""
    words = ("metrics=none", "nfe=4", "seeds=0-3", "checkpoint=digits_vp", "format=npy")

    def images(folder: str, *more: str) -> tuple[object, object, "np.typing.NDArray[np.float32]"]:
        done = call("sample", f"hydra.run.dir={folder}", *words, *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        config = OmegaConf.load(tmp_path / folder / "config.yaml")
        return config.channels_last, config.network_batch, np.load(tmp_path / folder / "samples.npy")

    first = images("old", "channels_last=false", "network_batch=64")
    for name in ("metrics.json", "samples.npy"):
        (tmp_path / "old" / name).unlink()
    again, new = images("old"), images("new")
    assert again[:2] == first[:2] == (False, 64)
    assert new[:2] == (True, 128)
    assert (again[2] == first[2]).all()
    assert 0 < abs(new[2] - first[2]).max() < 1e-4
    refused = call("sample", "hydra.run.dir=old", *words, "channels_last=true", cwd=tmp_path)
    assert refused.returncode == 2
    assert "of another configuration" in refused.stderr
