"""Writes a tar file with a registered version and all that it needs on a machine without network.

    export_bundle(trained, artifacts, lock, Path("exports/bundle"), "my-model", scratch, say)

The file contains the base model, the adapter, the tokenizer, the code, the model card, the provenance, the list of
packages with hashes, and answer.py, which checks the hashes of all files and answers a prompt. Before the file is kept,
it is unpacked and answer.py is run: its answer must be the adapter's.
"""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from recipe.core.errors import TrainingError
from recipe.core.io import new_folder, sha256_file, write_json, write_text
from recipe.export.merged import reference_of
from recipe.export.outcome import Say, write_marker
from recipe.export.trained import Trained

ANSWER = Path(__file__).with_name("bundle_answer.py")
SUMS = "SHA256SUMS"
README = """\
# {name}

A fine-tuned model with all that it needs on a machine without network. MODEL_CARD.md describes it, and
provenance/ says what it was made from.

On a machine with network, download the packages (about {packages}; Python 3.11, Linux, x86-64):

    pip download --require-hashes --no-deps -d wheels -r requirements.lock

On this machine:

    python3.11 -m venv env
    env/bin/pip install --no-index --find-links wheels --require-hashes --no-deps -r requirements.lock
    env/bin/python answer.py                        # checks all files and one known answer
    env/bin/python answer.py "What is 12 + 30?"     # checks all files and answers

torch comes from {torch}.
"""
TORCH = {
    "cpu.lock": ("1 GB", "the index https://download.pytorch.org/whl/cpu, which `--extra-index-url` adds"),
    "cuda.lock": ("5 GB", "the public package index, as a CUDA build"),
}


def export_bundle(
    trained: Trained, artifacts: Path, lock: Path, folder: Path, name: str, scratch: Path, say: Say
) -> Path:
    """Write `NAME.tar` to `folder`, and return its path.

    `artifacts` contains the files of the registered version, and `lock` is the lock file that it was trained with.
    Raises TrainingError if the unpacked bundle does not give the adapter's answer; nothing is kept then.
    """
    reference = reference_of(trained, scratch, say)
    say("collecting the files")
    content = scratch / name
    content.mkdir()
    (content / "base").mkdir()
    for path in trained.base_files():
        shutil.copy(path, content / "base" / path.name)
    for entry in ("adapter", "tokenizer", "recipe", "provenance"):
        if (artifacts / entry).is_dir():
            shutil.copytree(artifacts / entry, content / entry, ignore=shutil.ignore_patterns("__pycache__"))
    for entry in ("manifest.json", "meta.json", "train.json", "MODEL_CARD.md"):
        if (artifacts / entry).is_file():
            shutil.copy(artifacts / entry, content / entry)
    shutil.copy(lock, content / "requirements.lock")
    shutil.copy(ANSWER, content / "answer.py")
    packages, torch = TORCH[lock.name]
    write_text(content / "README.md", README.format(name=name, packages=packages, torch=torch))
    write_json(content / "check.json", reference.check)
    files = sorted(path.relative_to(content).as_posix() for path in content.rglob("*") if path.is_file())
    write_text(content / SUMS, "".join(f"{sha256_file(content / file)}  {file}\n" for file in files))
    with new_folder(folder) as target:
        tar = target / f"{name}.tar"
        _pack(content, tar)
        shutil.rmtree(content)
        say("unpacking the bundle, and checking its files and its answer")
        with tarfile.open(tar) as packed:
            packed.extractall(scratch)  # our own file; a filter would need Python 3.11.4
        done = subprocess.run(
            [sys.executable, "-P", str(content.resolve() / "answer.py")], capture_output=True, text=True, check=False,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"}, cwd=scratch,
        )  # fmt: skip
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines()
            reason = (lines or [f"answer.py exited with {done.returncode}"])[-1]
            raise TrainingError(f"the bundle is not the trained model, so it was not kept: {reason}")
        write_marker(target, trained, "none", "as trained", reference)
    return folder / f"{name}.tar"


def _pack(content: Path, tar: Path) -> None:
    """Write a folder to a tar file. The bytes depend on names and contents only."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = ""
        member.mode = 0o755 if member.isdir() else 0o644
        return member

    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as packed:
        packed.add(content, content.name, recursive=False, filter=plain)
        for path in sorted(content.rglob("*")):
            packed.add(path, f"{content.name}/{path.relative_to(content).as_posix()}", recursive=False, filter=plain)
