"""Clones a commit and rebuilds a recipe folder in the clone, without the user's DVC cache, outputs and MLflow server.

with Rebuild.of(Path(), "HEAD", stage=None) as rebuild:
    rebuild.run()
    rebuild.recorded, rebuild.rebuilt()    # the stages in dvc.lock, in the commit and after the rebuild

The clone is in .recipe/verify/ of the recipe folder. If the command is interrupted, the clone remains, and the next
command resumes there.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from recipe.core.config import load_yaml
from recipe.core.errors import MachineError, ParamsError, Stopped
from recipe.core.git import git
from recipe.core.io import file_lock, write_text
from recipe.core.paths import read_paths

LEVELS = ("a", "b", "c")  # folders above the clone, in which a source such as ../../../rows is linked
CLONED = "cloned"  # this file marks a complete clone


@dataclass(frozen=True)
class Rebuild:
    """A clone of a commit, and the recipe folder that is rebuilt in it. All paths are absolute."""

    folder: Path  # the user's recipe folder
    repository: Path  # the user's repository
    commit: str
    clone: Path
    recorded: dict[str, Any]  # all stages in the commit's dvc.lock
    stages: tuple[str, ...]  # the stages to rebuild

    @property
    def place(self) -> Path:
        """The recipe folder in the clone."""
        return self.clone / self.folder.relative_to(self.repository)

    @classmethod
    @contextmanager
    def of(cls, folder: Path, revision: str, stage: str | None) -> "Iterator[Rebuild]":
        """Clone the commit of the repository that contains `folder`, or find the clone of an interrupted command.

        Raises MachineError if there is no repository or if a second command verifies the same commit, and ParamsError
        if the commit has no dvc.lock or no such stage.
        """
        folder = folder.resolve()
        repository = Path(git(folder, "rev-parse", "--show-toplevel").strip()).resolve()
        commit = git(folder, "rev-parse", "--verify", f"{revision}^{{commit}}").strip()
        root = folder / ".recipe" / "verify" / f"{commit[:12]}{f'-{stage}' if stage else ''}"
        with file_lock(root.with_suffix(".lock"), "a verification of this commit"):
            clone = root.joinpath(*LEVELS, "clone")
            if not (root / CLONED).is_file():
                shutil.rmtree(root, ignore_errors=True)
                clone.parent.mkdir(parents=True)
                git(repository, "clone", "-q", "--no-checkout", str(repository), str(clone))
                git(clone, "checkout", "-q", "--detach", commit)
                write_text(root / CLONED, "")
            else:
                print(f"resuming the rebuild of {commit[:12]} in {os.path.relpath(clone)}")
            recorded = locked_stages(show(repository, commit, folder / "dvc.lock"))
            if not recorded:
                raise ParamsError(
                    f"commit {commit[:12]} has no dvc.lock in {os.path.relpath(folder, repository)}, so there is "
                    "nothing to compare with. Run `dvc repro`, and commit dvc.lock and metrics/."
                )
            chosen = tuple(name for name in recorded if stage in (None, name, name.split("@")[0]))
            if not chosen:
                raise ParamsError(f"dvc.lock has no stage {stage!r}. The stages are {', '.join(recorded)}.")
            yield cls(folder, repository, commit, clone, recorded, chosen)

    def changes(self) -> str:
        """Return the paths of changed and untracked files in the user's repository, one per line."""
        return git(self.repository, "status", "--porcelain")

    def run(self) -> None:
        """Rebuild the stages. Raises MachineError if a stage fails."""
        self._link_sources()
        config, alone = ["config", "--local", "cache.dir"], self.stages != tuple(self.recorded)
        if alone:
            # The outputs of the other stages come from the user's cache. Nothing is written to it.
            self._dvc(*config, dvc_cache(self.folder))
            outputs = self._other_outputs()
            if outputs and self._dvc("checkout", "-q", *outputs, check=False):
                raise MachineError(
                    f"the recorded inputs of {', '.join(self.stages)} are not in DVC's cache. Run `dvc pull` or "
                    "`dvc repro`, or run `recipe verify` without --stage."
                )
        self._dvc(*config, str(self.clone / ".dvc" / "cache"))
        self._dvc("repro", "--no-run-cache", *(["--single-item", *self.stages] if alone else []))

    def rebuilt(self) -> dict[str, Any]:
        """Return all stages in the clone's dvc.lock."""
        return locked_stages((self.place / "dvc.lock").read_text(encoding="utf-8"))

    def remove(self) -> None:
        """Delete the clone."""
        shutil.rmtree(self.clone.parents[len(LEVELS)], ignore_errors=True)

    def _other_outputs(self) -> list[str]:
        """Return the outputs of the stages that are not rebuilt. Outputs that are in git are already in the clone."""
        others = [stage for name, stage in self.recorded.items() if name not in self.stages]
        paths = [out["path"] for stage in others for out in stage["outs"]]
        receipt = read_paths(self.place).receipt  # no stage reads it, and DVC does not store it
        return [path for path in paths if not (self.place / path).exists() and self.place / path != receipt]

    def _link_sources(self) -> None:
        """Link local rows and base models that are not in git at the same relative place in the clone.

        Raises ParamsError if a source is too far above the repository.
        """
        params = load_yaml(self.place / "params.yaml")
        for section in ("data", "model"):
            source = Path(params[section]["source"])
            original, link = self.folder / source, Path(os.path.normpath(self.place / source))
            if source.is_absolute() or not original.exists() or link.exists():
                continue
            if not link.is_relative_to(self.clone.parents[len(LEVELS) - 1]):
                raise ParamsError(
                    f"params.yaml: {section}.source is {source}, which is too far above the repository. "
                    "Use an absolute path to verify this recipe."
                )
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(original.resolve())

    def _dvc(self, *arguments: str, check: bool = True) -> int:
        """Run `dvc` in the clone, and return its exit code.

        Raises MachineError if it fails and `check` is true, and Stopped if a signal stopped it. A stage that is still
        running has then saved its state and ended.
        """
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "DVC_EXP"))}
        environment |= {
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
            "PYTHONHASHSEED": "0", "DVC_NO_ANALYTICS": "1", "MLFLOW_DISABLE_TELEMETRY": "true",
        }  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-m", "dvc", *arguments], cwd=self.place, env=environment,
            stderr=None if check else subprocess.DEVNULL,
        )  # fmt: skip
        signals: list[int] = []

        def forward(number: int, frame: Any) -> None:
            signals.append(number)
            process.send_signal(number)

        previous = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            code = process.wait()
            if signals or code < 0:  # `dvc` was killed, and its stage saves a checkpoint
                with file_lock(self.place / ".recipe" / "lock", wait=True):  # the stage holds it until it ends
                    pass
            if signals:
                raise Stopped("the verification was stopped. Run the same command to resume.", signals[0])
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        if code and check:
            raise MachineError(f"the rebuild in {os.path.relpath(self.place)} failed; see the messages above.")
        return code


def locked_stages(text: str) -> dict[str, Any]:
    """Return the stages in the text of a dvc.lock, or {} if the text is empty."""
    return YAML(typ="safe").load(text)["stages"] if text else {}


def dvc_cache(folder: Path) -> str:
    """Return the folder of the DVC cache that a recipe folder uses."""
    command = [sys.executable, "-m", "dvc", "cache", "dir"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def show(repository: Path, commit: str, path: Path) -> str:
    """Return the content of a file in a commit, or an empty string if the commit does not contain the file."""
    name = f"{commit}:{path.relative_to(repository).as_posix()}"
    return git(repository, "show", name, check=False)
