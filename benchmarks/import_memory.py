"""What opening and importing a model takes beside its weights: `python benchmarks/import_memory.py DIR`.

Makes a network of random weights in DIR (ADM of ImageNet 64x64, 295.9 million parameters, 5 GB for all files), as a
model file of ours, as a zip file of torch.save and as a plain pickle. Then, each in a process of its own: opens the
model file by `load_model`, which also computes its SHA-256 and looks at every number, and, for comparison, by building
the network and copying the weights into it; and reads each foreign file and saves it as ours. Memory is the most
anonymous memory (RssAnon) that the parent saw every 2 ms, above what the process had after its imports: pages of
mapped files, which the system can drop, are not in it. Files have just been written, so they are read from the page
cache. Needs /proc of Linux.
"""

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor, nn

from scoreline.checkpoints import Card, load_model, save_model
from scoreline.descriptions.specs import Spec, rebuild
from scoreline.errors import InputError
from scoreline.foreign.translation import skeleton
from scoreline.safe_pickle.torch_files import read

MODEL = Path(__file__).parents[1] / "conf" / "model" / "imagenet64_adm.yaml"
OURS, ZIP, PICKLE, MADE = "ours.safetensors", "weights.pth", "weights.pkl", "imported.safetensors"
INTERVAL = 0.002  # seconds between looks


class Found(NamedTuple):
    """Of one piece of work: size of the file it reads, seconds, and bytes of anonymous memory at the most."""

    size: int
    seconds: float
    memory: int


def card(model: Spec) -> Card:
    network = model["network"]
    shape = (network["channels"], network["resolution"], network["resolution"])
    return Card(model, shape, network["num_classes"], {"name": "random weights"}, {})


def make(folder: Path, model: Spec) -> int:
    """Write the three files; bytes of the weights."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(weight.shape, generator=generator).to(weight.dtype)
        for name, weight in skeleton(model["network"]).state_dict().items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder / OURS, weights, card(model))
    torch.save({"ema": weights}, folder / ZIP)
    with open(folder / PICKLE, "wb") as handle:
        pickle.dump({"ema": weights}, handle)
    return sum(weight.nbytes for weight in weights.values())


def model_of(folder: Path) -> Spec:
    return json.loads((folder / "model.json").read_text())  # type: ignore[no-any-return]


def open_ours(folder: Path) -> Any:
    return load_model(folder / OURS)


def open_plainly(folder: Path) -> nn.Module:
    weights = load_file(folder / OURS)
    network: nn.Module = rebuild(model_of(folder)["network"], nn.Module)
    network.load_state_dict(weights)
    return network


def import_from(folder: Path, name: str) -> Any:
    tree = read(folder / name)
    weights: dict[str, Tensor] = tree["ema"]
    save_model(folder / MADE, weights, card(model_of(folder)))
    return tree


WORKS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "load_model": (OURS, open_ours),
    "network built, weights copied into it": (OURS, open_plainly),
    "import of a torch zip file": (ZIP, lambda folder: import_from(folder, ZIP)),
    "import of a plain pickle": (PICKLE, lambda folder: import_from(folder, PICKLE)),
}


def child(name: str, folder: Path) -> None:
    """Say that the imports are done, wait for a line, work, say how long it took, and wait for the end."""
    torch.set_num_threads(1)
    torch.randn(64, 64) @ torch.randn(64, 64)
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    held = WORKS[name][1](folder)
    print(time.perf_counter() - began, flush=True)
    sys.stdin.readline()
    del held


def anonymous(process: int) -> int:
    """Bytes of a process's anonymous memory that are in RAM; 0 when it has ended."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


def measured(name: str, folder: Path) -> Found:
    """Work of `WORKS` in a process of its own.

    Raises:
        RuntimeError: if it fails.
    """
    command = [sys.executable, __file__, "--child", name, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        before = most = anonymous(process.pid)
        process.stdin.write("\n")
        process.stdin.flush()
        os.set_blocking(process.stdout.fileno(), False)
        while not (answer := process.stdout.readline()):
            if process.poll() is not None:
                raise RuntimeError(f"{name} in {folder} failed")
            most = max(most, anonymous(process.pid))
            time.sleep(INTERVAL)
        most = max(most, anonymous(process.pid))
        process.stdin.write("\n")
        process.stdin.flush()
    return Found((folder / WORKS[name][0]).stat().st_size, float(answer), most - before)


def table(folder: Path, weights: int) -> list[str]:
    """Lines of Markdown."""
    lines = ["| work | file, MB | seconds | memory / weights |", "|--|--|--|--|"]
    for name in WORKS:
        found = measured(name, folder)
        lines.append(f"| {name} | {found.size / 1e6:.0f} | {found.seconds:.1f} | {found.memory / weights:.3f} |")
    return lines


def main(words: list[str], model: Path = MODEL) -> None:
    """Make what is to be measured in an empty folder, and measure it.

    Raises:
        InputError: for other words than one folder, and for one that is not empty.
    """
    if words[:1] == ["--child"]:
        child(words[1], Path(words[2]))
        return
    if len(words) != 1 or words[0].startswith("-"):
        raise InputError("give one folder, as in python benchmarks/import_memory.py DIR")
    folder = Path(words[0])
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: is not empty; give a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    described = OmegaConf.to_container(OmegaConf.load(model), resolve=True)
    (folder / "model.json").write_text(json.dumps(described))
    weights = make(folder, model_of(folder))
    print(f"weights of {weights / 1e6:.0f} MB, {os.cpu_count()} processors, no GPU used\n")
    print("\n".join(table(folder, weights)))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(str(error))
