"""Hostile model files, records and snapshots: one line that names the file, little memory, little time."""

import copy
import json
import math
import resource
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from scoreline import checkpoints, records
from scoreline.calibration.score_scale import load_scale
from scoreline.calibration.search import load_recommendation
from scoreline.checkpoints import Card, load_model, save_model
from scoreline.commands import inspect
from scoreline.config.run_names import ASSETS
from scoreline.descriptions import specs
from scoreline.descriptions.skeletons import PARTS, build
from scoreline.descriptions.specs import rebuild
from scoreline.errors import InputError
from scoreline.networks.unet import UNet
from scoreline.parameterisations import Parameterisation
from scoreline.records import load_record
from scoreline.schedules.base import NoiseSchedule
from scoreline.schedules.score_optimal import load_schedule
from scoreline.schedules.tabulated import from_file
from scoreline.solvers.learned import load_learned
from scoreline.storage.tensor_files import LONGEST_HEADER, MOST_TENSORS
from scoreline.training import ema_snapshots
from scoreline.training.ema_snapshots import list_snapshots

VP = {"_target_": "scoreline.schedules.vp.LinearVP", "beta_min": 0.1, "beta_max": 20.0}
NETWORK = {
    "_target_": "scoreline.networks.unet.UNet",
    "channels": 1,
    "resolution": 8,
    "width": 8,
    "blocks": 1,
    "multipliers": [1, 1],
}
NOISE = {"_target_": "scoreline.parameterisations.NoisePrediction", "label_scale": 999.0, "noise_schedule": VP}
MODEL = {"network": NETWORK, "noise_schedule": VP, "parameterisation": NOISE}
torch.manual_seed(0)
WEIGHTS = UNet(1, 8, width=8, blocks=1, multipliers=(1, 1)).state_dict()
ENTRIES = {"model": MODEL, "shape": [1, 8, 8], "num_classes": 0, "data": {"name": "toy"}, "training": {"kimg": 1.5}}

SPARE = 2**30
"""Bytes of address space beyond today's that reading a file may take."""


@contextmanager
def little_memory() -> Iterator[None]:
    """Where the system tells and limits what a process takes."""
    if sys.platform != "linux":
        yield
        return
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + SPARE, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def refusal(path: Path, load: Callable[[Path], object]) -> str | None:
    """The one line that names the file, or None if it loads; nothing else may happen."""
    start = time.process_time()
    try:
        with little_memory():
            load(path)
    except InputError as error:
        said = str(error)
        assert said.isprintable()
        assert path.name in said
        assert len(said) < 1000
        return said
    finally:
        assert time.process_time() - start < 10
    return None


def model_file(path: Path, weights: dict[str, Tensor] | None = None, **entries: Any) -> Path:
    """A model file; entries that are text are JSON as they are."""
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in {**ENTRIES, **entries}.items() if v is not ...}
    save_file(WEIGHTS if weights is None else weights, path, {"format": "scoreline/model/1", **texts})
    return path


def network(**changes: Any) -> dict[str, Any]:
    return {**MODEL, "network": {**NETWORK, **changes}}


def process(name: str, **arguments: Any) -> dict[str, Any]:
    return {**MODEL, "noise_schedule": {"_target_": f"scoreline.schedules.{name}", **arguments}}


def prediction(name: str, **arguments: Any) -> dict[str, Any]:
    return {**MODEL, "parameterisation": {"_target_": f"scoreline.parameterisations.{name}", **arguments}}


def test_the_honest_file_loads(tmp_path: Path) -> None:
    assert refusal(model_file(tmp_path / "model.safetensors"), load_model) is None


ENTRIES_REFUSED = {
    "missing": ({"model": ...}, "its metadata has no model"),
    "unknown": ({"licence": "x"}, "its metadata has 'licence'"),
    "no JSON": ({"model": "{"}, "model: Expecting"),
    "deep": ({"data": "[" * 100_000}, "data: JSON that is nested too deeply"),
    "deeper than honest": ({"data": '{"a":' * 40 + "1" + "}" * 40}, "nested more than 32 deep"),
    "long": ({"training": json.dumps(["x" * 5_000_000])}, "characters of JSON, more than"),
    "twice": ({"data": '{"a": 1, "a": 2}'}, "data: JSON with a key that occurs twice"),
    "surrogate": ({"data": '{"a": "\\ud800"}'}, "data: 'utf-8' codec can't encode"),
    "digits": ({"num_classes": "9" * 5000}, "num_classes: Exceeds the limit"),
    "nan": ({"num_classes": "NaN"}, "num_classes is nan, not a whole number from 0"),
    "infinity": ({"num_classes": "1e999"}, "num_classes is inf"),
    "fraction": ({"num_classes": 1.0}, "num_classes is 1.0"),
    "true": ({"num_classes": True}, "num_classes is True"),
    "list": ({"model": []}, "model is [], not an object"),
    "text": ({"training": '"x"'}, "training is 'x', not an object"),
    "more of a model": ({"model": {**MODEL, "evil": VP}}, "model has 'evil'"),
    "less of a model": ({"model": {"network": NETWORK}}, "model has no noise_schedule"),
    "no class": ({"model": {**MODEL, "network": {}}}, "model.network has no _target_"),
    "two sizes": ({"shape": [1, 8]}, "shape is [1, 8], not a list of 3"),
    "no size": ({"shape": [0, 8, 8]}, "shape[0] is 0, not a whole number from 1 to 65536"),
    "huge image": ({"shape": [9999, 9999, 9999]}, "shape is [9999, 9999, 9999], more than"),
    "another image": ({"shape": [3, 8, 8]}, "network.channels is 1 for images of shape [3, 8, 8]"),
    "another side": ({"shape": [1, 16, 16]}, "network.resolution is 8 for images of shape [1, 16, 16]"),
    "classes": ({"num_classes": 10, "model": network(num_classes=3)}, "network.num_classes is 3 for 10 classes"),
    "control characters": ({"a\nb\x1b[2J": "1"}, r"its metadata has 'a\nb\x1b[2J'"),
}


@pytest.mark.parametrize("name", ENTRIES_REFUSED)
def test_entries_of_a_card(name: str, tmp_path: Path) -> None:
    entries, sentence = ENTRIES_REFUSED[name]
    said = refusal(model_file(tmp_path / "model.safetensors", **entries), load_model)
    assert said is not None
    assert sentence in said


GAUSS = {"_target_": "scoreline.networks.gaussian_mixture.GaussianMixtureScore", "channels": 1, "resolution": 8}
OURS = {
    "song": {"_target_": "scoreline.networks.song_unet.SongUNet", "channels": 1, "resolution": 8},
    "adm": {"_target_": "scoreline.networks.adm.DhariwalUNet", "channels": 1, "resolution": 8},
    "ddpm": {"_target_": "scoreline.networks.ddpm_unet.DDPMUNet", "channels": 1, "resolution": 8},
    "unet": NETWORK,
}
LARGER = "its network is larger than its weights"
UNFIT = "weights do not fit the network"

SPECS_REFUSED = {
    "blocks": (network(blocks=10**9), "blocks is 1000000000, not a whole number from 1 to 1000"),
    "width": (network(width=10**9), "width is 1000000000, not a whole number from 1 to 1048576"),
    "wide": (network(width=2**20), UNFIT),
    "multiplied": (network(multipliers=[4096, 4096, 4096]), UNFIT),
    "widths overflow": (network(width=2**20, multipliers=[4096, 4096]), LARGER),
    "many levels": (
        network(multipliers=[1] * 100_000),
        "multipliers is [1, 1, 1, 1, 1, 1, ...], not a list of 1 to 16",
    ),
    "text": (network(width="x"), "width is 'x', not int"),
    "none": (network(width=None), "width is None, not int"),
    "bool": (network(width=True), "width is True, not int"),
    "float": (network(blocks=1e308), "blocks is 1e+308, not int"),
    "list": (network(multipliers=["1"]), "multipliers is ['1'], not Sequence[int]"),
    "nan": (network(dropout=math.nan), "dropout is nan, not float"),
    "probability": (network(dropout=2), "dropout is 2, not a number from 0 to 1"),
    "choice": (network(embedding="x"), "model.network.embedding=x: there is no such choice"),
    "unknown": (network(depth=3), "unexpected keyword argument 'depth'"),
    "network in a network": (network(width=NETWORK), "UNet is not of type int"),
    **{f"{name} blocks": ({**MODEL, "network": {**spec, "blocks": 1000}}, LARGER) for name, spec in OURS.items()},
    "components": ({**MODEL, "network": {**GAUSS, "components": 2**31}}, LARGER),
    "covariances": ({**MODEL, "network": {**GAUSS, "components": 2**20, "full_covariance": True}}, LARGER),
    "beta": (process("vp.LinearVP", beta_min=-1), "beta_min is -1, not a number from 0"),
    "beta nan": (process("vp.LinearVP", beta_min=math.nan), "beta_min is nan, not float"),
    "no signal": (process("vp.LinearVP", beta_max=1e6), "noise levels that do not increase with time"),
    "backwards": (process("ve.VE", scale_min=2.0, scale_max=1.0), "noise levels that do not increase with time"),
    "beyond": (process("ve.EDM", t_min=90.0), "noise levels that do not increase with time from t_min=90 to t_max=80"),
    "steps": (process("discrete.DiscreteVP", steps=10**12), "steps is 1000000000000, not a whole number from 1 to"),
    "betas": (process("discrete.DiscreteVP", steps=2, betas=[2, 2]), "betas: 2"),
    "network": (process("vp.LinearVP", beta_min={**NETWORK, "blocks": 1000}), "UNet is not of type float"),
    "no process": (process("spacings.LogSNR"), "LogSNR is not of type NoiseSchedule"),
    "levels": (prediction("IDDPM", M=10**9), "M is 1000000000, not a whole number from 1 to 1000000"),
    "sigma": (prediction("EDMPreconditioning", sigma_data=0), "sigma_data is 0, not a number above 0"),
    "digits": (prediction("EDMPreconditioning", sigma_data=10**400), "sigma_data is 1000"),
    "process": (prediction("NoisePrediction", noise_schedule=5), "noise_schedule is 5, not scoreline.schedules.base"),
    "missing": (prediction("NoisePrediction"), "missing 1 required positional argument"),
    "abstract": (prediction("Parameterisation"), "Can't instantiate abstract class"),
    "empty name": (prediction(".x"), "scoreline.parameterisations. cannot be imported"),
}


@pytest.mark.parametrize("name", SPECS_REFUSED)
def test_descriptions_are_checked_before_they_are_built(name: str, tmp_path: Path) -> None:
    model, sentence = SPECS_REFUSED[name]
    said = refusal(model_file(tmp_path / "model.safetensors", model=model), load_model)
    assert said is not None
    assert sentence in said


WEIGHTS_REFUSED = {
    "float8": ({**WEIGHTS, "head.bias": torch.zeros(1).to(torch.float8_e4m3fn)}, "'head.bias' of type F8_E4M3"),
    "integers": (
        {**WEIGHTS, "head.bias": torch.zeros(1, dtype=torch.int8)},
        "head.bias is torch.int8, not torch.float",
    ),
    "complex": ({**WEIGHTS, "head.bias": torch.zeros(1, dtype=torch.complex64)}, "head.bias is torch.complex64, not"),
    "name": ({**WEIGHTS, "a\nb\x1b[2J": torch.zeros(1)}, r"weight 'a\nb\x1b[2J'"),
    "nan": ({**WEIGHTS, "head.bias": torch.full((1,), math.nan)}, "weight head.bias is not finite"),
    "shape": ({**WEIGHTS, "head.bias": torch.zeros(2)}, "size mismatch for head.bias"),
    "missing": ({"head.bias": torch.zeros(1)}, 'Missing key(s) in state_dict: "'),
    "more": ({**WEIGHTS, "more": torch.zeros(1)}, 'Unexpected key(s) in state_dict: "more"'),
    "many": ({f"w{k}": torch.zeros(0) for k in range(MOST_TENSORS + 1)}, "it holds 8,193 tensors, more than 8,192"),
}


@pytest.mark.parametrize("name", WEIGHTS_REFUSED)
def test_weights_are_checked_by_their_header(name: str, tmp_path: Path) -> None:
    weights, sentence = WEIGHTS_REFUSED[name]
    said = refusal(model_file(tmp_path / "model.safetensors", weights), load_model)
    assert said is not None
    assert sentence in said


def test_a_long_header_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", LONGEST_HEADER + 1) + b"[" * 1000)
    for load in (load_model, inspect.text, lambda path: load_record(path, "search", "ab")):
        assert "its header has 8,388,609 bytes, more than 8,388,608" in (refusal(path, load) or "")


def test_other_packages_are_bounded_by_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their constructor makes of the card's numbers; in hollow networks and in others."""
    (tmp_path / "others.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n"
        "    def __init__(self, kind: str, count: int = 1) -> None:\n"
        "        super().__init__()\n"
        "        first = nn.Linear(3, 3)\n"
        "        if kind.endswith('computed'):\n"
        "            float(first.weight[0, 0])\n"
        "        layer = {'linear': lambda: nn.Linear(3, 3), 'nothing': nn.Identity}.get(kind.split()[0])\n"
        "        self.layers = nn.ModuleList(layer() for _ in range(count)) if layer else None\n"
        "        if kind.startswith('wide'):\n"
        "            self.first = nn.Linear(count, count)\n"
        "        if kind.startswith('table'):\n"
        "            self.register_buffer('table', torch.zeros(count, dtype=torch.float64), persistent=False)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for kind in ("linear", "nothing", "table", "wide computed", "linear computed", "nothing computed"):
        spec = {"_target_": "others.Net", "kind": kind, "count": 10**8 if "wide" not in kind else 10**5}
        path = model_file(tmp_path / "model.safetensors", {"w": torch.zeros(3)}, model={**MODEL, "network": spec})
        assert LARGER in (refusal(path, lambda path: load_model(path, ("others",))) or "")
    assert len(rebuild({**spec, "kind": "linear", "count": 3}, torch.nn.Module, ("others",)).layers) == 3


LOADERS: dict[str, Callable[..., object]] = {
    "score_norm": load_scale,
    "score_optimal": load_schedule,
    "search": load_recommendation,
    "tableau": load_learned,
}


def shipped(kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(ASSETS / f"digits_vp.{kind}.safetensors", framework="pt") as file:
        values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return values, json.loads(file.metadata()["provenance"])


RECORDS = {kind: shipped(kind) for kind in LOADERS}
CHECKPOINT = RECORDS["search"][1]["checkpoint"]


def record_file(path: Path, kind: str, values: dict[str, Tensor], provenance: Any) -> Path:
    text = provenance if isinstance(provenance, str) else json.dumps(provenance)
    tensors = {name: value.clone().contiguous() for name, value in values.items()}
    save_file(tensors, path, {"format": "scoreline/record/1", "kind": kind, "provenance": text})
    return path


def loaded(kind: str) -> Callable[[Path], object]:
    return lambda path: LOADERS[kind](path, CHECKPOINT)


@pytest.mark.parametrize("kind", LOADERS)
def test_honest_records_load(kind: str, tmp_path: Path) -> None:
    assert refusal(record_file(tmp_path / "r.safetensors", kind, *RECORDS[kind]), loaded(kind)) is None


def changed(kind: str, **tensors: Any) -> dict[str, Tensor]:
    values = {**RECORDS[kind][0], **tensors}
    return {name: value for name, value in values.items() if value is not ...}


def of(kind: str, name: str) -> Tensor:
    return RECORDS[kind][0][name]


VALUES_REFUSED = {
    "missing": ("score_norm", changed("score_norm", rho=...), "it has no tensor rho"),
    "unknown": ("score_norm", changed("score_norm", x=torch.zeros(1)), "it has a tensor 'x'"),
    "type": ("score_norm", changed("score_norm", rho=of("score_norm", "rho").float()), "rho is of type F32, not F64"),
    "shape": (
        "score_norm",
        changed("score_norm", rho=of("score_norm", "rho")[None]),
        "rho has shape [1, 1000], not (K)",
    ),
    "sizes": (
        "score_norm",
        changed("score_norm", mean_abs_eps=of("score_norm", "rho")[:9]),
        "tensor mean_abs_eps has shape [9], not (K)",
    ),
    "empty": (
        "score_norm",
        {n: v[:0] for n, v in RECORDS["score_norm"][0].items()},
        "tensor rho has shape [0], fewer than 2",
    ),
    "one": (
        "score_norm",
        {n: v[:1] for n, v in RECORDS["score_norm"][0].items()},
        "tensor rho has shape [1], fewer than 2",
    ),
    "falling": ("score_norm", changed("score_norm", rho=of("score_norm", "rho").flip(0)), "rho does not strictly incr"),
    "negative": (
        "score_norm",
        changed("score_norm", rho=-of("score_norm", "rho")),
        "rho has a value that is no finite",
    ),
    "nan": (
        "score_norm",
        changed("score_norm", mean_abs_eps=of("score_norm", "rho") * math.nan),
        "no finite number ab",
    ),
    "huge": (
        "score_norm",
        changed("score_norm", rho=torch.empty(2**24 + 1).double()),
        "tensor rho has shape [16777217]",
    ),
    "length": (
        "score_optimal",
        changed("score_optimal", length=of("score_optimal", "length") * math.inf),
        "tensor length has a value that is no finite number",
    ),
    "cost": ("score_optimal", changed("score_optimal", cost=of("score_optimal", "rho")), "not (K-1)"),
    "budgets": (
        "tableau",
        changed("tableau", budgets=of("tableau", "budgets") * 10**9),
        "not different numbers from 1",
    ),
    "no budgets": ("tableau", changed("tableau", budgets=-of("tableau", "budgets")), "budgets has a value that is no"),
    "floating budgets": (
        "tableau",
        changed("tableau", budgets=of("tableau", "budgets").double()),
        "of type F64, not I64",
    ),
    "table": ("tableau", changed("tableau", N_5=...), "it has no tensor N_5"),
    "upper": ("tableau", changed("tableau", N_5=of("tableau", "N_5").T + 1), "N_5 has values above its diagonal"),
    "nodes": ("tableau", changed("tableau", rho_5=of("tableau", "rho_6")), "tensor rho_5 has shape [7], not (6)"),
    "query": ("tableau", changed("tableau", query_5=-of("tableau", "rho_5")[:-1]), "query_5 has a value that is no"),
    "frame": (
        "tableau",
        changed("tableau", sigma_data_5=of("tableau", "rho_5")),
        "sigma_data_5 has shape [6]",
    ),
    "rising nodes": ("tableau", changed("tableau", rho_5=of("tableau", "rho_5").flip(0)), "does not strictly decrease"),
    "distances": ("search", changed("search", mean=of("search", "mean") * math.nan), "candidates have no distance"),
    "repeated": ("search", changed("search", budgets=torch.full((8,), 5)), "8 candidates for 8 budgets"),
}


@pytest.mark.parametrize("name", VALUES_REFUSED)
def test_tensors_of_records(name: str, tmp_path: Path) -> None:
    kind, values, sentence = VALUES_REFUSED[name]
    said = refusal(record_file(tmp_path / "r.safetensors", kind, values, RECORDS[kind][1]), loaded(kind))
    assert said is not None
    assert sentence in said


CANDIDATES = RECORDS["search"][1]["candidates"]
PROVENANCE_REFUSED = {
    "list": ("[]", "provenance is [], not an object"),
    "number": ("5", "provenance is 5"),
    "deep": ("[" * 100_000, "provenance: JSON that is nested too deeply"),
    "no candidates": ({"span": [2, 1]}, "provenance has no candidates"),
    "empty": ({"candidates": [], "span": [2, 1]}, "provenance.candidates is [], not a list of 1 to"),
    "text": ({"candidates": "x", "span": [2, 1]}, "provenance.candidates is 'x', not a list"),
    "few": ({"candidates": CANDIDATES[:2], "span": [2, 1]}, "2 candidates for 8 budgets"),
    "inline": ({"candidates": [[[["{_target_:x}", "a"]]]] * 6, "span": [2, 1]}, "'{_target_:x}', not a plain name"),
    "path": ({"candidates": [[[["../../evil", "a"]]]] * 6, "span": [2, 1]}, "'../../evil', not a plain name"),
    "line": ({"candidates": [[[["ddim\n", "a"]]]] * 6, "span": [2, 1]}, "not a plain name"),
    "three": ({"candidates": [[[["a", "b", "c"]]]] * 6, "span": [2, 1]}, "not a list of 2"),
    "span": ({"candidates": CANDIDATES, "span": ["a", "b"]}, "provenance.span[0] is 'a', not a number"),
    "reversed": ({"candidates": CANDIDATES, "span": [1, 2]}, "on the range [1, 2]"),
    "infinite": ({"candidates": CANDIDATES, "span": [math.inf, 1]}, "provenance.span[0] is inf"),
    "another": ({"checkpoint": 7, "candidates": CANDIDATES, "span": [2, 1]}, "made for checkpoint 7"),
}


@pytest.mark.parametrize("name", PROVENANCE_REFUSED)
def test_provenance_of_a_search(name: str, tmp_path: Path) -> None:
    provenance, sentence = PROVENANCE_REFUSED[name]
    if isinstance(provenance, dict):
        provenance = {"checkpoint": CHECKPOINT, **provenance}
    path = record_file(tmp_path / "r.safetensors", "search", RECORDS["search"][0], provenance)
    said = refusal(path, loaded("search"))
    assert said is not None
    assert sentence in said


SNAPSHOTS_REFUSED = {
    "missing": ({"batch": ...}, "its metadata has no batch"),
    "width": ({"sigma_rel": "0.9"}, "sigma_rel is 0.9, not a number from 0.0001 to 0.288676"),
    "nan": ({"sigma_rel": "NaN"}, "sigma_rel is nan"),
    "batch": ({"batch": "0"}, "batch is 0, not a whole number from 1"),
    "digits": ({"images": "9" * 5000}, "images: Exceeds the limit"),
    "steps": ({"images": "1000000000000"}, "more than 20,000,000 steps of 64"),
    "text": ({"images": "x"}, "images: Expecting value"),
    "format": ({"format": "a\nb"}, r"its format is 'a\nb', not"),
}


@pytest.mark.parametrize("name", SNAPSHOTS_REFUSED)
def test_snapshots_of_averages(name: str, tmp_path: Path) -> None:
    changes, sentence = SNAPSHOTS_REFUSED[name]
    entries = {"format": "scoreline/ema-snapshot/1", "sigma_rel": "0.1", "images": "64000", "batch": "64", **changes}
    path = tmp_path / "ema" / "0000064000-0.1.safetensors"
    path.parent.mkdir()
    save_file({"w": torch.zeros(1)}, path, {key: value for key, value in entries.items() if value is not ...})
    said = refusal(path, lambda path: list_snapshots(path.parent.parent))
    assert said is not None
    assert sentence in said


FILES_REFUSED = {
    "deep.json": b"[" * 100_000 + b"]" * 100_000,
    "digits.json": b"[1, 1" + b"0" * 1000 + b"]",
    "surrogate.json": b'["\\ud800"]',
    "parens.npy": b"\x93NUMPY\x01\x00" + struct.pack("<H", 5000) + b"(" * 5000,
    "long.txt": b"1\n2\n" * 2**20 + b"3",
    "line.txt": b"1\nx\x1b[2J\n",
}


@pytest.mark.parametrize("name", FILES_REFUSED)
def test_files_of_levels(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(FILES_REFUSED[name])
    said = refusal(path, from_file)
    assert said is not None
    assert "not a list of numbers" in said


TARGETS = ["os.system", "scoreline.networks.unet.UNet", "scoreline.schedules.vp.LinearVP", "torch.nn.Linear", "..", "x"]
ODD = st.one_of(
    st.sampled_from([None, True, "", "${oc.env:HOME}", "???", "a\nb\x1b[2J", "\ud800", [], {}, math.nan, math.inf]),
    st.sampled_from([-1, 0, 1, 2, 1000, 2**20, 2**31, 10**9, 2**63, 10**400, -1e308, 1e-308, 0.5]),
    st.sampled_from([[1] * 10_000, [10**9], [[]], {"a": {"b": [1, {}]}}, "x" * 10_000]),
    st.sampled_from([{"_target_": target} for target in TARGETS]),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
)
ODD_TEXTS = st.sampled_from(
    ["", "{", "[" * 50_000, "9" * 5000, '{"a": 1, "a": 1}', '"\\ud800"', "NaN", "null", "1e999"]
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something is inside lists and objects."""
    if path:
        yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield from places(item, (*path, key))


@st.composite
def mutated(draw: st.DrawFn, honest: Any) -> Any:
    """The document with one to three values that are replaced, removed, added or wrapped."""
    document = copy.deepcopy(honest)
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(document))
        if not found:
            return document
        *way, last = draw(st.sampled_from(found))
        holder = document
        for key in way:
            holder = holder[key]
        change, odd = draw(st.sampled_from(["replace", "remove", "add", "wrap"])), copy.deepcopy(draw(ODD))
        if change == "remove":
            del holder[last]
        elif change == "add" and isinstance(holder, dict):
            holder[draw(st.one_of(st.text(max_size=5), st.sampled_from(["_args_", "_partial_", "evil"])))] = odd
        else:
            holder[last] = [holder[last]] if change == "wrap" else odd
    return document


TYPES = [torch.float32, torch.int64, torch.int8, torch.bool, torch.bfloat16]
CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "nan": lambda tensor: torch.full_like(tensor, math.nan) if tensor.is_floating_point() else tensor,
    "negative": lambda tensor: -tensor,
    "empty": lambda tensor: tensor[:0] if tensor.ndim else tensor,
    "more": lambda tensor: tensor[None],
    "flat": lambda tensor: tensor.flatten(),
    "turned": lambda tensor: tensor.flip(0) if tensor.ndim else tensor,
    "longer": lambda tensor: torch.cat([tensor, tensor]) if tensor.ndim else tensor,
    **{str(dtype): lambda tensor, dtype=dtype: tensor.to(dtype) for dtype in TYPES},
}


@st.composite
def mutated_tensors(draw: st.DrawFn, honest: dict[str, Tensor]) -> dict[str, Tensor]:
    """One tensor or none changed, removed, or named otherwise."""
    tensors = dict(honest)
    name = draw(st.sampled_from(sorted(tensors)))
    change = draw(st.sampled_from(["nothing", "remove", "rename", *CHANGES]))
    if change == "remove":
        del tensors[name]
    elif change == "rename":
        tensors[draw(st.sampled_from(["a\nb", "x", "rho_7"]))] = tensors.pop(name)
    elif change != "nothing":
        tensors[name] = CHANGES[change](tensors[name])
    return tensors


HOSTILE = settings(suppress_health_check=list(HealthCheck))


def text(entry: Any, odd: str | None) -> str:
    return json.dumps(entry) if odd is None else odd


@settings(HOSTILE, max_examples=200)
@given(
    entries=mutated(ENTRIES),
    weights=mutated_tensors(WEIGHTS),
    odd=st.one_of(st.none(), st.none(), st.none(), st.tuples(st.sampled_from(sorted(ENTRIES)), ODD_TEXTS)),
)
def test_any_model_file_loads_or_is_refused(
    entries: dict[str, Any],
    weights: dict[str, Tensor],
    odd: tuple[str, str] | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.getbasetemp() / "hostile.safetensors"
    texts = {key.encode(errors="replace").decode(): json.dumps(entry) for key, entry in entries.items()}
    texts |= dict([odd]) if odd else {}
    save_file({k: v.clone().contiguous() for k, v in weights.items()}, path, {**texts, "format": "scoreline/model/1"})
    refusal(path, load_model)
    refusal(path, inspect.text)


@settings(HOSTILE, max_examples=200)
@given(data=st.data())
def test_any_record_loads_or_is_refused(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    kind = data.draw(st.sampled_from(sorted(LOADERS)))
    values, provenance = RECORDS[kind]
    small = {**provenance, **({"candidates": [finalists[:1] for finalists in CANDIDATES]} if kind == "search" else {})}
    changed = data.draw(st.one_of(mutated({**small, "checkpoint": CHECKPOINT}), st.just(small)))
    odd = data.draw(st.one_of(st.none(), st.none(), st.none(), ODD_TEXTS))
    path = tmp_path_factory.getbasetemp() / "hostile.safetensors"
    record_file(path, kind, data.draw(mutated_tensors(values)), json.dumps(changed) if odd is None else odd)
    refusal(path, loaded(kind))
    refusal(path, inspect.text)


@HOSTILE
@given(ODD | st.lists(ODD) | st.dictionaries(st.text(), ODD))
def test_every_rule_refuses_in_one_line(value: Any) -> None:
    for name, rule in {**checkpoints.CARD, **specs.ARGUMENTS, **ema_snapshots.SNAPSHOT, **records.PROVENANCE}.items():
        said = complaint(lambda rule=rule, name=name: rule(name, value))
        assert said is None or said.startswith(name)
        assert len(said or "") < 300


def complaint(check: Callable[[], None]) -> str | None:
    try:
        check()
    except ValueError as error:
        return str(error)
    return None


def test_informative_entries_may_be_any_text(tmp_path: Path) -> None:
    card = Card(MODEL, (1, 8, 8), 0, {"name": "a\nb\x1b[2J \x00"}, {"loss": math.nan})
    save_model(tmp_path / "model.safetensors", WEIGHTS, card)
    loaded = load_model(tmp_path / "model.safetensors").card
    assert loaded.data == card.data
    assert math.isnan(loaded.training["loss"])


CONFIGURED = sorted((Path(__file__).parents[2] / "conf" / "model").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGURED, ids=lambda path: path.stem)
def test_no_honest_model_comes_near_the_bounds(path: Path) -> None:
    config = OmegaConf.create({"model": OmegaConf.load(path)})
    model = OmegaConf.to_container(config, resolve=True)["model"]
    rebuild(model["noise_schedule"], NoiseSchedule)
    rebuild(model["parameterisation"], Parameterisation)
    many = {str(number): [10**6] for number in range(1000)}
    network = build(model["network"], torch.nn.Module, many, (), hollow=True)
    parts = sum(1 for find in (network.modules, network.parameters, network.buffers) for _ in find())
    assert parts < PARTS[1] / 2 * len(network.state_dict())
    assert len(network.state_dict()) < MOST_TENSORS / 4
