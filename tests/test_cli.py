"""The command line as a user runs it: in a separate process, in a recipe folder."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import RECIPE, ROOT, alpaca, edit, toy_rows, write_jsonl

from recipe.cli.commands import main
from recipe.core.io import file_lock

ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}


def recipe(folder, *arguments):
    return subprocess.run(
        [*RECIPE, *map(str, arguments)],
        cwd=folder, capture_output=True, text=True, env=ENVIRONMENT, check=False,
    )  # fmt: skip


@pytest.fixture
def copy(tmp_path):
    """A copy of the root recipe, with links to its code."""
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("recipe", "demo", "requirements"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def test_help_imports_nothing_heavy():
    code = "import sys; from recipe.cli.commands import main\n"
    code += "try: main(['--help'])\nexcept SystemExit: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"torch", "trl", "mlflow", "transformers", "pandas", "pydantic", "numpy"}
    assert not heavy & set(done.stdout.split())
    assert "Commands:" in done.stdout and done.stdout.index("fetch") < done.stdout.index("register")


def test_checking_params_imports_nothing_heavy(copy):
    code = "import sys; from recipe.cli.commands import main\n"
    code += "try: main(['params'])\nexcept SystemExit: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, check=True)
    assert not {"torch", "trl", "mlflow", "transformers"} & set(done.stdout.split())


@pytest.mark.parametrize("command", [[], ["fetch"], ["prepare"], ["train"], ["new"], ["chat"], ["register"]])
def test_every_command_prints_its_help(command):
    result = CliRunner().invoke(main, [*command, "--help"])
    assert result.exit_code == 0 and "Usage:" in result.output


def test_mistakes_in_params_exit_with_code_2_and_no_traceback(copy):
    edit(copy, "  r: 16", "  rank: 16")
    edit(copy, "template: alpaca", "template: llama")
    for command in (["params"], ["fetch", "data"], ["train"]):
        done = recipe(copy, *command)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert done.stderr.startswith("error: params.yaml has 3 mistakes:")
        assert "lora.rank: no such key" in done.stderr and "sequence.template: found" in done.stderr


def test_params_prints_the_file_or_one_key(copy):
    assert recipe(copy, "params", "lora.r").stdout == "16\n"
    assert recipe(copy, "params").stdout == (copy / "params.yaml").read_text()
    assert recipe(copy, "params", "lora.q").returncode == 2


def test_a_command_outside_a_recipe_folder_reports_the_missing_params(tmp_path):
    done = recipe(tmp_path, "train")
    assert done.returncode == 2 and "params.yaml is missing. Run this command in a recipe folder" in done.stderr


@pytest.fixture
def quick(copy, tiny_base, tmp_path):
    """A recipe created with `recipe new` from toy rows and the tiny base; it runs in seconds."""
    write_jsonl(tmp_path / "rows" / "train.jsonl", toy_rows(80))
    write_jsonl(tmp_path / "rows" / "test.jsonl", [alpaca(f"Held {n}", "x y") for n in range(6)])
    done = recipe(copy, "new", "quick", "--data", tmp_path / "rows", "--model", tiny_base)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == (
        "created presets/quick. Edit presets/quick/params.yaml, then run: cd presets/quick && dvc repro"
    )
    return copy / "presets" / "quick"


def test_a_new_recipe_has_its_params_with_comments_and_the_roots_pipeline(quick, copy):
    assert sorted(path.name for path in quick.iterdir()) == ["dvc.yaml", "params.yaml"]
    ours, roots = (quick / "dvc.yaml").read_text().splitlines(), (copy / "dvc.yaml").read_text().splitlines()
    differing = [pair for pair in zip(ours, roots, strict=True) if pair[0] != pair[1]]
    assert differing == [("  - root: ../..", "  - root: .")]
    text = (quick / "params.yaml").read_text()
    assert text.startswith("# Recipe quick.") and "# rank of the weight update" in text
    assert recipe(quick, "params", "data.validation_split").stdout == "test\n"
    assert recipe(quick, "params", "registry.name").stdout == "quick\n"
    assert (quick / recipe(quick, "params", "model.source").stdout.strip()).is_dir()
    for name, part in (("quick", "already exists"), ("../x", "is not a valid"), ("", "is not a valid")):
        done = recipe(copy, "new", name)
        assert done.returncode == 2 and part in done.stderr


def test_a_new_recipe_without_options_uses_the_same_files(copy):
    assert recipe(copy, "new", "plain").returncode == 0
    assert recipe(copy / "presets" / "plain", "params", "data.source").stdout == "../../demo/rows\n"
    assert recipe(copy / "presets" / "plain", "fetch", "data").returncode == 0


def test_a_new_recipe_can_use_data_and_model_from_the_hub(copy):
    done = recipe(copy, "new", "other", "--data", "tatsu-lab/alpaca", "--model", "Qwen/Qwen3-0.6B-Base")
    assert done.stdout.strip().endswith("cd presets/other && recipe pin && dvc repro")
    assert (copy / "presets" / "other" / "hub").read_text().count("\n") == 1
    for key, value in (
        ("data.source", "hub"), ("data.id", "tatsu-lab/alpaca"), ("data.validation_split", "null"),
        ("model.source", "hub"), ("model.id", "Qwen/Qwen3-0.6B-Base"), ("model.revision", "null"),
    ):  # fmt: skip
        assert recipe(copy / "presets" / "other", "params", key).stdout == f"{value}\n"
    done = recipe(copy, "new", "third", "--data", "nowhere.jsonl")
    assert done.returncode == 2 and "nowhere.jsonl does not exist and is not a Hub name" in done.stderr


def test_a_new_recipe_accepts_a_file_and_rejects_a_folder_without_train_split(copy, tmp_path):
    rows = write_jsonl(tmp_path / "rows.jsonl", toy_rows(3))
    assert recipe(copy, "new", "file", "--data", rows).returncode == 0
    assert recipe(copy / "presets" / "file", "params", "data.validation_split").stdout == "null\n"
    (tmp_path / "empty").mkdir()
    done = recipe(copy, "new", "folder", "--data", tmp_path / "empty")
    assert done.returncode == 3 and "has no train split" in done.stderr
    assert not (copy / "presets" / "folder").exists()


def test_a_new_recipe_rejects_a_model_folder_without_config(copy, tmp_path):
    (tmp_path / "model").mkdir()
    for model in (tmp_path / "model", write_jsonl(tmp_path / "rows.jsonl", toy_rows(3))):
        done = recipe(copy, "new", "broken", "--model", model)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert f"error: {model} is not a base model, because it has no config.json." in done.stderr
    assert not (copy / "presets" / "broken").exists()


def test_a_plan_counts_the_rows_and_names_a_missing_column(quick, tmp_path):
    done = recipe(quick, "plan")
    assert done.returncode == 0 and "80 to train on (estimated)" in done.stdout
    edit(quick, "    instruction: instruction", "    instruction: question")
    done = recipe(quick, "plan")
    assert done.returncode == 4 and "does not work: sequence.columns.instruction is" in done.stdout
    assert "does not fit" not in done.stdout and "fits this machine" not in done.stdout
    assert "is 'question', but no row of train.jsonl has that column" in done.stdout
    assert "Columns found: 'input', 'instruction', 'output'" in done.stdout


def test_a_plan_reports_a_cpu_without_bf16(quick, monkeypatch):
    monkeypatch.chdir(quick)
    edit(quick, "dtype: auto ", "dtype: bfloat16 ")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx2": True, "avx512_bf16": False})
    done = CliRunner().invoke(main, ["plan"])
    assert done.exit_code == 4 and "does not fit: this processor has no bf16" in done.output
    assert "Set train.dtype to auto in params.yaml." in done.output


def test_link_prints_the_last_registered_run(quick):
    from recipe.cli.run_metadata import remember

    assert recipe(quick, "link").stdout == "http://127.0.0.1:5000/#/experiments\n"
    remember(quick / ".recipe", "register", {"experiment_id": "3", "run_id": "abc"})
    assert recipe(quick, "link", "--server", "http://host:1/").stdout == (
        "http://host:1/#/experiments/3/runs/abc?workflowType=machine_learning\n"
    )


def test_make_env_installs_a_lock_only_if_another_is_named(tmp_path):
    """Without LOCK=..., the installed lock is kept."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements").mkdir()
    (tmp_path / ".venv").mkdir()
    names = ("cpu.lock", "cuda.lock", "tools.lock", "install")
    for name in (*(f"requirements/{name}" for name in names), "pyproject.toml", ".venv/recipe-lock.sha256"):
        (tmp_path / name).write_text("x  requirements/cpu.lock\n")

    def commands(*arguments):
        environment = {name: value for name, value in os.environ.items() if name not in {"LOCK", "MAKEFLAGS"}}
        return subprocess.run(
            ["make", "-n", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        ).stdout

    assert "requirements/install" not in commands("env") and "requirements/install" not in commands("env", "LOCK=cpu")
    assert "requirements/install cuda .venv" in commands("env", "LOCK=cuda")
    (tmp_path / ".venv/recipe-lock.sha256").write_text("x  requirements/cuda.lock\n")
    assert "requirements/install" not in commands("env")
    assert "requirements/install cpu .venv" in commands("env", "LOCK=cpu")


def test_training_that_does_not_fit_is_refused_unless_forced(quick, monkeypatch):
    monkeypatch.chdir(quick)
    edit(quick, "micro_batch_tokens: 1024 ", "micro_batch_tokens: 25600000 ")
    edit(quick, "global_batch_size: 4 ", "global_batch_size: 100000 ")
    edit(quick, "warmup_ratio: 0.1 ", "warmup_ratio: 0 ")  # the few rows are a single step
    runner = CliRunner()
    for stage in ("fetch data", "fetch model", "prepare"):
        assert runner.invoke(main, stage.split(), catch_exceptions=False).exit_code == 0
    refused = runner.invoke(main, ["train"])
    assert refused.exit_code == 4 and "Set train.micro_batch_tokens: 256." in refused.output
    assert "training needs" in refused.output and "--force or RECIPE_FORCE=1" in refused.output
    assert not (quick / "models/adapter").exists()
    # There are only a few rows, and their single batch does fit.
    assert runner.invoke(main, ["train", "--force"], catch_exceptions=False).exit_code == 0
    assert (quick / "models/adapter/adapter_model.safetensors").is_file()


def assert_old_outputs_are_reported_in_one_line(folder, runner):
    """Commands end in one line where an output is missing or was written by another version of the recipe."""
    scores, rows = folder / "metrics/evaluate.json", folder / "reports/evaluation/generations.jsonl"
    train_metrics = folder / "metrics/train.json"
    curve = folder / "metrics/loss.csv"
    for command, path, change in (
        (["summary"], scores, lambda text: text.replace('"difference"', '"change"')),
        (["summary"], scores, lambda text: text.replace('"perplexity"', '"ppl"')),
        (["summary"], rows, lambda text: text.replace('"category"', '"kind"')),
        (["summary"], rows, None),
        (["register"], rows, lambda text: text.replace('"category"', '"kind"')),
        (["register"], rows, None),
        (["register"], curve, None),
        (["chat"], train_metrics, lambda text: text.replace('"quantization"', '"precision"')),
    ):
        before = path.read_text()
        path.unlink() if change is None else path.write_text(change(before))
        assert change is None or path.read_text() != before, (command, path)
        result = runner.invoke(main, command, catch_exceptions=False)
        path.write_text(before)
        assert result.exit_code in (3, 4), (command, path, result.output)
        assert result.output.splitlines()[-1].startswith("error: "), result.output
        assert "Run `dvc repro`." in result.output.splitlines()[-1]


@pytest.mark.parametrize("stage", ["fetch data", "fetch model", "prepare", "analyze", "train", "evaluate", "register"])
def test_no_stage_starts_while_another_one_runs_in_the_folder(copy, stage):
    with file_lock(copy / ".recipe" / "lock", "a stage"):
        done = recipe(copy, *stage.split())
    assert done.returncode == 4 and f"is already running here (process {os.getpid()} holds" in done.stderr, done.stderr


def test_the_stages_by_hand_then_summary_and_chat(quick):
    """Run every stage through the command line in this process, so that coverage includes them."""
    before = Path.cwd()
    os.chdir(quick)
    try:
        for key, value in (("max_generations: 450", "max_generations: 4"), ("max_new_tokens: 64", "max_new_tokens: 4")):
            edit(quick, key, value)
        runner = CliRunner()
        for command in (["chat"], ["train"], ["summary"]):
            early = runner.invoke(main, command)
            assert early.exit_code == 4 and "dvc repro" in early.output, early.output
        outputs = {}
        for stage in ("fetch data", "fetch model", "prepare", "analyze", "train", "evaluate", "register"):
            result = runner.invoke(main, stage.split(), catch_exceptions=False)
            assert result.exit_code == 0, result.output
            outputs[stage] = result.output
        assert "80 training rows, 6 validation rows" in outputs["prepare"]
        assert "MLflow run: rows on tiny, " in outputs["train"] or "MLflow run: rows on base" in outputs["train"]
        assert "version 1 is the first champion" in outputs["register"]
        summary = runner.invoke(main, ["summary"]).output
        assert "The adapter seems" in summary and "models:/quick@champion" in summary and "seconds: " in summary
        answers = runner.invoke(main, ["chat"], input="Say number 3. | 3\n\nGo.\n")
        assert answers.exit_code == 0 and len(answers.output.splitlines()) >= 2
        assert runner.invoke(main, ["chat", "--base"], input="Go.\n").exit_code == 0
        assert_old_outputs_are_reported_in_one_line(quick, runner)
        notes = json.loads((quick / ".recipe" / "notes.json").read_text())
        assert notes["train"]["peak_memory_bytes"] > 0
    finally:
        os.chdir(before)
