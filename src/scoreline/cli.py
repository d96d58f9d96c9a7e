"""The `scoreline` command: one verb, then key=value; `--config-dir FOLDER` adds configs of your own.

scoreline train | sample | calibrate KEY=VALUE ..         as python train.py and so on, from anywhere
scoreline certify                    measured order, consistency, NFE and set-up time of every solver
scoreline certify solver=ddim,heun   of some
scoreline show solver                     the choices of a group: solver, schedule, model, table, ..
scoreline show solver=deis_tab3 schedule=karras nfe=8     a tableau: nodes, weights, picture
scoreline likelihood checkpoint=digits_vp images=32       bits per dimension; --help lists the keys
scoreline inspect digits_vp model.score_norm.safetensors  what checkpoints and calibration records are
scoreline ema RUN sigma_rel=0.15 DEST.safetensors         an average of the weights that training did not track
scoreline import SOURCE DEST --from edm                   another project's checkpoint; runs none of its code
scoreline verify DEST                                     does a checkpoint do what its conventions say?
scoreline import-statistics FILE.pt checkpoint=PATH       the authors' DEIS-SN statistics, as a calibration record
scoreline doctor train experiment=cifar10_edm             can this job be done here, and what will it take?
scoreline prefetch table=deis_cifar10                     fetch now what a job would fetch later
scoreline evaluate SAMPLES REFERENCE                      measure a folder, zip, npz or run against another
scoreline reference dataset=digits OUT.npz                mean and covariance of a data set's features
scoreline report DIR                                      a table and its figure, from finished runs
scoreline upload RUN_DIR                                  sends a run or a sweep to W&B from its files
"""

import importlib
import runpy
import sys

from scoreline import startup
from scoreline.conf_folder import SCRIPTS, script, use_own_folder
from scoreline.errors import InputError, did_you_mean

VERBS = (
    *("certify", "doctor", "ema", "evaluate", "import", "import-statistics", "inspect", "likelihood"),
    *("prefetch", "reference", "report", "show", "upload", "verify"),
)
MODULES = {"import": "import_checkpoint"}


@startup.reader_may_leave
def main() -> None:
    """Run a verb. A mistake becomes one line and exit code 2; a verb's own failure is its exit code."""
    try:
        words = use_own_folder(sys.argv[1:])
        if not words or words[0] in ("-h", "--help"):
            print(__doc__)
            return
        if words[0] in SCRIPTS:
            sys.argv = [str(script(f"{words[0]}.py")), *words[1:]]
            runpy.run_path(sys.argv[0], run_name="__main__")
            return
        if words[0] not in VERBS:
            raise InputError(f"{words[0]}: there is no such command{did_you_mean(words[0], (*SCRIPTS, *VERBS))}")
        module = MODULES.get(words[0], words[0].replace("-", "_"))
        sys.exit(importlib.import_module(f"scoreline.commands.{module}").main(words[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        from scoreline.entry import leave

        verb = next(iter(sys.argv[1:]), "")
        leave(error, f"scoreline {verb}" if verb in VERBS else "scoreline")
