"""Starts an engine's server in a process of its own, and waits until it answers.

with Engine(command, "http://127.0.0.1:9000", Path("engine.log")) as engine:
    engine.wait()
    engine.post("/v1/chat/completions", {...})
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Self

from recipe.core.errors import MachineError

LOOPBACK = "127.0.0.1"
START_SECONDS = 900  # loading a large model from a slow disk
END_SECONDS = 10
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Engine:
    """A server process. Its output goes to the file `log`. Its input is open for as long as this process lives."""

    def __init__(self, command: list[str], address: str, log: Path, environment: dict[str, str] | None = None) -> None:
        self.address, self._log = address, log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, **(environment or {})}, preexec_fn=_end_with_parent,
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process and all processes that it started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(END_SECONDS)
            except ProcessLookupError:
                return
            except subprocess.TimeoutExpired:
                continue
            return

    def ended(self) -> str | None:
        """Return a sentence if the process has ended, with the last line that it wrote."""
        code = self.process.poll()
        if code is None:
            return None
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return f"the engine ended with code {code}: {(lines or ['it wrote no message'])[-1][-400:]}"

    def wait(self) -> None:
        """Wait until the server answers. Raises MachineError if it ends, or takes longer than 15 minutes."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"{self.address}/health", timeout=10):
                    return
            except OSError:
                if reason := self.ended():
                    raise MachineError(reason) from None
                if time.monotonic() > deadline:
                    raise MachineError(
                        f"the engine does not answer at {self.address}. Its output is in {self._log}."
                    ) from None
                time.sleep(0.1)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Send a request, and return the JSON of the answer. Raises MachineError if the server refuses it."""
        data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        try:
            with urllib.request.urlopen(urllib.request.Request(self.address + path, data, headers)) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")[:400]
            raise MachineError(f"the engine refuses a request with {error.code}: {text}") from None
        except OSError as error:
            raise MachineError(f"the engine gave no answer: {error}. {self.ended() or ''}") from None


def _end_with_parent() -> None:
    """Let the kernel end this process if its parent is killed, for example by SIGKILL."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def free_port() -> int:
    """Return a port of the loopback interface that no program uses."""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        port: int = listener.getsockname()[1]
        return port
