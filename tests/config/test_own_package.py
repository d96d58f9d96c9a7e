"""A package of a user's own: its errors name its lines, its changes make new runs, and the next command works."""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import lightning  # noqa: F401  forked scripts start with it
import own_package
import pytest
from forks import call
from omegaconf import OmegaConf

from scoreline.config import conf_folder, run_names, script
from scoreline.config.compose import build_object
from scoreline.config.explain import explain

WRONG = {
    "broken.py": "import torch\nx = undefined_name\n",
    "unfinished.py": "def f(:\n",
    "needs.py": "import not_there_at_all\n",
    "net.py": """from torch import nn
class Net(nn.Module):
    def __init__(self, channels):
        super().__init__()
        raise KeyError(channels)
def total():
    return 3 + "a"
""",
}


@pytest.fixture
def mylab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    own_package.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.setenv(conf_folder.OWN_FOLDER, str(tmp_path / "conf"))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] in ("mylab", "faulty")]:
        del sys.modules[name]


MISTAKES = [
    ("faulty.broken.Net", {}, r"faulty/broken\.py:2: NameError: name 'undefined_name' is not defined; HYDRA_FULL"),
    ("faulty.unfinished.Net", {}, r"faulty/unfinished\.py:1: SyntaxError"),
    ("faulty.needs.Net", {}, r"faulty/needs\.py:1: ModuleNotFoundError: No module named 'not_there_at_all'"),
    ("faulty.net.Net", {"channels": 1}, r"faulty/net\.py:5: KeyError: 1; HYDRA_FULL_ERROR=1 shows the traceback"),
    ("faulty.net.total", {}, r"faulty/net\.py:7: TypeError: unsupported operand"),
    ("faulty.net.Net", {"chanels": 1}, r"Net\.__init__\(\) got an unexpected keyword argument 'chanels'"),
    ("faulty.net.Nett", {}, r"faulty\.net has no 'Nett'; did you mean 'Net'\?"),
    ("faulty.nets.Net", {}, r"faulty has no 'nets'; did you mean 'net'\?"),
    ("nowhere.net.Net", {}, r"there is no package nowhere on Python's path; install it"),
]


def test_an_error_names_the_line(
    mylab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in {"__init__.py": "", **WRONG}.items():
        (mylab / "faulty" / name).parent.mkdir(exist_ok=True)
        (mylab / "faulty" / name).write_text(text)
    (mylab / "conf/model/faulty.yaml").write_text("network:\n  _target_: faulty.net.Net\n")
    for target, arguments, sentence in MISTAKES:
        cfg = OmegaConf.create({"model": {"network": {"_target_": target, **arguments}}})
        with pytest.raises(Exception) as raised:  # noqa: PT011
            build_object(cfg.model.network)
        line = explain(raised.value)
        assert line is not None, target
        assert re.match(rf"model\.network(\._target_={re.escape(target)})?: {sentence}", line), line
    monkeypatch.delenv(script.KEEP_TRACEBACKS, raising=False)
    with pytest.raises(SystemExit) as left:
        script.leave(raised.value)
    assert (left.value.code, len(capsys.readouterr().err.splitlines())) == (2, 1)
    monkeypatch.setenv(script.KEEP_TRACEBACKS, "1")
    with pytest.raises(type(raised.value)):
        script.leave(raised.value)


def test_an_error_of_scoreline_keeps_its_traceback(mylab: Path) -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        _ = 1 / 0
    assert explain(raised.value) is None


@pytest.mark.parametrize(
    ("name", "words", "source"),
    [
        ("train", ["model=net"], "net"),
        ("train", ["dataset=squares"], "data"),
        ("train", ["callbacks=own_steps"], "callback"),
        ("sample", ["solver=own_euler"], "solver"),
        ("sample", ["metrics=own_brightness"], "metric"),
        ("sample", ["trust=[mylab]"], "net"),
        ("calibrate", ["dataset=squares"], "data"),
    ],
)
def test_a_change_of_own_code_is_another_run(mylab: Path, name: str, words: list[str], source: str) -> None:
    run_names.register_resolvers()

    def identity(words: list[str]) -> str:
        return run_names.run_sha256(conf_folder.compose_config(name, words), name)

    first, without = identity(words), identity([])
    assert identity(words) == first != without
    with open(mylab / f"mylab/{source}.py", "a") as file:
        file.write("\n# another version\n")
    assert identity(words) != first
    assert identity([]) == without


@pytest.mark.parametrize(
    ("main", "expected"),
    [
        ("train.py", "python sample.py --config-dir conf checkpoint=out 'trust=[mylab,torch]'"),
        ("clone/train.py", "python clone/sample.py --config-dir conf checkpoint=out 'trust=[mylab,torch]'"),
        ("/elsewhere/train.py", "python /elsewhere/sample.py --config-dir conf checkpoint=out 'trust=[mylab,torch]'"),
        ("bin/scoreline", "scoreline sample --config-dir conf checkpoint=out 'trust=[mylab,torch]'"),
        (None, "scoreline sample --config-dir conf checkpoint=out 'trust=[mylab,torch]'"),
    ],
)
def test_the_next_command_begins_as_this_one_did(
    mylab: Path, monkeypatch: pytest.MonkeyPatch, main: str | None, expected: str
) -> None:
    file = {} if main is None else {"__file__": str(mylab / main)}
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(**file))
    ours = {"_target_": "scoreline.schedules.ve.EDM"}
    model = {
        "network": {"_target_": "mylab.net.Net"},
        "noise_schedule": ours,
        "parameterisation": {"_target_": "torch.nn.X"},
    }
    assert script.command("sample", *script.checkpoint_words(Path("out"), model)) == expected
    assert script.checkpoint_words(Path("out"), {"network": ours}) == ["checkpoint=out"]
    (odd,) = script.checkpoint_words(Path("a b/it's,[1]"), {})
    assert odd == r"checkpoint='a b/it\'s,[1]'"
    assert script.command("verify", "x").startswith("scoreline verify --config-dir conf")


def test_the_printed_commands_work(mylab: Path) -> None:
    """train.py and calibrate.py, and what they print; then a network whose output has another shape."""
    done = call("train", "--config-dir", "conf", *own_package.TRAIN, "hydra.run.dir=out", cwd=mylab)
    assert done.returncode == 0, done.stderr
    assert "2 steps of my own\n" in done.stdout
    words = shlex.split(done.stdout.splitlines()[-1].removeprefix("next: "))
    assert words[2:] == ["--config-dir", "conf", "checkpoint=out", "trust=[mylab]"]
    brief = ("nfe=4", "seeds=0-7")
    done = call("calibrate", *words[2:], *brief, "hydra.run.dir=record", cwd=mylab)
    assert done.returncode == 0, done.stderr
    following = shlex.split(done.stdout.splitlines()[-1].removeprefix("next: "))
    assert following[2:] == [*words[2:], "solver=deis_sn"]
    for own in (following, [*words, "solver=own_euler", "metrics=own_brightness"]):
        done = call("sample", *own[2:], *brief, cwd=mylab)
        assert done.returncode == 0, done.stderr
    assert "brightness" in done.stdout
    path = mylab / "mylab/net.py"
    path.write_text(path.read_text().replace(".relu())", ".relu())[..., 1:]"))
    done = call("train", "--config-dir", "conf", *own_package.TRAIN, "hydra.run.dir=again", cwd=mylab)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "train.py: model.network: Net.forward returned (2, 1, 8, 7) for x of (2, 1, 8, 8); return (2, 1, 8, 8)\n"
    )
    assert not (mylab / "again").exists()
