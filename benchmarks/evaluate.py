"""Evaluation beside its parts: `python benchmarks/evaluate.py [features] [frechet]`, both if none is named.

features: the pass of metrics=inception over images in shards, to features in files, beside bare calls of the same
extractor on the same images, 64 a call, on one core each, and on all cores. The extractor is a TorchScript file of the
published one's interface with random weights, 0.16 GFLOP an image (the published one 11), written by this script;
--extractor takes a file. The same for metrics=digits, whose pass also projects pixels for the sliced Wasserstein
distance. In turns; on one core CPU time, else wall time. Target: 1.05.

frechet: the distance between two Gaussians of d features, from their means and covariances, beside scipy.linalg.sqrtm
of the product of the covariances, as the first code of FID and others after it compute it; with --torch-fidelity and
the folder of an unpacked wheel beside its own function (eigenvalues of the product). Then what the distance takes with
its error bar: one more decomposition, with vectors, and products with all rows. CPU time of one core.
"""

import argparse
import hashlib
import itertools
import os
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scoreline.datasets.digits import Digits
from scoreline.generation.images import ShardImages
from scoreline.generation.shards import Shards
from scoreline.metrics.feature_pass import extract
from scoreline.metrics.fidelity import Fidelity
from scoreline.metrics.frechet import GaussianStatistics, frechet_distance, frechet_replicates
from scoreline.metrics.inception_features import BATCH, InceptionFeatures, unfused
from scoreline.runtime.cores import usable_cores
from scoreline.storage.files import sha256
from scoreline.storage.pictures import to_unit
from scoreline.storage.resumable import Parts

WORKS = ("features", "frechet")
FEATURES = 2048
DIMENSIONS = (64, 512, 2048)
Distance = Callable[[GaussianStatistics, GaussianStatistics], float]


class Standin(nn.Module):
    """Convolutions on a resized image, 2048 features."""

    def __init__(self, side: int = 75) -> None:
        super().__init__()
        self.side = side
        widths = (3, 32, 64, 128, 256)
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(itertools.pairwise(widths)):
            layers += [nn.Conv2d(before, after, 3, stride=1 if number == 1 else 2, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(256, FEATURES, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        x = nn.functional.interpolate(images.float(), [self.side, self.side], mode="bilinear", align_corners=False)
        features: Tensor = self.layers((x - 128) / 128).flatten(1)
        return features if return_features else torch.softmax(features, 1)


def write_standin(path: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Standin().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(network), path)  # type: ignore[no-untyped-call]
    return path


def shards(folder: Path, count: int, shape: tuple[int, int, int]) -> ShardImages:
    """Random images as a run leaves them, 64 in a file."""
    images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    kept = Shards(folder, "benchmark", range(count), None, shape)
    for start in range(0, count, 64):
        here = range(start, min(count, start + 64))
        kept.write(here, images[start : start + 64], 1, 1)
    return ShardImages(kept, kept.find(check=False))


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Kernels on `count` threads, and as many cores for pieces of work that take one each."""
    threads, told = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(count)
    os.environ["OMP_NUM_THREADS"] = str(count)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        os.environ.pop("OMP_NUM_THREADS")
        os.environ.update({} if told is None else {"OMP_NUM_THREADS": told})


def turns(works: Sequence[Callable[[], Any]], clock: Callable[[], float], repeats: int) -> list[float]:
    """Seconds of each, in turns: the least over the repeats, after one turn that is not counted unless it is all."""
    times = []
    for _ in range(repeats + 1 if repeats else 1):
        turn = []
        for work in works:
            began = clock()
            work()
            turn.append(clock() - began)
        times.append(turn)
    return [min(column) for column in zip(*times[min(1, repeats) :], strict=True)]


def passes(images: ShardImages, make: Callable[[Tensor], dict[str, Tensor]], folder: Path) -> Callable[[], int]:
    """A pass of `make` over all images to files, none of which is found, and from there to all features."""
    count = itertools.count()

    def work() -> int:
        stamp = f"{next(count)} {id(folder)}"
        digest = hashlib.sha256(stamp.encode()).hexdigest()
        found = extract(images, make, digest, Parts(folder, stamp), lambda images: None)
        return sum(len(found.all(name)) for name in found.parts[0])

    return work


def feature_rows(device: str, count: int, repeats: int, file: str | None) -> Iterator[str]:
    """Lines of Markdown."""
    yield from ("| pass | images | cores | ours, s | bare calls, s | ratio |", "|--|--|--|--|--|--|")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        path = write_standin(root / "standin.pt") if file is None else Path(file)
        images = shards(root / "colour", count, (3, 32, 32))
        extractor = InceptionFeatures(str(path), sha256=sha256(path), device=device)
        whole = images.read(range(count))[0]
        place = torch.device(device)

        @torch.no_grad()
        def bare() -> None:
            with unfused():
                calls = [extractor.network(x.to(place), return_features=True) for x in torch.split(whole, BATCH)]
            torch.cat(calls).cpu()

        ours = passes(images, lambda batch: extractor(batch, spatial=False), root / "parts")
        alone = time.process_time if device == "cpu" else time.perf_counter
        for cores in sorted({1, usable_cores()} if device == "cpu" else {1}):
            with on_cores(cores):
                one, other = turns([ours, bare], alone if cores == 1 else time.perf_counter, repeats)
            yield f"| inception, {path.stem} | {count:,} | {cores} | {one:.2f} | {other:.2f} | {one / other:.3f} |"
        if device == "cpu":
            yield digit_row(root, 8 * count, repeats)


def digit_row(root: Path, count: int, repeats: int) -> str:
    images = shards(root / "digits", count, (1, 8, 8))
    metric = Fidelity(Digits("train"))
    whole = images.read(range(count))[0]

    @torch.no_grad()
    def bare() -> None:
        torch.cat([metric.extractor._network.features(to_unit(x).double()) for x in torch.split(whole, 512)])

    def ours() -> None:
        extract(images, metric._measured, "0" * 64, Parts(), lambda images: None).all("features")

    with on_cores(1):
        one, other = turns([ours, bare], time.process_time, repeats)
    return f"| digits | {count:,} | 1 | {one:.2f} | {other:.2f} | {one / other:.3f} |"


def gaussian(n: int, d: int, seed: int) -> tuple[Tensor, GaussianStatistics]:
    """Correlated rows (n, d) float32, their spectrum falling by a factor of 1,000, and their statistics."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator) * torch.logspace(0, -1.5, d) / d**0.5
    rows = torch.randn(n, d, generator=generator) @ mix + 0.02 * seed
    return rows, GaussianStatistics.of(rows)


def by_matrix_root(a: GaussianStatistics, b: GaussianStatistics) -> float:
    """The same distance from scipy's root of the product of the covariances, a matrix that is not symmetric."""
    from scipy.linalg import sqrtm

    one, other = a.covariance.numpy(), b.covariance.numpy()
    gap = (a.mean - b.mean).numpy()
    root = np.asarray(sqrtm(one @ other)).real
    return float(gap @ gap + np.trace(one) + np.trace(other) - 2 * np.trace(root))


def torch_fidelity(folder: Path) -> Distance:
    """`fid_statistics_to_metric` of an unpacked wheel; its `utils`, which needs torchvision, is left out."""
    package, utils = types.ModuleType("torch_fidelity"), types.ModuleType("torch_fidelity.utils")
    package.__path__ = [str(folder / "torch_fidelity")]
    utils.__getattr__ = lambda name: None  # type: ignore[method-assign]
    sys.modules |= {"torch_fidelity": package, "torch_fidelity.utils": utils}
    from torch_fidelity.metric_fid import fid_statistics_to_metric  # type: ignore[import-not-found]

    def distance(a: GaussianStatistics, b: GaussianStatistics) -> float:
        sides = [{"mu": side.mean.numpy(), "sigma": side.covariance.numpy()} for side in (a, b)]
        found = fid_statistics_to_metric(*sides, verbose=False)
        return float(next(iter(found.values())))

    return distance


def fresh(side: GaussianStatistics) -> GaussianStatistics:
    """The same statistics with no root taken yet."""
    return GaussianStatistics(side.n, side.mean, side.scatter)


def frechet_rows(dimensions: Sequence[int], repeats: int, peer: tuple[str, Distance]) -> Iterator[str]:
    """Lines of Markdown."""
    yield from (
        f"| d | rows | ours, s | {peer[0]}, s | ratio | relative difference | with the error bar, s |",
        "|--|--|--|--|--|--|--|",
    )
    for d in dimensions:
        n = 4 * d
        (x, a), (_, b) = gaussian(n, d, 1), gaussian(n, d, 2)
        values = [frechet_distance(fresh(a), fresh(b)), peer[1](a, b)]
        works = [
            lambda a=a, b=b: frechet_distance(fresh(a), fresh(b)),
            lambda a=a, b=b: peer[1](a, b),
            lambda x=x, b=b: frechet_replicates(x, fresh(b)),
        ]
        with on_cores(1):
            ours, theirs, bar = turns(works, time.process_time, repeats if d <= 512 else 0)
        gap = abs(values[0] - values[1]) / values[1]
        yield f"| {d} | {n:,} | {ours:.4f} | {theirs:.4f} | {ours / theirs:.3f} | {gap:.1e} | {bar:.3f} |"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", choices=[[], *WORKS], metavar="work", help="features, frechet")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="of the extractor")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--extractor", help="a TorchScript file of the published one's interface")
    parser.add_argument("--torch-fidelity", type=Path, metavar="FOLDER", help="where its wheel was unpacked")
    parser.add_argument("--self-check", action="store_true", help="the same on few images and small matrices")
    given = parser.parse_args(words)
    small, repeats = given.self_check, 1 if given.self_check else given.repeats
    peer = ("scipy's sqrtm", by_matrix_root)
    if given.torch_fidelity is not None:
        peer = ("torch-fidelity", torch_fidelity(given.torch_fidelity))
    count = 128 if small else given.images
    parts = {
        "features": lambda: feature_rows(given.device, count, repeats, given.extractor),
        "frechet": lambda: frechet_rows((8, 300) if small else DIMENSIONS, repeats, peer),
    }
    for work in given.works or WORKS:
        for line in parts[work]():
            print(line, flush=True)
        print()


if __name__ == "__main__":
    main()
