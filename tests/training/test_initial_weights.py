"""`init=`: weights and averages of a new training from a checkpoint; what does not fit is named."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from runs import assert_same_run, records, state, train
from safetensors.torch import load_file
from small_models import save_small
from torch import Tensor

from scoreline.checkpoints import load_model
from scoreline.commands import doctor
from scoreline.commands.inspect import text
from scoreline.config.compose import script_config
from scoreline.config.conf_folder import OWN_FOLDER, whole_words
from scoreline.config.init_source import read_init, with_model_of
from scoreline.config.model_source import with_values
from scoreline.errors import InputError
from scoreline.networks.unet import UNet
from scoreline.training.ema import EMA
from scoreline.training.initial_weights import InitialWeights, is_training_state, of_training_state
from scoreline.training.training_state import list_checkpoints

NETWORK = "denoiser.network."
BRIEF = ["checkpoint_kimg=0.064", "log_kimg=0.032", "lr_rampup_kimg=0.3", "model.network.dropout=0"]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps of 32 images at a rate at which the average lags behind."""
    out = tmp_path_factory.mktemp("init") / "first"
    train(out, "duration_kimg=0.128", "optimiser.lr=0.05", "lr_rampup_kimg=0", "ema.half_life_kimg=[0.1,0.2]")
    return out


@pytest.fixture(scope="module")
def checkpoint(first: Path) -> Path:
    return list_checkpoints(first)[0]


@pytest.fixture(scope="module")
def second(first: Path, checkpoint: Path) -> Path:
    """Two steps from the checkpoint of `first`, with averages that it has and has not."""
    out = first.parent / "second"
    train(out, *second_run(checkpoint), "duration_kimg=0.064")
    return out


def second_run(checkpoint: Path) -> list[str]:
    averages = ["ema.half_life_kimg=[10,0.2]", "ema.rampup=inf", "ema.post_hoc=[0.1]"]
    return [*BRIEF, f"init={checkpoint}", "model=digits_vp", *averages]


def network_of(held: dict[str, Any]) -> dict[str, Tensor]:
    """The network's weights in a checkpoint."""
    return {name.removeprefix(NETWORK): value for name, value in held["state_dict"].items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def test_a_training_begins_with_raw_weights_and_averages(checkpoint: Path, second: Path) -> None:
    source = torch.load(checkpoint, weights_only=True)
    begun = torch.load(second / "checkpoints/0000000000.ckpt", weights_only=True)
    kept, ema = source["callbacks"]["EMACallback"], begun["callbacks"]["EMACallback"]
    assert not same(network_of(source), kept["weights"])
    assert same(network_of(begun), network_of(source))
    assert same(ema["weights"], kept["weights"])
    assert same(ema["averages"]["ema10kimg"], kept["weights"])
    assert same(ema["averages"]["ema0.2kimg"], kept["averages"]["ema0.2kimg"])
    assert same(ema["averages"]["sigma0.1"], network_of(source))
    assert (begun["global_step"], begun["images_seen"], begun["optimizer_states"][0]["state"]) == (0, 0, {})
    assert [record["lr"] for record in records(second) if "lr" in record] == pytest.approx(
        [2e-3 * 64 / 300, 2e-3 * 96 / 300]
    )


def test_an_average_without_a_ramp_keeps_its_start(checkpoint: Path, second: Path) -> None:
    """Each step's average is beta times the one before: after two steps of 32 images, the start counts 0.5^0.0064."""
    start = torch.load(checkpoint, weights_only=True)["callbacks"]["EMACallback"]["weights"]["head.weight"]
    end = load_file(second / "model.safetensors")["head.weight"]
    raw = network_of(state(second))["head.weight"]
    assert float((end - start).abs().max()) < 0.01 * float((raw - start).abs().max())
    ema = EMA(10, rampup=0.2)
    assert ema.beta(0, 32) == 0
    ema.trained = True
    assert ema.beta(0, 32) == pytest.approx(0.5**5)


def test_the_card_names_where_it_began(first: Path, checkpoint: Path, second: Path) -> None:
    training = load_model(second / "model.safetensors").card.training
    origin = training["init"]
    assert (origin["checkpoint"], origin["skipped"]) == (checkpoint.name, [])
    assert origin["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert origin["training"]["kimg"] == 0.128
    data = load_model(first / "model.safetensors").card.data
    assert origin["data"] == {key: data[key] for key in ("name", "sha256", "images")}
    assert "earlier" not in training
    assert OmegaConf.load(second / "config.yaml").init == {"checkpoint": str(checkpoint), "skip": []}
    lines = text(second / "model.safetensors").splitlines()
    assert any(line.split() == ["checkpoint", checkpoint.name] for line in lines)
    assert any(line.split() == ["sha256", origin["sha256"]] for line in lines)


def test_an_interrupted_run_continues_from_its_own_checkpoints(first: Path, checkpoint: Path, second: Path) -> None:
    whole = first.parent / "whole"
    train(whole, *second_run(checkpoint), "duration_kimg=0.128")
    train(second, *second_run(checkpoint), "duration_kimg=0.128")
    assert_same_run(whole, second)
    cards = [load_model(run / "model.safetensors").card for run in (whole, second)]
    assert cards[0].training["init"] == cards[1].training["init"]


def test_two_processes_begin_as_one(first: Path, checkpoint: Path) -> None:
    words = [*BRIEF, f"init={first}", "init.skip=[head]", "duration_kimg=0.128"]
    runs = [first.parent / name for name in ("one", "two")]
    train(runs[0], *words)
    train(runs[1], *words, "trainer=ddp_cpu", size=2)
    begun = network_of(torch.load(runs[0] / "checkpoints/0000000064.ckpt", weights_only=True))
    one, two = (network_of(state(run)) for run in runs)
    moved, apart = (
        sum(float((end[name] - value).square().sum()) for name, value in start.items()) ** 0.5
        for start, end in ((begun, one), (one, two))
    )
    assert 0 < apart < 2e-3 * moved
    losses = [[record["loss"] for record in records(run) if "loss" in record] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert load_model(runs[1] / "model.safetensors").card.training["init"]["skipped"] == ["head.weight", "head.bias"]


# ---- without training


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The config of train.py with words of a command line."""
    monkeypatch.setenv("SCORELINE_SCRIPT", "train.py")
    return lambda *words: script_config("train", ["hydra.runtime.output_dir=out", *words])


@pytest.mark.parametrize(
    "words",
    [
        ["init=digits_vp", "init.skip=[head]"],
        ["init.skip=[head]", "init=digits_vp"],
        ["init.checkpoint=digits_vp", "init.skip=[head]"],
        ["init={checkpoint:digits_vp,skip:[head]}"],
    ],
)
def test_checkpoint_and_skip_go_together(words: list[str], composed: Any) -> None:
    cfg = composed(*words)
    assert OmegaConf.to_container(cfg.init) == {"checkpoint": "digits_vp", "skip": ["head"]}
    source = read_init(cfg)
    assert source is not None
    assert source.skip == source.weights.skip == ("head",)


def test_files_of_experiments_hold_both(composed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "experiment").mkdir()
    lines = [
        "# @package _global_",
        "defaults: [override /model: null]",
        "init: {checkpoint: emoji32_edm, skip: [head]}",
    ]
    (tmp_path / "experiment/tuned.yaml").write_text("\n".join(lines))
    monkeypatch.setenv(OWN_FOLDER, str(tmp_path))
    assert composed("experiment=tuned").init == {"checkpoint": "emoji32_edm", "skip": ["head"]}
    cfg = composed("experiment=tuned", "init=digits_vp", "init.skip=[classes]")
    assert (cfg.init, cfg.model) == ({"checkpoint": "digits_vp", "skip": ["classes"]}, None)


def test_short_words_are_those_of_train_alone() -> None:
    given = ["init=a,b", "++init=c", "init.skip=[d]", "model=null", "model.network.width=8", "name=init=x"]
    assert whole_words("train", given) == [
        *("init.checkpoint=a,b", "++init.checkpoint=c", "init.skip=[d]", "~model", "++model.network.width=8"),
        "name=init=x",
    ]
    assert whole_words("train", ["model=digits_vp", "model.network.width=8"]) == [
        "model=digits_vp",
        "model.network.width=8",
    ]
    assert whole_words("sample", given) == given


def test_a_model_is_read_from_the_checkpoint(composed: Any, tmp_path: Path) -> None:
    words = ["model=null", "model.network.num_classes=3", "experiment=digits_edm", "init=emoji32_edm"]
    cfg = composed(*words)
    assert cfg.model == {"network": {"num_classes": 3}}
    whole = with_model_of(cfg, read_init(cfg)).model
    theirs = load_model(Path(doctor.__file__).parents[1] / "assets/emoji32_edm.safetensors").card.model
    assert whole.network == {**theirs["network"], "num_classes": 3}
    assert whole.parameterisation == theirs["parameterisation"]
    cfg = composed(
        "model=null", f"init={save_small(tmp_path / 'small.safetensors')}", "model.noise_schedule.beta_max=19"
    )
    assert with_model_of(cfg, read_init(cfg)).model.parameterisation.noise_schedule.beta_max == 19
    with pytest.raises(InputError, match=r"^model=null: reads the model from init=CHECKPOINT"):
        with_model_of(composed("model=null"), None)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["init=nowhere"], "init=nowhere: no such file"),
        (["init=ftp://host/model"], "init=ftp://host/model: no such file, and only https"),
        (["init=digits_vp", "resume=x.ckpt"], "init=digits_vp: starts a new training, and resume=x.ckpt continues one"),
        (["init.skip=[head]"], r"init.skip=\['head'\]: leaves out parameters of a checkpoint"),
        (["init=digits_vp", "init.skip=head"], "init.skip=head: must be a list of names"),
    ],
)
def test_a_wrong_source_is_named(words: list[str], sentence: str, composed: Any) -> None:
    with pytest.raises(InputError, match=f"^{sentence}"):
        read_init(composed(*words))


def test_text_in_a_file_is_refused_rather_than_losing_the_skip(composed: Any) -> None:
    with pytest.raises(InputError, match=r"^init=x: a file gives it as init\.checkpoint, beside init\.skip"):
        read_init(with_values(composed(), init="x"))


SIZES: dict[str, Any] = {"channels": 1, "resolution": 8, "width": 8, "blocks": 1, "num_classes": 10}


def described(**changes: Any) -> dict[str, Any]:
    return {"_target_": "scoreline.networks.unet.UNet", **SIZES, **changes}


@pytest.fixture
def initial(tmp_path: Path) -> InitialWeights:
    network = UNet(**SIZES)
    return InitialWeights("x", {"network": described()}, network.state_dict(), {}, {})


def refused(initial: InitialWeights, **changes: Any) -> str:
    network = UNet(**{**SIZES, **changes})
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(InputError) as caught:
        initial.load(network, described(**changes))
    assert same(network.state_dict(), before)
    return str(caught.value)


def test_parameters_that_do_not_fit_are_named(initial: InitialWeights) -> None:
    assert refused(initial, num_classes=3) == (
        "init=x: its network has 10 classes, this one 3 classes: classes.weight is (11, 32) in it, (4, 32) here; "
        "use init.skip=[classes] to leave these random"
    )
    assert refused(initial, num_classes=0) == (
        "init=x: its network has 10 classes, this one 0 classes: classes.weight has no place in this network; "
        "use init.skip=[classes] to leave these random"
    )
    assert (
        "its network has 1 channels, this one 3 channels: stem.weight is (8, 1, 3, 3) in it, (8, 3, 3, 3) here, "
        in (line := refused(initial, channels=3))
    )
    assert line.endswith("use init.skip=[stem,head] to leave these random")
    line = refused(initial, width=16)
    assert "its network has width=8, this one width=16: map.0.weight is (32, 8) in it, (64, 16) here, " in line
    assert ", and " in line
    assert line.endswith("more; use the checkpoint's network by model=null, without other keys of model.network")
    assert "augment.weight is missing in it; use init.skip=[augment]" in refused(initial, augment_dim=9)
    line = refused(replace(initial, model=None), width=16)
    assert line.endswith("give the model= that it was trained as")


def test_parts_to_skip_stay_random(initial: InitialWeights) -> None:
    network = UNet(**{**SIZES, "num_classes": 3})
    before = {name: value.clone() for name, value in network.state_dict().items()}
    record = replace(initial, skip=["classes", "head"]).load(network, described(num_classes=3))
    assert record["skipped"] == ["classes.weight", "head.weight", "head.bias"]
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name] if name in record["skipped"] else initial.weights[name])
    unconditional = UNet(**{**SIZES, "num_classes": 0})
    assert replace(initial, skip=["classes"]).load(unconditional, described(num_classes=0))["skipped"] == []
    assert refused(replace(initial, skip=["clases"])).startswith("init.skip=[clases]: no parameter has that name; did")
    assert refused(replace(initial, skip=["hea"])).startswith("init.skip=[hea]: no parameter has that name; did")


def test_averages_take_what_stays_random_from_the_network(initial: InitialWeights) -> None:
    network = UNet(**SIZES)
    average = {name: value + 1 for name, value in initial.weights.items()}
    found = replace(initial, averages={"weights": average}, skip=["head"])
    found.load(network, described())
    held = found.state_of_averages(network)
    assert held is not None
    for name, value in held["weights"].items():
        assert torch.equal(value, network.state_dict()[name] if name.startswith("head.") else average[name])
    assert initial.state_of_averages(network) is None


def test_data_of_other_sizes_are_told_as_such(initial: InitialWeights) -> None:
    with pytest.raises(InputError) as caught:
        initial.refuse_other_data(described(), (3, 8, 8), 4)
    assert str(caught.value) == (
        "init=x: its network has 1 channels and 10 classes, the data 3 channels and 4 classes: "
        "set model.network.channels=3 model.network.num_classes=4 and init.skip=[classes,stem,head]"
    )
    with pytest.raises(InputError, match=r"the data 16x16 pixels: set model\.network\.resolution=16$"):
        initial.refuse_other_data(described(), (1, 16, 16), 10)
    with pytest.raises(
        InputError, match=r"^model\.network\.num_classes=3: the data have 10, .* init=x takes; use that by"
    ):
        initial.refuse_other_data(described(num_classes=3), (1, 8, 8), 10)
    initial.refuse_other_data(described(num_classes=7), (1, 8, 8), 4)  # the user's own number, which match_data refuses
    theirs = {"_target_": "scoreline.networks.diffusers_unet.DiffusersUNet", "in_channels": 3, "out_channels": 6}
    theirs |= {"sample_size": [8, 8], "num_class_embeds": 5}
    with pytest.raises(InputError) as caught:
        replace(initial, model={"network": theirs}).refuse_other_data(theirs, (1, 8, 8), 0)
    assert "model.network.in_channels=1 model.network.out_channels=2 model.network.num_class_embeds=null" in str(
        caught.value
    )


def test_another_parameterisation_is_told(composed: Any) -> None:
    found = read_init(composed("init=digits_vp"))
    assert found is not None
    own = found.source.load().denoiser.parameterisation
    assert found.weights.other_parameterisation(own) == ""
    line = found.weights.other_parameterisation(replace(own, label_scale=1.0))  # type: ignore[type-var]
    assert line.startswith("init=digits_vp: its weights are of NoisePrediction(noise_schedule=LinearVP(")


def test_a_checkpoint_cannot_choose_code(checkpoint: Path, tmp_path: Path) -> None:
    assert is_training_state(checkpoint)
    held = torch.load(checkpoint, weights_only=True)
    path = tmp_path / "changed.ckpt"
    for part in ("network", "noise_schedule", "parameterisation"):
        run = json.loads(json.dumps(held["run"]))
        run["settings"]["model"][part]["_target_"] = "os.system"
        torch.save(held | {"run": run}, path)
        with pytest.raises(InputError, match=r"names os\.system, which is not part of scoreline"):
            of_training_state("x", path)
    run["settings"]["model"] = held["run"]["settings"]["model"] | {"network": described(width=2**14)}
    torch.save(held | {"run": run}, path)
    with pytest.raises(InputError, match="its network is larger than its weights"):
        of_training_state("x", path)
    torch.save(held | {"run": {}}, path)
    assert of_training_state("x", path).model is None
    for name in held["state_dict"]:
        held["state_dict"][name] = torch.full_like(held["state_dict"][name], torch.nan)
    torch.save(held, path)
    with pytest.raises(InputError, match=r"weight \S+ is not finite"):
        of_training_state("x", path)
    (tmp_path / "junk.ckpt").write_bytes(b"junk")
    assert not is_training_state(tmp_path / "junk.ckpt")


def test_the_doctor_knows_the_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = save_small(tmp_path / "small.safetensors")
    assert doctor.main(["train", "--quick", "init=nowhere", "trainer=cpu"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:3] == ["fail", "asset", "init=nowhere:"] for line in lines)
    assert doctor.main(["train", "--quick", "model=null", f"init={small}", "trainer=cpu"]) == 0
    numbers = sum(value.numel() for value in load_file(small).values())
    assert f"{numbers:,} parameters" in capsys.readouterr().out
    assert doctor.main(["train", "--quick", "model=null", "init=https://a.invalid/b.pkl", "trainer=cpu"]) == 0
    assert "init=https://a.invalid/b.pkl: no forecast before the checkpoint is here" in capsys.readouterr().out
