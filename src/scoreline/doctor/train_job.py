"""What `train.py` will take."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.denoiser import Denoiser
from scoreline.doctor import machine
from scoreline.doctor.findings import Finding, amount, duration
from scoreline.doctor.sample_job import weights
from scoreline.doctor.timing import Cost, timed_call


def optimiser_share(optimiser: Callable[[Iterable[nn.Parameter]], Any]) -> float:
    """Bytes of an optimiser's state for each byte of the parameters, from one step of one parameter."""
    parameter = nn.Parameter(torch.zeros(64, 64))
    one = optimiser([parameter])
    parameter.grad = torch.zeros_like(parameter)
    one.step()
    state = [value for values in one.state.values() for value in values.values()]
    return sum(it.nbytes for it in state if isinstance(it, Tensor) and it.numel() > 1) / parameter.nbytes


@dataclass(frozen=True)
class TrainJob:
    """A training.

    Attributes:
        shape: of an image, (C, H, W).
        level: the noise level of the timed call.
        images: how many the training sees in all.
        micro_batch: images that pass through the network at a time on one process.
        optimiser_share: see `optimiser_share`.
        model_files: averages of the weights that become model files.
        post_hoc: power-function averages, of which each checkpoint keeps a snapshot.
        checkpoints: how many there are.
        precision: the type that autocast computes in, None for float32.
    """

    model: Denoiser
    shape: tuple[int, int, int]
    labelled: bool
    level: float
    images: int
    batch_size: int
    micro_batch: int
    processes: int
    optimiser_share: float
    model_files: int
    post_hoc: int
    checkpoints: int
    precision: torch.dtype | None = None

    @property
    def state(self) -> dict[str, float]:
        """Bytes that each process holds besides images and activations, all in float32."""
        one = 4.0 * weights(self.model)[0]
        averages = (self.model_files + self.post_hoc) * one
        return {"weights": one, "gradients": one, "optimiser": self.optimiser_share * one, "averages": averages}

    @property
    def sizes_on_disk(self) -> tuple[float, float]:
        """Bytes in the end and at most: two states and a third while it is written, model files and snapshots."""
        one, state = self.state["weights"], sum(self.state.values()) - self.state["gradients"]
        final = 2 * state + (self.model_files + self.post_hoc * self.checkpoints) * one
        return final, final + state + one

    def network(self) -> Finding:
        """Parameters, optimiser steps and images."""
        numbers, size = weights(self.model)
        text = f"{numbers:,} parameters, {amount(size)}; {-(-self.images // self.batch_size):,} steps of "
        return Finding("ok", "network", f"{text}{self.batch_size} images, {self.images / 1000:g} kimg")

    def cost(self, device: torch.device) -> Cost:
        """One forward and backward pass."""
        model = self.model.to(device).train()

        def call(images: int) -> None:
            x = torch.zeros(images, *self.shape, device=device)
            rho = torch.full((images,), self.level, dtype=torch.float64, device=device)
            label = torch.zeros(images, dtype=torch.int64, device=device) if self.labelled else None
            with torch.autocast(device.type, self.precision) if self.precision else nullcontext():
                loss = model(x, rho, label=label).square().mean()
            loss.backward()

        found = timed_call(call, self.micro_batch, device)
        model.zero_grad(set_to_none=True)
        return found

    def memory(self, cost: Cost | None, data: int | None, device: torch.device | None) -> Finding:
        """State, images on the device and, where they were measured, activations.

        Args:
            data: bytes of the images that are kept on the device; None where they are unknown.
        """
        activations = None if cost is None else cost.bytes_for(self.micro_batch)
        return machine.memory(
            {**self.state, "images": data, "activations": activations}, device, "micro_batch, device_mib"
        )

    def time(self, cost: Cost) -> Finding:
        """Seconds of all forward and backward passes, over the processes that share a batch."""
        text = f"{duration(cost.seconds_for(self.images / self.processes))} of forward and backward passes on "
        where = f"{self.processes} process{'es' * (self.processes > 1)}"
        measured = f"one pass of {cost.images} images took {cost.seconds:.3g} s"
        return Finding("ok", "time", f"{text}{where}: {measured}")
