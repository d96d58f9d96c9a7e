"""A sampler before it has a device, which each process that samples puts on its own."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from scoreline.execution import Execution
from scoreline.generation.batches import Sampler
from scoreline.generation.cuda_graphs import recorder
from scoreline.runtime.memory import keep_freed_memory


@dataclass(frozen=True)
class Replica:
    """A model, its tableau and how the networks run; a process pickles it for another one.

    Attributes:
        sampler: the sampler with its model on the CPU.
        execution: precision, compiler and layout of the networks.
        graphs: whether a CUDA graph records the sampling steps.
    """

    sampler: Sampler
    execution: Execution
    graphs: bool = False

    def on(self, device: torch.device) -> Sampler:
        """Return the sampler on a device; its model moves and changes in place.

        Raises:
            InputError: if the steps cannot be recorded there.
        """
        sampler = self.sampler
        denoiser = sampler.denoiser.to(device)
        self.execution.apply(denoiser)
        decode = sampler.decode.to(device) if isinstance(sampler.decode, nn.Module) else sampler.decode
        record = recorder(self.graphs, device, sampler.tableau)
        if device.type == "cpu":
            keep_freed_memory()
        return replace(sampler, denoiser=denoiser, record=record, decode=decode)
