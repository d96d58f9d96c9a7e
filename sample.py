"""Draw images from a checkpoint with any solver on any schedule, and measure them.

  python sample.py                                        64 digits, DEIS-tAB3, NFE 10
  python sample.py checkpoint=outputs/train/NAME nfe=20   your own model
  python sample.py solver=heun schedule=karras final=denoise nfe=35
  python sample.py seeds=0-4999 batch_size=500            more images
  python sample.py checkpoint=NAME guidance=classifier_free guidance.scale=2 threshold=dynamic
  python sample.py -m solver=ddim,deis_tab3 nfe=5,10,20   a sweep, one directory per cell

The run directory holds grid.png, samples.npz (arr_0: uint8 NHWC), metrics.json and config.yaml.
"""

from omegaconf import DictConfig

from scoreline import entry


@entry.script("sample")
def main(cfg: DictConfig) -> float | None:
    from scoreline import samples

    out = entry.output_dir()
    entry.claim(cfg, out)
    result = samples.finished(out)
    if result is None:
        result = draw(cfg)
    else:
        print("note: this run was finished before, what it found is shown; delete its directory to repeat it")
    for warning in [] if entry.in_sweep() else result["warnings"]:
        print(f"note: {warning}")
    print(samples.line(result, out))
    return next((metric["value"] for metric in result["metrics"].values()), None)


def draw(cfg: DictConfig) -> dict:
    from hydra.utils import instantiate

    from scoreline import samples
    from scoreline.checkpoints import load_model
    from scoreline.commands.composition import follow
    from scoreline.device import choose_device
    from scoreline.labels import plan_labels
    from scoreline.seeds import parse_seeds
    from scoreline.solvers.tableau import build

    nfe, batch_size = entry.whole("nfe", cfg.nfe), entry.whole("batch_size", cfg.batch_size)
    network_batch = None if cfg.network_batch is None else entry.whole("network_batch", cfg.network_batch)
    seeds, device = parse_seeds(cfg.seeds), choose_device(cfg.device)
    checkpoint = load_model(entry.model_path(cfg.checkpoint), tuple(cfg.trust))
    entry.adopt_model(cfg, checkpoint.card.model, checkpoint.digest)
    if cfg.record == "auto":
        cfg.record = str(entry.record_beside(checkpoint.path, "score_norm"))
    labels = plan_labels(cfg.labels, seeds, checkpoint.card.num_classes)
    span = entry.sigma_range(cfg, checkpoint.noise_schedule)
    recommended = follow(cfg, span, nfe - (cfg.final == "denoise"))
    solver = instantiate(cfg.solver)
    run = build(solver, instantiate(cfg.schedule), span, nfe, cfg.final)
    guided = entry.apply(cfg.guidance, checkpoint, **entry.guide(cfg))
    denoiser = entry.apply(cfg.threshold, guided).to(device)
    metrics = instantiate(cfg.metrics)
    metrics.check(checkpoint.card.shape, len(seeds))
    entry.save_config(cfg, entry.output_dir())
    asked = {"final": cfg.final, "seeds": str(cfg.seeds), "labels": "none" if labels is None else str(cfg.labels)}
    choices = {**names_of(cfg, solver, recommended), **entry.settings(cfg, "guidance", "threshold"), **asked}
    drawn = samples.draw(checkpoint, run, seeds, labels, (batch_size, network_batch), denoiser)
    result = samples.describe(choices, checkpoint, run, drawn, metrics)
    samples.write(entry.output_dir(), drawn.images, labels, result)
    return result


def names_of(cfg: DictConfig, solver, recommended: tuple[str, str] | None) -> dict[str, str]:
    names = entry.choices("solver", "schedule")
    if recommended is None:
        return {**names, "schedule": "its own"} if getattr(solver, "own_levels", False) else names
    print(f"solver={names['solver']}: {' on '.join(recommended)}, closest to the fine run at about this NFE")
    return {**names, "schedule": "its own", "recommended": " / ".join(recommended)}


if __name__ == "__main__":
    main()
