"""What sample.py does with models of any number of channels, with latents, and with settings of an imported folder."""

import csv
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import forks
import numpy as np
import pytest
import torch
from small_models import NOISE_PREDICTION, VP

from scoreline.checkpoints import Card, load_model, save_model
from scoreline.errors import InputError
from scoreline.foreign.diffusers_settings import settings
from scoreline.networks.diffusers_decoder import KLDecoder
from scoreline.networks.unet import UNet

NETWORK: dict[str, Any] = {"resolution": 8, "width": 8, "blocks": 1}
DECODER: dict[str, Any] = {
    "block_out_channels": [4, 8],
    "norm_num_groups": 2,
    "latent_channels": 4,
    "scaling_factor": 0.5,
}
BLOCKS: dict[str, Any] = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
SPEC = {"_target_": "scoreline.networks.diffusers_decoder.KLDecoder", **DECODER, **BLOCKS}


def model(
    path: Path, channels: int, decoder: bool = False, imported: dict[str, Any] | None = None, **changes: Any
) -> Path:
    torch.manual_seed(0)
    network = UNet(**NETWORK, channels=channels)
    torch.nn.init.constant_(network.head.weight, 0.05)
    described = {
        "network": {"_target_": "scoreline.networks.unet.UNet", **NETWORK, "channels": channels},
        "noise_schedule": VP,
        "parameterisation": NOISE_PREDICTION,
    }
    weights = network.state_dict()
    if decoder:
        state = KLDecoder(**DECODER, **BLOCKS).state_dict()
        described, weights = (
            {**described, "decoder": {**SPEC, **changes}},
            weights | {f"autoencoder.{k}": w for k, w in state.items()},
        )
    training = {} if imported is None else {"imported": imported}
    save_model(path, weights, Card(described, (channels, 8, 8), 0, {}, training))
    return path


def sampled(where: Path, path: Path, *words: str, code: int = 0) -> str:
    done = forks.call("sample", f"checkpoint={path}", "nfe=2", "hydra.run.dir=run", *words, cwd=where)
    assert done.returncode == code, done.stderr
    return str(done.stderr if code else done.stdout)


def manifest(run: Path) -> list[dict[str, str]]:
    with open(run / "manifest.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_five_channels(tmp_path: Path) -> None:
    """Bytes are refused before the first call; floats are kept; a second start finds a finished run."""
    notes = settings({"_class_name": "DDIMScheduler", "clip_sample_range": 2.0})
    path = model(tmp_path / "five.safetensors", 5, imported=notes)
    said = sampled(tmp_path, path, "seeds=0-2", "metrics=none", code=2)
    assert said.strip() == (
        "sample.py: format=npz: bytes from -1 to 1 hold images of 1 or 3 channels, these samples have 5; format=npy "
        "metrics=none keeps them in float32"
    )
    assert not list(tmp_path.glob("run/shards/*"))
    words = "seeds=0-2", "metrics=none", "format=npy"
    said = sampled(tmp_path, path, *words)
    note = "note: clip_sample=true of the folder is not followed; threshold=clip threshold.low=-2 threshold.high=2"
    assert said.count(f"{note} follows it\n") == 1
    samples = np.load(tmp_path / "run" / "samples.npy")
    assert (samples.shape, samples.dtype) == ((3, 5, 8, 8), np.float32)
    digests = [line["sha256"] for line in manifest(tmp_path / "run")]
    assert digests == [hashlib.sha256(row.tobytes()).hexdigest() for row in samples]
    result = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (result["format"], list(result["files"])) == ("npy", ["samples.npy"])
    assert len(result["warnings"]) == 1
    assert "was finished before" in sampled(tmp_path, path, *words)
    (tmp_path / "run" / "samples.npy").write_bytes(b"")
    assert "samples.npy differs from the file of the run; repeating" in sampled(tmp_path, path, *words)
    assert np.array_equal(np.load(tmp_path / "run" / "samples.npy"), samples)


def test_metrics_of_other_channels_are_refused(tmp_path: Path) -> None:
    path = model(tmp_path / "four.safetensors", 4)
    said = sampled(tmp_path, path, "seeds=0-9", "format=npy", "metrics=digits", code=2)
    assert "metrics: extractor digits-cnn takes 1x8x8" in said
    assert said.count("\n") == 1


def test_latents_are_decoded_for_bytes_and_kept_as_floats(tmp_path: Path) -> None:
    path = model(tmp_path / "latent.safetensors", 4, decoder=True)
    said = sampled(tmp_path, path, "seeds=0-2", "format=npy", "metrics=digits", code=2)
    assert said.startswith("sample.py: metrics: they measure images, and format=npy keeps the latents of this model;")
    for choice in ("npy", "npz"):
        (tmp_path / choice).mkdir()
        sampled(tmp_path / choice, path, "seeds=0-2", "metrics=none", f"format={choice}", "network_batch=2")
    latents = torch.from_numpy(np.load(tmp_path / "npy" / "run" / "samples.npy"))
    assert latents.shape == (3, 4, 8, 8)
    decoder = load_model(path).decoder
    assert decoder is not None
    images = np.load(tmp_path / "npz" / "run" / "samples.npz")["arr_0"]
    assert images.shape == (3, 16, 16, 3)
    pixels = 127.5 * decoder(latents).permute(0, 2, 3, 1).numpy() + 128
    assert np.abs(np.clip(np.floor(pixels), 0, 255) - images).max() <= 1
    assert images.std() > 1


@pytest.mark.parametrize("channels", [3, 4])
def test_a_card_without_a_decoder_has_none(channels: int, tmp_path: Path) -> None:
    checkpoint = load_model(model(tmp_path / "m.safetensors", channels))
    assert checkpoint.decoder is None
    assert checkpoint.image_shape == checkpoint.card.shape == (channels, 8, 8)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"_target_": "os.system"}, "names os.system, which is not part of scoreline"),
        ({"_target_": "scoreline.networks.unet.UNet"}, "refuses its arguments"),
        ({"_target_": "scoreline.networks.latents.LatentDecoder"}, "refuses its arguments"),
        ({"scaling_factor": 0.0}, "scaling_factor is 0.0, not a number above 0"),
        ({"scaling_factor": "2"}, "scaling_factor is '2', not float"),
        ({"block_out_channels": [4, 10**6]}, "weights do not fit the network that the card describes"),
        ({"block_out_channels": [4, 16]}, "weights do not fit the network that the card describes"),
        ({"layers_per_block": 999}, "larger than its weights"),
        ({"latent_channels": 10**9}, "latent_channels is 1000000000"),
        ({"act_fn": "${oc.env:HOME}"}, "which is not a plain value"),
    ],
)
def test_hostile_decoders(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = model(tmp_path / "m.safetensors", 4, decoder=True, **changes)
    with pytest.raises(InputError, match=said) as error:
        load_model(path)
    assert "\n" not in str(error.value)


def test_a_decoder_of_another_kind(tmp_path: Path) -> None:
    """A network in the place of the decoder, whose weights fit."""
    path = tmp_path / "m.safetensors"
    checkpoint = load_model(model(path, 3))
    network = checkpoint.card.model["network"]
    weights = checkpoint.denoiser.network.state_dict()
    both = weights | {f"autoencoder.{name}": weight for name, weight in weights.items()}
    save_model(path, both, replace(checkpoint.card, model={**checkpoint.card.model, "decoder": network}))
    with pytest.raises(InputError, match=r"its decoder is of no class of scoreline\.networks\.latents; import it"):
        load_model(path)
