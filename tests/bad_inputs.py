"""What a person may type wrong, what each refusal has to say; how to run it, and what came of it."""

import hashlib
import os
import re
import resource
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from small_models import save_small

ROOT = Path(__file__).parents[1]

SCRIPTS = ("sample", "calibrate", "train")

HUGE = "9" * 20

LONG = "a" * 5000

PROGRESS = re.compile(r"^[a-z ]+: \d+/\d+ (img|solver)")
"""A line of a progress bar, which is there before what goes wrong later."""

Row = tuple[str, ...]
"""A command line, then texts that its refusal holds: the key with its value, a word of the remedy."""

NUMBERS: list[Row] = [
    (f"sample nfe={HUGE}", "nfe=9999", "at most"),
    ("sample nfe=-1", "nfe=-1", "at least 1"),
    ("sample nfe=nan", "nfe=nan", "whole number"),
    ("sample nfe=inf", "nfe=inf", "whole number"),
    ("sample nfe=1e999", "nfe=", "whole number"),
    ("sample nfe=null", "nfe=None", "whole number"),
    ("sample nfe=true", "nfe=True", "whole number"),
    ("sample nfe=[3]", "nfe=[3]", "whole number"),
    ("sample nfe={a:1}", "nfe={'a': 1}", "whole number"),
    ("sample nfe=100000000", "nfe=100000000", "at most"),
    (f"sample batch_size={HUGE}", "batch_size=9999", "at most"),
    ("sample batch_size=x", "batch_size=x", "whole number"),
    ("sample batch_size=null", "batch_size=None", "whole number"),
    (f"sample network_batch={HUGE}", "network_batch=9999", "at most"),
    ("sample network_batch=1000000000", "network_batch=1000000000", "at most"),
    ("sample network_batch=-3", "network_batch=-3", "at least 1"),
    ("sample network_batch=1.5", "network_batch=1.5", "whole number"),
    (f"sample trajectory_nfe={HUGE} trajectories=0", "trajectory_nfe=9999", "at most"),
    ("sample trajectory_nfe=null", "trajectory_nfe=None", "whole number"),
    (f"sample jobs={HUGE}", "jobs=9999", "at most"),
    ("sample jobs=0", "jobs=0", "at least 1"),
    ("sample table=deis_digits jobs=x", "jobs=x", "whole number"),
    ("sample threads=0", "threads=0", "at least 1"),
    (f"sample threads={HUGE}", "threads=9999", "at most"),
    ("sample threads=[1]", "threads=[1]", "auto"),
    ("sample threads=null", "threads=None", "auto"),
    ("sample memory_mib=-5", "memory_mib=-5", "number"),
    ("sample memory_mib=nan", "memory_mib=nan", "number"),
    ("sample memory_mib=1e-9 network_batch=auto", "memory_mib", "raise"),
    (f"sample sigma_max={HUGE * 20}", "sigma_max=9999", "number"),
    ("sample sigma_max=nan", "sigma_max=nan", "number"),
    ("sample sigma_max=inf", "sigma_max=inf", "number"),
    ("sample sigma_max=true", "sigma_max=True", "number"),
    ("sample sigma_data=0", "sigma_data=0", "greater than 0"),
    ("sample sigma_data=-1", "sigma_data=-1", "greater than 0"),
    ("sample sigma_data=nan", "sigma_data=nan", "greater than 0"),
    ("sample sigma_data=text", "sigma_data=text", "greater than 0"),
    ("calibrate sigma_data=0", "sigma_data=0", "greater than 0"),
    ("sample sigma_min=nan", "sigma_min=nan", "number"),
    ("sample sigma_min=[1]", "sigma_min=[1]", "number"),
    ("sample sigma_min=5 sigma_max=1", "sigma_min=5", "sigma_max"),
    ("sample sigma_min=1 sigma_max=1", "sigma_min=1", "sigma_max"),
    ("sample sigma_max=1e300", "sigma_max=1e+300", "choose"),
    ("sample schedule=karras schedule.exponent=nan", "exponent=nan"),
    ("sample schedule=karras schedule.exponent=x", "exponent=x"),
    ("sample schedule=karras schedule.exponent=0", "exponent=0"),
    ("sample solver.order=x", "solver.order=x", "whole number"),
    ("sample solver.order=null", "solver.order=None", "whole number"),
    ("sample solver.uncorrected=0", "solver.uncorrected=0", "at least 1"),
    ("sample solver.variable=null", "solver.variable=None"),
    ("sample solver=rk45 solver.rtol=x", "solver.rtol=x", "number"),
    ("sample solver=rk45 solver.rtol=nan", "solver.rtol=nan", "number"),
    ("sample solver=rk45 solver.atol=-1", "solver.atol=-1", "number"),
    ("sample solver=edm_stochastic solver.S_churn=x", "solver.S_churn=x", "number"),
    ("sample solver=edm_stochastic solver.S_churn=nan", "solver.S_churn=nan", "number"),
    ("sample threshold=dynamic threshold.quantile=2", "threshold.quantile=2", "at most 1"),
    ("sample threshold=dynamic threshold.quantile=x", "threshold.quantile=x", "number"),
    ("sample threshold=dynamic threshold.quantile=nan", "threshold.quantile=nan", "number"),
    ("sample threshold=dynamic threshold.ceiling=nan", "threshold.ceiling=nan", "number"),
    ("sample threshold=clip threshold.low=2", "threshold.low=2", "low < high"),
    ("sample threshold=clip threshold.high=nan", "threshold.high=nan", "number"),
    (
        "sample checkpoint=conditional.safetensors guidance=classifier_free guidance.scale=x",
        "guidance.scale=x",
        "number",
    ),
    (
        "sample checkpoint=conditional.safetensors guidance=classifier_free guidance.scale=nan",
        "guidance.scale=nan",
        "number",
    ),
    (
        f"sample checkpoint=conditional.safetensors guidance=classifier_free guidance.scale={HUGE * 20}",
        "guidance.scale=9999",
        "number",
    ),
    (
        "sample checkpoint=conditional.safetensors guidance=classifier_free guidance.low=3 guidance.high=1",
        "guidance.low=3",
        "low < high",
    ),
    ("calibrate nfe=1e9", "nfe=1000000000.0", "whole number"),
    (f"calibrate nfe={HUGE}", "nfe=9999", "at most"),
    (f"calibrate threads={HUGE}", "threads=9999", "at most"),
    ("calibrate threads=auto", "threads=auto", "whole number"),
    ("calibrate batch_size=0", "batch_size=0", "at least 1"),
    ("calibrate batch_size=[]", "batch_size=[]", "whole number"),
    ("calibrate nfe=null", "nfe=None", "whole number"),
    ("calibrate sigma_max=-inf", "sigma_max=-inf", "number"),
    ("calibrate nfe=1 calibration.statistic=x", "statistic=x", "mean"),
    ("calibrate calibration.states=x", "calibration.states=x"),
    ("calibrate calibration=search calibration.solvers=[]", "calibration.solvers=[]", "conf/solver"),
    ("calibrate calibration=search calibration.solvers=nosuch", "nosuch", "no such choice"),
    ("calibrate calibration=search calibration.solvers=5", "calibration.solvers=5", "conf/solver"),
    ("train optimiser.lr=x", "optimiser.lr=x", "number"),
    ("train optimiser.lr=-1", "optimiser.lr=-1", "number"),
    ("train optimiser.lr=nan", "optimiser.lr=nan", "number"),
    ("train optimiser.betas=[2,2]", "optimiser.betas=[2, 2]", "another value"),
    ("train optimiser.eps=-1", "optimiser.eps=-1", "another value"),
    ("train lr_rampup_kimg=nan", "lr_rampup_kimg=nan", "number"),
    ("train lr_rampup_kimg=-1", "lr_rampup_kimg=-1", "number"),
    ("train checkpoint_kimg=0", "checkpoint_kimg=0", "number"),
    ("train checkpoint_kimg=x", "checkpoint_kimg=x", "number"),
    ("train duration_kimg=1e-9", "duration_kimg=1e-09", "at least"),
    ("train duration_kimg=1e300", "duration_kimg=1e+300", "at most"),
    ("train duration_kimg=nan", "duration_kimg=nan", "number"),
    (f"train batch_size={HUGE}", "batch_size=9999"),
    ("train seed=-1", "seed=-1", "at least 0"),
    (f"train seed={HUGE * 20}", "seed=9999"),
    ("train loss_scale=nan", "loss_scale=nan", "number"),
    ("train log_kimg=0", "log_kimg=0", "number"),
    ("train preview_kimg=nan", "preview_kimg=nan", "number"),
    ("train fixed_loss_kimg=-1", "fixed_loss_kimg=-1", "number"),
    ("train metrics_every_kimg=-1", "metrics_every_kimg=-1", "number"),
    ("train metrics_images=0", "metrics_images=0", "whole number"),
    ("train metrics_nfe=0", "metrics_nfe=0", "whole number"),
    ("train metrics_every_kimg=1 metrics=none", "metrics_every_kimg=1", "metrics=none measures nothing"),
    ("train metrics_every_kimg=1 metrics=emoji", "metrics", "3x32x32"),
    ("train metrics_every_kimg=1 metrics_images=3", "metrics.neighbours=3", "at least 5"),
    ("train validation.images=1", "validation.images=1", "at least 2"),
    ("train validation.dataset=nosuch", "validation.dataset=nosuch", "nothing is there"),
    ("train +dataset@validation.dataset=digits", "validation.dataset=digits-train", "images of the training"),
    ("train keep_best=nosuch", "keep_best=nosuch", "nothing measures it", "heldout_loss"),
    ("train keep_best=frechet_distance", "keep_best=frechet_distance", "metrics_every_kimg"),
    ("train keep_best=heldout_loss validation.dataset=none", "keep_best=heldout_loss", "did you mean 'fixed_loss'?"),
    ("train keep_best=fixed_loss fixed_loss_kimg=100", "keep_best=fixed_loss", "never measured", "duration_kimg=96"),
    ("train callbacks=early_stopping callbacks.early_stopping.monitor=x", "callbacks: monitor=x", "fixed_loss"),
    ("train ema.half_life_kimg=x", "ema.half_life_kimg=x", "number"),
    ("train ema.rampup=nan", "ema.rampup=nan", "number"),
    ("train gradients.clip=-1", "gradients.clip=-1", "number"),
    ("train gradients.patience=0", "gradients.patience=0", "whole number"),
    ("train workers=-1", "workers=-1", "whole number"),
    ("train device_mib=nan", "device_mib=nan", "number"),
    ("train micro_batch=0", "micro_batch=0", "whole number"),
    (f"train model.network.width={HUGE}", "model.network.width=9999"),
    ("train model.network.blocks=1000000000", "model.network.blocks=1000000000"),
    ("train model.network.width=x", "model.network.width=x"),
    ("train target=stf target.references=0", "references=0"),
    ("train target=stablevm target.references=0", "references=0", "at least 1"),
    ("train target=stablevm target.references=99999", "references=99999", "use at most"),
    ("train target=stablevm target.scope=each", "target.scope=each", "choose from"),
    ("train objective=vp_min_snr objective.weight.gamma=0", "objective.weight.gamma=0", "greater than 0"),
    ("train objective=ddpm_min_snr model=cifar10_ddpm objective.weight.gamma=x", "objective.weight.gamma=x", "number"),
    ("train objective=edm_learned objective.uncertainty.frequencies=0", "uncertainty.frequencies=0", "at least 1"),
    ("train objective=edm_learned objective.uncertainty.frequencies=x", "uncertainty.frequencies=x", "whole number"),
]

SEEDS: list[Row] = [
    ("sample seeds=0-999999999", "seeds=0-999999999", "at most"),
    (f"sample seeds=0-{HUGE}", "seeds=0-9999", "2^63"),
    (f"sample seeds={HUGE}", "seeds=9999", "2^63"),
    ("sample seeds=0-3,9", "seeds=0-3,9", "quote"),
    ("sample seeds=[0-3,9", "seeds=[0-3,9", "quote"),
    ("sample seeds=", "seeds=", "0-63"),
    ("sample seeds=[]", "seeds=[]", "0-63"),
    ("sample seeds=null", "seeds=None", "0-63"),
    ("sample seeds=-5", "seeds=-5", "0-63"),
    ("sample seeds=1.5", "seeds=1.5", "0-63"),
    ("sample seeds={a:1}", "seeds={'a': 1}", "0-63"),
    ("sample seeds=true", "seeds=True", "0-63"),
    ("sample 'seeds=\"0-3,2\"'", "seeds=0-3,2", "twice"),
    ("sample trajectories=0-999999999", "trajectories=0-999999999", "at most"),
    ("sample trajectories=99", "trajectories", "99"),
    ("sample trajectories=-1", "trajectories=-1", "0-63"),
    ("calibrate seeds=0-999999999", "seeds=0-999999999", "at most"),
    ("calibrate seeds=[[1]]", "seeds=[[1]]", "0-63"),
    ("calibrate seeds=null", "seeds=None", "0-63"),
]

CHOICES: list[Row] = [
    ("sample solver=nosuch", "solver=nosuch", "no such choice"),
    ("sample solver=null", "solver=null", "choose"),
    ("sample solver=", "solver=", "choose"),
    ("sample solver=[ddim]", "solver"),
    ("sample solver=../solver/ddim", "solver=../solver/ddim", "no such choice"),
    ("sample solver=/etc/passwd", "passwd", "no such choice"),
    ("sample solver=ddim,heun", "solver=ddim,heun", "-m"),
    ("sample schedule=null", "schedule=null", "choose"),
    ("sample metrics=nosuch", "metrics=nosuch", "no such choice"),
    ("sample metrics=null", "metrics=null", "choose"),
    ("sample guidance=null", "guidance=null", "choose"),
    ("sample guidance=nosuch", "guidance=nosuch", "no such choice"),
    ("sample guidance=autoguidance", "guidance.checkpoint", "give"),
    ("sample guidance=autoguidance guidance.checkpoint=nowhere", "guidance.checkpoint=nowhere", "no such file"),
    ("sample checkpoint=digits_vp guidance=classifier_free", "guidance=classifier_free", "unconditional"),
    ("sample threshold=nosuch", "threshold=nosuch", "no such choice"),
    ("sample threshold=null", "threshold=null", "choose"),
    ("sample threshold.percentile=1", "threshold.percentile", "dynamic"),
    ("sample threshold=dynamic threshold.percentile=x", "threshold.percentile", "quantile"),
    ("sample threshold=dynamic threshold.percentile=2", "threshold.percentile", "quantile"),
    ("sample threshold=dynamic threshold.percentile=-1", "threshold.percentile", "quantile"),
    ("sample precision=64", "precision=64", "no such choice"),
    ("sample compile=yes", "compile=yes", "no such choice"),
    ("sample format=null", "format=None", "no such choice"),
    ("sample graphs=1", "graphs=1", "true or false"),
    ("sample channels_last=x", "channels_last=x", "true or false"),
    ("sample lock=x", "lock=x", "no such choice"),
    ("sample lock=share", "lock=share", "no such choice"),
    ("train lock=share", "lock=share", "no such choice"),
    ("sample output_url=nowhere://x", "output_url=nowhere://x", "s3://"),
    ("sample device=cuda:99", "device=cuda:99", "device=cpu"),
    ("sample device=null", "device=None", "device=cpu"),
    ("sample device=[cpu]", "device=['cpu']", "device=cpu"),
    ("sample launcher=rey", "launcher=rey", "did you mean 'ray'"),
    ("sample launcher=ray trajectories=0", "trajectories", "without it"),
    ("sample launcher=ray network_batch=auto", "network_batch=auto", "give a number"),
    ("sample launcher=ray device=cuda:1", "device=cuda:1", "device=cuda"),
    ("sample device=meta", "device=meta", "device=cpu"),
    ("sample table=deis_digits budget=x", "budget=x", "smoke"),
    ("sample table=deis_digits wandb=x", "wandb=x", "no such choice"),
    ("sample table.title=x", "table.title", "drop"),
    ("sample model=nosuch", "model=nosuch", "no such choice"),
    ("sample model=digits_vp", "model", "describes itself"),
    ("sample trust=5", "trust=5", "list"),
    ("sample trust=[5]", "trust=[5]", "list"),
    ("sample import.weights=x checkpoint=junk.pt", "weights=x", "ema"),
    ("sample import.from=x checkpoint=junk.pt", "from=x", "edm"),
    ("sample import.allow=5 checkpoint=junk.pt", "import.allow=5", "list"),
    ("sample import=null", "import=", "import.from"),
    ("sample labels=fixed:-1", "labels=fixed:-1", "random"),
    (f"sample labels=fixed:{HUGE} checkpoint=conditional.safetensors", "labels=fixed:9999", "classes"),
    ("sample labels=[1,2]", "labels=[1, 2]", "random"),
    ("sample labels=bad.txt checkpoint=conditional.safetensors", "labels=bad.txt", "one for each seed"),
    ("sample labels=folder.txt checkpoint=conditional.safetensors", "labels=folder.txt", "no such file"),
    ("sample 'labels=file/x.txt' checkpoint=conditional.safetensors", "labels=file/x.txt", "no such file"),
    ("calibrate calibration=null", "calibration=null", "choose"),
    ("calibrate dataset=nosuch", "dataset=nosuch", "no such choice"),
    ("calibrate calibration=target_variance", "dataset"),
    ("calibrate solver=rk45", "solver", "use another"),
    ("train model=nosuch", "model=nosuch", "no such choice"),
    ("train dataset=image_folder", "dataset.path", "give"),
    ("train dataset=image_folder dataset.path=nowhere", "dataset.path=nowhere"),
    ("train dataset=image_folder dataset.path=file", "dataset.path=file"),
    ("train dataset=zip dataset.path=file", "dataset.path=file"),
    ("train dataset=null", "dataset=null", "choose"),
    ("train objective=nosuch", "objective=nosuch", "no such choice"),
    ("train precision=x", "precision=x"),
    ("train trainer=nosuch", "trainer=nosuch", "no such choice"),
    ("train resume=file", "resume=file"),
    ("train resume=folder", "resume=folder"),
    ("train resume=small.safetensors", "resume=small.safetensors", "init=small.safetensors"),
    ("train init=nowhere", "init=nowhere", "give"),
    ("train init=junk.safetensors", "init=junk.safetensors", "copy or train it again"),
    ("train init=junk.pt", "init=junk.pt"),
    ("train init=folder", "init=folder: folder/model.safetensors", "no such file"),
    ("train init=nan.safetensors init.skip=a", "init.skip=a", "list of names"),
    ("train init.skip=[head]", "init.skip=['head']", "give init="),
    ("train init=digits_vp init.skip=[haed]", "init.skip=[haed]", "did you mean 'head'?"),
    ("train init=digits_vp resume=file", "resume=file", "give one of them"),
    ("train init=emoji32_edm model=null", "init=emoji32_edm", "3 channels and 32x32 pixels", "set model."),
    ("train init=digits_vp model.network.width=16", "init=digits_vp", "width=32", "model=null"),
    ("train model=null", "model=null", "init=CHECKPOINT"),
    ("train init=digits_vp init.checkpont=x", "init.checkpont", "did you mean"),
    ("train init=digits_vp import=raw", "import=raw", "import.from"),
]

PATHS: list[Row] = [
    (f"sample checkpoint={LONG}", "checkpoint=aaaa", "no such file"),
    (f"sample checkpoint={LONG}.safetensors", "checkpoint=aaaa", "no such file"),
    (f"sample record={LONG}", "record=aaaa", "calibrat"),
    (f"sample labels={LONG}.txt", "labels=aaaa", "no file has such a name"),
    (f"sample hydra.run.dir={LONG}", "hydra.run.dir", "another directory"),
    (f"calibrate checkpoint={LONG}", "checkpoint=aaaa", "no such file"),
    (f"train resume={LONG}", "aaaa"),
    ("sample checkpoint=folder", "checkpoint=folder", "model.safetensors"),
    ("sample checkpoint=file", "checkpoint=file"),
    ("sample checkpoint=file/x", "checkpoint=file/x", "no such file"),
    ("sample checkpoint=empty.safetensors", "checkpoint=empty.safetensors"),
    ("sample checkpoint=null", "checkpoint=None", "model.safetensors"),
    ("sample checkpoint=", "checkpoint=", "model.safetensors"),
    ("sample checkpoint=[a]", "checkpoint=['a']", "model.safetensors"),
    ("sample checkpoint=5", "checkpoint=5", "no such file"),
    ("sample 'checkpoint=\"a\\nb\"'", "checkpoint=", "no such file"),
    ("sample 'checkpoint=näh'", "checkpoint=näh", "quotes"),
    ("sample 'checkpoint=\"a b'", "checkpoint=", "quote"),
    ("sample checkpoint=ftp://x/y", "checkpoint=ftp://x/y"),
    ("SCORELINE_OFFLINE=1 sample checkpoint=https://nowhere.invalid/y.pkl", "checkpoint=https://nowhere.invalid/y.pkl"),
    ("sample checkpoint=/proc/self/mem", "checkpoint=/proc/self/mem"),
    ("sample checkpoint=/dev/null", "checkpoint=/dev/null"),
    ("sample checkpoint=/dev/zero", "checkpoint=/dev/zero"),
    ("sample record=5 solver=deis_sn", "record=5", "calibrat"),
    ("sample record=5", "record=5"),
    ("sample record=folder solver=deis_sn", "record=folder"),
    ("sample record=junk.safetensors solver=deis_sn", "record=junk.safetensors"),
    ("sample record=null solver=deis_sn", "record", "calibrat"),
    ("sample solver=auto solver.path=nowhere", "nowhere", "calibrat"),
    ("sample solver=learned solver.path=folder", "folder"),
    ("sample schedule=from_file", "schedule.path", "give"),
    ("sample schedule=from_file schedule.path=nowhere", "schedule.path=nowhere"),
    ("sample schedule=from_file schedule.path=folder", "schedule.path=folder"),
    ("sample schedule=from_file schedule.path=file", "schedule.path=file"),
    ("sample hydra.run.dir=", "hydra.run.dir", "another directory"),
    ("sample hydra.run.dir=null", "hydra.run.dir"),
    ("sample hydra.run.dir=file", "hydra.run.dir=file", "another directory"),
    ("sample hydra.job.chdir=true", "hydra.job.chdir=true", "leave the key out"),
    ("train hydra.job.chdir=True", "hydra.job.chdir=True", "leave the key out"),
    ("sample hydra.run.dir=file/x", "hydra.run.dir=file/x", "another directory"),
    ("sample hydra.run.dir=/proc/nothing", "hydra.run.dir=/proc/nothing", "another directory"),
    ("sample hydra.run.dir=[a]", "hydra.run.dir"),
    ("sample hydra.run.dir=new/deep/er nfe=0", "nfe=0", "at least 1"),
    ("sample hydra.run.dir=new/deep/er solver=deis_sn record=nowhere", "record=nowhere"),
    ("calibrate hydra.run.dir=file", "hydra.run.dir=file", "another directory"),
    ("calibrate hydra.run.dir=", "hydra.run.dir", "another directory"),
    ("train hydra.run.dir=file", "hydra.run.dir=file", "another directory"),
    ("train hydra.run.dir=", "hydra.run.dir", "another directory"),
    (
        "sample -m hydra/sweeper=optuna hydra.sweeper.n_trials=0 nfe=choice(1,2)",
        "hydra.sweeper.n_trials=0",
        "at least 1",
    ),
    ("sample -m hydra/sweeper=optuna hydra.sweeper.direction=up nfe=choice(1,2)", "hydra.sweeper.direction=up"),
    ("sample hydra/sweeper=optuna", "hydra/sweeper=optuna", "add -m"),
    ("train callbacks=pruning callbacks.pruning.least_runs=0", "callbacks.pruning.least_runs=0", "at least 1"),
    ("train callbacks=pruning callbacks.pruning.least_kimg=-1", "callbacks.pruning.least_kimg=-1", "or 0"),
    ("sample -m nfe=1,2 hydra.sweep.dir=file", "hydra.sweep.dir=file", "another directory"),
    ("sample hydra.run.dir=config_empty", "config_empty", "delete"),
    ("sample hydra.run.dir=config_braces", "config_braces", "delete"),
    ("sample hydra.run.dir=config_garbage", "config_garbage", "delete"),
    ("sample hydra.run.dir=config_tag", "config_tag", "delete"),
    ("sample hydra.run.dir=config_folder", "config_folder", "delete"),
    ("calibrate hydra.run.dir=config_tag", "config_tag", "delete"),
    ("train hydra.run.dir=config_tag", "config_tag", "delete"),
    ("sample metrics=none hydra.run.dir=metrics_braces", "metrics_braces", "delete"),
    ("sample metrics=none hydra.run.dir=metrics_garbage", "metrics_garbage", "delete"),
    ("sample metrics=none hydra.run.dir=metrics_folder", "metrics_folder", "delete"),
    ("report metrics_empty", "metrics_empty", "delete"),
    ("report metrics_braces", "metrics_braces", "delete"),
    ("report metrics_garbage", "metrics_garbage", "delete"),
    ("report metrics_folder", "metrics_folder", "delete"),
    ("evaluate metrics_garbage images.npz", "metrics_garbage"),
    ("upload metrics_garbage", "metrics_garbage"),
    ("sample checkpoint=nan.safetensors metrics=none seeds=0-3", "finite", "precision"),
    ("calibrate checkpoint=nan.safetensors nfe=10 seeds=0-3", "finite", "checkpoint"),
]

GRAMMAR: list[Row] = [
    ("sample identity=abc", "identity=abc", "leave"),
    ("sample digest=..", "digest=..", "leave"),
    ("sample code_version=x", "code_version=x", "leave"),
    ("train identity=abc", "identity=abc", "leave"),
    ("train code_version=x", "code_version=x", "leave"),
    ("calibrate identity=abc", "identity=abc", "leave"),
    ("calibrate digest=x", "digest=x", "leave"),
    ("sample ++identity=abc", "identity", "drop"),
    ("sample '~identity'", "identity"),
    ("sample +x=1", "+x", "drop"),
    ("sample ++x=1", "x", "drop"),
    ("sample '~nfe'", "~nfe", "drop"),
    ("sample '~solver'", "~solver", "drop"),
    ("sample nfe", "nfe", "key=value"),
    ("sample ''", "key=value"),
    ("sample =5", "=5", "key=value"),
    ("sample nfe=[1", "nfe=[1", "quote"),
    ("sample 'nfe={a'", "nfe={a", "quote"),
    ("sample 'nfe=${'", "nfe=${", "quote"),
    ("sample 'nfe=${nosuch}'", "nfe", "nosuch"),
    ("sample 'nfe=${nfe}'", "nfe"),
    ("sample 'nfe=${oc.env:NOSUCH}'", "nfe", "NOSUCH"),
    ("sample 'nfe=${nosuch:1}'", "nfe", "nosuch"),
    ("sample nfe=1,2", "nfe=1,2", "-m"),
    ("sample nosuch/group=x", "nosuch/group"),
    ("sample solver@x=ddim", "solver"),
    ("sample nfe.x=1", "nfe.x"),
    ("sample nfe=1 nfe=0", "nfe=0", "at least 1"),
    ("sample hydra.nosuch=1", "hydra.nosuch"),
    ("sample hydra.mode=x", "hydra.mode"),
    ("sample solver=5", "solver=5", "no such choice"),
    ("sample +nfe=3", "+nfe", "without +"),
    ("sample hydra/launcher=nosuch", "hydra/launcher=nosuch", "no such choice"),
    ("sample -m nfe=[1", "nfe=[1", "quote"),
    ("sample --nosuch", "--nosuch", "--help"),
    ("sample -c nosuch", "-c nosuch", "choose"),
    ("sample --config-name nosuch", "nosuch", "--help"),
    ("sample --config-dir", "--config-dir", "folder"),
    ("sample --config-dir file", "--config-dir file", "folder"),
    ("sample --config-dir nowhere", "--config-dir nowhere", "folder"),
    ("train --config-dir file", "--config-dir file", "folder"),
    ("train model.network._target_=os.system", "model.network", "os.system"),
    ("train model.network._target_=nolab.net.Net", "model.network._target_=nolab.net.Net", "no package nolab"),
    ("train model.network._target_=scoreline.networks.unet.UNets", "no 'UNets'", "did you mean 'UNet'"),
    ("train callbacks.preview._target_=collections.Counter", "callbacks.preview", "lightning.Callback"),
    ("sample schedule=karras schedule._target_=collections.Counter", "schedule: gives", "scoreline.Schedule"),
    ("sample 'metrics={_target_: nosuch.Thing}'", "metrics"),
    ("RANK=x WORLD_SIZE=2 LOCAL_RANK=0 sample nfe=1", "RANK=x", "torchrun"),
    ("RANK=3 WORLD_SIZE=2 LOCAL_RANK=0 sample nfe=1", "RANK=3", "torchrun"),
    ("SLURM_PROCID=x SLURM_STEP_NUM_TASKS=2 calibrate nfe=5", "SLURM_PROCID=x", "srun"),
    ("SLURM_PROCID=-1 SLURM_STEP_NUM_TASKS=2 train", "SLURM_PROCID=-1", "srun"),
    (f"RANK=0 WORLD_SIZE={HUGE} LOCAL_RANK=0 sample", "MASTER_ADDR", "torchrun"),
    ("OMP_NUM_THREADS=x sample", "OMP_NUM_THREADS=x", "unset"),
    ("CUDA_VISIBLE_DEVICES=9 sample device=cuda", "device=cuda", "device=cpu"),
    (f"OMP_NUM_THREADS={HUGE} sample nfe=1", "OMP_NUM_THREADS=9999", "unset"),
]

COMMANDS: list[Row] = [
    ("nosuch", "nosuch", "no such command"),
    ("trian", "trian", "did you mean"),
    ("--nosuch", "--nosuch", "no such command"),
    ("''", "no such command"),
    ("--config-dir", "--config-dir", "folder"),
    ("--config-dir file show", "--config-dir file", "folder"),
    ("show nfe", "nfe", "key=value"),
    ("show nfee=3", "nfee", "did you mean"),
    ("show nfe=0", "nfe=0", "at least 1"),
    (f"show nfe={HUGE}", "nfe=9999", "at most"),
    ("show solver=nosuch", "solver=nosuch", "no such choice"),
    ("show solver=rk45", "solver", "use another"),
    ("show out=file", "out=file"),
    ("show nfe=3 nfe=x", "nfe=x", "whole number"),
    ("show checkpoint=nowhere", "checkpoint=nowhere", "no such file"),
    (f"show checkpoint={LONG}", "checkpoint=aaaa", "no such file"),
    ("certify solver=nosuch", "solver=nosuch", "no such choice"),
    ("certify solver=,", "solver=", "no such"),
    ("certify solver=auto", "solver=auto", "leave"),
    ("certify x", "x", "key=value"),
    ("certify solver=ddim out=file", "out=file"),
    ("certify solver=ddim nosuch=1", "nosuch", "no such key"),
    ("likelihood images=0", "images=0", "at least 1"),
    ("likelihood images=x", "images", "x"),
    ("likelihood images=99999", "images=99999", "at most"),
    ("likelihood nosuch=1", "nosuch"),
    ("likelihood x", "x", "--help"),
    ("likelihood checkpoint=folder", "folder", "model.safetensors"),
    ("likelihood checkpoint=nowhere", "nowhere"),
    ("likelihood data=nowhere.npz", "data=nowhere.npz"),
    ("likelihood data=folder.npz", "data=folder.npz"),
    ("likelihood data=junk.npz", "data=junk.npz"),
    ("likelihood data=", "data=", "digits-test"),
    ("likelihood batch-size=-1", "batch-size=-1", "at least 1"),
    ("likelihood probes=0 images=1", "probes", "at least"),
    (f"likelihood probes={HUGE} images=1", "probes"),
    ("likelihood rtol=nan images=1", "rtol=nan"),
    ("likelihood rtol=-1 images=1", "rtol=-1"),
    ("likelihood method=x images=1", "method=x"),
    ("likelihood nfe=1 images=1", "nfe", "raise"),
    ("likelihood nfe=-1 images=1", "nfe=-1"),
    ("likelihood sigma-min=5 sigma-max=1 images=1", "sigma"),
    ("likelihood sigma-min=nan images=1", "sigma_min=nan"),
    ("likelihood t-min=nan images=1", "t-min=nan"),
    ("likelihood prior-variance=-1 images=1", "-1", "number"),
    ("likelihood prior-variance=nan images=1", "nan", "number"),
    (f"likelihood seed={HUGE}", "seed=9999", "below"),
    ("likelihood divergence=x images=1", "divergence=x"),
    ("likelihood conditional=1", "conditional"),
    ("likelihood device=gpu", "device=gpu", "device=cpu"),
    ("likelihood checkpoint=nan.safetensors images=2", "finite"),
    ("inspect", "inspect", "digits_vp"),
    ("inspect nowhere", "nowhere", "no such file"),
    (f"inspect {LONG}", "aaaa"),
    ("inspect folder", "folder", "model.safetensors"),
    ("inspect junk.safetensors", "junk.safetensors"),
    ("inspect file", "file"),
    ("ema", "RUN"),
    ("ema folder", "sigma_rel"),
    ("ema folder sigma_rel=0.1 out.safetensors", "folder", "ema"),
    ("ema nowhere sigma_rel=x out.safetensors", "nowhere"),
    ("ema folder sigma_rel=nan out.safetensors", "folder"),
    ("ema folder sigma_rel=0.1 half_life_kimg=3 out.safetensors", "folder"),
    ("ema folder nosuch=1 out.safetensors", "nosuch"),
    ("ema folder sigma_rel=0.1 dtype=float8 out.safetensors", "dtype=float8", "bfloat16"),
    ("ema folder sigma_rel=0.1 dataset.split=test out.safetensors", "dataset.split=test", "experiment="),
    ("ema folder sigma_rel=0.1 small.safetensors", "small.safetensors"),
    ("import", "two", "SOURCE DEST"),
    ("import a", "two", "SOURCE DEST"),
    ("import a b c", "two", "SOURCE DEST"),
    ("import nowhere new", "nowhere"),
    ("import junk.pt new", "junk.pt"),
    ("import folder new", "folder"),
    ("import junk.pt new --from nosuch", "from=nosuch"),
    ("import junk.pt new model=nosuch", "model=nosuch", "no such choice"),
    ("import junk.pt new model.x=1", "model.x=1", "model="),
    ("import junk.pt new nosuch=1", "nosuch", "no such key"),
    ("import junk.pt small.safetensors", "small.safetensors", "overwr"),
    ("import junk.pt file/x", "junk.pt"),
    ("import junk.pt new weights=x", "weights=x", "ema"),
    ("import-statistics", "0 files", "checkpoint"),
    ("import-statistics junk.pt", "checkpoint", "give"),
    ("import-statistics a b checkpoint=digits_vp", "2 files", "one"),
    ("import-statistics junk.pt checkpoint=nowhere", "nowhere"),
    ("import-statistics junk.pt checkpoint=small.safetensors", "junk.pt"),
    ("import-statistics folder checkpoint=small.safetensors", "folder"),
    ("import-statistics junk.pt checkpoint=small.safetensors out=file", "out=file", "overwritten"),
    ("import-statistics junk.pt checkpoint=small.safetensors nosuch=1", "nosuch"),
    ("verify", "checkpoint"),
    ("verify nowhere", "nowhere"),
    ("verify a b", "2"),
    ("verify digits_vp images=1", "images=1", "at least"),
    ("verify digits_vp nfe=x", "nfe=x", "whole number"),
    (f"verify digits_vp levels={HUGE}", "levels=9999"),
    ("verify digits_vp seeds=0", "seeds=0", "at least"),
    ("verify digits_vp dataset=nosuch", "dataset=nosuch", "no such choice"),
    ("verify digits_vp nosuch=1", "nosuch", "no such key"),
    ("verify digits_vp device=gpu", "device=gpu", "device=cpu"),
    ("doctor nosuch", "nosuch", "no such script"),
    ("doctor --nosuch", "--nosuch", "no such"),
    ("doctor sample nfee=1", "nfee", "did you mean"),
    ("doctor table=deis_digits --gpus=0", "--gpus=0", "whole number"),
    ("doctor table=deis_digits --gpus=2 --rate=fast", "--rate=fast", "number"),
    ("doctor table=deis_digits --rate=5", "--rate=5", "--gpus=N"),
    ("doctor --gpus=2", "--gpus=2", "table=NAME"),
    ("doctor train solver=ddim", "solver"),
    ("prefetch nosuch", "nosuch", "no such script"),
    ("prefetch table=nosuch", "table=nosuch", "no such table"),
    ("prefetch nfee=1", "nfee", "did you mean"),
    ("dataset", "SRC", "DEST"),
    ("dataset folder", "folder", "DEST"),
    ("dataset folder new.zip", "resolution", "no default"),
    ("dataset nowhere new.zip resolution=8", "nowhere", "nothing is there"),
    ("dataset folder new.zip resolution=8", "folder", "no picture is left", "not a picture"),
    ("dataset file new.zip resolution=8", "file", "neither a zip nor a whole tar"),
    ("dataset junk.npz new.zip resolution=8", "junk.npz"),
    ("dataset images.npz file resolution=8", "file", "overwritten"),
    ("dataset images.npz file/new.zip resolution=8", "file/new.zip"),
    ("dataset folder folder/new.zip resolution=8", "folder/new.zip", "outside"),
    ("dataset images.npz new.zip resolution=0", "resolution=0", "64x48"),
    (f"dataset images.npz new.zip resolution={HUGE}", "resolution=9999"),
    ("dataset images.npz new.zip resolution=8x4 crop=adm", "resolution=8x4", "crop=center"),
    ("dataset images.npz new.zip resolution=8 crop=middle", "crop=middle", "center"),
    ("dataset images.npz new.zip resolution=8 resize=x", "resize=x", "lanczos"),
    ("dataset images.npz new.zip resolution=8 upscale=yes", "upscale=yes", "allow"),
    ("dataset images.npz new.zip resolution=8 channels=4", "channels=4", "grey"),
    ("dataset images.npz new.zip resolution=8 background=256", "background=256", "255"),
    ("dataset images.npz new.zip resolution=8 background=white", "background=white", "255"),
    ("dataset images.npz new.zip resolution=8 duplicates=x", "duplicates=x", "keep"),
    ("dataset images.npz new.zip resolution=8 limit=0", "limit=0", "at least 1"),
    ("dataset images.npz new.zip resolution=8 workers=-1", "workers=-1", "at least 1"),
    ("dataset images.npz new.zip resolution=8 labels=folder", "labels=folder", "folders"),
    ("dataset images.npz new.zip resolution=8 labels=nowhere.csv", "labels=nowhere.csv"),
    ("dataset images.npz new.zip resolution=8 labels=cls", "labels=cls"),
    ("dataset images.npz new.zip resolution=8 split=test", "split=test", "leave the key out"),
    ("dataset images.npz new.zip resolution=8 nosuch=1", "nosuch", "no such key"),
    ("evaluate", "SAMPLES", "REFERENCE"),
    ("evaluate folder", "folder", "REFERENCE"),
    ("evaluate nowhere dataset=digits", "nowhere"),
    ("evaluate folder dataset=digits", "folder"),
    ("evaluate junk.npz dataset=digits", "junk.npz"),
    ("evaluate images.npz dataset=nosuch", "dataset=nosuch", "no such choice"),
    ("evaluate images.npz dataset=digits nosuch=1", "nosuch"),
    ("evaluate images.npz dataset=digits out=file", "out=file", "overwritten"),
    ("evaluate images.npz junk.npz", "junk.npz"),
    ("evaluate images.npz dataset=digits metrics=nosuch", "metrics=nosuch", "no such choice"),
    ("reference", "OUT.npz"),
    ("reference dataset=digits", "OUT.npz"),
    ("reference dataset=digits images.npz", "images.npz", "overwritten"),
    ("reference dataset=nosuch new.npz", "dataset=nosuch", "no such choice"),
    ("reference nowhere new.npz", "nowhere"),
    ("reference dataset=digits file/new.npz", "file/new.npz"),
    ("reference dataset=digits dataset.split=x new.npz", "split=x"),
    ("reference dataset=digits new.npz nosuch=1", "nosuch"),
    ("report", "0 directories"),
    ("report folder", "folder"),
    ("report nowhere", "nowhere"),
    ("report file", "file"),
    ("report folder folder2", "2 directories"),
    ("report folder nosuch=1", "nosuch"),
    ("report folder style=nosuch", "style=nosuch"),
    ("report folder --htm", "--htm", "--html"),
    ("upload", "run directory"),
    ("upload folder", "folder", "config.yaml"),
    ("upload nowhere", "nowhere"),
    ("upload config_tag", "config_tag"),
    ("upload folder offline=x", "offline=x", "true or false"),
    ("upload folder nosuch=1", "nosuch"),
]

ALL = [*NUMBERS, *SEEDS, *CHOICES, *PATHS, *GRAMMAR, *COMMANDS]


def make_workplace(root: Path) -> Path:
    """A directory with small untrained models, one that overflows, and files and folders that are no models."""
    for name, classes, head in (("small", 0, 0.05), ("conditional", 10, 0.05), ("nan", 0, 3e38)):
        save_small(root / f"{name}.safetensors", classes, head)
    for name in ("junk.safetensors", "junk.pt", "junk.npz", "file"):
        (root / name).write_bytes(b"junk")
    (root / "empty.safetensors").touch()
    (root / "bad.txt").write_text("0 x")
    np.savez(root / "images.npz", arr_0=np.zeros((16, 8, 8, 1), dtype=np.uint8))
    for name in ("folder", "folder2", "folder.txt", "folder.npz"):
        (root / name).mkdir()
        (root / name / "notes").touch()
    configs = {"empty": "", "braces": "{}", "garbage": "\0{[", "tag": "nfe: !!python/object/apply:os.system [true]"}
    for name, text in configs.items():
        (root / f"config_{name}").mkdir()
        (root / f"config_{name}" / "config.yaml").write_text(text)
    for name in ("empty", "braces", "garbage"):
        (root / f"metrics_{name}").mkdir()
        (root / f"metrics_{name}" / "metrics.json").write_text(configs[name])
    (root / "config_folder" / "config.yaml").mkdir(parents=True)
    (root / "metrics_folder" / "metrics.json").mkdir(parents=True)
    return root


@dataclass(frozen=True)
class Outcome:
    """What came of a command line.

    Attributes:
        code: its exit code, negative for a signal.
        mib: what it held at its peak.
        changed: paths in the working directory that it made, changed or removed.
    """

    code: int
    said: str
    errors: str
    mib: float
    changed: list[str]


def arguments(line: str) -> tuple[list[str], dict[str, str]]:
    """The words of a process, and its own part of the environment, from `KEY=VALUE .. SCRIPT-OR-VERB WORD ..`."""
    words, own = shlex.split(line), dict[str, str]()
    while words and "=" in words[0] and words[0].partition("=")[0].isupper():
        key, _, own[key] = words.pop(0).partition("=")
    if words[0] in SCRIPTS:
        return [sys.executable, str(ROOT / f"{words[0]}.py"), *words[1:]], own
    return [sys.executable, "-c", "from scoreline.cli import main; main()", *words], own


WATCH = """
import os, signal, sys
child = os.fork()
if not child:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.execv(sys.argv[2], sys.argv[2:])
_, status, usage = os.wait4(child, 0)
with open(sys.argv[1], "w") as file:
    file.write(str(usage.ru_maxrss))
code = os.waitstatus_to_exitcode(status)
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
"""
"""A small process between the tests and a command: ru_maxrss counts what the process that forked held, too."""


def run(line: str, where: Path, file_kib: int | None = None, seconds: int = 10) -> Outcome:
    """Run a command line in the directory `where`, within bounds of processor time and address space.

    Args:
        file_kib: the largest file that it may write.
    """
    words, own = arguments(line)
    before = _content(where)

    def bound() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
        if file_kib is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_kib * 1024, file_kib * 1024))

    peak = where.parent / f"{where.name}.peak"
    with open(where.parent / f"{where.name}.out", "w+") as out, open(where.parent / f"{where.name}.err", "w+") as err:
        watched = [sys.executable, "-S", "-c", WATCH, str(peak), *words]
        environment = {**os.environ, **own}
        process = subprocess.run(watched, cwd=where, stdout=out, stderr=err, env=environment, preexec_fn=bound)
        out.seek(0)
        err.seek(0)
        said, errors = out.read(), err.read()
    after = _content(where)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return Outcome(process.returncode, said, errors, float(peak.read_text()) / 1024, changed)


def _content(root: Path) -> dict[str, str]:
    """Every path below a directory with the digest of its file."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in root.rglob("*")
    }


def faults(row: Row, found: Outcome) -> list[str]:
    """What a refusal lacks: nothing for one line, exit code 2, that says what it should and leaves nothing behind."""
    lines = [line for line in found.errors.splitlines() if line and not PROGRESS.search(line)]
    missing = [text for text in row[1:] if text not in found.errors]
    wrong = {
        "traceback": "Traceback" in found.errors,
        "killed": found.code < 0,
        "accepted": found.code == 0,
        f"exit code {found.code}": found.code not in (0, 2) and found.code > 0,
        f"{len(lines)} lines": len(lines) != 1 and "Traceback" not in found.errors,
        f"says no {missing}": bool(missing),
        f"{found.mib:.0f} MiB": found.mib > 1024,
        f"left {found.changed}": bool(found.changed),
        "long": any(len(line) > 7000 for line in lines),
    }
    return [name for name, holds in wrong.items() if holds]
