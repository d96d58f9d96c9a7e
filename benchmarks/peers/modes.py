"""How both sides run the network. To add a mode, add a row."""

import copy
import os
from dataclasses import dataclass, field

from scoreline.denoiser import Denoiser
from scoreline.execution import Execution


@dataclass(frozen=True)
class Mode:
    """
    Attributes:
        execution: how the network runs, on either side.
        threads: batches that we compute at a time with one core each, and so do bare network calls; a peer takes one
            batch with all cores.
        keep_memory: malloc gives no memory back to the system, on either side.
        graphs: we replay CUDA graphs of the whole run.
    """

    execution: Execution = field(default_factory=Execution)
    threads: int = 1
    keep_memory: bool = False
    graphs: bool = False

    def apply(self, denoiser: Denoiser) -> Denoiser:
        """The denoiser in this mode; the given one stays as it is."""
        prepared = copy.deepcopy(denoiser)
        self.execution.apply(prepared)
        return prepared


CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
LAYOUT = Execution(channels_last=True)
COMPILED = Execution(compile="default", channels_last=True)
HALF = Execution(precision="bf16-mixed", channels_last=True)
HALF_COMPILED = Execution(precision="bf16-mixed", compile="default", channels_last=True)

MODES = {
    "plain": Mode(),
    "memory": Mode(keep_memory=True),
    "threads": Mode(threads=CORES, keep_memory=True),
    "layout": Mode(LAYOUT, keep_memory=True),
    "layout+threads": Mode(LAYOUT, threads=CORES, keep_memory=True),
    "compiled": Mode(COMPILED, keep_memory=True),
    "compiled+threads": Mode(COMPILED, threads=CORES, keep_memory=True),
    "bf16": Mode(HALF),
    "graphs": Mode(LAYOUT, graphs=True),
    "bf16+graphs": Mode(HALF, graphs=True),
    "bf16+compiled": Mode(HALF_COMPILED),
    "bf16+compiled+graphs": Mode(HALF_COMPILED, graphs=True),
}
