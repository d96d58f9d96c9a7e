"""Sample images from a checkpoint with any solver on any schedule, and evaluate them.

  python sample.py                                        64 digits, DEIS-tAB3, NFE 10
  python sample.py checkpoint=outputs/train/NAME nfe=20   your own model
  python sample.py solver=heun schedule=karras final=denoise nfe=35
  python sample.py seeds=0-49999 format=png               the same command continues after a stop
  torchrun --standalone --nproc_per_node=8 sample.py seeds=0-49999     the same, on eight GPUs
  python sample.py labels=classes.txt format=zip          one class for each seed; EDM's archive
  python sample.py trajectories=0-3                       the steps of the runs of four seeds
  python sample.py checkpoint=NAME guidance=classifier_free guidance.scale=2 threshold=dynamic
  python sample.py -m solver=ddim,deis_tab3 nfe=5,10,20   a sweep, one directory per cell
  python sample.py table=deis_sn_digits budget=small      all cells of a paper's table, a figure

A run writes images, manifest.csv, grid.png, config.yaml and metrics.json. Image i depends on seed
i, not on batch_size, the number of processes or restarts.
"""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from scoreline import checks, entry, processes, run_config, run_names
from scoreline.tables import schema


def check_table(cfg: DictConfig) -> None:
    if cfg.table is not None:
        schema.parse(*table_of(cfg)).ranges(str(cfg.budget))


def table_of(cfg: DictConfig) -> tuple[str, Any]:
    """Its name, and the plain content of its file."""
    return entry.choices("table")["table"], OmegaConf.to_container(cfg.table, resolve=False)


@entry.script("sample", check_table)
def main(cfg: DictConfig) -> float | None:
    from scoreline import samples

    if cfg.table is not None:
        return run_table(cfg)
    out, first = entry.output_dir(), processes.current().first
    entry.claim(cfg, out)
    result, again = samples.finished(out)
    if again and first:
        samples.reopen(out)
        print(f"note: {again}: this run is made again")
    if result is None:
        result = draw(cfg)
    elif first:
        samples.clear(out)
        print("note: this run was finished before, what it found is shown; delete its directory to repeat it")
    if first:
        for warning in [] if entry.in_sweep() else result["warnings"]:
            print(f"note: {warning}")
        print(samples.line(result, out))
    return next((metric["value"] for metric in result["metrics"].values()), None)


def run_table(cfg: DictConfig) -> None:
    from hydra.core.hydra_config import HydraConfig

    from scoreline.errors import InputError
    from scoreline.tables import table_run

    if entry.in_sweep():
        raise InputError("table: a table is a sweep of its own; leave out -m")
    name, data = table_of(cfg)
    options = table_run.Options(cfg.budget, cfg.jobs, cfg.sweep.on_error, cfg.wandb, cfg.lock)
    table_run.main(name, data, table_run.of_cells(HydraConfig.get().overrides.task), options, entry.output_dir())


def draw(cfg: DictConfig) -> dict:
    import torch
    from hydra.utils import instantiate

    from scoreline import samples
    from scoreline.commands.composition import follow, open_checkpoint
    from scoreline.device import choose_device
    from scoreline.generation.shards import Shards
    from scoreline.labels import describe_labels, plan_labels
    from scoreline.seeds import parse_seeds
    from scoreline.solvers.tableau import build

    group, out, nfe = processes.current(), entry.output_dir(), checks.whole("nfe", cfg.nfe)
    torch.set_num_threads(1)
    calling = how_networks_are_called(cfg)
    seeds, device = parse_seeds(cfg.seeds), choose_device(cfg.device, group.local)
    checkpoint = open_checkpoint(cfg)
    entry.adopt_model(cfg, checkpoint.card.model, checkpoint.digest)
    if cfg.record == "auto":
        cfg.record = str(run_names.record_beside(checkpoint.path, "score_norm"))
    labels = plan_labels(cfg.labels, seeds, checkpoint.card.num_classes)
    span = entry.sigma_range(cfg, checkpoint.noise_schedule)
    recommended = follow(cfg, span, nfe - (cfg.final == "denoise"))
    solver = instantiate(cfg.solver)
    run = build(solver, instantiate(cfg.schedule), span, nfe, cfg.final)
    guided = entry.apply(cfg.guidance, checkpoint, **entry.guide(cfg))
    stamp = f"{cfg.identity} {checkpoint.digest}"
    shards = Shards(out / samples.SHARDS, stamp, seeds, labels, checkpoint.card.shape)
    recipe = calling(entry.apply(cfg.threshold, guided).to(device), run, shards)
    wanted = what_is_wanted(cfg, shards, run, checkpoint.card.num_classes)
    asked = {"final": cfg.final, "seeds": str(cfg.seeds), "labels": describe_labels(cfg.labels, labels)}
    if group.first:
        entry.save_config(cfg, out)
    choices = {**names_of(cfg, solver, recommended), **entry.settings(cfg, "guidance", "threshold"), **asked}
    found = samples.finish(recipe, shards, wanted, group)
    result = samples.describe(choices, checkpoint, recipe, wanted, found)
    if group.first:
        samples.write(out, result)
    return result


def how_networks_are_called(cfg: DictConfig):
    """(denoiser, run, shards) -> recipe; what is wrong with its keys is said before anything is loaded."""
    from scoreline.choices import check_switch
    from scoreline.cores import threads_of
    from scoreline.execution import Execution
    from scoreline.generation.making import Recipe
    from scoreline.generation.memory import keep_freed_memory
    from scoreline.graphs import recorder

    batch_size, threads = checks.whole("batch_size", cfg.batch_size), threads_of(cfg.threads)
    execution = Execution(cfg.precision, cfg.compile, cfg.channels_last)
    check_switch("graphs", cfg.graphs)
    if cfg.network_batch not in (None, "auto"):
        checks.whole("network_batch", cfg.network_batch)

    def recipe(denoiser, run, shards) -> Recipe:
        device = next(denoiser.parameters()).device
        at_a_time = 1 if device.type == "cuda" else threads
        execution.apply(denoiser)
        if cfg.network_batch == "auto":
            cfg.network_batch = largest_network_batch(cfg, denoiser, run, shards, at_a_time)
        if device.type == "cpu":
            keep_freed_memory()
        return Recipe(denoiser, run, batch_size, cfg.network_batch, at_a_time, recorder(cfg.graphs, device, run))

    return recipe


def largest_network_batch(cfg: DictConfig, denoiser, run, shards, at_a_time: int) -> int:
    """That of this run directory's first start, else what fits; the same in every process."""
    import torch

    from scoreline.generation.fitting import fitting, memory_limit, one_call
    from scoreline.generation.sharing import from_first

    group, former = processes.current(), run_config.read(entry.output_dir()) or {}
    size = former.get("network_batch")
    if size is not None:
        checks.whole("network_batch", size)
    elif group.first:
        limit = None if cfg.memory_mib is None else checks.number("memory_mib", cfg.memory_mib)
        device = next(denoiser.parameters()).device
        memory = memory_limit(limit, device) / at_a_time
        size = fitting(one_call(denoiser, run, shards), memory, device, len(shards.seeds))
    return int(from_first(torch.tensor([size]) if group.first else None, group))


def what_is_wanted(cfg: DictConfig, shards, run, num_classes: int):
    from hydra.utils import instantiate

    from scoreline.generation.formats import check_format
    from scoreline.generation.trajectories import check_trajectories
    from scoreline.samples import Wanted
    from scoreline.seeds import parse_seeds

    check_format(cfg.format, shards.shape)
    shown, fine = [], checks.whole("trajectory_nfe", cfg.trajectory_nfe)
    if cfg.trajectories is not None:
        shown = parse_seeds(cfg.trajectories, "trajectories")
        check_trajectories(shown, shards, run, fine)
    metrics = instantiate(cfg.metrics)
    metrics.check(shards.shape, len(shards.seeds))
    return Wanted(cfg.format, metrics, shown, fine, num_classes)


def names_of(cfg: DictConfig, solver, recommended: tuple[str, str] | None) -> dict[str, str]:
    names = entry.choices("solver", "schedule")
    if recommended is None:
        return {**names, "schedule": "its own"} if getattr(solver, "own_levels", False) else names
    if processes.current().first:
        print(f"solver={names['solver']}: {' on '.join(recommended)}, closest to the fine run at about this NFE")
    return {**names, "schedule": "its own", "recommended": " / ".join(recommended)}


if __name__ == "__main__":
    processes.run(main)
