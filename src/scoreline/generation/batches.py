"""Sample batches of images: noise from seeds, network calls of a fixed size, several threads."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from scoreline import noise
from scoreline.denoiser import Denoising
from scoreline.device import moved
from scoreline.errors import NotFiniteError
from scoreline.in_order import in_order, until_left
from scoreline.sampling import Calls, Progress, count_calls, integrate
from scoreline.solvers.adaptive import AdaptiveRun
from scoreline.solvers.tableau import Tableau

Record = Callable[[Callable[..., Tensor], Sequence[Tensor]], Callable[..., Tensor]]
"""(function, examples of its arguments) -> a function of the same values."""


class Batch(NamedTuple):
    """Samples of a few seeds: x (B, C, H, W) float32 in unit-signal coordinates.

    An image took `nfe` evaluations of the denoiser and `network_calls` calls of networks; guidance makes them differ.
    """

    seeds: list[int]
    x: Tensor
    nfe: int
    network_calls: int


@dataclass(frozen=True)
class Sampler:
    """A model, the tableau that it is sampled with, and how many images are computed at a time.

    Attributes:
        denoiser: the model, on the device of its parameters.
        tableau: a solver's rows at the noise levels of a schedule, or an adaptive run.
        batch_size: images that are handed over at a time.
        network_batch: images that the network is called on and whose states are held at a time; the last call is filled
            up. With None it is `batch_size`, nothing is filled up, and images then depend on their batch by float32
            rounding.
        threads: network calls that are computed at a time, on a CPU; see `in_order` for the cores each of them takes.
        record: makes a function of tensors into one that is replayed, such as `graphs.Replayed`; for tableaus that draw
            no noise.
    """

    denoiser: Denoising
    tableau: Tableau | AdaptiveRun
    batch_size: int
    network_batch: int | None
    threads: int = 1
    record: Record | None = None

    @torch.inference_mode()
    def batches(
        self,
        shape: tuple[int, int, int],
        seeds: Sequence[int],
        labels: Tensor | None = None,
        progress: Progress = lambda images: None,
    ) -> Iterator[Batch]:
        """As `generate`, without waiting for the device or checking samples: a GPU may still compute a yielded batch.

        Raises:
            RuntimeError: as `generate`.
        """
        size = self.batch_size if isinstance(self.tableau, AdaptiveRun) else self.network_batch or self.batch_size
        rows = (slice(start, start + size) for start in range(0, len(seeds), size))
        units = (_Unit(list(seeds[part]), None if labels is None else labels[part]) for part in rows)
        with count_calls(self.denoiser) as calls, until_left(progress) as report:
            work = _Work(self, shape, next(self.denoiser.parameters()).device, calls, report)
            yield from _regrouped(in_order(work, units, self.threads), self.batch_size)


@torch.inference_mode()
def generate(
    denoiser: Denoising,
    tableau: Tableau | AdaptiveRun,
    shape: tuple[int, int, int],
    seeds: Sequence[int],
    batch_size: int,
    labels: Tensor | None = None,
    network_batch: int | None = 64,
    progress: Progress = lambda images: None,
    threads: int = 1,
) -> Iterator[Batch]:
    """Sample one image per seed, batch by batch, on the device of the denoiser's parameters.

    x_0 = rho_0 z, z = `noise.normal(seed, "initial")`; the signal that x_0 would carry at the first level is left out,
    as all samplers do. Image of seed s depends on s, its label, the denoiser and the tableau only, to the bit on one
    kind of processor or GPU, because the network always sees `network_batch` images at a time. An adaptive run chooses
    the steps of a batch together, so its images depend on the batch by the tolerance.

    Args:
        denoiser: as `tableau`, `batch_size`, `network_batch` and `threads`, of `Sampler`.
        shape: (C, H, W) of an image.
        seeds: one for each image.
        labels: class labels (len(seeds),) int64 in the order of the seeds, or None.
        progress: called after every evaluation with the images' worth of work it did.

    Raises:
        RuntimeError: if the counts measured are not those of `Tableau.nfe` and `Denoising.calls`.
        NotFiniteError: if a sample is not finite.
    """
    sampler = Sampler(denoiser, tableau, batch_size, network_batch, threads)
    for batch in sampler.batches(shape, seeds, labels, progress):
        check_finite(batch.seeds, batch.x.isfinite().all())
        yield batch


def check_finite(seeds: Sequence[int], finite: Tensor) -> None:
    """Raises: NotFiniteError naming the seeds unless their samples are `finite`, of shape ()."""
    if not bool(finite):
        raise NotFiniteError(f"seeds {seeds[0]}-{seeds[-1]}: their samples are")


class _Unit(NamedTuple):
    """The seeds of a network call and their labels (len(seeds),)."""

    seeds: list[int]
    label: Tensor | None


@dataclass
class _Work:
    """Computes the samples of units; one object serves all threads."""

    sampler: Sampler
    shape: tuple[int, int, int]
    device: torch.device
    calls: Calls
    progress: Progress
    recorded: tuple[Callable[..., Tensor], list[int]] | None = None

    @torch.inference_mode()
    def __call__(self, unit: _Unit) -> Batch:
        label = None if unit.label is None else self._rows(unit.label)
        rho = float(self.sampler.tableau.rho[0])
        if self.sampler.record is None:
            found = self._integrated(lambda: self._normal(unit, "initial") * rho, label, unit)
        else:
            found = self._replayed(self._normal(unit, "initial") * rho, label, self.sampler.record)
            self.progress(len(unit.seeds))
        x, *counts = found
        return Batch(unit.seeds, x[: len(unit.seeds)], *counts)

    def _normal(self, unit: _Unit, purpose: str, step: int = 0) -> Tensor:
        return self._rows(noise.normal(unit.seeds, self.shape, purpose, step))

    def _rows(self, rows: Tensor) -> Tensor:
        """Rows on the device; for a tableau, copies of the last one fill up the network's batch."""
        rows = moved(rows, self.device)
        missing = (self.sampler.network_batch or 0) - len(rows)
        if missing <= 0 or isinstance(self.sampler.tableau, AdaptiveRun):
            return rows
        return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])])

    def _integrated(
        self, initial: Callable[[], Tensor], label: Tensor | None, unit: _Unit | None = None
    ) -> tuple[Tensor, int, int]:
        """The sample, from an `initial` state that nothing holds while the steps are made; `unit` draws fresh noise.

        Evaluations and network calls are counted, and must be those of `Tableau.nfe` and `Denoising.calls`.
        """
        denoiser, tableau, images = self.sampler.denoiser, self.sampler.tableau, len(unit.seeds) if unit else 0
        levels, before, furthest = list[float](), self.calls.count, 0.0

        def eps(x: Tensor, rho: float) -> Tensor:
            nonlocal furthest
            levels.append(rho)
            estimate = _in_fixed_batches(denoiser, x, rho, label, self.sampler.network_batch or len(x))
            covered = tableau.covered(rho) if isinstance(tableau, AdaptiveRun) else len(levels) / tableau.nfe
            reached = max(furthest, covered)
            self.progress(images * (reached - furthest))
            furthest = reached
            return estimate

        def draw(row: int) -> Tensor:
            if unit is None:
                raise ValueError(f"row {row} of the tableau draws noise, which a recording would repeat")
            return self._normal(unit, "solver", row)

        x = integrate(eps, initial(), tableau, draw)
        if isinstance(tableau, Tableau) and len(levels) != tableau.nfe:
            raise RuntimeError(f"the denoiser was evaluated {len(levels)} times, the tableau says {tableau.nfe}")
        calls = (self.calls.count - before) / -(-len(x) // (self.sampler.network_batch or len(x)))
        expected = sum(map(denoiser.calls, levels))
        if calls != expected:
            raise RuntimeError(
                f"networks were called {calls:g} times an image, {len(levels)} evaluations take {expected}"
            )
        return x, len(levels), expected

    def _replayed(self, x: Tensor, label: Tensor | None, record: Record) -> tuple[Tensor, int, int]:
        """All steps as one recorded function of the initial state; the counts are those of the recording."""
        inputs = [x] if label is None else [x, label]
        if self.recorded is None:
            counts: list[int] = []

            def steps(x: Tensor, label: Tensor | None = None) -> Tensor:
                found, *counts[:] = self._integrated(lambda: x, label)
                return found

            self.recorded = record(steps, inputs), counts
        function, (nfe, network_calls) = self.recorded
        return function(*inputs), nfe, network_calls


def _in_fixed_batches(denoiser: Denoising, x: Tensor, rho: float, label: Tensor | None, size: int) -> Tensor:
    """eps of x (B, *) from calls on exactly `size` rows: kernels round differently for other shapes."""
    if len(x) == size:
        return denoiser.eps(x, rho, label=label)
    parts = []
    for start in range(0, len(x), size):
        rows = torch.arange(start, start + size, device=x.device).clamp(max=len(x) - 1)
        parts.append(denoiser.eps(x[rows], rho, label=None if label is None else label[rows])[: len(x) - start])
    return torch.cat(parts)


def _regrouped(units: Iterator[Batch], batch_size: int) -> Iterator[Batch]:
    """The same images, `batch_size` at a time."""
    held: Batch | None = None
    for unit in units:
        held = unit if held is None else held._replace(seeds=held.seeds + unit.seeds, x=torch.cat([held.x, unit.x]))
        while held is not None and len(held.seeds) >= batch_size:
            yield held._replace(seeds=held.seeds[:batch_size], x=held.x[:batch_size])
            rest = held._replace(seeds=held.seeds[batch_size:], x=held.x[batch_size:])
            held = rest if rest.seeds else None
    if held is not None:
        yield held
