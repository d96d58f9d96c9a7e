"""What is committed."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_nothing_names_this_machine() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for path in map(ROOT.joinpath, files):
        if path.suffix in {".py", ".yaml", ".md", ".toml", ".lock", ".yml", ""} and path.is_file():
            assert not re.search(r"(^|[\s\"'=(])/(work|root|home|opt)/\w", path.read_text()), path
