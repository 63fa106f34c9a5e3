"""Every command in every state of a recipe folder: it answers, or ends with one line that says what to do."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import ROOT, edit, enter_copy, small_recipe
from ruamel.yaml import YAML

from recipe.cli.commands import main

read_yaml = YAML(typ="safe").load
PIPELINE = read_yaml(ROOT / "dvc.yaml")
PATHS = next(entry["paths"] for entry in PIPELINE["vars"] if "paths" in entry)
STAGES = {name: entry.get("do", entry) for name, entry in PIPELINE["stages"].items()}
RUNS = ["fetch data", "fetch model", "prepare", "analyze", "train", "evaluate", "register"]
OUTPUTS = {  # what each run writes
    "fetch data": ["raw"], "fetch model": ["base"], "prepare": ["prepared"], "analyze": ["analysis"],
    "train": ["adapter", "training", "train_metrics", "loss_curve"], "evaluate": ["evaluate_metrics", "evaluation"],
    "register": ["receipt"],
}  # fmt: skip
QUESTIONS = ["plan", "params", "params lora.r", "pin", "show", "chat", "chat --base", "link", "summary", "new other"]
QUESTIONS += ["ledger", "ledger --step 1", "replay --step 1"]
SLOW_QUESTIONS = {  # the outputs that they read; the other questions are asked in every state
    "plan": {"raw", "base", "prepared"},
    "chat": {"base", "prepared", "adapter", "train_metrics"},
    "chat --base": {"base", "prepared"},
    "new other": set(),
    "ledger --step 1": {"prepared", "training", "train_metrics"},
    "replay --step 1": {"training", "train_metrics"},
}


def invoke(command: str):
    return CliRunner().invoke(main, command.split(), input="Say 3.\n", catch_exceptions=True)


@pytest.fixture(scope="module")
def complete(tiny_base, tmp_path_factory):
    """A repository whose recipe `quick` has run completely, on a few rows."""
    changes = {"max_generations: 450": "max_generations: 1", "max_new_tokens: 64": "max_new_tokens: 2"}
    return small_recipe(tmp_path_factory.mktemp("states") / "repository", tiny_base, invoke, changes, RUNS)


@pytest.fixture
def folder(complete, tmp_path, monkeypatch):
    return enter_copy(complete, tmp_path, monkeypatch)


def readers(name: str) -> list[str]:
    """The runs that depend on an output."""
    path = f"${{paths.{name}}}"
    found = []
    for run in RUNS:
        deps = STAGES[run.split()[0]].get("deps", [])
        if any(dep == path or dep.startswith(path + "/") for dep in deps):
            found.append(run)
    return found


def delete(path: Path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def problem(command: str, *, must_fail: bool = False) -> str | None:
    """What is wrong with the answer of a command; None if it answers, unless it must fail, or ends in one line."""
    result = invoke(command)
    if must_fail and not result.exit_code:
        return f"{command}: accepts it"
    if not isinstance(result.exception, SystemExit | None):
        return f"{command}: {result.exception!r}"
    errors = [line for line in result.output.splitlines() if line.startswith("error: ")]
    if result.exit_code and command == "plan":  # lists what does not fit
        return None if result.exit_code in (2, 3, 4) else f"plan: {result.output}"
    if result.exit_code and (result.exit_code not in (2, 3, 4) or len(errors) != 1):
        return f"{command}: exit code {result.exit_code}, {result.output}"
    return None


@pytest.mark.parametrize("after", [None, *RUNS])
def test_after_each_stage(folder, after):
    done = RUNS[: RUNS.index(after) + 1] if after else []
    for run in RUNS:
        if run not in done:
            for name in OUTPUTS[run]:
                delete(folder / PATHS[name])
    if not done:
        delete(folder / ".recipe")
    missing = RUNS[len(done) + 1 :]  # the run after the last one would succeed
    assert list(filter(None, map(problem, [*QUESTIONS, *missing]))) == []


# Files that a run gets in a folder and does not read, by the ends of their paths. register logs reports as they are.
ROWS = ("rows.arrow", "quarantine.jsonl", "train.arrow", "unused.json", "validation.arrow", "validation.jsonl")
NOT_READ = {
    "prepare": ("base/manifest.json",),
    "analyze": ("base/manifest.json", "quarantine.jsonl", "validation.arrow", "prepared/validation.jsonl"),
    "train": ("quarantine.jsonl", "unused.json", "forms.json", "validation.arrow", "validation.jsonl"),
    "evaluate": ("rows.arrow", "quarantine.jsonl", "train.arrow", "unused.json", "forms.json"),
    "register": (*ROWS, "forms.json", "ledger.jsonl", ".svg", ".html", "lengths.csv", "summary.json"),
}
DAMAGE = {
    "deleted": delete,
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
}


@pytest.mark.parametrize("damage", ["deleted", "cut", pytest.param("emptied", marks=pytest.mark.long)])
@pytest.mark.parametrize("name", [name for run in RUNS for name in OUTPUTS[run]])
def test_with_a_damaged_output(folder, name, damage):
    path = folder / PATHS[name]
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    problems = []
    for file in files:
        before = file.read_bytes()
        DAMAGE[damage](file)
        questions = [question for question in QUESTIONS if name in SLOW_QUESTIONS.get(question, {name})]
        found = filter(None, map(problem, questions))
        problems += [f"{file.relative_to(folder)} {damage}: {text}" for text in found]
        found = (problem(run, must_fail=not str(file).endswith(NOT_READ[run])) for run in readers(name))
        problems += [f"{file.relative_to(folder)} {damage}: {text}" for text in filter(None, found)]
        file.write_bytes(before)
    assert problems == [], "\n".join(problems)


def test_with_another_base(folder, tiny_base, tmp_path):
    """params.yaml names another base: first only that, then it is fetched as well, while the adapter is the old one."""
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other-base"
    shutil.copytree(tiny_base, other)
    weights = {name: weight + 1 for name, weight in load_file(other / "model.safetensors").items()}
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    source = read_yaml(folder / "params.yaml")["model"]["source"]
    edit(folder, f"source: {source}", f"source: {other}")
    assert list(filter(None, map(problem, QUESTIONS))) == []
    assert not invoke("fetch model").exit_code
    assert list(filter(None, map(problem, [*QUESTIONS[:-1], "evaluate", "register"]))) == []
    for command in ("chat", "evaluate", "register"):
        output = invoke(command).output
        assert "was trained for" in output and "Run `dvc repro`." in output, output
