"""Sample batches of images: noise from seeds, network calls of a fixed size, several threads.

Use `generate` from Python; `Sampler.batches` feeds the loop of sample.py, which checks the samples itself."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from scoreline.denoiser import Denoising
from scoreline.errors import NotFiniteError
from scoreline.runtime import seeded_noise
from scoreline.runtime.device import to_device
from scoreline.runtime.threads import in_order, until_left
from scoreline.sampling import Calls, Progress, count_calls, integrate
from scoreline.solvers.adaptive import AdaptiveRun
from scoreline.solvers.tableau import Tableau

Record = Callable[[Callable[..., Tensor], Sequence[Tensor]], Callable[..., Tensor]]
"""Maps a function and examples of its arguments to a function with the same results."""


class Batch(NamedTuple):
    """Samples x (B, *) of B seeds, in the noise's dtype and unit-signal coordinates on the device, or images of them.

    Both counts are per image; guidance takes several network calls per evaluation.
    """

    seeds: list[int]
    x: Tensor
    nfe: int
    network_calls: int


@dataclass(frozen=True)
class Sampler:
    """A model, the tableau of its solver, and the batch sizes.

    Attributes:
        denoiser: the model, on the device of its parameters.
        tableau: a solver's rows at the noise levels of a schedule, or an adaptive run.
        batch_size: images per yielded batch.
        network_batch: images per network call, whose states are in memory together; the last call is padded. None
            stands for `batch_size` without padding: images then depend on their batch by float32 rounding.
        threads: network calls at a time on a CPU; see `in_order` for the cores of each.
        record: turns a function of tensors into a recording of it, such as `cuda_graphs.Replayed`; for tableaus without
            noise.
        decode: maps the samples of a network call to images, such as the decoder of a model of latents; None keeps
            the samples.
        noise: source of the initial states' noise and of fresh noise, by seed.
    """

    denoiser: Denoising
    tableau: Tableau | AdaptiveRun
    batch_size: int
    network_batch: int | None
    threads: int = 1
    record: Record | None = None
    decode: Callable[[Tensor], Tensor] | None = None
    noise: seeded_noise.Noise = seeded_noise.normal

    @torch.inference_mode()
    def batches(
        self,
        shape: tuple[int, ...],
        seeds: Sequence[int],
        labels: Tensor | None = None,
        progress: Progress = lambda images: None,
    ) -> Iterator[Batch]:
        """Yield batches as `generate` does, but unchecked: a GPU may still be computing a yielded batch."""
        size = self.batch_size if isinstance(self.tableau, AdaptiveRun) else self.network_batch or self.batch_size
        rows = (slice(start, start + size) for start in range(0, len(seeds), size))
        units = (_Unit(list(seeds[part]), None if labels is None else labels[part]) for part in rows)
        with count_calls(self.denoiser) as calls, until_left(progress) as report:
            work = _Work(self, shape, self.denoiser.device, calls, report)
            yield from _regrouped(in_order(work, units, self.threads), self.batch_size)


@torch.inference_mode()
def generate(
    denoiser: Denoising,
    tableau: Tableau | AdaptiveRun,
    shape: tuple[int, ...],
    seeds: Sequence[int],
    batch_size: int,
    labels: Tensor | None = None,
    network_batch: int | None = 64,
    progress: Progress = lambda images: None,
    threads: int = 1,
    noise: seeded_noise.Noise = seeded_noise.normal,
) -> Iterator[Batch]:
    """Sample one image per seed, batch by batch, on the device of the denoiser's parameters.

    x_0 = rho_0 z, or z itself at rho_0 = infinity, with z = `seeded_noise.normal(seed, "initial")`; like all samplers
    it neglects the signal in x_0. The image of a seed depends on the seed, its label, the denoiser and the tableau
    only, to the bit on one kind of processor or GPU, because every network call has `network_batch` images. An adaptive
    run chooses the steps of a batch together, so its images depend on the batch by the tolerance.

    Args:
        shape: shape of an image, any rank; `Sampler` explains the arguments that are not listed here.
        seeds: one seed per image.
        labels: class labels (len(seeds),) int64 in the order of the seeds, or None.
        progress: receives the images' worth of work after every evaluation.

    Yields:
        Samples in the order of the seeds.

    Raises:
        RuntimeError: if the measured counts differ from `Tableau.nfe` and `Denoising.calls`.
        NotFiniteError: if a sample is not finite.
    """
    sampler = Sampler(denoiser, tableau, batch_size, network_batch, threads, noise=noise)
    for batch in sampler.batches(shape, seeds, labels, progress):
        check_finite(batch.seeds, batch.x.isfinite().all())
        yield batch


def check_finite(seeds: Sequence[int], finite: Tensor) -> None:
    """Raise NotFiniteError, naming the seeds, unless `finite`, a scalar tensor, is true."""
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
    shape: tuple[int, ...]
    device: torch.device
    calls: Calls
    progress: Progress
    recorded: tuple[Callable[..., Tensor], list[int]] | None = None

    @torch.inference_mode()
    def __call__(self, unit: _Unit) -> Batch:
        label = None if unit.label is None else self._rows(unit.label)
        scale = self.sampler.tableau.initial_scale
        if self.sampler.record is None:
            sample = self._integrated(lambda: self._normal(unit, "initial") * scale, label, unit)
        else:
            sample = self._replayed(self._normal(unit, "initial") * scale, label, self.sampler.record)
            self.progress(len(unit.seeds))
        x, *counts = sample
        if self.sampler.decode is not None:
            x = self.sampler.decode(x)
        return Batch(unit.seeds, x[: len(unit.seeds)], *counts)

    def _normal(self, unit: _Unit, purpose: str, step: int = 0) -> Tensor:
        return self._rows(self.sampler.noise(unit.seeds, self.shape, purpose, step))

    def _rows(self, rows: Tensor) -> Tensor:
        """Return the rows on the device; for a tableau, copies of the last row pad the network's batch."""
        rows = to_device(rows, self.device)
        missing = (self.sampler.network_batch or 0) - len(rows)
        if missing <= 0 or isinstance(self.sampler.tableau, AdaptiveRun):
            return rows
        return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])])

    def _integrated(
        self, initial: Callable[[], Tensor], label: Tensor | None, unit: _Unit | None = None
    ) -> tuple[Tensor, int, int]:
        """Return the sample with its counts, which must be those of `Tableau.nfe` and `Denoising.calls`.

        `initial` is a function, so that the first state is freed during the steps; `unit` draws fresh noise.
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
        """Replay all steps as one recorded function of the initial state; the counts are those of the recording."""
        inputs = [x] if label is None else [x, label]
        if self.recorded is None:
            counts: list[int] = []

            def steps(x: Tensor, label: Tensor | None = None) -> Tensor:
                sample, *counts[:] = self._integrated(lambda: x, label)
                return sample

            self.recorded = record(steps, inputs), counts
        function, (nfe, network_calls) = self.recorded
        return function(*inputs), nfe, network_calls


def _in_fixed_batches(denoiser: Denoising, x: Tensor, rho: float, label: Tensor | None, size: int) -> Tensor:
    """Return the estimate of x (B, *) from calls on `size` rows, since kernels round differently for other shapes."""
    if len(x) == size:
        return denoiser.estimate(x, rho, label=label)
    parts = []
    for start in range(0, len(x), size):
        rows = torch.arange(start, start + size, device=x.device).clamp(max=len(x) - 1)
        own = None if label is None else label[rows]
        parts.append(denoiser.estimate(x[rows], rho, label=own)[: len(x) - start])
    return torch.cat(parts)


def _regrouped(units: Iterator[Batch], batch_size: int) -> Iterator[Batch]:
    """Yield the same images, `batch_size` at a time."""
    held: Batch | None = None
    for unit in units:
        held = unit if held is None else held._replace(seeds=held.seeds + unit.seeds, x=torch.cat([held.x, unit.x]))
        while held is not None and len(held.seeds) >= batch_size:
            yield held._replace(seeds=held.seeds[:batch_size], x=held.x[:batch_size])
            rest = held._replace(seeds=held.seeds[batch_size:], x=held.x[batch_size:])
            held = rest if rest.seeds else None
    if held is not None:
        yield held
