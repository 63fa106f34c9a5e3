"""Loads a registered version in a separate process, which generates answers with the code stored in that version.

    worker = Worker(json.dumps({"code": "FOLDER/recipe", "adapter": ..., "tokenizer": ...}))
    worker.answer([{"instruction": "What is 12 + 30?"}], max_new_tokens=64)

This file is also the program that runs in that process. Every version contains a copy of this file, so the calling
program does not need to import the package.
"""

import importlib.util
import json
import os
import runpy
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

FLAT = "--flat"  # the next argument is the folder of a version registered before the package was split into folders


class Worker:
    """A process that loads a model and generates answers for rows.

    Requests are sent one at a time, as lines of JSON over a pipe.
    """

    def __init__(self, *arguments: str) -> None:
        """Start the process and wait until the model is loaded. Raises ValueError with the reason if loading fails."""
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._lock = threading.Lock()
        self._receive()

    def answer(self, rows: list[dict[str, Any]], max_new_tokens: int) -> list[str]:
        """Return an answer for each row. Raises ValueError with the process's error message if the request fails."""
        with self._lock:
            assert self._process.stdin
            self._process.stdin.write(json.dumps({"rows": rows, "max_new_tokens": max_new_tokens}) + "\n")
            self._process.stdin.flush()
            return list(self._receive())

    def _receive(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise ValueError(f"the model's process exited with code {self._process.wait()}. Its output is above.")
        received = json.loads(line)
        if "error" in received:
            raise ValueError(received["error"])
        return received["answers"]

    def __del__(self) -> None:
        """Close the process's standard input, which ends the process."""
        process = getattr(self, "_process", None)
        if process is not None and process.stdin:
            process.stdin.close()


def serve(load: Any) -> None:
    """Answer the requests on standard input until it is closed, using the function that `load` returns."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # send library output to stderr, so that it does not mix with the replies

    def reply(value: dict[str, Any]) -> None:
        replies.write(json.dumps(value) + "\n")
        replies.flush()

    try:
        answer = load()
    except Exception as error:  # noqa: BLE001 - the parent process raises the error
        reply({"error": str(error) or type(error).__name__})
        return
    reply({"answers": []})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply({"answers": answer(request["rows"], request["max_new_tokens"])})
        except Exception as error:  # noqa: BLE001 - the parent process raises the error
            reply({"error": str(error) or type(error).__name__})


def load_version(artifacts: dict[str, str]) -> Any:
    """Load a version with the code stored in it, and return a function that generates answers for rows.

    This function runs in the model's process.
    """
    folder = artifacts["code"]
    spec = importlib.util.spec_from_file_location(
        "recipe", f"{folder}/__init__.py", submodule_search_locations=[folder]
    )
    assert spec and spec.loader
    sys.modules["recipe"] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    from recipe.core.environment import configure_libraries
    from recipe.core.io import read_json
    from recipe.model.processor import pin_processor

    configure_libraries(network=False)
    pin_processor()
    from recipe.model.generate import answer_rows
    from recipe.model.load import load_trained

    files = {name: Path(path) for name, path in artifacts.items()}
    manifest, meta, train_metrics = (read_json(files[name]) for name in ("base_manifest", "prepared_meta", "training"))
    tokenizer, model = load_trained(
        manifest, Path.cwd(), files["tokenizer"], files["adapter"], train_metrics["quantization"]
    )
    return lambda rows, max_new_tokens: answer_rows(model, tokenizer, meta, rows, max_new_tokens)


if __name__ == "__main__":
    if sys.argv[1] == FLAT:
        flat = runpy.run_path(str(Path(__file__).parent / "flat_versions" / "version.py"))
        serve(lambda: flat["load_flat_version"](Path(sys.argv[2])))
    else:
        serve(lambda: load_version(json.loads(sys.argv[1])))
