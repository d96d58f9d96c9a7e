"""Names of runs follow the content of what they read."""

from pathlib import Path

from omegaconf import OmegaConf

from scoreline import run_names


def test_a_folder_of_another_project_is_named_by_what_is_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "pipeline"
    (folder / "unet").mkdir(parents=True)
    config = OmegaConf.create({"checkpoint": str(folder), "solver": None, "guidance": {}})
    names = [run_names.run_digest(_root_=config)]
    for name, content in (("unet/config.json", "{}"), ("unet/model.safetensors", "1"), ("unet/model.safetensors", "2")):
        (folder / name).write_text(content)
        names.append(run_names.run_digest(_root_=config))
    (folder / "README.md").write_text("words")
    assert run_names.run_digest(_root_=config) == names[-1]
    assert len(set(names)) == 4
