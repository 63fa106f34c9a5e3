"""dvc.yaml held to the code: the files a stage imports, the params its class has, the paths that are read."""

import ast
import re
import shutil

import pytest
from conftest import ROOT, edit
from ruamel.yaml import YAML

from recipe.cli.context import sections
from recipe.core.errors import MachineError, ParamsError
from recipe.core.paths import Paths, fingerprint, read_paths, repository

PIPELINE = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())
STAGES = {name: entry.get("do", entry) for name, entry in PIPELINE["stages"].items()}


def imported(module, seen=None):
    """The files of recipe/ that a module imports, inside functions too, with those that they import."""
    seen = set() if seen is None else seen
    path = ROOT / "recipe" / f"{module}.py"
    if path.name in seen or not path.is_file():
        return seen
    seen.add(path.name)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("recipe."):
            imported(node.module.removeprefix("recipe."), seen)
    return seen


@pytest.mark.parametrize("stage", STAGES)
def test_the_code_listed_for_a_stage_is_what_it_imports(stage):
    listed = [one.removeprefix("recipe/") for one in STAGES[stage]["deps"] if one.startswith("recipe/")]
    assert listed == sorted(listed)
    assert set(listed) == imported(stage)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_the_child_of_dvc_whatever_the_shell(stage):
    """dash forks even for one command, and a stage that watches a shell would outlive `dvc`."""
    assert STAGES[stage]["cmd"].startswith("exec python -m recipe ")


FLOORS = [
    {"errors", "files", "params", "prompts", "units"},
    {
        "answering",
        "attention",
        "caches",
        "chats",
        "checkpoints",
        "columns",
        "comparison",
        "copies",
        "curve",
        "examples",
        "figures",
        "hub",
        "hub_errors",
        "lengths",
        "lora",
        "loss",
        "memory",
        "modeling",
        "notes",
        "overview",
        "packing",
        "pages",
        "pipeline",
        "quality",
        "ranks",
        "rows",
        "sizes",
        "splits",
        "stopping",
        "survey",
        "tasks",
        "tokenization",
        "tracing",
        "transfer",
        "verdict",
        "weights",
        "xgen",
    },
    {"trainer", "folders", "fit", "pin", "plan"},
    {"fetch", "prepare", "analyze", "train", "evaluate", "register"},
    {"tracking", "registry", "served", "chat", "summary"},
    {"here", "stages", "cli", "__main__"},
]


def test_a_file_imports_only_from_its_floor_and_those_below():
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    names = {path.stem for path in (ROOT / "recipe").glob("*.py")} - {"__init__"}
    assert set(floor) == names
    for name in names:
        for other in {file.removesuffix(".py") for file in imported(name)} - {name}:
            assert floor[other] <= floor[name], f"{name} imports {other}"
            assert floor[other] < floor[name] or floor[name] != 3, f"the stage {name} imports the stage {other}"


def test_contributing_names_the_files_of_the_lower_floors():
    table = (ROOT / "CONTRIBUTING.md").read_text()
    for number in (1, 2):
        [line] = [line for line in table.splitlines() if line.startswith(f"| {number} |")]
        assert set(re.findall(r"`(\w+)`", line)) == FLOORS[number - 1]


def test_mlflow_is_imported_in_two_files_alone():
    users = set()
    for path in (ROOT / "recipe").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "mlflow" for name in names):
                users.add(path.name)
    assert users == {"tracking.py", "registry.py", "served.py"}


def test_params_are_declared_key_by_key():
    declared = [key for stage in STAGES.values() for key in stage["params"]]
    assert declared.count("${key}") == 1  # fetch watches the whole of `data` or `model`
    wanted = {
        f"{section}.{key}"
        for section, cls in sections().items()
        if section not in {"data", "model"}
        for key in cls.model_fields
    }
    assert set(declared) - {"${key}"} == wanted and len(declared) == len(wanted) + 1


def test_paths_are_read_from_dvc_yaml_and_outputs_written_once():
    paths = read_paths(ROOT)
    assert paths.adapter.as_posix() == PIPELINE["vars"][0]["paths"]["adapter"]
    assert repository(ROOT) == ROOT


@pytest.fixture
def folder(tmp_path):
    """A recipe folder whose dvc.yaml and params.yaml can be changed, with train's inputs in it."""
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "recipe", tmp_path / "recipe", ignore=shutil.ignore_patterns("__pycache__"))
    for path in ("data/prepared/train.arrow", "models/base/manifest.json"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text("x")
    return tmp_path


def test_the_fingerprint_changes_with_inputs_params_and_code_of_the_stage_alone(folder):
    first = fingerprint(folder, "train")
    edit(folder / "params.yaml", "num_prompts: 450", "num_prompts: 3")
    edit(folder / "recipe" / "evaluate.py", '"""', '"""A changed comment. ')
    (folder / "recipe" / "__pycache__").mkdir()
    assert fingerprint(folder, "train") == first
    seen = {first}
    for change in (
        lambda: edit(folder / "params.yaml", "r: 16", "r: 8"),
        lambda: (folder / "data/prepared/train.arrow").write_text("y"),
        lambda: edit(folder / "recipe" / "train.py", '"""', '"""A changed comment. '),
    ):
        change()
        seen.add(fingerprint(folder, "train"))
    assert len(seen) == 4
    (folder / "models/base/manifest.json").unlink()
    (folder / "models/base").rmdir()
    with pytest.raises(MachineError, match=r"models/base is missing: train needs it"):
        fingerprint(folder, "train")


def test_a_path_without_a_use_is_refused(folder):
    edit(folder / "dvc.yaml", "      report:", "      rapport:")
    with pytest.raises(ParamsError, match=r"vars\.paths"):
        read_paths(folder)


def test_the_paths_class_has_no_path_that_dvc_yaml_lacks():
    assert set(PIPELINE["vars"][0]["paths"]) == set(Paths.__dataclass_fields__) - {"local"}
