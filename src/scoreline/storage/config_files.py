"""Where the package's own configs are."""

from pathlib import Path

from scoreline.errors import InputError


def conf_dir() -> Path:
    """Return the folder conf/: inside an installed package, else at the top of the source tree.

    Raises:
        InputError: if there is no such folder.
    """
    here = Path(__file__).resolve()
    for folder in (here.parents[1] / "conf", here.parents[3] / "conf"):
        if (folder / "sample.yaml").is_file():
            return folder
    raise InputError("conf: scoreline was installed without its configs; install it again")
