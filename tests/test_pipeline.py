"""Reading dvc.yaml: the paths, and the fingerprint of a stage's inputs."""

import shutil

import pytest
from conftest import ROOT, edit
from ruamel.yaml import YAML

from recipe.core.errors import MachineError, ParamsError
from recipe.core.paths import Paths, fingerprint, read_paths, repository

PIPELINE = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())


def test_paths_are_read_from_dvc_yaml():
    paths = read_paths(ROOT)
    assert paths.adapter == ROOT / PIPELINE["vars"][1]["paths"]["adapter"]
    assert repository(ROOT) == ROOT


@pytest.fixture
def folder(tmp_path):
    """A recipe folder with train's inputs, whose dvc.yaml and params.yaml can be changed."""
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("recipe", "requirements"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ("data/prepared/train.arrow", "models/base/manifest.json"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text("x")
    return tmp_path


def test_fingerprint_depends_only_on_inputs_params_and_code_of_the_stage(folder):
    first = fingerprint(folder, "train")
    edit(folder / "params.yaml", "max_generations: 450", "max_generations: 3")
    edit(folder / "recipe/evaluate/stage.py", '"""', '"""A changed comment. ')
    (folder / "recipe/train/__pycache__").mkdir()
    (folder / "recipe/train/stray").write_text("x")
    assert fingerprint(folder, "train") == first
    seen = {first}
    for change in (
        lambda: edit(folder / "params.yaml", "r: 16", "r: 8"),
        lambda: (folder / "data/prepared/train.arrow").write_text("y"),
        lambda: edit(folder / "recipe/train/sft.py", '"""', '"""A changed comment. '),
        lambda: edit(folder / "requirements/cuda.lock", "torch==", "torch== "),
    ):
        change()
        seen.add(fingerprint(folder, "train"))
    assert len(seen) == 5
    (folder / "models/base/manifest.json").unlink()
    (folder / "models/base").rmdir()
    with pytest.raises(MachineError, match=r"models/base is missing, but the train stage depends on it"):
        fingerprint(folder, "train")


def test_a_path_missing_from_dvc_yaml_is_reported(folder):
    edit(folder / "dvc.yaml", "      evaluation:", "      verdict:")
    with pytest.raises(ParamsError, match=r"vars\.paths does not declare evaluation"):
        read_paths(folder)
    assert set(Paths.__annotations__) - {"folder", "local"} == set(PIPELINE["vars"][1]["paths"])
