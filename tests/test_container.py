"""The container's files, tested without a Docker daemon: linters, and the messages of the host check."""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

BIN = Path(sys.executable).parent
SCRIPTS = ["host", "services", "install", "mlflow-server", "inside/recipe", "inside/repro"]


@pytest.mark.parametrize(
    "command",
    [
        ["hadolint", "docker/Dockerfile"],
        [
            "hadolint",
            "--failure-threshold",
            "warning",
            "--ignore",
            "DL3008",
            "--ignore",
            "DL3006",
            "tests/docker/postgres.Dockerfile",
        ],
        ["shellcheck", *(f"docker/{name}" for name in SCRIPTS), "tests/docker/postgres-start"],
        [
            "check-jsonschema",
            "--builtin-schema",
            "vendor.compose-spec",
            "docker/compose.yaml",
            "docker/compose.gpu.yaml",
        ],
    ],
    ids=lambda command: f"{command[0]}-{Path(command[-1]).name}",
)
def test_linters_report_nothing(command):
    done = subprocess.run([BIN / command[0], *command[1:]], cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def program(folder, name, text):
    path = folder / name
    path.unlink(missing_ok=True)  # do not write through a symlink
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def host(tmp_path):
    """The commands of a host with a Docker daemon, NVIDIA's runtime, a GPU, and the usual tools."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in "sh cat sed awk df dirname head tail tr grep id find mkdir basename sha256sum cut".split():
        (folder / tool).symlink_to(f"/usr/bin/{tool}")
    docker = """case "$1 $2" in
      "version --format") echo 28.0.1 ;;
      "image inspect") exit 1 ;;
      "info --format") case "$3" in *RootDir*) echo / ;; *) echo '{"Runtimes":{"nvidia":{},"runc":{}}}' ;; esac ;;
    esac"""
    program(folder, "docker", docker)
    program(folder, "nvidia-smi", "echo '580.65.06, NVIDIA H100 80GB HBM3'")
    return folder


def check(host, **variables):
    return subprocess.run(
        [ROOT / "docker/host", "check"], env={"PATH": str(host), "HOME": "/root", **variables}, text=True,
        capture_output=True, check=False,
    )  # fmt: skip


def test_a_complete_host_gets_no_message(host):
    done = check(host)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


NO_ENGINE = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
DENIED = "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("docker", None, "Docker is not installed. Install it: https://docs.docker.com/engine/install"),
        ("docker", f"echo '{NO_ENGINE}' >&2; exit 1", "Start it: sudo systemctl start docker"),
        (
            "docker",
            f"echo '{DENIED}' >&2; exit 1",
            "this user has no permission to use Docker. Run this command, and then log in again: sudo usermod -aG",
        ),
        ("nvidia-smi", None, "no NVIDIA driver was found"),
        (
            "nvidia-smi",
            'echo "NVIDIA-SMI has failed because it couldn\'t communicate"; exit 9',
            "(nvidia-smi: NVIDIA-SMI",
        ),
        ("nvidia-smi", "echo '535.183.01, NVIDIA A100'", "driver is 535, but CUDA 13 in the image needs 580"),
        ("df", "echo x; echo '/dev/vda 100 90 7000 93% /'", "/ has 7000 MB free, but building the image needs 20000"),
        ("awk", "echo 900", "900 MB of memory is free, but the container needs 1024 MB of shared memory"),
    ],
)
def test_each_missing_requirement_is_one_line_that_says_what_to_do(host, name, text, message):
    (host / name).unlink()
    if text is not None:
        program(host, name, text)
    done = check(host)
    assert done.returncode == 4 and message in done.stderr
    assert all(line.startswith("error: ") for line in done.stderr.splitlines())


@pytest.mark.parametrize("option", ["name=rootless", "name=userns"])
def test_a_daemon_that_maps_user_ids_is_refused(host, option):
    text = (
        (host / "docker")
        .read_text()
        .replace("*RootDir*) echo / ;;", f"*RootDir*) echo / ;; *Security*) echo '[\"{option}\"]' ;;")
    )
    (host / "docker").write_text(text)
    done = check(host)
    assert done.returncode == 4 and "can't write to your folder" in done.stderr


@pytest.fixture
def called(host, tmp_path):
    """Run docker/host in a temporary repository; returns its Docker commands, one line per call."""
    log, repository = tmp_path / "calls", tmp_path / "outer" / "repository"
    text = (host / "docker").read_text().replace("exit 1 ;;", "echo sha256:abc ;;")
    program(host, "docker", f'echo "$@" >>{log}\n' + text.partition("\n")[2])
    for tool in ("git", "realpath"):
        (host / tool).symlink_to(f"/usr/bin/{tool}")
    for name in (
        "docker/host",
        "requirements/cpu.lock",
        "pyproject.toml",
        "params.yaml",
        ".gitignore",
        "presets/a/params.yaml",
    ):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        source = ROOT / name if (ROOT / name).exists() else ROOT / "params.yaml"
        shutil.copy(source, repository / name)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *command], cwd=repository, check=True)

    def call(*arguments):
        log.unlink(missing_ok=True)
        environment = {"PATH": str(host), "HOME": str(tmp_path), "LOCK": "cpu", "RECIPE": "."}
        done = subprocess.run(
            [repository / "docker/host", *arguments], env=environment, text=True, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return log.read_text().splitlines()

    return call, repository


@pytest.mark.parametrize(
    "changed", ["params.yaml", "new.py", "presets/a/params.yaml", None, "metrics/train.json", "dvc.lock"]
)
def test_an_image_built_from_changed_files_is_labeled_as_changed(called, changed):
    """Outputs of a run (metrics, dvc.lock) do not count as changes."""
    call, repository = called
    if changed:
        (repository / changed).parent.mkdir(exist_ok=True)
        (repository / changed).write_text("changed")
    [build] = [line for line in call("build") if line.startswith("build ")]
    label = re.search(r"COMMIT=([0-9a-f]{40})(-changed)? ", build)
    assert bool(label[2]) == (changed in ("params.yaml", "new.py", "presets/a/params.yaml"))


@pytest.mark.parametrize(
    ("written", "source", "target"),
    [
        ("/caches/all", "/caches/all", "/caches/all"),
        ("../../all", "{outer}/all", "/all"),
        ("cache2", "{outer}/repository/.dvc/cache2", "/workspace/.dvc/cache2"),
    ],
)
def test_a_shared_dvc_cache_is_mounted_where_dvc_expects_it(called, written, source, target, host):
    call, repository = called
    program(host, "mkdir", "true")
    (repository / ".dvc").mkdir()
    (repository / ".dvc/config").write_text(f"[cache]\n    type = copy\n    dir = {written}\n")
    source = source.format(outer=repository.parent)
    runs = [line for line in call("train") if line.startswith("run ")]
    assert runs and all(f"--mount type=bind,source={source},target={target} " in line for line in runs)


def test_the_shell_starts_in_the_recipe_folder(called, host):
    call, _ = called
    program(host, "mkdir", "true")
    [shell] = [line for line in call("shell") if line.startswith("run ")]
    assert shell.endswith("bash") and " --workdir /workspace/. " in shell


def test_a_missing_container_toolkit_is_reported(host):
    text = (host / "docker").read_text().replace('"nvidia":{},', "")
    (host / "docker").write_text(text)
    done = check(host)
    assert done.returncode == 4 and "nvidia-ctk runtime configure --runtime=docker" in done.stderr


def test_a_missing_build_plugin_is_reported(host):
    text = (
        (host / "docker").read_text().replace('"image inspect"', '"buildx version") exit 1 ;;\n      "image inspect"')
    )
    program(host, "docker", text.partition("\n")[2])
    assert "Docker 28.0.1 needs the buildx plugin, which is missing" in check(host).stderr


def test_a_tracking_server_on_loopback_is_refused(host):
    assert "make services-train" in check(host, MLFLOW_TRACKING_URI="http://127.0.0.1:5000").stderr
    output = check(host, MLFLOW_TRACKING_URI="http://user:planted@127.0.0.1:5000").stderr
    assert "http://127.0.0.1:5000 would refer to the container itself" in output and "planted" not in output


def test_training_on_a_gpu_is_planned_and_run_as_the_caller_without_privileges(host, tmp_path):
    """Check every command that a host with a GPU passes to Docker."""
    log = tmp_path / "calls"
    text = (host / "docker").read_text().replace("exit 1 ;;", "echo sha256:abc ;;")
    program(host, "docker", f'echo "$@" >>{log}\n' + text.partition("\n")[2])
    (tmp_path / "certificates").write_text("x")
    done = subprocess.run(
        [ROOT / "docker/host", "train"], text=True, capture_output=True, check=False,
        env={"PATH": str(host), "HOME": str(tmp_path), "HF_TOKEN": "hf_x", "CA_BUNDLE": str(tmp_path / "certificates")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    calls = log.read_text().splitlines()
    [build] = [line for line in calls if line.startswith("build ")]
    assert "--build-arg LOCK=cuda" in build and "hf_x" not in log.read_text()
    runs = [line for line in calls if line.startswith("run ")]
    ends = ("recipe:cuda recipe pin", "recipe:cuda recipe plan", "recipe:cuda repro", "recipe:cuda recipe summary")
    assert len(runs) == 4 and all(line.endswith(end) for line, end in zip(runs, ends, strict=True))
    for command in runs:
        for option in (
            f"--user {os.getuid()}:{os.getgid()}", "--read-only", "--cap-drop ALL", "--gpus all", "--env HF_TOKEN",
            "--security-opt no-new-privileges", f"source={tmp_path}/.cache/huggingface,target=/cache/huggingface",
            "--workdir /workspace/presets/xgen-7b-alpaca", "--env RECIPE_IMAGE=sha256:abc", "SSL_CERT_FILE=",
        ):  # fmt: skip
            assert option in command, (option, command)


def test_all_problems_are_reported_at_once(host):
    (host / "nvidia-smi").unlink()
    program(host, "awk", "echo 900")
    done = check(host, RECIPE="presets/none")
    assert done.returncode == 4 and len(done.stderr.splitlines()) == 4  # the free disk space is also read with awk
    assert "RECIPE=presets/none is not a recipe folder" in done.stderr and ". presets/" in done.stderr


def test_without_cuda_no_gpu_is_required(host):
    (host / "nvidia-smi").unlink()
    done = check(host, LOCK="cpu", RECIPE=".")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["host", "services"])
def test_a_script_without_a_command_prints_its_commands(name, tmp_path):
    done = subprocess.run([ROOT / "docker" / name], cwd=tmp_path, text=True, capture_output=True, check=False)
    assert done.returncode == 2 and "train" in done.stdout and done.stderr == ""


def test_the_server_does_not_start_beyond_loopback_without_a_password():
    environment = {**os.environ, "DATABASE_URL": "x", "MLFLOW_ARTIFACTS": "x", "BIND": "0.0.0.0"}
    environment.pop("MLFLOW_AUTH_ADMIN_PASSWORD", None)
    done = subprocess.run([ROOT / "docker/mlflow-server"], env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 2 and "needs MLFLOW_AUTH_ADMIN_PASSWORD" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stop_between_two_stages_ends_the_run_before_the_next_stage(number, code, tmp_path):
    """docker/inside/repro with a fake `dvc` that runs a stage, and another one when the stop was requested."""
    stage = f"{sys.executable} -P recipe/__main__.py params registry.name"
    run = f"{sys.executable} -c 'from recipe.cli.run_metadata import *; die_with_parent(); end_if_asked()'"
    program(
        tmp_path,
        "dvc",
        f"cd {ROOT}; {stage} || exit 1\necho between\n"
        'for _ in $(seq 300); do [ -e "$RECIPE_STOP" ] && break; sleep 0.1; done\n'
        f"{run} || exit 255\necho the next stage ran",
    )
    work = tmp_path / "work"
    work.mkdir()
    path = f"{tmp_path}:{os.environ['PATH']}"
    running = subprocess.Popen(
        [ROOT / "docker/inside/repro"], cwd=work, env={**os.environ, "PATH": path}, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    for line in running.stdout:
        if line == "between\n":
            os.killpg(running.pid, number)  # as tini -g and a terminal do
            break
    out = running.communicate(timeout=60)[0]
    assert running.returncode == code, out
    assert "stopped before this stage started. Run `dvc repro` to resume." in out and "the next stage ran" not in out


def test_a_folder_in_use_is_refused_with_the_name_of_its_container(tmp_path):
    program(tmp_path, "dvc", "echo working; sleep 4")
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [ROOT / "docker/inside/repro"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == "working\n"
        second = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, check=False)
        assert first.wait(timeout=60) == 0
    assert second.returncode == 4 and re.search(r"^error: container \S+, since 2\S+, is running", second.stderr)


def test_vllm_gets_the_export_its_name_and_a_key(tmp_path):
    """`docker/services serve` with an engine that prints what it is asked for."""
    shutil.copytree(ROOT / "docker", tmp_path / "docker")
    engine = tmp_path / "engine"
    engine.write_text('#!/bin/sh\necho "$@"\nenv\n')
    engine.chmod(0o755)
    environment = {**os.environ, "COMPOSE": str(engine), "RECIPE": "presets/mine"}
    environment.pop("RECIPE_API_KEY", None)

    def serve(**changes):
        return subprocess.run([tmp_path / "docker" / "services", "serve"], env={**environment, **changes},
                              capture_output=True, text=True, check=False)  # fmt: skip

    model = tmp_path / "presets" / "mine" / "exports" / "vllm-bfloat16"
    model.parent.mkdir(parents=True)
    missing = serve()
    assert missing.returncode == 4 and "Write it in the recipe folder: recipe export --to vllm" in missing.stderr
    model.mkdir()
    (model / "export.json").write_text("{}")
    out = serve().stdout.splitlines()
    key = out[0].removeprefix("API key: ").partition(" ")[0]
    assert len(key) == 48 and f"RECIPE_API_KEY={key}" in out
    assert out[1].endswith("-f compose.yaml -f compose.gpu.yaml --profile vllm up --exit-code-from vllm vllm")
    assert {f"MODEL={model}", "MODEL_NAME=mine"} <= set(out)
    named = serve(NAME="other", RECIPE_API_KEY="k", LOCK="cpu").stdout.splitlines()
    assert "compose.gpu.yaml" not in named[0] and {"MODEL_NAME=other", "RECIPE_API_KEY=k"} <= set(named)
