"""Sample images from a checkpoint with any solver on any schedule, and evaluate them.

  python sample.py                                        64 colour emoji, velocity_abm2_open, NFE 10
  python sample.py checkpoint=outputs/train/NAME nfe=20   your own model
  python sample.py solver=heun schedule=karras final=denoise nfe=35
  python sample.py solver=deis_tab3 schedule=time_quadratic            the default before 0.10
  python sample.py seeds=0-49999 format=png               the same command continues after a stop
  torchrun --standalone --nproc_per_node=8 sample.py seeds=0-49999     the same, on eight GPUs
  python sample.py labels=classes.txt format=zip          one class for each seed; EDM's archive
  python sample.py trajectories=0-3                       the steps of the runs of four seeds
  python sample.py checkpoint=NAME guidance=classifier_free guidance.scale=2 threshold=dynamic
  python sample.py -m solver=ddim,deis_tab3 nfe=5,10,20   a sweep, one directory per cell
  python sample.py launcher=ray seeds=0-49999             the same, on a Ray cluster without a shared disk
  python sample.py table=deis_sn_digits budget=small      all cells of a paper's table, a figure

A run writes images, manifest.csv, grid.png, config.yaml and metrics.json. Image i depends on seed
i, not on batch_size, the number of processes or restarts.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from scoreline.config import sample_config, script
from scoreline.config.sample_config import SampleComponents, SampleConfig, TableConfig
from scoreline.errors import InputError
from scoreline.generation import run_results
from scoreline.generation.run_results import Result
from scoreline.runtime import distributed
from scoreline.storage import run_config
from scoreline.tables import schema
from scoreline.values import CARD, check_switch, whole_number

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from scoreline.checkpoints import Card, Checkpoint
    from scoreline.config.run_directory import RunDirectory
    from scoreline.generation.batches import Sampler
    from scoreline.generation.fleet import Fleet
    from scoreline.generation.run import Outputs
    from scoreline.generation.shards import Shards
    from scoreline.solvers.adaptive import AdaptiveRun
    from scoreline.solvers.tableau import Tableau
    from scoreline.storage.object_store import ObjectStore


def read(cfg: DictConfig) -> SampleConfig | TableConfig:
    """Read the config of a run or of a table.

    Raises:
        InputError: for a wrong value of a key, a mistake in the file of a table, or an unknown budget.
    """
    config = sample_config.read(cfg)
    if isinstance(config, TableConfig):
        schema.parse(config.name, config.data).ranges(config.budget)
    return config


@script.script("sample", read)
def main(config: SampleConfig | TableConfig) -> float | None:
    """Sample and evaluate the images of a run directory, or run a table; return its score, for a sweeper."""
    if isinstance(config, TableConfig):
        _run_table(config)
        return None
    from scoreline.generation import run
    from scoreline.tables import wandb_summary

    config.run.claim()
    out, first = config.run.path, distributed.current().first
    if config.store:
        _pull(config.store, config.run)
    result, reason = run_results.former_result(out)
    if reason and first:
        run_results.reopen(out)
        print(f"note: {reason}; repeating this run")
    if result is None:
        result = sample(config)
    elif first:
        print("note: this run was finished before; its results follow. To repeat it, delete its directory")
    if first:
        if config.store:
            config.store.push(out)  # before the shards, which a failure needs again, are removed
        run.clear(out)
        for warning in [] if script.in_sweep() else result["warnings"]:
            print(f"note: {warning}")
        print(run_results.summary(result, out))
        _print_beside(result)
        wandb_summary.publish([out], config.wandb, quiet=script.in_sweep())
    return _score(config.optimise, result)


def _pull(store: "ObjectStore", run: "RunDirectory") -> None:
    """Fetch in the first process what the run directory lacks, while the others wait.

    Raises:
        InputError: in every process, if the store cannot be read or holds another run.
    """
    from scoreline.runtime.collectives import sentence_of_first

    def problem() -> str | None:
        try:
            store.pull(run.path, run.identity)
        except InputError as error:
            return str(error)
        return None

    group = distributed.current()
    if sentence := sentence_of_first(problem() if group.first else None, group):
        raise InputError(sentence)


def _score(name: str | None, result: Result) -> float | None:
    """Return a score of a run by its name, or the first one; None if there is none.

    Raises:
        InputError: for a name that the scores lack.
    """
    scores = {key: float(score["value"]) for key, score in result["metrics"].items()}
    if name is None:
        return next(iter(scores.values()), None)
    if name not in scores:
        raise InputError(f"optimise={name}: not a score of this run; choose one of {', '.join(scores) or 'none'}")
    return scores[name]


def _print_beside(result: Result) -> None:
    """Print the command that shows a learned tableau and the best closed form side by side."""
    learned = result.get("learned")
    if learned and not script.in_sweep():
        command = script.command_beside(learned["solver"], learned["schedule"])
        if command:
            print(f"both side by side:\n{command}")


def _run_table(config: TableConfig) -> None:
    """Run every cell of a table, then write the table."""
    from scoreline.tables import table_run

    options = table_run.Options(
        config.budget, config.jobs, config.on_error, config.wandb, config.lock, config.output_url
    )
    table_run.main(config.name, config.data, table_run.of_cells(config.overrides), options, config.out)


def sample(config: SampleConfig) -> Result:
    """Sample, save and evaluate all images, and write metrics.json; call it in every process of the group."""
    import torch

    from scoreline.execution import Execution
    from scoreline.generation import run
    from scoreline.generation.batches import Sampler
    from scoreline.generation.labels import describe_labels, plan_labels
    from scoreline.generation.loop import Sampling, sample_missing
    from scoreline.generation.replica import Replica
    from scoreline.runtime.device import choose_device
    from scoreline.solvers.tableau import build

    group = distributed.current()
    torch.set_num_threads(1)
    device = choose_device("cpu" if config.launcher else config.device, group.local)

    # 1. checkpoint, and the objects that refer to it: solver, schedule, guidance, threshold
    checkpoint = config.model.load()
    checkpoint.denoiser.to(device)
    card, components = checkpoint.card, config.components(checkpoint)

    # 2. tableau: the coefficients of every step, at exactly nfe evaluations
    tableau = build(components.solver, components.schedule, components.span, config.nfe, config.final)

    # 3. shards: image i belongs to seed i and label i; images of an earlier start are reused
    labels = plan_labels(config.labels, config.seeds, card.num_classes, card.class_counts)
    shards = plan_shards(config, checkpoint, labels)
    trajectories = (config.trajectories, config.trajectory_nfe)
    kept_latents = checkpoint.decoder is not None and shards.latents is None
    outputs = run.Outputs(config.format, components.metrics, *trajectories, card.num_classes, kept_latents)
    outputs.check(shards, tableau)

    # 4. sampler: images per network call, device, precision
    fleet = of_ray(config, tableau)
    last, kind = channels_last(config, card), torch.device(fleet.kind) if fleet else device
    threads = 1 if kind.type == "cuda" else config.threads
    decode = checkpoint.decoder if shards.latents else None
    sampler = Sampler(components.denoiser, tableau, config.batch_size, None, threads, decode=decode)
    replica = Replica(sampler, Execution(config.precision, config.compile, last), config.graphs)
    sampler = network_batch(config, sampler if fleet else replica.on(device), shards, card, kind)
    if group.first:
        config.run.save_config(components.config_yaml(sampler.network_batch, last))
        if config.store:
            config.store.begin(config.run.path)
        if components.recommended:
            chosen = " on ".join(components.recommended)
            print(f"solver={components.choices['solver']}: {chosen}, closest to the fine run at about this NFE")

    # 5. images, their files and metrics, then metrics.json
    sampling: Sampling = fleet.sampling(replica) if fleet else sample_missing
    scores = run.finish(sampler, shards, outputs, group, sampling)
    choices = {"final": config.final, "seeds": config.seeds_text, "labels": describe_labels(config.labels, labels)}
    notes = [*unfollowed(checkpoint, components), *useless(tableau, components)]
    result = describe({**components.choices, **choices}, checkpoint, sampler, outputs, scores, notes)
    if group.first:
        run_results.write(config.run.path, result)
    return result


def of_ray(config: SampleConfig, tableau: "Tableau | AdaptiveRun") -> "Fleet | None":
    """Return the workers of `launcher=ray`, none of which has started yet; None without it."""
    if config.launcher is None:
        return None
    import torch

    from scoreline.generation.cuda_graphs import recorder
    from scoreline.generation.fleet import meet

    fleet = meet(config.launcher, config.device, config.threads)
    recorder(config.graphs, torch.device(fleet.kind), tableau)  # refuses what the workers could not record
    return fleet


def unfollowed(checkpoint: "Checkpoint", components: SampleComponents) -> list[str]:
    """Return a sentence for each setting of an imported model that this run does not follow."""
    from scoreline.foreign.diffusers_settings import sentences

    choices, shift = components.choices, getattr(components.schedule, "shift", None)
    return sentences(checkpoint.card.training.get("imported"), choices["threshold"], choices["schedule"], shift)


def useless(tableau: "Tableau | AdaptiveRun", components: SampleComponents) -> list[str]:
    """Return a sentence about a budget at which the solver leaves noise."""
    from scoreline.solvers.tableau import Tableau
    from scoreline.verification.weak_error import noise_left

    deviation = float(components.choices.get("sigma_data", 0.5))
    sentence = noise_left(tableau, deviation) if isinstance(tableau, Tableau) else ""
    return [sentence] if sentence else []


def plan_shards(config: SampleConfig, checkpoint: "Checkpoint", labels: "Tensor | None") -> "Shards":
    """Return the shards of a run: samples in float32 with `format=npy`, else images in bytes, decoded from latents."""
    import torch

    from scoreline.generation import run
    from scoreline.generation.formats import FLOAT
    from scoreline.generation.shards import Shards, keep_here

    place = config.run.path / run.SHARDS, f"{config.run.identity} {checkpoint.digest}", config.seeds, labels
    states, send = checkpoint.card.shape, config.store.send_shard if config.store else keep_here
    if config.format == FLOAT:
        return Shards(*place, states, torch.float32, send=send)
    latents = None if checkpoint.decoder is None else states
    return Shards(*place, checkpoint.image_shape, latents=latents, send=send)


def channels_last(config: SampleConfig, card: "Card") -> bool:
    """Return the layout: that of the config, else that of this run directory's first start, else the card's."""
    from scoreline.execution import is_u_net

    if config.channels_last is not None:
        return config.channels_last
    former = (run_config.read(config.run.path) or {}).get("channels_last")
    return is_u_net(card.model) if former is None else check_switch("channels_last", former)


def network_batch(
    config: SampleConfig, sampler: "Sampler", shards: "Shards", card: "Card", device: "torch.device"
) -> "Sampler":
    """Return the sampler with its `network_batch`, the same in every process.

    `network_batch=auto` and `card` repeat the size of this run directory's first start. A first start takes the largest
    size that fits in memory, or that of the card for `device`, where the networks run.
    """
    from dataclasses import replace

    import torch

    from scoreline.generation.auto_batch import card_batch, largest_batch, memory_limit, one_call
    from scoreline.runtime.collectives import from_first

    group = distributed.current()
    if isinstance(config.network_batch, int | None):
        return replace(sampler, network_batch=config.network_batch)
    former = (run_config.read(config.run.path) or {}).get("network_batch")
    size = None if former is None else whole_number("network_batch", former)
    if size is None and config.network_batch == CARD:
        size = card_batch(card, device)
    if size is None and group.first:
        limit = memory_limit(config.memory_mib, device) / sampler.threads
        call = one_call(sampler.denoiser, sampler.tableau, shards, sampler.decode)
        size = largest_batch(call, limit, device, len(shards.seeds))
    size = int(from_first(torch.tensor([size]) if group.first else None, group))
    return replace(sampler, network_batch=size)


def describe(
    choices: dict[str, Any],
    checkpoint: "Checkpoint",
    sampler: "Sampler",
    outputs: "Outputs",
    scores: Result,
    notes: Sequence[str] = (),
) -> Result:
    """Return the content of metrics.json.

    Args:
        choices: solver, schedule, guidance and so on, as the user gave them.
        checkpoint: the model.
        sampler: the sampler of the images.
        outputs: the files and metrics of the run.
        scores: the result of `generation.run.finish`.
        notes: sentences on settings of an imported model that the run does not follow.
    """
    from scoreline.numerics import NUMERICS_VERSION
    from scoreline.storage.files import code_version

    count = scores["images"]
    return {
        **choices,
        **scores,
        "protocol": outputs.metrics.fingerprint(count),
        "warnings": [*outputs.metrics.warnings(count), *notes],
        "checkpoint": {"name": checkpoint.path.name, "sha256": checkpoint.digest},
        "sigma_max": float(sampler.tableau.rho[0]),
        "sigma_end": float(sampler.tableau.rho[-1]),
        "numerics_version": NUMERICS_VERSION,
        "code_version": code_version(),
    }


if __name__ == "__main__":
    main()
