"""manifest.csv: which image belongs to which seed, with which label and which bytes."""

from dataclasses import astuple, fields
from pathlib import Path

from scoreline.generation.images import Entry, ShardImages


def write_manifest(path: Path, images: ShardImages) -> None:
    """The header `index,seed,label,sha256` and a line for each image in the order of the seeds.

    The label is empty where there is none; `sha256` is `images.Entry.sha256`.
    """
    with open(path, "w", newline="") as file:
        file.write(",".join(field.name for field in fields(Entry)) + "\n")
        for index in range(len(images)):
            values = astuple(images.entry(index))
            file.write(",".join("" if value is None else str(value) for value in values) + "\n")
