"""A training step is a function of the weights and (seed, step), however its batch is divided."""

from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scoreline.checkpoints import Card
from scoreline.datasets.base import ArrayDataset
from scoreline.denoiser import Denoiser
from scoreline.errors import InputError
from scoreline.networks.unet import UNet
from scoreline.objective import Batch, DenoisingObjective, EDMWeight, LogNormal
from scoreline.parameterisations import EDMPreconditioning
from scoreline.storage.pictures import to_unit
from scoreline.targets import Denoising, StableTarget, StableVM, posterior_mean
from scoreline.training.augmentation import Augmentation
from scoreline.training.data import DeviceData, EndlessBatches
from scoreline.training.module import DiffusionModule
from scoreline.training.stf_references import References

SIZE, STEP = 24, 5


@pytest.fixture(scope="module")
def dataset() -> ArrayDataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (200, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return ArrayDataset("noise", images, torch.randint(0, 4, (200,), generator=generator), num_classes=4)


def module_of(dataset: ArrayDataset, target: object, classes: int = 4, augmented: bool = True) -> DiffusionModule:
    torch.manual_seed(0)
    network = UNet(1, 8, width=8, blocks=1, num_classes=classes, label_dropout=0.3, augment_dim=9 if augmented else 0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    references = References(DeviceData(dataset), target, SIZE, 3) if isinstance(target, StableTarget) else None
    objective = DenoisingObjective(LogNormal(), EDMWeight(0.5), target)
    return DiffusionModule(
        Denoiser(network, EDMPreconditioning(0.5)),
        objective,
        lambda p: torch.optim.Adam(p, 1e-3),
        SIZE,
        0,
        3,
        Card({}, (1, 8, 8), classes, {}, {}),
        augmentation=Augmentation(0.5) if augmented else None,
        references=references,
    )


def examples_of(module: DiffusionModule, dataset: ArrayDataset, rank: int, world: int) -> Batch:
    trainer = SimpleNamespace(world_size=world, global_rank=rank, global_step=STEP)
    module.trainer = trainer
    rows = next(iter(EndlessBatches(len(dataset), SIZE, 3, STEP, rank, world)))
    return module.examples(*dataset.read(rows))


TARGETS = [Denoising(), StableTarget(40), StableTarget(40, classes="mixed", augmented="match"), StableVM(8)]
IDS = ["dsm", "stf", "stf_match", "stablevm"]


def loss_and_gradients(module: DiffusionModule, parts: Iterator[Batch]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    module.zero_grad()
    losses = []
    for part in parts:
        loss, _ = module.objective(module.denoiser, part)
        (loss.sum() / SIZE).backward()
        losses.append(loss.detach())
    return torch.cat(losses), [p.grad.clone() for p in module.parameters() if p.grad is not None]


@pytest.mark.parametrize("target", TARGETS, ids=IDS)
@pytest.mark.parametrize("world", [2, 3, 4])
def test_processes_together_have_the_batch_of_one(dataset: ArrayDataset, target: object, world: int) -> None:
    module = module_of(dataset, target)
    whole = examples_of(module, dataset, 0, 1)
    shares = [examples_of(module, dataset, rank, world) for rank in range(world)]
    for name in ("clean", "u", "eps", "label", "augment"):
        assert torch.equal(torch.cat([getattr(share, name) for share in shares]), getattr(whole, name)), name
    losses, gradients = loss_and_gradients(module, iter([whole]))
    divided, summed = loss_and_gradients(module, iter(shares))
    torch.testing.assert_close(divided, losses, rtol=1e-5, atol=1e-6)
    for one, other in zip(summed, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()) + 1e-9)


@pytest.mark.parametrize("target", TARGETS, ids=IDS)
@pytest.mark.parametrize("size", [1, 7, 24])
def test_micro_batches_sum_to_the_batch(dataset: ArrayDataset, target: object, size: int) -> None:
    module = module_of(dataset, target)
    whole = examples_of(module, dataset, 0, 1)
    assert [len(part.clean) for part in whole.split(7)] == [7, 7, 7, 3]
    losses, gradients = loss_and_gradients(module, iter([whole]))
    divided, summed = loss_and_gradients(module, whole.split(size))
    torch.testing.assert_close(divided, losses, rtol=1e-5, atol=1e-6)
    for one, other in zip(summed, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()) + 1e-9)


def test_ranks_share_no_noise_and_steps_neither(dataset: ArrayDataset) -> None:
    module = module_of(dataset, Denoising())
    shares = [examples_of(module, dataset, rank, 2) for rank in (0, 1)]
    rows = torch.cat([share.eps.flatten(1) for share in shares])
    alike = torch.corrcoef(rows) - torch.eye(SIZE)
    assert float(alike.abs().max()) < 0.6
    assert len(torch.cat([share.u for share in shares]).unique()) == SIZE
    module.trainer = SimpleNamespace(world_size=1, global_rank=0, global_step=STEP + 1)
    later = module.examples(*dataset.read(range(SIZE)))
    assert not torch.isin(later.u, torch.cat([share.u for share in shares])).any()


def test_source_is_the_tensor_that_is_noised(dataset: ArrayDataset) -> None:
    """Augmented anew, the source would lose its weight at small noise."""
    for target in TARGETS[1:]:
        for world in (1, 2):
            batch = examples_of(module_of(dataset, target), dataset, world - 1, world)
            assert batch.reference is not None
            assert torch.equal(batch.reference.images[batch.reference.source], batch.clean)
            rho = torch.full((len(batch.clean),), 0.002, dtype=torch.float64)
            x = batch.clean + 0.002 * batch.eps
            torch.testing.assert_close(
                target(x, rho, batch.clean, batch.label, batch.reference), batch.clean, rtol=0, atol=1e-6
            )


def test_targets_see_only_references_that_they_may(dataset: ArrayDataset) -> None:
    """At large noise the target is the mean over the images with weight: by brute force over what is allowed."""
    module = module_of(dataset, StableTarget(40, augmented="match"))
    module.augmentation = Augmentation(0.1)
    batch = examples_of(module, dataset, 0, 1)
    reference = batch.reference
    assert reference is not None
    rho = torch.full((SIZE,), 0.8, dtype=torch.float64)
    x = batch.clean.double() + 0.8 * batch.eps.double()
    found = module.objective.target(x, rho, batch.clean, batch.label, reference)
    several = 0
    for row in range(SIZE):
        own, label = int(reference.source[row]), int(batch.label[row])
        allowed = [
            i
            for i in range(40)
            if i == own
            or (
                (label < 0 or int(reference.label[i]) == label)
                and torch.equal(reference.augment[i, 1:], reference.augment[own, 1:])
            )
        ]
        several += len(allowed) > 1
        expected = posterior_mean(x[row : row + 1], rho[:1], reference.images[allowed].double())
        torch.testing.assert_close(found[row : row + 1], expected, rtol=0, atol=1e-12)
    assert several > 3


def test_label_dropout_is_the_networks_share(dataset: ArrayDataset) -> None:
    module = module_of(dataset, Denoising())
    batch = examples_of(module, dataset, 0, 1)
    truth = dataset.read(EndlessBatches(200, SIZE, 3).at(STEP))[1]
    kept = batch.label >= 0
    assert 0 < int((~kept).sum()) < SIZE / 2
    assert torch.equal(batch.label[kept], truth[kept])
    assert examples_of(module_of(dataset, Denoising(), classes=0), dataset, 0, 1).label is None


def test_references_are_the_batch_and_others_without_repetition(dataset: ArrayDataset) -> None:
    references = References(DeviceData(dataset), StableTarget(40), SIZE, seed=3)
    drawn = references.draw(STEP, 1, 2, torch.device("cpu"))
    batch = EndlessBatches(len(dataset), SIZE, 3).at(STEP)
    assert torch.equal(drawn.images[:SIZE], dataset.read(batch)[0])
    assert drawn.source.tolist() == list(range(12, 24))
    assert len(drawn.images) == 40
    assert len({image.numpy().tobytes() for image in drawn.images}) == 40
    again, other = (references.draw(step, 0, 1, torch.device("cpu")) for step in (STEP, STEP + 1))
    assert torch.equal(again.images, drawn.images)
    assert not torch.equal(other.images[SIZE:], drawn.images[SIZE:])
    whole = References(DeviceData(dataset), StableTarget(200), SIZE, seed=3).draw(STEP, 0, 1, torch.device("cpu"))
    assert len({image.numpy().tobytes() for image in whole.images}) == 200


def test_every_image_is_drawn_as_often(dataset: ArrayDataset) -> None:
    references = References(DeviceData(dataset), StableTarget(40), SIZE, seed=3)
    counts = np.zeros(200)
    for step in range(600):
        batch = references.batches.at(step)
        counts[references._others(batch, np.random.Generator(np.random.PCG64([step])))] += 1
    expected = 600 * 16 / 200
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert 120 < chi_squared < 290  # 199 degrees of freedom, four standard deviations


def marked_sets(target: StableTarget, data: ArrayDataset, batch_size: int, draws: int) -> "Counter[tuple[int, ...]]":
    """How often each reference came, as a sorted set of images, with the source of a noisy image in front."""
    references, found = References(DeviceData(data), target, batch_size, seed=3), Counter[tuple[int, ...]]()
    for step in range(draws):
        drawn = references.draw(step, 0, 1, torch.device("cpu"))
        numbers = drawn.images.flatten().tolist()
        found.update((numbers[source], *sorted(numbers)) for source in drawn.source.tolist())
    return found


@pytest.mark.parametrize("target", [StableTarget(3), StableVM(3)], ids=["stf", "stablevm"])
def test_references_and_sources_have_one_law(target: StableTarget) -> None:
    """A set of three of six images, one of them marked: all 60 are as likely, whoever is drawn first."""
    data = ArrayDataset("numbers", torch.arange(6, dtype=torch.uint8)[:, None, None, None])
    found = marked_sets(target, data, 1, 3000)
    assert len(found) == 60
    chi_squared = sum((count - 50) ** 2 / 50 for count in found.values())
    assert 20 < chi_squared < 103  # 59 degrees of freedom, four standard deviations


def test_a_mixture_gives_a_batch_larger_than_its_reference(dataset: ArrayDataset) -> None:
    """Sources repeat within the batch and have the labels of their images; all processes see one reference."""
    module = module_of(dataset, StableVM(8), augmented=False)
    module.denoiser.network.label_dropout = 0.0
    whole, first = (examples_of(module, dataset, 0, world) for world in (1, 2))
    assert whole.reference is not None
    assert first.reference is not None
    assert torch.equal(whole.reference.images, first.reference.images)
    assert len(whole.reference.images) == 8 < len(whole.clean) == SIZE
    assert torch.equal(whole.clean, to_unit(whole.reference.images)[whole.reference.source])
    assert torch.equal(whole.label, whole.reference.label[whole.reference.source])
    shown = dataset.read(EndlessBatches(200, SIZE, 3).at(STEP))[0]
    assert not torch.equal(to_unit(shown), whole.clean)


def test_processes_have_own_references_in_released_scope(dataset: ArrayDataset) -> None:
    references = References(DeviceData(dataset), StableTarget(40, scope="process"), SIZE, seed=3)
    first, second = (references.draw(STEP, rank, 2, torch.device("cpu")) for rank in (0, 1))
    batch = EndlessBatches(len(dataset), SIZE, 3).at(STEP)
    assert torch.equal(first.images[:12], dataset.read(batch[:12])[0])
    assert torch.equal(second.images[:12], dataset.read(batch[12:])[0])
    assert first.source.tolist() == second.source.tolist() == list(range(12))
    assert not torch.equal(first.images[12:], second.images[12:])


def test_large_data_are_read_step_by_step(dataset: ArrayDataset) -> None:
    kept, read = (References(DeviceData(dataset, limit), StableTarget(40), SIZE, 3) for limit in (4096, 0.001))
    assert kept.data.fits
    assert not read.data.fits
    for a, b in zip(*(each.draw(STEP, 0, 1, torch.device("cpu")) for each in (kept, read)), strict=True):
        assert torch.equal(a, b)


def test_a_reference_the_size_of_the_batch_works(dataset: ArrayDataset) -> None:
    module = module_of(dataset, StableTarget(SIZE), classes=0, augmented=False)
    batch = examples_of(module, dataset, 0, 1)
    assert batch.reference is not None
    assert torch.equal(to_unit(batch.reference.images), batch.clean)
    loss, _ = module.objective(module.denoiser, batch)
    assert bool(loss.isfinite().all())


def test_what_cannot_be_drawn_is_refused(dataset: ArrayDataset) -> None:
    with pytest.raises(InputError, match=r"target.references=201: noise has 200 images"):
        References(DeviceData(dataset), StableTarget(201), SIZE, 3)
    with pytest.raises(InputError, match=r"target.references=23: every source must be inside; use at least 24"):
        References(DeviceData(dataset), StableTarget(23), SIZE, 3).draw(0, 0, 1, torch.device("cpu"))
    with pytest.raises(InputError, match=r"batch_size=24: must be a multiple of the 5 processes"):
        References(DeviceData(dataset), StableTarget(40), SIZE, 3).draw(0, 0, 5, torch.device("cpu"))
    with pytest.raises(InputError, match=r"target.augmented=none"):
        module_of(dataset, StableTarget(40, augmented="none"))
    network = UNet(1, 8, width=8, blocks=1)
    with pytest.raises(InputError, match=r"model.network.augment_dim=0: augmentation tells the network 9 numbers"):
        DiffusionModule(
            Denoiser(network, EDMPreconditioning(0.5)),
            DenoisingObjective(LogNormal(), EDMWeight(0.5), Denoising()),
            lambda p: torch.optim.Adam(p, 1e-3),
            SIZE,
            0,
            3,
            Card({}, (1, 8, 8), 0, {}, {}),
            augmentation=Augmentation(0.5),
        )
