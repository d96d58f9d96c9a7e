"""Names of runs follow what results depend on, and nothing else."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from scoreline import numerics
from scoreline.config import run_names
from scoreline.config.conf_folder import compose_config, files

Named = Callable[..., str]


def named(script: str, **config: Any) -> str:
    return run_names.run_digest(script, _root_=OmegaConf.create({"solver": None, "guidance": {}, **config}))


def test_folder_of_another_project_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "pipeline"
    (folder / "unet").mkdir(parents=True)
    names = [named("sample", checkpoint=str(folder))]
    for name, content in (("unet/config.json", "{}"), ("unet/model.safetensors", "1"), ("unet/model.safetensors", "2")):
        (folder / name).write_text(content)
        names.append(named("sample", checkpoint=str(folder)))
    (folder / "README.md").write_text("words")
    assert named("sample", checkpoint=str(folder)) == names[-1]
    assert len(set(names)) == 4


@pytest.mark.parametrize(
    ("script", "config"),
    [
        ("train", {"resume": "auto"}),
        ("train", {"resume": "never"}),
        ("sample", {"record": "auto", "solver": {"path": "${record}"}, "checkpoint": "absent.safetensors"}),
        ("sample", {"schedule": {"path": "auto"}}),
    ],
)
def test_words_name_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, config: dict[str, Any]
) -> None:
    """A file of the working directory that is named like a word of a key changes no identity."""
    monkeypatch.chdir(tmp_path)
    before = named(script, **config)
    for name in ("auto", "never"):
        (tmp_path / name).write_text("1")
    assert named(script, **config) == before


@pytest.mark.parametrize(
    ("script", "config"),
    [
        ("train", {"dataset": {"_target_": "scoreline.datasets.image_folder.ImageFolder", "path": "HERE"}}),
        ("train", {"resume": "HERE/a.png"}),
        ("train", {"init": {"checkpoint": "HERE/a.png", "skip": []}}),
        ("sample", {"metrics": {"reference": "HERE"}}),
        ("sample", {"metrics": {"reference": {"path": "${where}", "split": "train"}}, "where": "HERE/a.png"}),
        ("sample", {"schedule": {"base": {"path": "HERE/a.png"}}}),
        ("sample", {"labels": "HERE/a.png"}),
        ("sample", {"metrics": {"extractor": {"weights": "HERE/a.png"}}}),
        ("calibrate", {"dataset": {"path": "HERE"}}),
    ],
)
def test_file_in_a_key_counts_by_content(tmp_path: Path, script: str, config: dict[str, Any]) -> None:
    def at(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: at(value) for key, value in node.items()}
        return node.replace("HERE", str(tmp_path)) if isinstance(node, str) else node

    (tmp_path / "a.png").write_text("1")
    first = named(script, **at(config))
    (tmp_path / ".hidden").write_text("1")
    assert named(script, **at(config)) == first
    (tmp_path / "a.png").write_text("2")
    assert named(script, **at(config)) != first


def test_training_start_counts_but_resuming_does_not(tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").write_text("1")
    (tmp_path / "y.ckpt").write_text("1")
    fresh, never, one, same = (named("train", resume=way) for way in ("auto", "never", str(tmp_path / "x.ckpt"), "z"))
    assert fresh == never == same
    assert one != fresh
    assert named("train", resume=str(tmp_path / "x.ckpt")) == named("train", resume=str(tmp_path / "y.ckpt")) != fresh


def test_initial_weights_count_if_there_are_some() -> None:
    options = {"trust": [], "import": {"weights": "ema"}}
    assert named("train", init={"checkpoint": None, "skip": []}, **options) == named("train")
    found = [named("train", init={"checkpoint": "digits_vp", "skip": skip}, **options) for skip in ([], ["head"])]
    raw = named("train", init={"checkpoint": "digits_vp", "skip": []}, trust=[], **{"import": {"weights": "raw"}})
    assert len({named("train"), *found, raw}) == 4
    assert named("sample", trust=[]) != named("sample")


@pytest.mark.parametrize("package", [True, False])
@pytest.mark.parametrize("key", ["_target_", "trust"])
def test_a_users_own_code_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: bool, key: str) -> None:
    source = tmp_path / "ownsolver" / "deep.py" if package else tmp_path / "ownsolver.py"
    source.parent.mkdir(exist_ok=True)
    if package:
        (tmp_path / "ownsolver" / "__init__.py").write_text("raise AssertionError('imported')")
    source.write_text("ORDER = 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    target = "ownsolver.deep.make" if package else "ownsolver.make"
    config = {"solver": {"_target_": target}} if key == "_target_" else {"trust": ["ownsolver"]}
    first = named("sample", **config)
    assert named("sample", **config) == first
    source.write_text("ORDER = 3")
    edited = named("sample", **config)
    assert edited != first
    (tmp_path / "bystander.py").write_text("x = 1")
    assert named("sample", **config) == edited


def test_sources_of_the_package_do_not_count(tmp_path: Path) -> None:
    """The same config is named by the sources as they are, and by a copy with a comment more."""
    package = Path(run_names.__file__).parents[1]
    shutil.copytree(package, tmp_path / "scoreline", ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / "scoreline/tables/render.py", "a") as file:
        file.write("# a comment\n")
    code = """if True:
        from omegaconf import OmegaConf
        from scoreline.config import run_names
        from scoreline.storage import files
        print(run_names.run_digest("sample", _root_=OmegaConf.create({"nfe": 5})), files.code_version())
    """
    told = []
    for folder in (package.parent, tmp_path):
        given = {**os.environ, "PYTHONPATH": str(folder)}
        done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, check=True)
        told.append(done.stdout.split())
    (name, version), (other_name, other_version) = told
    assert name == other_name
    assert version != other_version


def test_numerics_version_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    first = named("sample", nfe=5)
    assert named("sample", nfe=6) != first
    monkeypatch.setattr(run_names, "NUMERICS_VERSION", numerics.NUMERICS_VERSION + 1)
    assert named("sample", nfe=5) != first


@pytest.mark.parametrize("script", ["train", "sample", "calibrate"])
def test_keys_without_influence_are_keys_of_the_script(script: str) -> None:
    run_names.register_resolvers()
    cfg = compose_config(script, [])
    OmegaConf.set_struct(cfg, False)
    assert {*run_names.WITHOUT[script], "identity", "code_version", "lock"} <= set(cfg)
    for key in run_names.WITHOUT[script]:
        changed = cfg.copy()
        changed[key] = "other"
        assert run_names.run_sha256(changed, script) == run_names.run_sha256(cfg, script), key


@pytest.mark.parametrize(
    ("script", "key"), [("sample", "import.size"), ("calibrate", "import.size"), ("sample", "sigma_data")]
)
def test_keys_of_later_versions_count_if_they_are_set(script: str, key: str) -> None:
    """A null is the configuration of an earlier version, without the key."""
    run_names.register_resolvers()
    cfg = compose_config(script, [])
    OmegaConf.set_struct(cfg, False)
    earlier, later = cfg.copy(), cfg.copy()
    above, _, last = key.rpartition(".")
    del (earlier[above] if above else earlier)[last]
    OmegaConf.update(later, key, 8)
    assert run_names.run_sha256(earlier, script) == run_names.run_sha256(cfg, script)
    assert run_names.run_sha256(later, script) != run_names.run_sha256(cfg, script)


def test_a_word_is_no_path_whatever_lies_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = named("sample", labels="random")
    (tmp_path / "random").write_text("1")
    assert named("sample", labels="random") == first


def test_non_packages_and_missing_names_are_handled() -> None:
    config = {"a": [{"_target_": "no.such.module"}, {"_target_": "torch.optim.Adam"}, {"_target_": "pathlib.Path"}]}
    assert run_names.own_code(config) == []
    assert run_names.own_code({"trust": ["../x", "a b", ""]}) == []


def test_the_digest_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from scoreline.config import run_names"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


# ---- directories


def directory(script: str, checkpoint: str = "digits_vp", identity: str = "01234567", **choices: Any) -> str:
    """The default run directory of a script with these choices."""
    chosen = {"solver": "ddim", "schedule": "karras", "calibration": "search", "dataset": "digits", "table": None}
    config = {
        **{"checkpoint": checkpoint, "identity": identity, "nfe": choices.pop("nfe", 10), "table": None},
        **{"name": choices.pop("name", "digits_vp"), "budget": "small", "solver": {"_target_": "a.DDIM"}},
        **choices.pop("config", {}),
    }
    hydra = {"runtime": {"choices": {**chosen, **choices}}}
    return run_names._directory(script, _root_=OmegaConf.create({**config, "hydra": hydra}))


LEARNED = {"solver": {"_target_": "scoreline.solvers.learned.load_learned"}}


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ({"script": "sample"}, "sample/digits_vp-ddim-karras-nfe10"),
        ({"script": "sample", "checkpoint": "outputs/train/a-12/"}, "sample/a-12-ddim-karras-nfe10"),
        ({"script": "sample", "solver": "learned", "config": LEARNED}, "sample/digits_vp-learned-nfe10"),
        ({"script": "sample", "solver": "my solver'$"}, "sample/digits_vp-my_solver_-karras-nfe10"),
        ({"script": "train"}, "train/digits_vp"),
        ({"script": "train", "dataset": "zip"}, "train/digits_vp-zip"),
        ({"script": "train", "dataset": "emoji", "name": "emoji32_edm"}, "train/emoji32_edm"),
        ({"script": "train", "name": "group/a"}, "train/group/a-digits"),
        ({"script": "calibrate"}, "calibrate/search-digits_vp"),
        ({"script": "calibrate", "checkpoint": "https://x.org/a/edm.pkl"}, "calibrate/search-edm"),
    ],
)
def test_a_directory_says_what_is_run(
    words: dict[str, Any], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert directory(**words) == f"outputs/{name}-01234567"


def test_a_table_has_its_name_and_budget() -> None:
    assert directory("sample", config={"table": {}}, table="deis_digits") == "outputs/table/deis_digits-small"


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ("emoji32_edm", "emoji32_edm"),
        ("outputs/train/digits_vp-e8c72d25", "digits_vp-e8c72d25"),
        ("outputs/train/digits_vp-e8c72d25/model.safetensors", "digits_vp-e8c72d25"),
        ("outputs/train/digits_vp-e8c72d25/best.safetensors", "digits_vp-e8c72d25-best"),
        ("/a/b-1/model-ema50kimg.safetensors", "b-1-model-ema50kimg"),
        ("model.safetensors", "model"),
        ("https://huggingface.co/google/ddpm-cifar10-32", "ddpm-cifar10-32"),
        ("a/0000001024.ckpt", "0000001024"),
        ("", ""),
    ],
)
def test_a_model_has_a_short_name(checkpoint: str, name: str) -> None:
    assert run_names.model_name(checkpoint) == name


def test_every_shipped_choice_has_a_short_name_without_quotes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = f"outputs/train/{'a b' * 20}-01234567"
    for solver in files("solver"):
        for schedule in files("schedule"):
            path = Path(directory("sample", checkpoint, solver=solver, schedule=schedule, nfe=1000))
            assert len(path.name) < 80
            assert shlex.quote(str(path)) == str(path)
            assert path.name.endswith("-nfe1000-01234567")


def test_a_run_goes_on_in_the_directory_of_its_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of an earlier version or one that the user renamed; neither a file nor what a removal left."""
    monkeypatch.chdir(tmp_path)
    sample = Path("outputs/sample")
    (sample / ".ddim-nfe10-01234567.host.1.part").mkdir(parents=True)
    (sample / "ddim-nfe10-76543210").mkdir()
    (sample / "a-01234567").write_text("")
    assert directory("sample") == "outputs/sample/digits_vp-ddim-karras-nfe10-01234567"
    (sample / "ddim-nfe10-01234567").mkdir()
    assert directory("sample") == "outputs/sample/ddim-nfe10-01234567"
    assert directory("sample", identity="76543210") == "outputs/sample/ddim-nfe10-76543210"
    Path("outputs/calibrate/score_norm-01234567").mkdir(parents=True)
    assert directory("calibrate") == "outputs/calibrate/score_norm-01234567"


@pytest.mark.parametrize(
    ("words", "count"),
    [("nfe=5,6 solver=ddim,heun,edm", 6), ("nfe=5", 1), ("seeds='0-9,20'", 1), ("nfe=range(1,4)", 3), ("a=[", None)],
)
def test_jobs_of_a_sweep_are_counted(words: str, count: int | None) -> None:
    assert run_names.sweep_size(words.split()) == count
    assert len(run_names.sweep_jobs(words.split())) == (count or 0)


def test_jobs_of_a_sweep_have_the_words_of_their_directories() -> None:
    """In the order of Hydra's own sweeper; none without words, or for too many to list."""
    jobs = run_names.sweep_jobs(["+a=[1, 2]", "nfe=5,6", "seeds='0-9,20'"])
    assert jobs == [("+a=[1,2]", "nfe=5", "seeds='0-9,20'"), ("+a=[1,2]", "nfe=6", "seeds='0-9,20'")]
    assert run_names.cell_name(jobs[0]) == "+a=_1_2_,nfe=5,seeds=_0-9_20_"
    assert run_names.sweep_jobs([]) == run_names.sweep_jobs(["a=range(0,10001)"]) == []
