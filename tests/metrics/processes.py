"""Several processes of torch.distributed that run one script and print JSON."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

START = """
import sys, json, torch, torch.distributed as dist
from pathlib import Path
from scoreline.datasets.base import ArrayDataset
from scoreline.storage.resumable import Parts

torch.set_num_threads(1)
rank, size, folder, words = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
parts = Parts(folder / "parts", "", rank, size, dist.barrier)
calls = []
"""


def printed(script: str, folder: Path, size: int, *words: str) -> list[Any]:
    """What each of `size` processes prints after START and the script, which may use rank, parts, words and calls."""
    folder.mkdir(exist_ok=True)
    path = folder / "script.py"
    path.write_text(START + textwrap.dedent(script) + "\ndist.destroy_process_group()\n")
    commands = [[sys.executable, str(path), str(rank), str(size), str(folder), *words] for rank in range(size)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    return [json.loads(process.communicate(timeout=240)[0]) for process in running]
