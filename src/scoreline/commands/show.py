"""scoreline show [solver=NAME] [schedule=NAME] [nfe=N] [OVERRIDES] [out=DIR]
scoreline show GROUP
Print the tableau that sample.py would run with these overrides, and draw it.

  scoreline show solver=deis_tab3 schedule=karras nfe=8

Each row is a sum of earlier states and noise estimates; a star marks a row
that calls the network. The picture goes to DIR (default: outputs/show). With a
GROUP, such as solver or table, print its choices instead.
"""

from pathlib import Path

from scoreline.commands.words import refuse_blocked, split
from scoreline.config import catalogue, script
from scoreline.config.compose import build_object, follow_recommendation, plain_config
from scoreline.config.model_source import read_source, with_model, with_sigma_data
from scoreline.solvers.tableau import Tableau, build_tableau
from scoreline.storage.figures import PAGE, figure
from scoreline.storage.files import write_atomically
from scoreline.values import whole_number

OWN = {"out": "outputs/show"}


def main(words: list[str]) -> None:
    """Print nodes and weights of the tableau that sample.py would run with these overrides, and draw it.

    The name of a group in place of overrides prints the choices of the group.

    Raises:
        InputError: for a solver that has no tableau.
    """
    if len(words) == 1 and words[0] in catalogue.groups():
        print(catalogue.listing(words[0]))
        return
    own, overrides = split(words, OWN)
    refuse_blocked(f"out={own['out']}", Path(own["out"]))
    cfg = plain_config(overrides)
    checkpoint = read_source(cfg).load()
    cfg = with_sigma_data(with_model(cfg, checkpoint), checkpoint)
    span, nfe = script.sigma_range(cfg, checkpoint.noise_schedule), whole_number("nfe", cfg.nfe)
    cfg, recommended = follow_recommendation(cfg, checkpoint, span, nfe - (cfg.final == "denoise"))
    if recommended:
        print(f"{cfg.checkpoint}: {' on '.join(recommended)}")
    tableau = build_tableau(build_object(cfg.solver), build_object(cfg.schedule), span, nfe, cfg.final)
    words = [word for word in words if not word.startswith("out=")]
    print(text(tableau))
    path = Path(own["out"]) / f"{','.join(sorted(words)).replace('/', '_') or 'default'}.png"
    write_atomically(path, lambda part: _picture(tableau, " ".join(words) or "default", part))
    print(f"\n-> {path}")


def text(tableau: Tableau) -> str:
    """Return one line per row: x_{k+1} as a sum, with a star if the row's own eps is a network call."""
    lines = [f"NFE {tableau.nfe}, {len(tableau.B)} rows, consistency residual {tableau.residual:.1e}"]
    width = len(str(len(tableau.B)))
    lines.append(f"x_{0:<{width}} rho {tableau.rho[0]:<12.6g}")
    for k in range(len(tableau.B)):
        call = "*" if tableau.calls[k] else " "
        lines.append(f"x_{k + 1:<{width}} rho {tableau.rho[k + 1]:<12.6g}{call} = {_sum(tableau, k)}")
    lines.append("* the row evaluates the network at the state before it")
    if tableau.query is not None:
        given = zip(tableau.query_levels.tolist(), tableau.calls, strict=True)
        lines.append("noise levels that the network is given: " + ", ".join(f"{q:.6g}" for q, call in given if call))
    return "\n".join(lines)


def _sum(tableau: Tableau, k: int) -> str:
    terms = [(float(w), f"x_{j}") for j, w in enumerate(tableau.S[k]) if w]
    terms += [(float(w), f"eps_{j}") for j, w in enumerate(tableau.N[k]) if w]
    terms += [(float(tableau.B[k]), "z")] * bool(tableau.B[k])
    first, *rest = [(w, name if abs(w) == 1 else f"{abs(w):.6g} {name}") for w, name in terms]
    return ("-" if first[0] < 0 else "") + first[1] + "".join(f" {'-' if w < 0 else '+'} {name}" for w, name in rest)


def _picture(tableau: Tableau, title: str, path: Path) -> None:
    """Draw the noise levels of all states with the network calls marked, and the weights S and N as maps.

    Args:
        tableau: the tableau.
        title: the title of the figure.
        path: the PNG file.
    """
    with figure(path, 1, 3, figsize=(PAGE, 2.3)) as (chart, axes):
        rho = tableau.rho.numpy()
        called = [k for k, call in enumerate(tableau.calls) if call]
        axes[0].plot(rho, color="grey", linewidth=0.8)
        axes[0].plot(range(len(rho)), rho, "o", markersize=2, color="grey", label="state")
        axes[0].plot(called, rho[called], "o", markersize=3.5, label="network call")
        axes[0].set_yscale("symlog", linthresh=max(float(tableau.rho[tableau.rho > 0].min()), 1e-3))
        axes[0].set(xlabel="state", ylabel="noise level rho", title="noise levels")
        chart.suptitle(f"{title}: NFE {tableau.nfe}")
        axes[0].legend()
        shares = tableau.N / tableau.N.abs().sum(1, keepdim=True).clamp(min=1e-300)
        for axis, part, name in ((axes[1], tableau.S, "S"), (axes[2], shares, "N, each row by its sum of sizes")):
            top = float(part.abs().max()) or 1.0
            image = axis.imshow(part.numpy(), cmap="RdBu_r", vmin=-top, vmax=top, interpolation="nearest")
            axis.set(title=name, xlabel="state read", ylabel="row")
            chart.colorbar(image, ax=axis, shrink=0.8)
