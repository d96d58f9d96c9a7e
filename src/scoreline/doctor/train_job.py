"""Forecast of train.py."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.denoiser import Denoiser
from scoreline.doctor import environment
from scoreline.doctor.findings import Finding, amount, duration
from scoreline.doctor.sample_job import weights
from scoreline.doctor.timing import Cost, timed_call


def optimiser_share(optimiser: Callable[[Iterable[nn.Parameter]], Any]) -> float:
    """Return the bytes of an optimiser's state per byte of parameters, measured on one step of one parameter."""
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
        model: the denoiser.
        shape: (C, H, W) of an image.
        labelled: whether the network receives labels.
        level: the noise level of the timed call.
        images: length of the training in images.
        batch_size: images per optimiser step, over all processes.
        micro_batch: images per forward pass of one process.
        processes: number of processes.
        optimiser_share: the result of the function `optimiser_share`.
        model_files: number of averages of the weights that become model files.
        post_hoc: number of power-function averages, of which each checkpoint saves a snapshot.
        checkpoints: number of checkpoints.
        precision: the type of autocast, None for float32.
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
        """Bytes of each process besides images and activations, all in float32."""
        one = 4.0 * weights(self.model)[0]
        averages = (self.model_files + self.post_hoc) * one
        return {"weights": one, "gradients": one, "optimiser": self.optimiser_share * one, "averages": averages}

    @property
    def sizes_on_disk(self) -> tuple[float, float]:
        """Bytes at the end and at most: two states and a third during a write, model files and snapshots."""
        one, state = self.state["weights"], sum(self.state.values()) - self.state["gradients"]
        final = 2 * state + (self.model_files + self.post_hoc * self.checkpoints) * one
        return final, final + state + one

    def network(self) -> Finding:
        """Report parameters, optimiser steps and images."""
        numbers, size = weights(self.model)
        text = f"{numbers:,} parameters, {amount(size)}; {-(-self.images // self.batch_size):,} steps of "
        return Finding("ok", "network", f"{text}{self.batch_size} images, {self.images / 1000:g} kimg")

    def cost(self, device: torch.device) -> Cost:
        """Time one forward and backward pass."""
        model = self.model.to(device).train()

        def call(images: int) -> None:
            x = torch.zeros(images, *self.shape, device=device)
            rho = torch.full((images,), self.level, dtype=torch.float64, device=device)
            label = torch.zeros(images, dtype=torch.int64, device=device) if self.labelled else None
            with torch.autocast(device.type, self.precision) if self.precision else nullcontext():
                loss = model(x, rho, label=label).square().mean()
            loss.backward()

        cost = timed_call(call, self.micro_batch, device)
        model.zero_grad(set_to_none=True)
        return cost

    def memory(self, cost: Cost | None, data: int | None, device: torch.device | None) -> Finding:
        """Report the memory of the state, of images on the device and, if `cost` is given, of activations.

        Args:
            cost: the timed pass, or None.
            data: bytes of the images on the device, None if unknown.
            device: the device of the job, or None if this machine lacks it.
        """
        activations = None if cost is None else cost.bytes_for(self.micro_batch)
        return environment.memory(
            {**self.state, "images": data, "activations": activations}, device, "micro_batch, device_mib"
        )

    def time(self, cost: Cost) -> Finding:
        """Report the time of all forward and backward passes, divided over the processes."""
        text = f"{duration(cost.seconds_for(self.images / self.processes))} of forward and backward passes on "
        where = f"{self.processes} process{'es' * (self.processes > 1)}"
        measured = f"one pass of {cost.images} images took {cost.seconds:.3g} s"
        return Finding("ok", "time", f"{text}{where}: {measured}")
