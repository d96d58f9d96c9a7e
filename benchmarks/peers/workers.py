"""A mode in a process of its own, which takes its turn when asked: options of malloc cannot be taken back."""

import math
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from peers.chosen import pairs_of
from peers.models import MODELS, Model
from peers.modes import MODES, Mode
from peers.pairs import Pair
from peers.timing import forward, seconds
from scoreline.denoiser import Denoiser
from scoreline.generation.batches import Sampler
from scoreline.generation.cuda_graphs import Replayed
from scoreline.generation.loop import images_on_host
from scoreline.runtime.memory import keep_freed_memory
from scoreline.runtime.threads import in_order

LAST_SEED = 2**31
TURN = 0.75
"""Seconds of bare network calls that make a turn: a machine hiccups by milliseconds, and threads wait for the last."""

AT_ONCE = 8
"""Batches of a turn on a GPU at least, which is waited for at the end of the turn only."""


class Turn(NamedTuple):
    seconds: float
    images: int


@dataclass(frozen=True)
class Job:
    """What a process measures; `key` is (peer, method) of the pair."""

    model: str
    tiny: bool
    device: str
    folder: Path | None
    nfe: int
    batch: int
    key: tuple[str, str]
    mode: str


class Sides:
    """The turns that a process can take: `bare`, `theirs` and `ours`."""

    def __init__(self, job: Job) -> None:
        self.mode: Mode = MODES[job.mode]
        if self.mode.keep_memory:
            keep_freed_memory()
        self.model: Model = MODELS[job.model](job.tiny).on(job.device)
        self.pair: Pair = next(p for p in pairs_of(self.model, job.nfe, job.folder)[0] if (p.peer, p.method) == job.key)
        self.denoiser: Denoiser = self.mode.apply(self.model)
        self.batch, self.count = self.mode.images(self.model, job.batch), 1
        self.latents = self.model.latents(list(range(job.batch)))
        self.own_latents = self.model.latents(list(range(self.batch)))
        self.stream: Iterator[Callable[[], Tensor]] = self._batches(range(LAST_SEED))
        self.seed = 0
        if not job.tiny:
            self.bare()
            least = AT_ONCE if job.device == "cuda" else 1
            self.count = max(least, math.ceil(TURN / self.bare().seconds))

    def bare(self) -> Turn:
        """Network calls of as many batches as we compute at a time."""
        work = partial(forward, self.denoiser, count=self.pair.nfe)
        several = [self.own_latents] * (self.count * self.mode.threads)
        with self._shared():
            spent = seconds(lambda: list(in_order(work, several, self.mode.threads)))
        return Turn(spent, self.batch * len(several))

    def theirs(self) -> Turn:
        def work() -> None:
            for _ in range(self.count):
                self.pair.theirs(self.denoiser, self.latents)

        return Turn(seconds(work), len(self.latents) * self.count)

    def ours(self) -> Turn:
        """The next batches, other images every turn."""
        if self.mode.threads == 1:
            spent = seconds(lambda: [next(self.stream) for _ in range(self.count)])
            return Turn(spent, self.batch * self.count)
        images = self.batch * self.count * self.mode.threads
        seeds = range(self.seed, self.seed + images)
        self.seed += images
        with self._shared():
            return Turn(seconds(lambda: list(self._batches(seeds))), images)

    def _batches(self, seeds: range) -> Iterator[Callable[[], Tensor]]:
        """Images as bytes on the host, checked; with a GPU, those of one batch arrive while it computes the next."""
        record = Replayed if self.mode.graphs else None
        sampler = Sampler(self.denoiser, self.pair.run, self.batch, self.batch, self.mode.threads, record)
        found = sampler.batches(self.model.shape, seeds)
        for before, batch in pairwise(chain([None], map(images_on_host, found), [None])):
            if before is not None:
                before()
            if batch is not None:
                yield batch

    @contextmanager
    def _shared(self) -> Iterator[None]:
        """One core for each thread where there are several."""
        before = torch.get_num_threads()
        torch.set_num_threads(1 if self.mode.threads > 1 else before)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _serve(connection: Connection, job: Job) -> None:
    sides = Sides(job)
    turns: dict[str, Callable[[], Turn]] = {"bare": sides.bare, "theirs": sides.theirs, "ours": sides.ours}
    while (asked := connection.recv()) is not None:
        connection.send(turns[asked]())


class Worker:
    """The process of a job, for a `with` statement."""

    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, job), daemon=True)
        self.process.start()
        other.close()

    def __call__(self, side: str) -> Turn:
        """One turn.

        Raises:
            EOFError: if the process has ended.
        """
        self.connection.send(side)
        found: Turn = self.connection.recv()
        return found

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.is_alive():
            self.connection.send(None)
        self.process.join()
