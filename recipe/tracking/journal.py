"""Keeps what a training logs in a file, until MLflow has all of it.

A journal is a file of JSON lines in the repository's mlflow/pending/ folder. Its first line describes the run: name,
params, tags and datasets. Each other line contains metrics or the final status. A line is written as soon as a value is
logged, so a training that is killed leaves all of its lines. The file is deleted when MLflow has all of it.

    journal = Journal.new(folder, header)
    journal.append({"time": 1764264000000, "step": 10, "metrics": {"train/loss": 2.5}})
"""

import fcntl
import json
import os
import threading
import time
from io import FileIO
from pathlib import Path
from typing import Any

from recipe.core.errors import DataError, MachineError
from recipe.core.format import first_line
from recipe.core.io import write_text

HEADER_KEYS = ("id", "server", "experiment", "name", "fingerprint", "time", "params", "tags", "sweep", "datasets")


def now() -> int:
    """Return the time in milliseconds, as MLflow stores it."""
    return int(time.time() * 1000)


class Journal:
    """A journal that is open. Its file is locked, so that no other process sends or continues it."""

    def __init__(self, path: Path, file: FileIO, lines: list[dict[str, Any]]) -> None:
        self.path, self.file, self.header, self.entries = path, file, lines[0], lines[1:]
        self.lock = threading.Lock()
        self.complete = True  # false if a line could not be written to the file

    @staticmethod
    def new(folder: Path, header: dict[str, Any]) -> "Journal":
        """Create a journal. Raises MachineError if the folder can't be written."""
        path = folder / f"{header['fingerprint'][:16]}-{header['id'][:8]}.jsonl"
        try:
            write_text(path, json.dumps(header) + "\n")
            journal = Journal.open(path)
        except OSError as error:
            raise MachineError(
                f"{path} can't be written: {error.strerror}. What a training logs is kept there until MLflow has it."
            ) from None
        assert journal, "a new file is not locked"
        return journal

    @staticmethod
    def open(path: Path) -> "Journal | None":
        """Open and lock a journal, or return None if a process is writing or sending it.

        An incomplete last line, of a process that was killed, is removed. Raises DataError if the file is damaged.
        """
        try:
            file = FileIO(str(path), "r+")
        except FileNotFoundError:
            return None  # another process has just sent and deleted it
        except OSError as error:
            raise DataError(f"{path} can't be opened: {error.strerror}.") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        if not os.fstat(file.fileno()).st_nlink:
            file.close()
            return None
        content = file.readall()
        end = content.rfind(b"\n") + 1
        try:
            lines = [json.loads(line) for line in content[:end].split(b"\n")[:-1]]
            missing = [key for key in HEADER_KEYS if key not in lines[0]]
            if missing or not all(isinstance(line, dict) for line in lines):
                raise ValueError(f"the first line has no {missing[0]}" if missing else "a line is not an object")
        except (ValueError, IndexError, TypeError) as error:
            file.close()
            raise DataError(
                f"{path} is damaged ({first_line(error)}). Delete it. The register stage then logs the loss curve from "
                "the outputs."
            ) from None
        file.truncate(end)
        file.seek(end)
        return Journal(path, file, lines)

    @property
    def status(self) -> str | None:
        """The status with which the training ended, or None if it is running or was killed."""
        return self.entries[-1].get("status") if self.entries else None

    def append(self, entry: dict[str, Any]) -> None:
        """Add an entry, in the file as one complete line. If the disk is full, keep it in memory only."""
        line = (json.dumps(entry) + "\n").encode()
        with self.lock:
            self.entries.append(entry)
            if self.complete:
                try:
                    self.complete = os.write(self.file.fileno(), line) == len(line)
                except OSError:
                    self.complete = False

    def log(self, metrics: dict[str, float], step: int | None) -> None:
        """Add metrics. Without a step, the step is the number of seconds since the start of the run."""
        self.append({"time": now(), "step": step, "metrics": metrics})

    def end(self, status: str, time: int | None = None) -> None:
        """Add the final status: FINISHED, FAILED, or KILLED if the training can be resumed."""
        self.append({"time": time or now(), "status": status})

    def num_points(self) -> int:
        """Return the number of metric values."""
        return sum(len(entry.get("metrics", ())) for entry in self.entries)

    def close(self) -> None:
        """Release the lock."""
        self.file.close()

    def delete(self) -> None:
        """Delete the file, and release the lock."""
        self.path.unlink(missing_ok=True)
        self.file.close()


def paths_in(folder: Path, fingerprint: str = "") -> list[Path]:
    """Return the paths of all journals, or those of the trainings with this fingerprint."""
    return sorted(folder.glob(f"{fingerprint[:16]}*.jsonl"))
