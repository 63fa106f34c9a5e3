"""`make` on a machine without Python 3.11, in an unpacked archive in a folder with a space in its name."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest


def other_python():
    """A Python 3 with venv that is not 3.11, or None."""
    names = ["python3.12", "python3.13", "python3.14", "python3.10"]
    installed = sorted(Path.home().glob(".pyenv/versions/*/bin/python3.1[02-9]"))
    for python in filter(None, [*map(shutil.which, names), *installed]):
        done = subprocess.run([python, "-c", "import ensurepip, venv"], capture_output=True, check=False)
        if not done.returncode:
            return Path(python).resolve()
    return None


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    """A list of downloads for uv with one Python 3.11, this one, packed as uv expects it."""
    if sys.base_prefix == "/usr":
        pytest.skip("this Python is the system's and can't be packed")
    folder = tmp_path_factory.mktemp("mirror")
    archive = folder / "python.tar.gz"
    left_out = ("site-packages", "__pycache__", "test", "config-3.11-x86_64-linux-gnu", "share")
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        tar.add(
            sys.base_prefix, "python",
            filter=lambda entry: None if entry.name.rsplit("/", 1)[-1] in left_out else entry,
        )  # fmt: skip
    build = {
        "name": "cpython", "arch": {"family": "x86_64", "variant": None}, "os": "linux", "libc": "gnu",
        "major": 3, "minor": 11, "patch": sys.version_info.micro, "prerelease": "", "variant": None, "build": "1",
        "url": archive.as_uri(), "sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
    }  # fmt: skip
    downloads = folder / "downloads.json"
    downloads.write_text(json.dumps({"cpython-3.11-linux-x86_64-gnu": build}))
    return downloads


@pytest.fixture
def machine(tmp_path, commit):
    """Environment variables of a machine whose only Python is not 3.11, and an unpacked archive of the project."""
    python = other_python()
    if python is None:
        pytest.skip("no Python 3 other than 3.11 is installed")
    commands = tmp_path / "bin"
    commands.mkdir()
    for folder in reversed(["/bin", "/usr/bin", "/usr/local/bin"]):
        for path in Path(folder).iterdir():
            if not path.name.startswith(("python", "pip", "uv")) and not (commands / path.name).exists():
                (commands / path.name).symlink_to(path)
    (commands / "python3").symlink_to(python)
    folder = tmp_path / "my models" / "recipe"
    folder.parent.mkdir()
    archive = subprocess.run(
        ["git", "archive", "--prefix=recipe/", "HEAD"], cwd=commit, check=True, capture_output=True
    )
    subprocess.run(["tar", "-x", "-C", folder.parent], input=archive.stdout, check=True)
    left_out = ("PYENV", "VIRTUAL", "UV_", "MAKE", "MFLAGS", "LOCK", "PYTHON")  # also what an outer make passes on
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    yield folder, {**inherited, "PATH": str(commands), "HOME": str(tmp_path / "home")}
    shutil.rmtree(tmp_path)  # 1.5 GB


def make(machine, *arguments, code=0, **variables):
    folder, environment = machine
    done = subprocess.run(
        ["make", *arguments], cwd=folder, env={**environment, **variables}, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout
    return done.stdout


@pytest.mark.slow
def test_python_311_is_downloaded_if_it_is_missing(machine, mirror):
    folder, environment = machine
    out = make(machine, "env", UV_PYTHON_DOWNLOADS_JSON_URL=str(mirror))
    assert "Python 3.11 was not found; downloading it with uv" in out
    environment = {**environment, "PATH": f"{folder}/.venv/bin:{environment['PATH']}", "PYTHONHASHSEED": "0"}
    expected = {
        "python --version": (0, "Python 3.11."),
        "recipe summary": (4, "Run `dvc repro`"),
        "dvc repro fetch@data fetch@model": (0, "Use `dvc push`"),
    }
    for command, (code, text) in expected.items():
        done = subprocess.run(command.split(), cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code and text in done.stdout + done.stderr, done.stdout + done.stderr
    assert (folder / "models/base/manifest.json").is_file()


@pytest.mark.slow
def test_a_failed_download_of_python_gives_one_line(machine, tmp_path):
    out = make(machine, "env", code=2, UV_PYTHON_DOWNLOADS_JSON_URL=str(tmp_path / "missing.json"))
    errors = [line for line in out.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "uv could not download Python 3.11" in errors[0] and "make PYTHON=..." in errors[0]
    assert "Traceback" not in out


@pytest.mark.slow
def test_another_version_given_as_python_is_refused(machine):
    out = make(machine, "env", f"PYTHON={machine[1]['PATH']}/python3", code=2)
    assert "error: Python 3.11 is required, but" in out
