"""The same bytes on every processor: this one, and others that qemu-user emulates, with their vendor.

qemu emulates instructions up to AVX2. Docs/reproducibility.md lists the processors with AVX-512 on which the demo's
adapter was confirmed.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import RECIPE, ROOT, edit, small_repository
from runs import ENVIRONMENT

PROGRAM = [sys.executable, str(ROOT / "tests" / "digests.py")]
INTEL, AMD = "Haswell-v4", "EPYC-Rome"
MORE = ["Broadwell-v4", "Skylake-Client-v4", "Icelake-Server-v6", "EPYC-v3", "EPYC-Milan-v1", "Dhyana-v1"]


def other_vendor():
    """An emulated processor whose vendor is not this processor's."""
    return INTEL if "AuthenticAMD" in Path("/proc/cpuinfo").read_text() else AMD


def digests(*arguments, processor=None, before=(), program=PROGRAM, **environment):
    """Run tests/digests.py; `before` are words before its command, and `program` is the command."""
    if processor and not shutil.which("qemu-x86_64"):
        pytest.skip("qemu-x86_64 is not installed (Debian and Ubuntu: apt-get install qemu-user)")
    emulator = ["qemu-x86_64", "-cpu", processor] if processor else before
    done = subprocess.run(
        [*map(str, emulator), *program, *map(str, arguments)], capture_output=True, text=True, check=False,
        env={**ENVIRONMENT, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout[done.stdout.index("{") :])


@pytest.fixture(scope="module")
def native():
    found = digests()
    assert len(found) > 40
    return found


@pytest.mark.slow
def test_operations_agree_with_a_processor_of_the_other_vendor(native):
    assert digests(processor=other_vendor()) == native


@pytest.mark.long
@pytest.mark.parametrize("processor", [INTEL, AMD, *MORE])
def test_operations_agree_with_every_emulated_processor(native, processor):
    assert digests(processor=processor) == native


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A prepared recipe with the demo's base model, a few rows, two training steps and two threads."""
    repository = small_repository(tmp_path_factory.mktemp("processors") / "repository")
    subprocess.run([*RECIPE, "new", "quick", "--data", "rows"], cwd=repository, check=True, env=ENVIRONMENT)
    folder = repository / "presets" / "quick"
    edit(folder, "num_epochs: 1 ", "num_epochs: 0.25")
    edit(folder, "warmup_ratio: 0.1", "warmup_ratio: 0")
    edit(folder, "activation_checkpointing: auto", "activation_checkpointing: off")
    edit(folder, "max_generations: 450", "max_generations: 2")
    edit(folder, "max_new_tokens: 64", "max_new_tokens: 8")
    for command in (["fetch", "data"], ["fetch", "model"], ["prepare"]):
        subprocess.run([*RECIPE, *command], cwd=folder, check=True, env=ENVIRONMENT, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def trained_here(recipe):
    found = digests(recipe)
    assert json.loads((recipe / "metrics" / "train.json").read_text())["steps"] == 2
    return found


@pytest.mark.slow
def test_training_and_evaluation_agree_with_a_processor_of_the_other_vendor(recipe, trained_here):
    assert digests(recipe, processor=other_vendor()) == trained_here


@pytest.mark.long
@pytest.mark.parametrize("processor", [INTEL, AMD, *MORE])
def test_training_and_evaluation_agree_with_every_emulated_processor(recipe, trained_here, processor):
    assert digests(recipe, processor=processor) == trained_here


@pytest.mark.slow
def test_training_and_evaluation_agree_on_a_single_core(recipe, trained_here):
    """The number of threads is that of params.yaml, whatever the number of cores."""
    assert digests(recipe, before=["taskset", "--cpu-list", "0"]) == trained_here


@pytest.fixture(scope="module")
def other_glibc(tmp_path_factory):
    """The command that starts a program with the C library of Debian 13 (2.41); this machine has a different one."""
    if os.geteuid() or not shutil.which("debootstrap"):
        pytest.skip("Debian 13 can be installed into a folder only by root with debootstrap")
    folder = tmp_path_factory.mktemp("glibc") / "trixie"
    command = ["debootstrap", "--variant=minbase", "--foreign", "trixie", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"Debian 13 can't be downloaded: {done.stdout[-300:]}")
    libraries = folder / "usr" / "lib" / "x86_64-linux-gnu"
    starter = [str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries)]
    code = "import os; print(os.confstr('CS_GNU_LIBC_VERSION'))"
    version = subprocess.run([*starter, sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert version.strip() == "glibc 2.41" != os.confstr("CS_GNU_LIBC_VERSION")
    return starter


@pytest.mark.long
def test_operations_training_and_evaluation_agree_with_another_c_library(native, recipe, trained_here, other_glibc):
    assert digests(before=other_glibc) == native
    assert digests(recipe, before=other_glibc) == trained_here


@pytest.mark.long
def test_operations_training_and_evaluation_agree_with_another_python_patch_version(native, recipe, trained_here):
    major, minor, patch = sys.version_info[:3]
    own = Path.home().glob(f".pyenv/versions/{major}.{minor}.*/bin/python")
    candidates = [Path(f"/usr/bin/python{major}.{minor}"), *own]
    for python in filter(Path.is_file, candidates):
        code = "import platform; print(platform.python_version())"
        version = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        if version != f"{major}.{minor}.{patch}":
            break
    else:
        pytest.skip(f"there is no Python {major}.{minor} of another patch version")
    program, packages = [str(python), *PROGRAM[1:]], sysconfig.get_path("purelib")
    assert digests(program=program, PYTHONPATH=packages) == native
    assert digests(recipe, program=program, PYTHONPATH=packages) == trained_here
