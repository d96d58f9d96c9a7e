"""What `hydra/launcher=slurm` needs of a cluster: sbatch, GPUs if it asks for some, and the states of jobs."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from scoreline.errors import InputError

GPUS = ("gpus_per_node", "gpus_per_task", "cpus_per_gpu", "mem_per_gpu")
"""Keys of the launcher that ask for GPUs."""

SACCT = """#!/bin/sh
# The states of jobs from scontrol, in the columns that submitit asks sacct for. A job that scontrol has forgotten
# (MinJobAge seconds after its end) counts as ended: submitit then looks for its result.
echo 'JobID|State|NodeList'
while [ $# -gt 0 ]; do
  if [ "$1" = -j ]; then
    found=$(scontrol -o show job "$2" 2>&1)
    case $found in *JobState=* | *"Invalid job id"*) printf '%s\\n' "$2|FAILED|" "$2_[0-9999]|FAILED|" ;; esac
    echo "$found" | awk '/JobState=/ {
      for (k in field) delete field[k]
      for (i = 1; i <= NF; i++) { at = index($i, "="); field[substr($i, 1, at - 1)] = substr($i, at + 1) }
      id = field["JobId"]; task = field["ArrayTaskId"]
      if (task == "4294967294") task = "0-9999" # a whole array that was cancelled before its start
      if (task ~ /[^0-9]/) task = "[" task "]"
      if (task != "") id = field["ArrayJobId"] "_" task
      print id "|" field["JobState"] "|" field["NodeList"]
    }'
    shift
  fi
  shift
done
"""


class SlurmReady:
    """A Hydra callback that examines the cluster before a sweep is submitted to it."""

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        """Exit with one line and code 2 if no job could start; without accounting, ask scontrol for states of jobs."""
        from scoreline.config.script import leave

        try:
            refuse_absent_sbatch()
            refuse_absent_gpus(config.hydra.launcher)
        except InputError as error:
            leave(error)
        if reason := accounting_error():
            print(f"note: sacct does not answer ({reason}); the states of jobs come from scontrol", file=sys.stderr)
            prefer_scontrol()

    def on_job_start(self, **_: Any) -> None: ...
    def on_job_end(self, **_: Any) -> None: ...
    def on_multirun_end(self, **_: Any) -> None: ...
    def on_run_start(self, **_: Any) -> None: ...
    def on_run_end(self, **_: Any) -> None: ...


def refuse_absent_sbatch() -> None:
    """Raise InputError unless jobs can be submitted from this machine."""
    if shutil.which("sbatch") is None:
        raise InputError(
            "hydra/launcher=slurm: there is no sbatch on this machine; start the sweep where there is one, or use "
            "hydra/launcher=local"
        )


def refuse_absent_gpus(launcher: Any) -> None:
    """Raise InputError if the launcher asks for GPUs and no node of its partition offers one (GRES).

    Args:
        launcher: the node `hydra.launcher` of a config.
    """
    asked = [key for key in GPUS if OmegaConf.select(launcher, key)]
    partition = OmegaConf.select(launcher, "partition")
    words = ["sinfo", "--noheader", "--format=%G", *([f"--partition={partition}"] if partition else [])]
    found = subprocess.run(words, capture_output=True, text=True, check=False) if asked else None
    if found is not None and found.returncode == 0 and "gpu" not in found.stdout:
        raise InputError(
            f"hydra.launcher.{asked[0]}={launcher[asked[0]]}: no node of "
            f"{f'partition {partition}' if partition else 'this cluster'} offers GPUs (sinfo --format=%G); add "
            + " ".join(f"hydra.launcher.{key}=null" for key in asked)
        )


def accounting_error() -> str | None:
    """Return the reason why sacct does not answer, None if it does."""
    try:
        done = subprocess.run(["sacct", "--noheader"], capture_output=True, text=True, check=False)
    except OSError as error:
        return error.strerror
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1] if done.returncode else None


def prefer_scontrol() -> None:
    """Put a program `sacct` that asks scontrol before the others of PATH; submitit waits for ever without answers."""
    folder = tempfile.mkdtemp(prefix="scoreline-sacct-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    program = Path(folder, "sacct")
    program.write_text(SACCT)
    program.chmod(0o755)
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"
