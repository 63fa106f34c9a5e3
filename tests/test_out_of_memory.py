"""Memory runs out: in torch, and so that the kernel kills the stage. The keys that help are named, with numbers."""

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from conftest import RECIPE, edit, evaluate_in, small_repository
from runs import ENVIRONMENT, children

import recipe.evaluate.answers
from recipe.cli.supervise import out_of_memory_kills
from recipe.core.errors import TrainingError
from recipe.model.memory import out_of_memory

CGROUPS = (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory.max"))  # version 1, 2


def raise_(error):
    raise error


@pytest.mark.parametrize(
    "message",
    ["CUDA out of memory. Tried to allocate 2 GiB", "[enforce fail] DefaultCPUAllocator: can't allocate memory"],
)
def test_the_allocators_errors_are_explained_with_sizes(message):
    with pytest.raises(TrainingError) as error, out_of_memory("the evaluation", "Lower it (now 8)."):
        raise RuntimeError(message)
    assert re.fullmatch(
        r"the evaluation ran out of memory: it used up to [\d.]+ .B, and [\d.]+ .B of [\d.]+ .B is available\. "
        r"Lower it \(now 8\)\.", str(error.value),
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="shape"), out_of_memory("the evaluation", ""):
        raise RuntimeError("shape mismatch")


def test_a_real_allocation_that_fails_is_explained():
    import torch

    with pytest.raises(TrainingError, match="training ran out of memory"), out_of_memory("training", ""):
        torch.empty(1 << 50)


def test_the_evaluation_names_its_keys_with_their_values(trained, fetched_base, monkeypatch):
    folder = trained()
    error = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
    monkeypatch.setattr(recipe.evaluate.answers, "score", lambda *_: raise_(error))
    with pytest.raises(
        TrainingError, match=r"Lower evaluate.batch_tokens \(now 600\) or evaluate.max_new_tokens \(now 5\)"
    ):
        evaluate_in(folder, fetched_base)


@pytest.fixture(scope="module")
def repository(tiny_base, tmp_path_factory):
    folder = small_repository(tmp_path_factory.mktemp("memory") / "repository")
    for command in (["new", "quick", "--data", "rows", "--model", tiny_base],):
        subprocess.run([*RECIPE, *command], cwd=folder, env=ENVIRONMENT, check=True, capture_output=True)
    quick = folder / "presets" / "quick"
    for old, new in (("num_epochs: 1 ", "num_epochs: 30 "), ("logging_steps: 10", "logging_steps: 1")):
        edit(quick, old, new)
    for command in (["fetch", "data"], ["fetch", "model"], ["prepare"]):
        subprocess.run([*RECIPE, *command], cwd=quick, env=ENVIRONMENT, check=True, capture_output=True)
    return quick


@pytest.fixture
def small_memory():
    """The `cgroup.procs` of a control group whose processes may use 250 MB; torch alone needs more to train."""
    controller = next((path for path in CGROUPS if path.is_file()), None)
    if controller is None or not os.access(controller.parent, os.W_OK):
        pytest.skip("no memory controller that this user may change")
    group = controller.parent / f"recipe-{uuid.uuid4().hex[:8]}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    try:
        (group / controller.name).write_text("250000000")
        yield group / "cgroup.procs"
    finally:
        deadline = time.monotonic() + 10
        while group.is_dir():
            try:
                group.rmdir()
            except OSError:  # a killed process may still be ending
                assert time.monotonic() < deadline
                time.sleep(0.1)


@pytest.mark.slow
def test_a_stage_that_the_kernel_kills_is_explained(repository, small_memory):
    done = subprocess.run(
        ["sh", "-c", 'echo $$ > "$0" && exec "$@"', small_memory, *RECIPE, "train"], cwd=repository, env=ENVIRONMENT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 5, done.stdout + done.stderr
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(
        r"error: the train stage ran out of memory, and the kernel killed it when it used \d+\.\d MB\. Lower "
        r"train\.micro_batch_tokens \(now \d+\), or set train\.activation_checkpointing: on \(now auto\) or "
        r"train\.quantization: nf4 \(now none\)\.", last,
    ), done.stderr  # fmt: skip
    assert not (repository / "models" / "adapter").exists()


def start(repository, **options):
    process = subprocess.Popen(
        [*RECIPE, "train"], cwd=repository, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, **options,
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith("step "):
            break
    [child] = children(process.pid)
    return process, child


@pytest.mark.slow
def test_a_kill_by_a_person_is_not_reported_as_lack_of_memory(repository):
    process, child = start(repository)
    os.kill(child, signal.SIGKILL)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 137 and "the train stage was ended by SIGKILL. Run `dvc repro`" in errors


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_stage_once_even_if_the_whole_group_gets_it(repository, number):
    process, child = start(repository)
    os.killpg(process.pid, number)
    out, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number, errors
    assert out.count("stopping after this micro-batch") == 1 and "training was stopped after step" in errors
    assert not Path(f"/proc/{child}").exists()


@pytest.mark.slow
def test_the_stage_ends_when_its_parent_is_killed(repository):
    process, child = start(repository)
    os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{child}").exists() and Path(f"/proc/{child}/stat").read_text().split(")")[1].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_ctrl_z_suspends_the_stage_and_fg_resumes_it(repository):
    def state(pid):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]

    def wait(pids, wanted):
        deadline = time.monotonic() + 10
        while {state(pid) for pid in pids} != {wanted}:
            assert time.monotonic() < deadline, [state(pid) for pid in pids]
            time.sleep(0.02)

    process, child = start(repository)
    os.kill(process.pid, signal.SIGTSTP)
    wait([process.pid, child], "T")
    os.kill(process.pid, signal.SIGCONT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors


def test_kills_are_counted_from_the_kernels_counters(tmp_path):
    counters = tmp_path / "vmstat"
    assert out_of_memory_kills(counters) == 0
    counters.write_text("pgfault 12\noom_kill 3\n")
    assert out_of_memory_kills(counters) == 3
    assert sys.platform != "linux" or out_of_memory_kills() >= 0
