"""Knows how each engine is started: which export it needs, its command, and its name for the model."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from recipe.export.llama import SERVER

ENGINES = ("llama.cpp", "transformers")


@dataclass(frozen=True)
class Launch:
    """How an engine's server is started."""

    command: list[str]
    environment: dict[str, str]
    upstream_name: str  # the engine's name for the model


def launch(
    engine: str, folder: Path, name: str, port: int, *, parallel: int, context: int, llama: Callable[[], Path]
) -> Launch:
    """Return how to start an engine with an export in `folder`.

    `parallel` is the number of requests that are answered at once, and `context` the largest number of tokens of each
    (0: what the model supports). `llama` returns the folder with llama.cpp's packages.
    """
    if engine == "transformers":
        command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder.resolve()),
                   "--host", "127.0.0.1", "--port", str(port), "--no-trust-remote-code"]  # fmt: skip
        return Launch(command, {"HF_HUB_OFFLINE": "1"}, str(folder.resolve()))
    options = {"model": str(next(folder.glob("*.gguf")).resolve()), "exact": False, "port": port, "alias": name,
               "parallel": parallel, "context": context * parallel}  # fmt: skip
    return Launch(
        [sys.executable, "-P", str(SERVER), json.dumps(options)],
        {"PYTHONPATH": os.fspath(llama())}, name,
    )  # fmt: skip
