"""scoreline VERB [WORDS]

Scripts (each takes KEY=VALUE ..; the same as python SCRIPT.py, from anywhere):
  train              train a score model
  sample             draw images and measure them
  calibrate          measure a model for solvers that need it

Solvers:
  certify            measure order, consistency and NFE of every solver
  show               print and draw a solver's tableau
  show GROUP         list the choices of a group: solver, schedule, model, ..

Models and records:
  inspect PATH ..    describe checkpoints and calibration records
  verify MODEL       check that a model does what its conventions say
  import SOURCE DEST           convert another project's checkpoint
  import-statistics FILE.pt    convert the DEIS-SN authors' statistics
  ema RUN DEST.safetensors     average the weights of a run anew
  learn-pipeline FOLDER PROMPTS.txt   learn steps for a pipeline of diffusers
  likelihood         bits per dimension of images under a model

Images and results:
  dataset SRC DEST   make a data set of one size from pictures of any kind
  evaluate SAMPLES REFERENCE   score images against images or statistics
  reference IMAGES OUT.npz     write reference statistics
  report DIR         print a table and draw a figure of finished runs
  runs [FOLDER]      list, show, compare and remove runs
  upload RUN_DIR     upload a run or a sweep to W&B

Jobs:
  doctor [SCRIPT]    forecast the time and memory of a job on this machine
  prefetch [SCRIPT]  download the files of a job in advance

scoreline VERB --help explains each. --config-dir FOLDER adds your own configs.
"""

import ast
import importlib
import sys
from pathlib import Path

from scoreline.config.conf_folder import SCRIPTS, script, use_own_folder
from scoreline.errors import InputError, did_you_mean
from scoreline.runtime import startup

VERBS = (
    *("certify", "dataset", "doctor", "ema", "evaluate", "import", "import-statistics", "inspect"),
    *("learn-pipeline", "likelihood", "prefetch", "reference", "report", "runs", "show", "upload", "verify"),
)
MODULES = {"import": "import_checkpoint"}
HELP = {"-h", "--help"}


@startup.reader_may_leave
def main() -> None:
    """Run a verb. A mistake becomes one line and exit code 2; otherwise the verb decides the exit code."""
    try:
        words = use_own_folder(sys.argv[1:])
        if not words or words[0] in HELP:
            print(__doc__)
            return
        if words[0] in SCRIPTS:
            sys.argv = [str(script(f"{words[0]}.py")), *words[1:]]  # named in messages, and what children start
            importlib.import_module(f"scoreline.scripts.{words[0]}").main()
            return
        if words[0] not in VERBS:
            raise InputError(f"{words[0]}: there is no such command{did_you_mean(words[0], (*SCRIPTS, *VERBS))}")
        module = MODULES.get(words[0], words[0].replace("-", "_"))
        if HELP & set(words):
            print(_help(module))
            return
        sys.exit(importlib.import_module(f"scoreline.commands.{module}").main(words[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        from scoreline.config.script import leave

        verb = next(iter(sys.argv[1:]), "")
        leave(error, f"scoreline {verb}" if verb in VERBS else "scoreline")


def _help(module: str) -> str:
    """The docstring of a command, read from its source, because its import takes seconds."""
    source = Path(__file__).with_name("commands") / f"{module}.py"
    return ast.get_docstring(ast.parse(source.read_text())) or ""
