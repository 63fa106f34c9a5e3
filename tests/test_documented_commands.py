"""Every command in README and docs is run: here, word for word, or by the test that is named here for it."""

import re
import shlex
import shutil
import socket
import subprocess
import time
import urllib.request

import pytest
from conftest import ROOT, edit, toy_rows, write_jsonl
from runs import ENVIRONMENT, run, stages_run
from test_docs import PAGES, console_lines

LOGS = {"RESULTS.md", "CHANGELOG.md", "CONTRIBUTING.md", "cli.md"}  # the commands of their time; steps; generated
IN_THE_DEMO = [
    "recipe --help", "recipe params", "recipe params lora.r", "recipe plan", "recipe summary", "recipe chat",
    "recipe pin", "recipe pin --update", "recipe fetch model", "recipe evaluate", "recipe register",
]  # fmt: skip
SWEEP = [
    'git add presets/my-recipe && git commit -m "My recipe"',
    "cd presets/my-recipe",
    "dvc exp run --temp -n rank-4 -S lora.r=4",
    "dvc exp run --queue -S 'lora.r=4,8' -S 'train.learning_rate=1e-3,3e-3'",
    "dvc queue start",
    "dvc queue status",
    "dvc exp show --only-changed",
]
# Commands that other tests run, and a text in that test's file that does it.
ELSEWHERE = {
    "git clone URL-OF-THIS-REPOSITORY recipe && cd recipe": (".ci/run", 'git clone -q . "$clone/recipe"'),
    "make demo": (".ci/run", "make demo"),
    "make test": (".ci/run", "make test-all"),
    "make env": ("tests/test_install.py", '"env"'),
    "make env PYTHON=/path/python3.11": ("tests/test_install.py", "PYTHON="),
    "make mlflow-ui": (__file__, '"mlflow-ui"'),
    "make bench": ("tests/test_bench.py", "bench.train"),
    "make bench-prepare": (__file__, '"bench-prepare"'),
    "make bench-pipeline": (__file__, '"bench-pipeline"'),
    "python -m bench.duplicates": ("tests/test_bench.py", "bench.duplicates"),
    "make docker-check": ("tests/test_container.py", '"check"'),
    "make docker-demo": ("tests/test_docker.py", "docker-demo"),
    "make docker-shell": ("tests/test_container.py", '"shell"'),
    "make services-up": ("tests/containers.py", "services-up"),
    "make services-down": ("tests/test_services.py", '"down"'),
    "make services-train": ("tests/test_services.py", '"train"'),
    "make services-backup BACKUP=mlflow.backup": ("tests/test_services.py", '"backup"'),
    "make services-restore BACKUP=mlflow.backup": ("tests/test_services.py", '"restore"'),
    "recipe train": ("tests/test_cli.py", '"train"'),
    "recipe new": ("tests/test_cli.py", '"new"'),
    "recipe new my-recipe --data rows.jsonl": (__file__, "recipe new my-recipe --data rows.jsonl"),
    "cd presets/my-recipe && dvc repro": (__file__, '"dvc", "repro"'),
    "recipe new my-recipe --data ~/rows.json": ("tests/test_cli.py", '"--data", tmp_path'),
    "recipe new my-model --data rows.jsonl --model ~/models/my-base": ("tests/test_cli.py", '"--model", tiny_base'),
    "recipe new other --data tatsu-lab/alpaca --model Qwen/Qwen3-0.6B-Base": ("tests/test_cli.py", "tatsu-lab/alpaca"),
}
MAKE = ["make", "-o", "env"]  # with the environment that runs the tests
NEEDS_A_GPU = {"make docker-train", "make docker-train RECIPE=presets/qwen3-chat"}


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in LOGS], ids=lambda page: page.name)
def test_every_command_is_run_by_a_test_or_needs_a_gpu(page):
    known = {*IN_THE_DEMO, *SWEEP, *ELSEWHERE, *NEEDS_A_GPU}
    assert [line for line in console_lines(page) if line not in known] == []


@pytest.mark.parametrize("command", ELSEWHERE)
def test_the_named_test_contains_the_command(command):
    file, text = ELSEWHERE[command]
    assert text in (ROOT / file).read_text()


def test_commands_that_need_a_gpu_are_described_as_such():
    assert "On a GPU" in (ROOT / "README.md").read_text()
    for page in PAGES:
        for line in console_lines(page):
            if page.name not in LOGS and line in NEEDS_A_GPU:
                assert "GPU" in page.read_text()


@pytest.mark.slow
def test_the_commands_in_the_demo(finished):
    for command in IN_THE_DEMO:
        done = subprocess.run(
            shlex.split(command), cwd=finished, env=ENVIRONMENT, input="Turn this list around: torch, puppet, otter\n",
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        assert done.returncode == 0 and "Traceback" not in done.stdout, f"{command}\n{done.stdout}"
        if command == "recipe chat":
            assert done.stdout == "otter, puppet, torch\n"
    assert stages_run(run(finished, "dvc", "repro")) == []


@pytest.mark.slow
def test_mlflow_ui_starts_and_prints_the_link_to_the_last_run(finished):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [*MAKE, "mlflow-ui", f"PORT={port}"], cwd=finished, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        link = next(line for line in process.stdout if line.startswith("the last run: "))
        assert re.search(rf"http://127.0.0.1:{port}/#/experiments/\d+/runs/[0-9a-f]{{32}}", link), link
        deadline = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.2)
    finally:
        subprocess.run(["pkill", "-TERM", "-s", str(process.pid)], check=False)
        process.wait(30)


@pytest.mark.long
@pytest.mark.parametrize("target", ["bench-prepare", "bench-pipeline"])
def test_the_benchmarks_run(finished, target):
    assert run(finished, *MAKE, target).count("\n| ") > 2


@pytest.mark.long
def test_a_recipe_of_ones_own_and_a_sweep(commit, tiny_base, tmp_path):
    """docs/sweeps.md, word for word, after README's `recipe new`."""
    folder = tmp_path / "recipe"
    run(tmp_path, "git", "clone", "-q", commit, folder)
    write_jsonl(folder / "rows.jsonl", toy_rows(80))
    shutil.copytree(tiny_base, folder / "base")
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-q", "-m", "Rows and base")
    run(folder, *"recipe new my-recipe --data rows.jsonl".split(), "--model", "base")
    recipe = folder / "presets" / "my-recipe"
    edit(recipe, "max_generations: 450", "max_generations: 2")
    edit(recipe, "max_new_tokens: 64", "max_new_tokens: 4")
    run(recipe, "dvc", "repro")
    before = (recipe / "params.yaml").read_text()
    place = folder
    for command in SWEEP:
        if command.startswith("cd "):
            place = place / command.removeprefix("cd ")
            continue
        output = run(place, "bash", "-c", command)
        deadline = time.monotonic() + 600
        while command == "dvc queue status" and re.search("Queued|Running", output):
            assert time.monotonic() < deadline, output
            time.sleep(2)
            output = run(place, "bash", "-c", command)
    assert "rank-4" in output and (recipe / "params.yaml").read_text() == before
    status = run(recipe, "dvc", "queue", "status")
    assert status.count("Success") == 4, status
    edit(recipe, "  r: 16", "  r: 4")
    assert "train" not in stages_run(run(recipe, "dvc", "repro"))
