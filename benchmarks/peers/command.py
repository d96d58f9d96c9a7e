"""The command line."""

import argparse
import importlib.metadata
import importlib.util
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from peers.chosen import CLONES, pairs_of
from peers.clones import clone, revision
from peers.models import MODELS
from peers.modes import MODES
from peers.tables import fastest, measure, modes_table, pairs_table, steady_table
from peers.workers import Job

QUICK = ("DPMSolverMultistepScheduler 2M", "sample_dpmpp_2m", "ipndm", "scire_v1 multistep 2")
"""Parts of the rows of a quick answer: the usual method of each peer, and those that were fastest."""


def provenance(folder: Path | None, device: str) -> str:
    """What was measured on what."""
    machine = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU"
    versions = [f"torch {torch.__version__}", f"{torch.get_num_threads()} threads", f"device {machine}"]
    if importlib.util.find_spec("diffusers") is not None:
        versions.append(f"diffusers {importlib.metadata.version('diffusers')}")
    paths = {peer.PEER: clone(folder, peer.REPOSITORY) for peer in CLONES}
    return ", ".join([*versions, *(f"{name} at {revision(path)}" for name, path in paths.items() if path is not None)])


def arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/peers.py",
        description="Images per second of peers' samplers beside ours, on one network, in turns.",
    )
    parser.add_argument("--peers", type=Path, help="folder of clones called owner+name or name; none are needed")
    parser.add_argument("--model", nargs="+", choices=sorted(MODELS), default=["digits", "emoji32"])
    parser.add_argument("--batch", nargs="+", type=int, default=[64], help="images a network call")
    parser.add_argument("--nfe", type=int, default=10, help="network calls an image")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every contestant")
    parser.add_argument("--only", nargs="+", default=[""], help="parts of `peer method`: the rows to measure")
    parser.add_argument("--against", default="", help="part of a peer's row to use in place of the fastest peer")
    parser.add_argument(
        "--modes", nargs="*", choices=list(MODES), default=["plain", "sample.py"], help="a second table"
    )
    parser.add_argument("--steady", choices=list(MODES), default="plain", help="our mode in the steady run")
    parser.add_argument("--seconds", type=float, default=0.0, help="length of a steady run on either side; 0 for none")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help=f"three rounds of one method a peer: {', '.join(QUICK)}")
    parser.add_argument("--self-check", action="store_true", help="the same code at tiny sizes on the CPU")
    found = parser.parse_args(words)
    if found.quick:
        found.only, found.rounds = list(QUICK), 3
    if found.self_check:
        found.model, found.batch, found.rounds, found.device = sorted(MODELS), [2], 1, "cpu"
        found.modes, found.seconds = ["plain", "sample.py"], 0.01
    if found.device == "cpu" and any(MODES[mode].graphs for mode in [*found.modes, found.steady]):
        parser.error("CUDA graphs need --device cuda")
    if found.nfe < 4 or min(found.batch) < 1 or found.rounds < 1:
        parser.error("--nfe needs at least 4, --batch and --rounds at least 1")
    return found


def at_once(text: str) -> None:
    """Print, also where the output is a file that somebody follows."""
    print(text, flush=True)


class Elapsed:
    """Prints a line to stderr with the seconds since the start."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    def __call__(self, line: str) -> None:
        print(f"[{time.monotonic() - self.began:5.0f} s] {line}", file=sys.stderr, flush=True)


def main(words: list[str], say: Callable[[str], object] = at_once) -> None:
    """Print the tables of every model and batch."""
    asked, note = arguments(words), Elapsed()
    say(provenance(asked.peers, asked.device))
    for name in asked.model:
        model = MODELS[name](asked.self_check).on(asked.device)
        every, missing = pairs_of(model, asked.nfe, asked.peers)
        found = [pair for pair in every if any(word in f"{pair.peer} {pair.method}" for word in asked.only)]
        for batch in asked.batch:
            weights = sum(weight.numel() for weight in model.denoiser.parameters())
            say(f"\n### {model.name}, {weights / 1e6:.2f} M weights, {batch} images of {model.shape} a call\n")
            rows = measure(model, found, batch, asked.rounds, note)
            say("\n".join(pairs_table(rows, missing)))
            best = fastest(rows, asked.nfe, asked.against)
            if best is None:
                continue
            pair = best.pair
            chosen = (pair.peer, pair.method)
            job = Job(name, asked.self_check, asked.device, asked.peers, asked.nfe, batch, chosen, "plain")
            say(f"\nFastest peer: {pair.peer} {pair.method}, {best.theirs_over_bare:.3f} of bare network calls.\n")
            if asked.modes:
                say("\n".join(modes_table(job, asked.modes, asked.rounds, note)) + "\n")
            if asked.seconds:
                say("\n".join(steady_table(job, asked.steady, asked.seconds)))
