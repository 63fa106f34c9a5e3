"""Rules of the package: which folders a folder may import, and that dvc.yaml lists the code that a stage runs."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap

import pytest
from conftest import RECIPE, ROOT, edit, small_repository
from ruamel.yaml import YAML
from runs import ENVIRONMENT, run, stages_run

from recipe.cli.context import STAGES, sections
from recipe.core.config import Section
from recipe.core.environment import LOCKS, RECORD, check_installed_lock
from recipe.core.errors import MachineError
from recipe.core.io import sha256_file

PACKAGE = ROOT / "recipe"
SHARED = {"core", "text", "tokens", "model", "report"}
UNLISTED = {
    "cli",
    "migrate",
    "tracking",
    "planning",
    "verify",
    "provenance",
    "export",
    "chat",
    "serve",
    "publish",
    "compare",
}
PIPELINE = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())
ENTRIES = {name: entry.get("do", entry) for name, entry in PIPELINE["stages"].items()}


def modules():
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def imports(module):
    """The modules that a file imports, also in functions: `recipe.core.io`, `recipe.cli.context`, `mlflow`."""
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / module).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def folders_imported(module):
    return {name.split(".")[1] for name in imports(module) if name.startswith("recipe.")}


def test_the_package_has_the_expected_folders():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == {*STAGES, *SHARED, *UNLISTED}
    assert [path.name for path in sorted(PACKAGE.glob("*.py"))] == ["__init__.py", "__main__.py"]


@pytest.mark.parametrize("module", modules())
def test_a_file_imports_only_allowed_folders(module):
    folder = module.split("/")[0]
    used = folders_imported(module) - {folder}
    if folder in STAGES:
        assert used <= SHARED, f"a stage imports {used - SHARED}"
    elif folder in SHARED:
        assert used <= SHARED, f"a shared folder imports {used - SHARED}"
    elif folder in UNLISTED - {"cli"}:
        assert "cli" not in used
    if folder != "tracking":
        assert not any(name.split(".")[0] == "mlflow" for name in imports(module))


@pytest.mark.parametrize("stage", STAGES)
def test_params_files_contain_only_pydantic_classes(stage):
    body = ast.parse((PACKAGE / stage / "params.py").read_text()).body
    assert isinstance(body[0], ast.Expr) and len(body) > 1
    for node in body[1:]:
        is_class = isinstance(node, ast.ClassDef) and [ast.unparse(base) for base in node.bases] == ["Section"]
        assert is_class or isinstance(node, ast.Import | ast.ImportFrom), ast.unparse(node)[:80]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_package_contains_only_its_help_text(stage):
    """`recipe --help` and every stage command import it."""
    assert len(ast.parse((PACKAGE / stage / "__init__.py").read_text()).body) == 1


def test_dvc_yaml_declares_every_key_of_every_section():
    assert all(issubclass(section, Section) for section in sections().values())
    declared = [key for entry in ENTRIES.values() for key in entry["params"]]
    assert declared.count("${key}") == 1  # fetch depends on the whole section `data` or `model`
    expected = {
        f"{name}.{key}" for name, section in sections().items() if name not in {"data", "model"}
        for key in section.model_fields
    }  # fmt: skip
    assert set(declared) - {"${key}"} == expected and len(declared) == len(expected) + 1


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_a_direct_child_of_dvc_in_any_shell(stage):
    """dash forks even for a single command, and a stage that watches that shell would outlive `dvc`."""
    assert ENTRIES[stage]["cmd"].startswith("exec python -P ${root}/recipe/__main__.py ")


@pytest.mark.parametrize("stage", STAGES)
def test_the_locks_are_dependencies_of_every_stage_except_register(stage):
    locks = [f"${{root}}/requirements/{name}" for name in LOCKS]
    assert stage == "register" or [path for path in ENTRIES[stage]["deps"] if "requirements" in path] == locks


# Each process of a stage adds a line: train and evaluate run in a child process.
DUMP = """
import atexit, json, runpy, sys
program, out, *arguments = sys.argv[1:]
atexit.register(lambda: open(out, "a").write(json.dumps([
    [name, getattr(module, "__file__", None)] for name, module in sys.modules.items() if name.split(".")[0] == "recipe"
]) + "\\n"))
sys.argv = [program, *arguments]
runpy.run_path(program, run_name="__main__")
"""


@pytest.fixture(scope="module")
def loaded(tiny_base, tmp_path_factory):
    """{stage: files of the package that its process loaded}, with each stage run as DVC runs it, on a few rows."""
    repository = small_repository(tmp_path_factory.mktemp("layout") / "repository")
    subprocess.run(
        [*RECIPE, "new", "quick", "--data", "rows", "--model", tiny_base], cwd=repository, check=True, env=ENVIRONMENT
    )
    folder = repository / "presets" / "quick"
    edit(folder, "max_generations: 450", "max_generations: 1")
    edit(folder, "max_new_tokens: 64", "max_new_tokens: 2")
    files = {}
    commands = [("fetch", ["fetch", "data"]), ("fetch", ["fetch", "model"]), *((s, [s]) for s in STAGES[1:])]
    for stage, command in commands:
        out = repository / f"loaded-{'-'.join(command)}.jsonl"
        subprocess.run(
            [sys.executable, "-P", "-c", DUMP, "../../recipe/__main__.py", out, *command], cwd=folder, check=True,
            env=ENVIRONMENT, capture_output=True,
        )  # fmt: skip
        paths = [file for line in out.read_text().splitlines() for _, file in json.loads(line) if file]
        names = {os.path.relpath(os.path.realpath(path), PACKAGE) for path in paths}
        assert not any(name.startswith("..") for name in names), names
        files[stage] = files.get(stage, set()) | names
    return files


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_dvc_yaml_lists_the_code_that_a_stage_runs(stage, loaded):
    listed = {path.removeprefix("${root}/recipe/") for path in ENTRIES[stage]["deps"] if "/recipe/" in path}
    assert "__main__.py" in listed
    ran = {name for name in loaded[stage] if "/" in name and name.split("/")[0] not in UNLISTED}
    others = {f"{other}/{file}" for other in STAGES for file in ("params.py", "__init__.py") if other != stage}
    # Every stage imports the params classes of all stages, to report all mistakes in params.yaml at once.
    for_params = needed_by({f"{other}/params.py" for other in STAGES})
    ran = {name for name in ran - others if not name.endswith("__init__.py")}
    assert {name for name in ran - for_params if name.split("/")[0] not in listed} == set()
    assert listed - {"__main__.py"} <= {name.split("/")[0] for name in ran}


def needed_by(files):
    """The given files of the package and all files of the package that they import, directly or indirectly."""
    needed, pending = set(), set(files)
    while pending:
        module = pending.pop()
        needed.add(module)
        for name in imports(module):
            path = name.removeprefix("recipe.").replace(".", "/") + ".py"
            if name.startswith("recipe.") and (PACKAGE / path).is_file() and path not in needed:
                pending.add(path)
    return needed


def test_files_in_the_working_folder_do_not_shadow_libraries(tmp_path):
    for name in ("datasets", "torch", "numpy", "recipe", "click", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    done = subprocess.run([*RECIPE, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Commands:" in done.stdout
    done = subprocess.run([*RECIPE, "train"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "params.yaml is missing" in done.stderr


def test_an_environment_with_another_lock_is_refused(tmp_path, monkeypatch):
    requirements = tmp_path / "requirements"
    requirements.mkdir()
    shutil.copy(ROOT / "requirements/cpu.lock", requirements)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    check_installed_lock(requirements)  # no record of the installed lock: accepted
    record = tmp_path / RECORD
    record.write_text(f"{sha256_file(requirements / 'cpu.lock')}  requirements/cpu.lock\n")
    check_installed_lock(requirements)
    record.write_text(f"{'0' * 64}  requirements/cpu.lock\n")
    with pytest.raises(MachineError, match="Run `make env`"):
        check_installed_lock(requirements)


def blocks():
    """The fenced blocks of CONTRIBUTING.md whose first line names a file: (name, text)."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for fenced in re.findall(r"^   ```\w+\n(.*?)^   ```", text, flags=re.MULTILINE | re.DOTALL):
        name, _, body = re.sub(r"^   ", "", fenced, flags=re.MULTILINE).partition("\n")
        yield name.removeprefix("# "), body


@pytest.mark.slow
def test_the_steps_in_contributing_add_a_stage(commit, tmp_path):
    folder = tmp_path / "repository"
    run(tmp_path, "git", "clone", "-q", commit, folder)
    texts = dict(blocks())
    for name in ("__init__", "params", "stage"):
        path = folder / f"recipe/count/{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(texts[f"recipe/count/{name}.py"])
    edit(folder / "recipe/cli/context.py", '"prepare", "analyze"', '"count", "prepare", "analyze"')
    edit(folder / "dvc.yaml", "      raw: data/raw\n", "      raw: data/raw\n" + texts["dvc.yaml: vars"])
    with (folder / "dvc.yaml").open("a") as file:
        file.write("\n" + textwrap.indent(textwrap.dedent(texts["dvc.yaml: stages"]), "  "))
    with (folder / "params.yaml").open("a") as file:
        file.write("\n" + texts["params.yaml"])
    assert "count" in run(folder, sys.executable, "-P", "recipe/__main__.py", "--help")
    assert stages_run(run(folder, "dvc", "repro", "count")) == ["fetch@data", "count"]
    assert json.loads((folder / "metrics/count.json").read_text())["rows"] > 4000
    edit(folder, "at_least: 1 ", "at_least: 1000000 ")
    assert "fewer than count.at_least" in run(folder, "dvc", "repro", "count", check=False)


def test_the_lock_belongs_to_the_code():
    """Outputs may be missing, as in a fresh clone; code, locks and params may not differ."""
    done = run(ROOT, "dvc", "status", "--json")
    changed = {
        f"{stage}: {path}"
        for stage, entries in json.loads(done[done.index("{") :]).items()
        for entry in entries if isinstance(entry, dict)
        for path, how in entry.get("changed deps", {}).items()
        if how != "deleted" and path.startswith(("recipe", "requirements", "params.yaml", "demo"))
    }  # fmt: skip
    assert not {name for name in changed if not name.startswith("presets/")}, "run `dvc repro` and commit dvc.lock"
