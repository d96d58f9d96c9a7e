"""Sample batches of images: noise from seeds, network calls of a fixed size, several threads."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from scoreline import noise
from scoreline.copies import moved
from scoreline.denoiser import Denoising
from scoreline.errors import NotFiniteError
from scoreline.in_order import in_order, until_left
from scoreline.sampling import Calls, Eps, Progress, count_calls, integrate
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
        adaptive = isinstance(self.tableau, AdaptiveRun)
        size = self.batch_size if adaptive or self.network_batch is None else self.network_batch
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
        tableau = self.sampler.tableau
        x, *counts = self._adaptive(unit, tableau) if isinstance(tableau, AdaptiveRun) else self._fixed(unit, tableau)
        return Batch(unit.seeds, x[: len(unit.seeds)], *counts)

    def _fixed(self, unit: _Unit, tableau: Tableau) -> tuple[Tensor, int, int]:
        label = None if unit.label is None else self._filled(moved(unit.label, self.device))

        def initial() -> Tensor:
            return self._filled(self._normal(unit, "initial")) * float(tableau.rho[0])

        if self.sampler.record is None:
            return self._integrated(tableau, initial, label, unit)
        inputs = [initial()] if label is None else [initial(), label]
        if self.recorded is None:
            self.recorded = self._record(tableau, inputs, self.sampler.record)
        function, (nfe, network_calls) = self.recorded
        x = function(*inputs)
        self.progress(len(unit.seeds))
        return x, nfe, network_calls

    def _record(
        self, tableau: Tableau, inputs: Sequence[Tensor], record: Record
    ) -> tuple[Callable[..., Tensor], list[int]]:
        """All steps as one function of the initial state and the labels, and what it counted while it was recorded."""
        counts: list[int] = []

        def steps(x: Tensor, label: Tensor | None = None) -> Tensor:
            found, *counts[:] = self._integrated(tableau, lambda: x, label)
            return found

        return record(steps, inputs), counts

    def _normal(self, unit: _Unit, purpose: str, step: int = 0) -> Tensor:
        return moved(noise.normal(unit.seeds, self.shape, purpose, step), self.device)

    def _filled(self, rows: Tensor) -> Tensor:
        """Copies of the last row make a call of `network_batch` rows: kernels round differently for other shapes."""
        missing = (self.sampler.network_batch or 0) - len(rows)
        return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])]) if missing > 0 else rows

    def _integrated(
        self, tableau: Tableau, initial: Callable[[], Tensor], label: Tensor | None, unit: _Unit | None = None
    ) -> tuple[Tensor, int, int]:
        """The last state, from an `initial` one that nothing holds while the steps are made; `unit` draws the noise."""

        def eps(x: Tensor, rho: float) -> Tensor:
            estimate = self.sampler.denoiser.eps(x, rho, label=label)
            self.progress(len(unit.seeds) / tableau.nfe if unit else 0)
            return estimate

        def draw(row: int) -> Tensor:
            if unit is None:
                raise ValueError(f"row {row} of the tableau draws noise, which a recording would repeat")
            return self._filled(self._normal(unit, "solver", row))

        x, nfe, network_calls = self._counted(eps, lambda counted: integrate(counted, initial(), tableau, draw))
        if nfe != tableau.nfe:
            raise RuntimeError(f"the denoiser was evaluated {nfe} times, the tableau says {tableau.nfe}")
        return x, nfe, network_calls

    def _adaptive(self, unit: _Unit, run: AdaptiveRun) -> tuple[Tensor, int, int]:
        """A batch whose steps are chosen together, while the network is called on `size` images of it at a time."""
        label = None if unit.label is None else moved(unit.label, self.device)
        images, furthest = len(unit.seeds), 0.0
        size = self.sampler.network_batch or images

        def eps(x: Tensor, rho: float) -> Tensor:
            nonlocal furthest
            estimate = _in_fixed_batches(self.sampler.denoiser, x, rho, label, size)
            reached = max(furthest, run.covered(rho))
            self.progress(images * (reached - furthest))
            furthest = reached
            return estimate

        x = self._normal(unit, "initial") * float(run.rho[0])
        return self._counted(eps, lambda counted: integrate(counted, x, run), -(-images // size))

    def _counted(self, eps: Eps, solve: Callable[[Eps], Tensor], calls_each: int = 1) -> tuple[Tensor, int, int]:
        """What `solve` makes of `eps`, its evaluations, and its network calls, held to `Denoising.calls`."""
        levels, before = list[float](), self.calls.count

        def counted(x: Tensor, rho: float) -> Tensor:
            levels.append(rho)
            return eps(x, rho)

        x = solve(counted)
        calls, expected = (self.calls.count - before) / calls_each, sum(map(self.sampler.denoiser.calls, levels))
        if calls != expected:
            raise RuntimeError(
                f"networks were called {calls:g} times an image, {len(levels)} evaluations take {expected}"
            )
        return x, len(levels), expected


def _in_fixed_batches(denoiser: Denoising, x: Tensor, rho: float, label: Tensor | None, size: int) -> Tensor:
    """eps of x (B, *) from calls on exactly `size` rows."""
    parts = []
    for start in range(0, len(x), size):
        rows = torch.arange(start, start + size, device=x.device).clamp(max=len(x) - 1)
        whole = size == len(x)
        state, condition = (x, label) if whole else (x[rows], None if label is None else label[rows])
        parts.append(denoiser.eps(state, rho, label=condition)[: len(x) - start])
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _regrouped(units: Iterator[Batch], batch_size: int) -> Iterator[Batch]:
    """The same images, `batch_size` at a time."""
    held: list[Batch] = []
    for unit in units:
        held.append(unit)
        while sum(len(part.seeds) for part in held) >= batch_size:
            whole = _joined(held)
            yield _rows(whole, slice(batch_size))
            held = [_rows(whole, slice(batch_size, None))] if len(whole.seeds) > batch_size else []
    if held:
        yield _joined(held)


def _rows(batch: Batch, rows: slice) -> Batch:
    return batch._replace(seeds=batch.seeds[rows], x=batch.x[rows])


def _joined(parts: list[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    return parts[0]._replace(seeds=[s for part in parts for s in part.seeds], x=torch.cat([part.x for part in parts]))
