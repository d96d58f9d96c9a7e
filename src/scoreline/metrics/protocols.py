"""Evaluation protocols of the literature by name, checked against the facts of a row."""

from dataclasses import dataclass

from scoreline.values import check_choice


@dataclass(frozen=True)
class Facts:
    """The facts of a row that a protocol fixes.

    Attributes:
        n: number of generated images.
        published: whether the extractor is the published file.
        resize: `network` or `clean`.
        split: split of the reference; None if a file of another project does not name it.
        adm_file: whether the reference is a file in ADM's layout: statistics, spatial statistics and images.
    """

    n: int
    published: bool
    resize: str
    split: str | None
    adm_file: bool


NAMES = ("edm", "adm", "clean")
IMAGES = 50_000


def check(protocol: str | None) -> None:
    """Check the name of a protocol.

    Raises:
        InputError: for an unknown name.
    """
    if protocol is not None:
        check_choice("metrics.protocol", NAMES, protocol)


def verdict(protocol: str, facts: Facts) -> str:
    """Return `edm`, or `not edm (n=5000)` with everything that differs.

    | name | conditions |
    |--|--|
    | edm | 50,000 images, the published file and its resize, a reference of the train split |
    | adm | 50,000 images, the published file and its resize, a reference file in ADM's layout |
    | clean | the published file behind Pillow's bicubic resize |

    The verdict is of one run. EDM publishes the minimum of three, which a table shows beside figures marked
    `minimum_of: 3`. A reference file of another project does not name its split; the fingerprint holds its digest
    beside this verdict.

    Source: Karras et al. (2022), arXiv:2206.00364; Dhariwal & Nichol (2021), arXiv:2105.05233; Parmar et al. (2022),
    arXiv:2104.11222.
    """
    wrong = [] if facts.published else ["another extractor"]
    if protocol != "clean" and facts.n != IMAGES:
        wrong.append(f"n={facts.n}")
    if facts.resize != ("clean" if protocol == "clean" else "network"):
        wrong.append(f"resize={facts.resize}")
    if protocol == "edm" and facts.split not in (None, "train"):
        wrong.append(f"split={facts.split}")
    if protocol == "adm" and not facts.adm_file:
        wrong.append("the reference is not in ADM's layout")
    return f"not {protocol} ({', '.join(wrong)})" if wrong else protocol
