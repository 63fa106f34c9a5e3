"""Every command in README and docs runs in a test: here, word for word, or in the test that is named for it."""

import os
import re
import shlex
import shutil
import signal
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
    "recipe pin", "recipe pin --update", "recipe fetch model", "recipe prepare", "recipe show --mask",
    "recipe evaluate", "recipe register", "recipe sync",
    "recipe ledger", "recipe ledger --step 42", "recipe replay --step 42",
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
# Commands that something else runs: a test, or a line of .ci/run.
ELSEWHERE = {
    "git clone URL-OF-THIS-REPOSITORY recipe && cd recipe": (".ci/run", 'git clone -q . "$clone/recipe"'),
    "make demo": (".ci/run", "\n  make demo\n"),
    "make test": (".ci/run", "make test-all"),  # the fast tests are among them
    "make env": ("test_install", "test_python_311_is_downloaded_if_it_is_missing"),
    "make env PYTHON=/path/python3.11": ("test_install", "test_another_version_given_as_python_is_refused"),
    "make mlflow-ui": ("test_documented_commands", "test_mlflow_ui_starts_and_prints_the_link_to_the_last_run"),
    **dict.fromkeys(
        ("make audit", "make audit OSV=URL"), ("test_locks", "test_all_packages_of_all_lock_files_are_looked_up")
    ),
    "make bench": ("test_bench", "test_every_arm_trains_and_tokens_are_counted_in_the_same_way"),
    "make bench-prepare": ("test_documented_commands", "test_the_benchmarks_run"),
    "make bench-pipeline": ("test_documented_commands", "test_the_benchmarks_run"),
    "python -m bench.kernels": ("test_documented_commands", "test_the_kernels_are_compared"),
    "python -m bench.duplicates": ("test_bench", "test_both_ways_to_find_duplicates_find_the_same_rows"),
    "make docker-check": ("test_container", "test_a_complete_host_gets_no_message"),
    "make docker-demo": ("test_docker", "test_the_demo_produces_the_same_lock_after_stops_a_kill_and_a_concurrent_run"),
    "make docker-verify": (
        "test_docker", "test_the_demo_produces_the_same_lock_after_stops_a_kill_and_a_concurrent_run"
    ),
    "make docker-shell": ("test_container", "test_the_shell_starts_in_the_recipe_folder"),
    **dict.fromkeys(
        ("make services-up", "make services-train", "make services-down", "make services-backup BACKUP=mlflow.backup",
         "make services-restore BACKUP=mlflow.backup"),
        ("test_services", "test_a_recipe_logs_to_the_services_and_its_version_survives_down_up_and_restore"),
    ),
    "mlflow models predict -m models:/recipe-demo@champion --env-manager uv --content-type json "
    "--input-path rows.json": (
        "test_registered_model", "test_mlflow_serves_a_version_in_an_environment_of_its_own"
    ),
    **dict.fromkeys(
        ("recipe verify", "make verify", "recipe verify --commit v1.2"),
        ("test_verify", "test_a_commit_is_rebuilt_after_sigterm_without_the_cache_and_the_store_of_the_user"),
    ),
    **dict.fromkeys(
        ("recipe verify --stage train", "recipe verify --tolerance 0.001"),
        ("test_verify", "test_one_stage_is_rebuilt_from_recorded_inputs_and_the_first_difference_is_shown"),
    ),
    **dict.fromkeys(
        ("recipe provenance", "recipe provenance models:/recipe-demo@champion",
         "recipe provenance models:/recipe-demo@champion --public-key key.pub"),
        ("test_provenance", "test_the_chain_of_a_registered_version_is_whole"),
    ),
    "recipe provenance models:/recipe-demo/1 --rebuild": (
        "test_provenance", "test_rebuild_says_whether_the_bytes_are_those_of_the_registry"
    ),
    **dict.fromkeys(
        ("RECIPE_SIGNING_KEY=key.pem recipe register",
         "openssl ecparam -name prime256v1 -genkey -noout -out key.pem && openssl ec -in key.pem -pubout -out key.pub"),
        ("test_provenance", "test_a_version_registered_from_a_changed_tree_becomes_whole_once_all_is_committed"),
    ),
    "make sbom": ("test_provenance", "test_make_sbom_writes_a_valid_bill_of_materials"),
    **dict.fromkeys(
        ("recipe migrate", "recipe migrate lora.yml"), ("test_migrate", "test_an_axolotl_file_becomes_a_recipe")
    ),
    "cd presets/smollm2-135m-cpu && recipe pin && dvc repro": (
        "test_pretrained", "test_all_stages_improve_the_pretrained_model"
    ),
    **dict.fromkeys(
        ("recipe export --to merged", "recipe export --to merged --dtype bfloat16", "recipe export"),
        ("test_export_command", "test_the_adapter_here_and_the_registered_version_give_the_same_model"),
    ),
    **dict.fromkeys(
        ("recipe export --to gguf", "recipe export --to ollama"),
        ("test_export_command", "test_ollama_gets_a_gguf_file_of_the_registered_version_and_a_modelfile"),
    ),
    "recipe export models:/NAME@champion --to bundle": (
        "test_export_command", "test_a_bundle_answers_without_network_and_finds_each_changed_file"
    ),
    **dict.fromkeys(
        ("recipe push", "recipe push OWNER/NAME"),
        ("test_push", "test_a_version_is_shown_then_published_and_an_interrupted_upload_is_continued"),
    ),
    "recipe serve": ("test_serve", "test_llama_cpp_serves_a_registered_version_to_openais_client"),
    "recipe export --to vllm": ("test_serve", "test_vllm_serves_the_adapter_and_not_the_base_model"),
    "make services-serve": ("test_container", "test_vllm_gets_the_export_its_name_and_a_key"),
    **dict.fromkeys(
        ("recipe compare", "recipe compare models:/recipe-demo/2",
         "recipe compare models:/recipe-demo/2 models:/recipe-demo/1"),
        ("test_compare", "test_a_version_is_compared_with_the_champion_or_with_another_one"),
    ),
    "recipe chat --compare": ("test_chat", "test_base_and_adapter_have_conversations_of_their_own"),
    "recipe sync --all": ("test_sync", "test_a_journal_for_another_server_or_with_damage_is_kept_and_named"),
    "recipe train": ("test_cli", "test_the_stages_by_hand_then_summary_and_chat"),
    "recipe new": ("test_cli", "test_a_new_recipe_without_options_uses_the_same_files"),
    "recipe new my-recipe --data rows.jsonl": ("test_documented_commands", "test_a_recipe_of_ones_own_and_a_sweep"),
    "cd presets/my-recipe && dvc repro": ("test_documented_commands", "test_a_recipe_of_ones_own_and_a_sweep"),
    "dvc repro": (".ci/run", "dvc repro"),
    "dvc exp run --queue": ("test_documented_commands", "test_a_recipe_of_ones_own_and_a_sweep"),
    "dvc exp apply": ("test_documented_commands", "test_a_recipe_of_ones_own_and_a_sweep"),
    "dvc metrics diff": ("test_documented_commands", "test_a_recipe_of_ones_own_and_a_sweep"),
    "dvc plots diff": ("test_documented_commands", "test_a_recipe_of_ones_own_and_a_sweep"),
    "dvc repro -f": ("test_documented_commands", "test_a_recipe_of_ones_own_and_a_sweep"),
    "dvc exp run -S lora.r=4": ("test_documented_commands", "test_a_recipe_of_ones_own_and_a_sweep"),
    "recipe new my-recipe --data ~/rows.json": (
        "test_cli", "test_a_new_recipe_accepts_a_file_and_rejects_a_folder_without_train_split"
    ),
    "recipe new my-model --data rows.jsonl --model ~/models/my-base": (
        "test_cli", "test_a_new_recipe_has_its_params_with_comments_and_the_roots_pipeline"
    ),
    "recipe new other --data tatsu-lab/alpaca --model Qwen/Qwen3-0.6B-Base": (
        "test_cli", "test_a_new_recipe_can_use_data_and_model_from_the_hub"
    ),
}  # fmt: skip
MAKE = ["make", "-o", "env"]  # with the environment that runs the tests
NEEDS_A_GPU = {"make docker-train", "make docker-train RECIPE=presets/qwen3-chat"}


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in LOGS], ids=lambda page: page.name)
def test_every_command_is_run_by_a_test_or_needs_a_gpu(page):
    known = {*IN_THE_DEMO, *SWEEP, *ELSEWHERE, *NEEDS_A_GPU}
    assert [line for line in console_lines(page) if line not in known] == []


@pytest.mark.parametrize("command", ELSEWHERE)
def test_the_named_test_exists(command):
    file, name = ELSEWHERE[command]
    text = (ROOT / file if "/" in file else ROOT / "tests" / f"{file}.py").read_text()
    assert (name if "/" in file else f"\ndef {name}(") in text


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
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@pytest.mark.long
@pytest.mark.parametrize("target", ["bench-prepare", "bench-pipeline"])
def test_the_benchmarks_run(finished, target):
    assert run(finished, *MAKE, target).count("\n| ") > 2


@pytest.mark.slow
def test_the_kernels_are_compared(finished):
    output = run(finished, "python", "-m", "bench.kernels", "--rounds", "1", "--steps", "2")
    assert "| torch | " in output and "| portable | " in output
    assert re.search(r"the portable kernels take \d+% of the time of torch's own kernels", output)


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
    assert "last_loss" in run(recipe, "dvc", "metrics", "diff")
    run(recipe, "dvc", "plots", "diff")
    assert "Checkout failed" in run(recipe, "dvc", "exp", "apply", "rank-4", check=False)  # as docs/sweeps.md says
    run(recipe, "dvc", "exp", "run", "-S", "lora.r=2")
    assert len(stages_run(run(recipe, "dvc", "repro", "-f"))) == 7
