"""Forecast of sample.py, and of the measured run of calibrate.py."""

import math
from dataclasses import dataclass, replace

import torch
from torch import nn

from scoreline.denoiser import Denoising
from scoreline.doctor import environment
from scoreline.doctor.findings import Finding, amount, duration
from scoreline.doctor.timing import Cost, timed_call
from scoreline.generation.formats import FLOAT, NONE
from scoreline.solvers.adaptive import AdaptiveRun
from scoreline.solvers.tableau import Tableau

BLOCK = 4096
"""Bytes of a block of the file system."""

BESIDE_PNG = 100
"""Approximate bytes of a PNG file besides its rows."""

BESIDE_SHARD = 72
"""Bytes of a shard per image besides its pixels: index, seed, label, digest and two counts."""

LINE = 90
"""Approximate bytes of a line of manifest.csv."""


def weights(module: nn.Module) -> tuple[int, int]:
    """Return the number of a module's parameters, and the bytes of its parameters and buffers."""
    parameters = list(module.parameters())
    size = sum(tensor.nbytes for tensor in (*parameters, *module.buffers()))
    return sum(tensor.numel() for tensor in parameters), size


def sizes_on_disk(choice: str, images: int, shape: tuple[int, int, int], features: int = 0) -> tuple[float, float]:
    """Return the bytes of a run directory of sample.py at the end, and the most during the run.

    PNG files count as those of random pixels.

    Args:
        choice: the value of `format`.
        images: number of images.
        shape: (C, H, W) of an image.
        features: bytes per image of features, which the directory holds until the end of the run.
    """
    pixels = math.prod(shape)
    png = pixels + shape[1] + BESIDE_PNG
    each = {
        "npz": pixels + 8,
        "png": -(-png // BLOCK) * BLOCK,
        "zip": png + 150,
        "webdataset": 512 * (-(-png // 512) + 5),
        FLOAT: 4 * pixels,
        NONE: 0,
    }[choice]
    kept = pixels * (4 if choice == FLOAT else 1)
    final = images * (each + LINE) + 16 * BLOCK + min(images, 64) * pixels
    return final, final + images * (kept + BESIDE_SHARD + features) + BLOCK


@dataclass(frozen=True)
class SampleJob:
    """A run of `images` seeds.

    Attributes:
        denoiser: the denoiser under guidance and threshold.
        run: the steps of the solver.
        shape: (C, H, W) of an image.
        images: number of images.
        batch_size: images per batch.
        network_batch: images per network call; None stands for `batch_size`.
        labelled: whether the network receives labels.
        threads: batches that are computed at a time.
        auto_batch: whether the script chooses network_batch itself; `network_batch` is its upper limit then.
    """

    denoiser: Denoising
    run: Tableau | AdaptiveRun
    shape: tuple[int, int, int]
    images: int
    batch_size: int
    network_batch: int | None
    labelled: bool
    threads: int = 1
    auto_batch: bool = False

    @property
    def call_size(self) -> int:
        """Images per network call."""
        return min(self.images, self.batch_size) if self.network_batch is None else self.network_batch

    @property
    def levels(self) -> list[float]:
        """Noise levels of the evaluations; for an adaptive run the first one, as often as it may evaluate at most."""
        if isinstance(self.run, AdaptiveRun):
            return [float(self.run.rho[0])] * self.run.nfe
        return [rho for rho, called in zip(self.run.query_levels.tolist(), self.run.calls, strict=True) if called]

    @property
    def network_calls(self) -> int:
        """Number of network calls, the padded last one included; an adaptive run goes batch by batch."""
        if isinstance(self.run, AdaptiveRun):
            batch = min(self.batch_size, self.images)
            pieces = -(-self.images // batch) * -(-batch // self.call_size)
        else:
            pieces = -(-self.images // self.call_size)
        return pieces * sum(map(self.denoiser.calls, self.levels))

    @property
    def _at_most(self) -> str:
        return "at most " * isinstance(self.run, AdaptiveRun)

    def network(self) -> Finding:
        """Report parameters, images, NFE and network calls."""
        numbers, size = weights(self.denoiser)
        text = f"{numbers:,} parameters, {amount(size)}; {self.images:,} images {'x'.join(map(str, self.shape))}"
        text += f", NFE {self._at_most}{self.run.nfe}, {self.network_calls:,} network calls of {self.call_size} images"
        return Finding("ok", "network", text)

    def cost(self, device: torch.device) -> Cost:
        """Time one evaluation, at the level with the most network calls."""
        denoiser, level = self.denoiser.to(device), max(self.levels, key=self.denoiser.calls)

        def call(images: int) -> None:
            x = torch.zeros(images, *self.shape, device=device)
            label = torch.zeros(images, dtype=torch.int64, device=device) if self.labelled else None
            denoiser.eps(x, level, label=label)

        with torch.inference_mode():
            return timed_call(call, self.call_size, device)

    def memory(self, cost: Cost | None, device: torch.device | None, runs: int = 1) -> Finding:
        """Report the memory of weights, states, the images of a batch and, if `cost` is given, activations.

        Args:
            cost: the timed evaluation, or None.
            device: the device of the job, or None if this machine lacks it.
            runs: jobs of this size that share the device.
        """
        batch, image = min(self.batch_size, self.images), 4 * math.prod(self.shape)
        unit = self.threads * (batch if isinstance(self.run, AdaptiveRun) else self.call_size)
        each: dict[str, float | None] = {
            "weights": weights(self.denoiser)[1],
            "states": self.run.peak_tensors * unit * image,
            "images": batch * image,
            "activations": None if cost is None else cost.bytes_for(self.call_size * self.threads),
        }
        parts = {name: None if size is None else runs * size for name, size in each.items()}
        if self.auto_batch:  # the script fits its size to the device, so that it never fails here
            finding = environment.memory(parts, None, "")
            return replace(finding, text=f"at most {finding.text}; network_batch=auto takes fewer images if need be")
        return environment.memory(parts, device, "batch_size, network_batch")

    def seconds(self, cost: Cost) -> float:
        """Return the seconds of all network calls on one process."""
        evaluations = self.network_calls / max(map(self.denoiser.calls, self.levels)) / self.threads
        return cost.seconds_for(evaluations * self.call_size)

    def time(self, cost: Cost) -> Finding:
        """Report the time of all network calls on one process."""
        text = f"{self._at_most}{duration(self.seconds(cost))} of network calls"
        where = "one process" if self.threads == 1 else f"{self.threads} threads"
        measured = f"one evaluation on {cost.images} images took {cost.seconds:.3g} s"
        return Finding("ok", "time", f"{text} on {where}: {measured}")
