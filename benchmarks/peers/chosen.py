"""Which methods of which peers there are to compare."""

import importlib.util
from pathlib import Path

from peers import deis, diff_sampler, diffusers_edm, diffusers_vp, edm, k_diffusion, scire
from peers.clones import clone
from peers.models import Model
from peers.pairs import Missing, Pair

CLONES = (k_diffusion, edm, diff_sampler, deis, scire)


def pairs_of(model: Model, nfe: int, folder: Path | None) -> tuple[list[Pair], list[Missing]]:
    """Every method of every peer that can run here, and what cannot and why."""
    found: list[Pair | Missing] = []
    if importlib.util.find_spec("diffusers") is None:
        found.append(Missing("diffusers", "all", "diffusers is not installed"))
    else:
        found += (diffusers_edm if model.edm else diffusers_vp).pairs(model, nfe)
    for peer in CLONES:
        path = clone(folder, peer.REPOSITORY)
        if path is None:
            found.append(Missing(peer.PEER, "all", f"no clone of {peer.REPOSITORY} (--peers)"))
        else:
            found += peer.pairs(model, nfe, path)
    return [p for p in found if isinstance(p, Pair)], [p for p in found if isinstance(p, Missing)]
