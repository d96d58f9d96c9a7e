"""How both sides run the network. To add a mode, add a row."""

import copy
import os
from dataclasses import dataclass, field

from peers.models import Model
from scoreline.denoiser import Denoiser
from scoreline.execution import Execution, is_u_net
from scoreline.generation.auto_batch import card_batch


@dataclass(frozen=True)
class Mode:
    """
    Attributes:
        execution: how the network runs, on either side.
        threads: batches that we compute at a time with one core each, and so do bare network calls; a peer takes one
            batch with all cores.
        keep_memory: malloc gives no memory back to the system, on either side.
        graphs: we replay CUDA graphs of the whole run.
        by_card: what `sample.py` does without a key: layout and our images per call follow from the model.
    """

    execution: Execution = field(default_factory=Execution)
    threads: int = 1
    keep_memory: bool = False
    graphs: bool = False
    by_card: bool = False

    def apply(self, model: Model) -> Denoiser:
        """The model's denoiser in this mode; the given one stays as it is."""
        prepared = copy.deepcopy(model.denoiser)
        execution = Execution(channels_last=is_u_net(model.card.model)) if self.by_card else self.execution
        execution.apply(prepared)
        return prepared

    def images(self, model: Model, batch: int) -> int:
        """Our images per network call."""
        return card_batch(model.card, model.denoiser.device) if self.by_card else batch


CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
LAYOUT = Execution(channels_last=True)
COMPILED = Execution(compile="default", channels_last=True)
HALF = Execution(precision="bf16-mixed", channels_last=True)
HALF_COMPILED = Execution(precision="bf16-mixed", compile="default", channels_last=True)

MODES = {
    "plain": Mode(),
    "sample.py": Mode(threads=CORES, keep_memory=True, by_card=True),
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
