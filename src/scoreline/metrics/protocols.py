"""Protocols of the literature by name: what of them can be checked is checked, and a row says if it does not fit."""

from dataclasses import dataclass

from scoreline.choices import check_choice


@dataclass(frozen=True)
class Facts:
    """What is measured, on what and against what.

    Attributes:
        n: number of generated images.
        published: whether the extractor is the published file.
        resize: `network` or `clean`.
        split: of the reference; None where a file of others does not tell.
        adm_file: whether the reference is a file in ADM's layout: statistics, spatial ones, and images.
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
    """`edm`, or `not edm (n=5000)` with all that does not fit.

    | name | what is checked |
    |--|--|
    | edm | 50,000 images, the published file and its resize, a reference of the train split |
    | adm | 50,000 images, the published file and its resize, a reference file in ADM's layout |
    | clean | the published file behind Pillow's bicubic resize |

    Three seed ranges and their minimum, which EDM reports, are a matter of several runs: tables make and show them. A
    reference file of others does not tell its split: its digest stands beside this in the fingerprint.

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
