"""From another project's file to images: the command, `checkpoint=`, `inspect`, and every refusal on the way."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from filled import filled_state, image
from forks import call

from scoreline.checkpoints import load_model
from scoreline.commands import import_checkpoint, inspect, verify
from scoreline.errors import InputError
from scoreline.foreign.conversion import Options, cached_file, digest
from scoreline.foreign.families import load
from scoreline.storage.files import sha256

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((Path(__file__).parent / "golden_ddpm.json").read_text())
NARROW = [f"model.network.{key}={value}" for key, value in GOLDEN["network"].items() if key not in ("_target_",)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "ema_diffusion_cifar10_model-790000.ckpt"
    torch.save(filled_state(GOLDEN["shapes"]), path)
    return path


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORELINE_CACHE", str(tmp_path / "cache"))


def run(*words: str) -> None:
    import_checkpoint.main([*words])


def test_an_imported_checkpoint_records_its_source(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(str(source), str(tmp_path / "ours"), "--from", "ddpm", "model=cifar10_ddpm", *NARROW)
    told = capsys.readouterr().out
    assert f"ddpm, ema weights -> {tmp_path / 'ours' / 'model.safetensors'}" in told
    assert "label_scale=1.0" in told
    assert f"scoreline verify {tmp_path / 'ours' / 'model.safetensors'}" in told
    checkpoint = load_model(tmp_path / "ours" / "model.safetensors")
    origin = checkpoint.card.training["imported"]
    assert origin["family"] == "ddpm"
    assert origin["file"] == source.name
    assert origin["sha256"] == sha256(source)
    assert str(tmp_path) not in json.dumps(origin)
    labels = torch.tensor(GOLDEN["labels"])
    with torch.inference_mode():
        out = checkpoint.denoiser.network(image(2, 3, 16), labels).flatten()
    assert float(out.double().sum()) == pytest.approx(GOLDEN["sum"], abs=1e-4 * GOLDEN["largest"] * 10)
    found = out[torch.tensor(GOLDEN["at"])]
    torch.testing.assert_close(found, torch.tensor(GOLDEN["entries"]), rtol=0, atol=1e-5 * GOLDEN["largest"])


@pytest.mark.parametrize("asked", [["--from=ddpm"], ["from=ddpm"], []])
def test_keys_have_three_spellings_and_family_is_optional(source: Path, tmp_path: Path, asked: list[str]) -> None:
    target = tmp_path / "named.safetensors"
    run(str(source), str(target), *asked, "--model", "cifar10_ddpm", *NARROW)
    assert load_model(target).card.shape == (3, 16, 16)


def test_nothing_is_overwritten(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.safetensors"
    target.write_bytes(b"mine")
    with pytest.raises(InputError, match=r"is there already and is never overwritten; give another destination"):
        run(str(source), str(tmp_path), "model=cifar10_ddpm", *NARROW)
    assert target.read_bytes() == b"mine"


def write(path: Path, content: object) -> str:
    torch.save(content, path)
    return str(path)


def test_mistakes_are_one_sentence_and_leave_nothing(source: Path, tmp_path: Path) -> None:
    state = filled_state(GOLDEN["shapes"])
    name = "conv_in.weight"
    weight = state[name]
    nan = {**state, name: torch.full_like(weight, torch.nan)}
    bad = {
        "nan.pth": (nan, rf"weight {name} is not finite"),
        "short.pth": ({k: v for k, v in state.items() if k != name}, rf"weight {name} is not in the file"),
        "long.pth": ({**state, "extra.weight": weight}, r"weight extra\.weight has no place in this network"),
        "shape.pth": ({**state, name: weight[:1]}, rf"weight {name} has shape .* needs"),
        "other.pth": ({"nothing": 1}, r"content is that of none of the known families \(1 keys: nothing\)"),
    }
    cases = [
        ([write(tmp_path / file, content), "OUT", "model=cifar10_ddpm", *NARROW], reason)
        for file, (content, reason) in bad.items()
    ]
    given = [str(source), "OUT"]
    cases += [
        (given, r"model: a file of ddpm does not say what network it holds; give model= one of cifar10_ddpm"),
        ([*given, "model=cifar10_ddpm"], r"the model=\.\.\. that it was trained as"),
        ([*given, "--from", "ddmp", "model=cifar10_ddpm"], r"from=ddmp: .*ddpm"),
        ([*given, "weights=average", "model=cifar10_ddpm"], r"weights=average: .*raw"),
        ([*given, "modle=cifar10_ddpm"], r"modle: there is no such key; did you mean 'model'"),
        ([*given, "model.network.width=32"], r"changes a model; give model=\.\.\. of conf/model first"),
        ([*given, "sha256=00", "model=cifar10_ddpm"], r"its SHA-256 is [0-9a-f]{64}, not 00"),
        ([str(tmp_path / "none.pth"), "OUT"], r"none\.pth: no such file or folder"),
        ([str(source)], r"1 places: give two"),
        ([*given, "--from", "edm"], r"read as edm"),
    ]
    for words, reason in cases:
        target = tmp_path / "out"
        with pytest.raises(InputError, match=reason) as told:
            run(*[str(target) if word == "OUT" else word for word in words])
        assert "\n" not in str(told.value), told.value
        assert not target.exists()


def test_our_own_files_need_no_import(tmp_path: Path) -> None:
    ours = ROOT / "src" / "scoreline" / "assets" / "digits_vp.safetensors"
    with pytest.raises(InputError, match="is a file of scoreline already; use it as checkpoint="):
        run(str(ours), str(tmp_path / "again"))


def narrow_options(weights: str = "ema") -> Options:
    return Options("ddpm", import_checkpoint.described_model("cifar10_ddpm", NARROW), weights)


def test_the_cache_converts_once_per_content_and_option(source: Path) -> None:
    first = cached_file(str(source), narrow_options())
    stamp = first.stat().st_mtime_ns
    assert cached_file(str(source), narrow_options()) == first
    assert first.stat().st_mtime_ns == stamp
    assert cached_file(str(source), narrow_options("raw")) != first
    state = filled_state(GOLDEN["shapes"])
    torch.save({name: 2 * weight for name, weight in state.items()}, source)
    other = cached_file(str(source), narrow_options())
    assert other != first
    assert load_model(first).digest != load_model(other).digest


def test_the_same_source_makes_the_same_bits(source: Path, tmp_path: Path) -> None:
    """Records are bound to a checkpoint by its digest: another machine's import must be the same file."""
    for place in ("a", "b"):
        run(str(source), str(tmp_path / place), "model=cifar10_ddpm", *NARROW)
    assert sha256(tmp_path / "a" / "model.safetensors") == sha256(tmp_path / "b" / "model.safetensors")


def test_folder_digests_follow_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "f" / "unet").mkdir(parents=True)
    (tmp_path / "f" / "unet" / "config.json").write_text("{}")
    before = digest(tmp_path / "f")
    (tmp_path / "f" / "unet" / "config.json").write_text("{ }")
    assert digest(tmp_path / "f") != before


def sample(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return call("sample", "metrics=none", "nfe=2", "seeds=0-1", *words, cwd=cwd)


def test_sample_takes_the_foreign_file_as_it_is(source: Path, tmp_path: Path) -> None:
    words = [f"checkpoint={source.name}", "model=cifar10_ddpm", *NARROW, "hydra.run.dir=run"]
    done = sample(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "imported as" in done.stderr
    assert (tmp_path / "run" / "samples.npz").is_file()
    again = sample(*words, cwd=tmp_path)
    assert "was finished before" in again.stdout
    for words, reason in (
        (["checkpoint=digits_vp", "model=cifar10_ddpm"], "describes itself; leave the key out"),
        ([f"checkpoint={source.name}"], "does not say what network it holds"),
        (["checkpoint=missing.pth"], "missing.pth: no such file"),
    ):
        refused = sample(*words, cwd=tmp_path)
        assert refused.returncode == 2, refused.stderr
        assert refused.stderr.count("\n") == 1
        assert reason in refused.stderr


def test_inspect_tells_what_a_file_names_and_holds(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect.main([str(source)])
    told = capsys.readouterr().out
    assert "torch zip file" in told
    assert sha256(source) in told
    assert "torch._utils._rebuild_tensor_v2" in told
    assert f"scoreline import {source} DEST --from ddpm model=..." in told
    assert "temb.dense.0.weight" in told


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("touch canary",)


def test_inspect_names_what_it_refuses_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Evil()}, "evil.pth")
    inspect.main(["evil.pth"])
    told = capsys.readouterr().out
    assert "posix.system" in told
    assert "refused" in told
    assert not (tmp_path / "canary").exists()
    with pytest.raises(InputError, match=r"evil\.pth.* posix\.system"):
        load(Path("evil.pth"), None, None, "ema")


def test_verify_takes_the_foreign_file_as_it_is(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Random weights fail the checks that ask for a denoiser, and pass those of conventions alone."""
    words = [str(source), "model=cifar10_ddpm", *NARROW, "dataset=none", "seeds=0-3", "nfe=160", "levels=4"]
    assert verify.main(words) in (0, 1)
    told = capsys.readouterr().out
    assert "DDPMUNet, NoisePrediction, DiscreteVP, 3x16x16" in told
    assert "first-order solvers are DDIM in native coordinates" in told
