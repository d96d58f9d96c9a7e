"""Sample missing images on the workers of a Ray cluster, which share no disk with this process."""

import hashlib
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from scoreline.errors import InputError
from scoreline.generation.batches import Sampler
from scoreline.generation.loop import Sampled, Sampling, images_on_host
from scoreline.generation.replica import Replica
from scoreline.generation.shards import Shards
from scoreline.numerics import NUMERICS_VERSION
from scoreline.runtime.device import choose_device
from scoreline.runtime.memory import peak_memory
from scoreline.runtime.progress import ImageProgress
from scoreline.runtime.ray_cluster import RayCluster, kind_of_device, room
from scoreline.storage.files import code_version

AHEAD = 2
"""Ranges that a worker holds: one that it samples, and one so that it need not wait for the next."""

RESTARTS = 3
"""Times that Ray starts the process of a worker again."""

BREATH = 1.0
"""Seconds that a thread waits for an answer, and so the longest delay of a stop."""

PATIENCE = 30.0
"""Seconds without a worker after which a note says what the cluster has free."""


class Desk:
    """Ranges of missing images on their way to the workers and back.

    Args:
        missing: indices of the missing images.
        size: images of a range.
    """

    def __init__(self, missing: Sequence[int], size: int) -> None:
        self.ranges = [list(missing[start : start + size]) for start in range(0, len(missing), size)]
        self.waiting = deque(range(len(self.ranges)))
        self.left = set(self.waiting)
        self.held: dict[int, list[int]] = {}

    def next(self, worker: int) -> int | None:
        """Return the number of a further range for a worker, or None if it has enough to do or none is waiting."""
        own = self.held.setdefault(worker, [])
        if not self.waiting or len(own) == AHEAD:
            return None
        own.append(self.waiting.popleft())
        return own[-1]

    def returned(self, worker: int, number: int) -> bool:
        """Note that a worker has returned a range; return whether it is the first to do so.

        A worker that seemed lost may still return a range that another one has by then: the images are the same.
        """
        if number in self.held.get(worker, []):
            self.held[worker].remove(number)
        first = number in self.left
        self.left.discard(number)
        return first

    def lost(self, worker: int) -> None:
        """Put the ranges of a worker that is gone back, before those that nobody has had."""
        self.waiting.extendleft(number for number in reversed(self.held.pop(worker, [])) if number in self.left)


class Images(NamedTuple):
    """What a worker returns: images (n, C, H, W), the SHA-256 of their bytes, counts per image, and its peak memory."""

    pixels: NDArray[Any]
    digest: str
    nfe: int
    network_calls: int
    memory: dict[str, float]


def versions() -> dict[str, str]:
    """Return the versions on which the bits of an image depend, by their names."""
    return {"scoreline": code_version(), "NUMERICS_VERSION": str(NUMERICS_VERSION), "torch": torch.__version__}


def refuse_other_versions(wanted: dict[str, str]) -> None:
    """Refuse a worker whose versions differ from those of the process that writes the images.

    Raises:
        InputError: naming the machine and what differs.
    """
    own = versions()
    other = [f"{name} {own.get(name)} in place of {wanted[name]}" for name in wanted if own.get(name) != wanted[name]]
    if other:
        place = socket.gethostname()
        raise InputError(f"launcher=ray: the worker on {place} has {', '.join(other)}; install the same everywhere")


class Worker:
    """A process of Ray with a replica of the model on its own GPU or cores.

    Its methods get Ray's reference to a `Cargo`, in a list, which Ray passes as it is: a process that Ray has
    started again fetches the model again, any other one keeps it.

    Args:
        digest: the `weights_digest` of the model.
        wanted: the versions of the process that writes the images.
        device: `cuda`, of which it sees one, or `cpu`.
    """

    def __init__(self, digest: str, wanted: dict[str, str], device: str) -> None:
        self.digest, self.wanted, self.device = digest, wanted, device
        self.work: tuple[Cargo, Sampler] | None = None

    def ready(self, place: list[Any]) -> str:
        """Build the replica; return the name of the device.

        Raises:
            InputError: if its versions differ, the content arrived damaged, or it cannot be read or placed here.
        """
        self.work = self._unpacked(place)
        device = self.work[1].denoiser.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()

    def images(self, place: list[Any], seeds: Sequence[int], labels: Sequence[int] | None) -> Images:
        """Return the images of at most `batch_size` seeds.

        Raises:
            InputError: as `ready`, or if a sample is not finite.
        """
        cargo, sampler = self.work = self.work or self._unpacked(place)
        label = None if labels is None else torch.tensor(labels, dtype=torch.int64)
        [batch] = sampler.batches(cargo.shape, seeds, label)
        try:
            pixels = images_on_host(batch, cargo.dtype)().numpy()
        except InputError as error:
            raise InputError(str(error)) from None  # a subclass may not survive pickling
        return Images(pixels, _sha256(pixels.tobytes()), batch.nfe, batch.network_calls, peak_memory())

    def _unpacked(self, place: list[Any]) -> tuple["Cargo", Sampler]:
        import ray
        from ray.exceptions import RaySystemError

        refuse_other_versions(self.wanted)
        machine = socket.gethostname()
        try:
            cargo: Cargo = ray.get(place[0])
        except RaySystemError as error:
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"launcher=ray: the worker on {machine} cannot read the model ({reason}); install what it needs there, "
                "or send your code: ray job submit --working-dir . -- python sample.py .."
            ) from error
        if weights_digest(cargo.replica.sampler) != self.digest:
            raise InputError(f"launcher=ray: the model arrived damaged on {machine}; repeat the command")
        torch.set_num_threads(1)
        return cargo, cargo.replica.on(choose_device(self.device))


class Cargo(NamedTuple):
    """What a worker needs: a replica, the shape (C, H, W) of its states and the type of the images."""

    replica: Replica
    shape: tuple[int, int, int]
    dtype: torch.dtype


def weights_digest(sampler: Sampler) -> str:
    """Return the SHA-256 of the names and bytes of all weights of a sampler's networks."""
    sha = hashlib.sha256()
    modules = [part for part in (sampler.denoiser, sampler.decode) if isinstance(part, nn.Module)]
    for name, weight in (item for module in modules for item in module.state_dict().items()):
        sha.update(name.encode() + weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Fleet:
    """Workers on a Ray cluster.

    Attributes:
        ray: the module ray, connected.
        size: number of workers.
        kind: `cuda` for workers with a GPU each, or `cpu`.
        threads: network calls at a time of a worker without a GPU, on as many cores.
    """

    ray: Any
    size: int
    kind: str
    threads: int

    def sample(self, replica: Replica, shards: Shards) -> Sampled:
        """Sample every image that is in no shard yet, and write them as one process does: the shards are the same.

        A range of `batch_size` images is lost with the worker that holds it, and another one samples it. A kill of
        this process loses the ranges in flight only.

        Raises:
            InputError: if all workers are gone, one differs in its versions, or images arrive damaged.
        """
        missing, total, began = shards.find().missing.tolist(), len(shards.seeds), time.perf_counter()
        desk, memory = Desk(missing, replica.sampler.batch_size), Counter[str]()
        with (
            ImageProgress(total, "sampling", done=total - len(missing)) as progress,
            self._workers(Cargo(replica, shards.state_shape, shards.dtype), len(desk.ranges)) as (workers, place),
        ):
            for indices, images in _Calls(self.ray, workers, place, desk, shards).answers():
                _write(shards, indices, images)
                memory |= Counter(images.memory)
                progress.update(len(indices))
        return Sampled(len(missing), time.perf_counter() - began, max(1, len(workers)), dict(memory))

    def sampling(self, replica: Replica) -> Sampling:
        """Return `sample` as a function of the sampler, which replaces that of the replica."""
        return lambda sampler, shards, group: self.sample(replace(replica, sampler=sampler), shards)

    @contextmanager
    def _workers(self, cargo: Cargo, ranges: int) -> Iterator[tuple[list[Any], Any]]:
        """Yield actors, which end with the context, and the reference to what they need."""
        if not ranges:
            yield [], None
            return
        arguments = weights_digest(cargo.replica.sampler), versions(), self.kind
        share = {"num_gpus": 1, "num_cpus": 0} if self.kind == "cuda" else {"num_cpus": self.threads}
        actor = self.ray.remote(Worker).options(max_restarts=RESTARTS, **share)
        workers = [actor.remote(*arguments) for _ in range(min(self.size, ranges))]
        try:
            yield workers, self.ray.put(cargo)
        finally:
            for worker in workers:
                self.ray.kill(worker)


def meet(cluster: RayCluster, device: str, threads: int) -> Fleet:
    """Connect to a cluster and return its fleet; no worker starts yet.

    Args:
        cluster: the cluster.
        device: auto, cpu or cuda.
        threads: cores of a worker without a GPU.

    Raises:
        InputError: if no cluster answers, or it has no room for a worker.
    """
    ray = cluster.connect()
    resources = ray.cluster_resources()
    kind = kind_of_device(device, resources)
    return Fleet(ray, cluster.workers or room(kind, threads, resources), kind, threads)


def _write(shards: Shards, indices: Sequence[int], images: Images) -> None:
    if _sha256(images.pixels.tobytes()) != images.digest:
        raise InputError(f"launcher=ray: images from {indices[0]} on arrived damaged; repeat the command")
    shards.write(indices, torch.from_numpy(np.array(images.pixels)), images.nfe, images.network_calls)


@dataclass
class _Calls:
    """Calls of workers, by number, that are not answered yet."""

    ray: Any
    workers: Sequence[Any]
    place: Any
    desk: Desk
    shards: Shards
    open: dict[Any, tuple[int, int | None]] = field(default_factory=dict)
    devices: dict[int, str] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)

    def answers(self) -> Iterator[tuple[list[int], Images]]:
        """Yield the images of each range, once, with their indices.

        A thread waits for Ray, which turns what the handler of a signal raises in the main thread into an exit code of
        its own.
        """
        self.open = {worker.ready.remote([self.place]): (number, None) for number, worker in enumerate(self.workers)}
        due = time.monotonic() + PATIENCE
        with ThreadPoolExecutor(1, "scoreline") as pool:
            while self.desk.left:
                for call, answer in pool.submit(self._answered).result():
                    worker, number = self.open.pop(call)
                    if isinstance(answer, str):
                        self._welcome(worker, answer)
                    elif isinstance(answer, Exception):
                        self._lose(worker, answer)
                    elif number is not None and self.desk.returned(worker, number):
                        yield self.desk.ranges[number], Images(*answer)
                if not self.devices and time.monotonic() > due:
                    due = time.monotonic() + PATIENCE
                    self._note_waiting()
                self._hand_out()

    def _hand_out(self) -> None:
        for worker in self.devices:
            while (number := self.desk.next(worker)) is not None:
                index = torch.tensor(self.desk.ranges[number], dtype=torch.int64)
                seeds = [self.shards.seeds[i] for i in index.tolist()]
                labels = None if self.shards.labels is None else self.shards.labels[index].tolist()
                self.open[self.workers[worker].images.remote([self.place], seeds, labels)] = worker, number

    def _answered(self) -> list[tuple[Any, Any]]:
        """Return calls that are answered, with the answer or the error of a worker that is gone.

        Raises:
            Exception: what a worker raised.
        """
        from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

        def answer(call: Any) -> Any:
            try:
                return self.ray.get(call)
            except RayTaskError as error:
                raise error.cause from error
            except (RayActorError, ObjectLostError) as error:
                return error

        return [(call, answer(call)) for call in self.ray.wait(list(self.open), timeout=BREATH)[0]]

    def _lose(self, worker: int, error: Exception) -> None:
        """Give the ranges of a worker to the others, and greet it again unless Ray has given it up."""
        from ray.exceptions import ActorDiedError

        self.desk.lost(worker)
        self.devices.pop(worker, None)
        if isinstance(error, ActorDiedError):
            self.gone.add(worker)
            if len(self.gone) == len(self.workers):
                raise InputError(f"launcher=ray: all workers are gone; {_last_line(error)}") from None
        elif (worker, None) not in self.open.values():
            self.open[self.workers[worker].ready.remote([self.place])] = worker, None

    def _welcome(self, worker: int, device: str) -> None:
        others = set(self.devices.values()) - {device}
        if others and device not in self.devices.values():
            print(
                f"note: workers have {device} and {others.pop()}; images of the same bits need the same",
                file=sys.stderr,
            )
        self.devices[worker] = device

    def _note_waiting(self) -> None:
        free = ", ".join(
            f"{name} {amount:g}" for name, amount in self.ray.available_resources().items() if name.isupper()
        )
        print(f"note: no worker runs yet; the Ray cluster has free: {free or 'nothing'}", file=sys.stderr)


def _last_line(error: Exception) -> str:
    return [line.strip() for line in str(error).splitlines() if line.strip()][-1]
