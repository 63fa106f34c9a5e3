"""Knows how each engine is started: which export it needs, its command, and its name for the model."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.core.errors import MachineError

# For each engine, the form of export that it serves.
FORMS = {"llama.cpp": "gguf", "transformers": "merged", "vllm": "vllm", "mlflow": "mlflow"}
LLAMA_PARALLEL = 4  # requests that llama.cpp answers at once, each with its own part of the memory for contexts
LLAMA_SERVER = Path(__file__).parents[1] / "export" / "llama_server.py"
# The values that vLLM 0.33 accepts for --max-lora-rank. Source: vllm/config/lora.py, MaxLoRARanks.
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True)
class Launch:
    """How an engine's server is started.

    `upstream_name` is the engine's name for the model. `invocation` describes the rows of MLflow's own protocol, for
    an engine that does not speak OpenAI's API.
    """

    command: list[str]
    environment: dict[str, str]
    upstream_name: str
    invocation: dict[str, str] | None = None


def launch(
    engine: str, folder: Path, name: str, port: int, marker: dict[str, Any], *, parallel: int, context: int,
    llama: Callable[[], Path] | None = None, tracking_uri: str = "",
) -> Launch:  # fmt: skip
    """Return how to start an engine with an export in `folder`, whose export.json contains `marker`.

    `parallel` is the number of requests that are answered at once (0: a default), and `context` the largest number of
    tokens of each (0: what the model supports). `llama` returns the folder with llama.cpp's packages, and
    `tracking_uri` is the address of MLflow's store.
    """
    address = ["--host", "127.0.0.1", "--port", str(port)]
    if engine == "transformers":
        command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder.resolve()), *address,
                   "--no-trust-remote-code"]  # fmt: skip
        return Launch(command, {"HF_HUB_OFFLINE": "1"}, str(folder.resolve()))
    if engine == "mlflow":
        command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", marker["version"],
                   "--env-manager", "local", *address]  # fmt: skip
        return Launch(command, {"MLFLOW_TRACKING_URI": tracking_uri}, name, marker["invocation"])
    if engine == "vllm":
        return _vllm(folder, name, address, marker, parallel, context)
    assert llama
    parallel = parallel or LLAMA_PARALLEL
    options = {"model": str(next(folder.glob("*.gguf")).resolve()), "exact": False, "port": port, "alias": name,
               "parallel": parallel, "context": context * parallel}  # fmt: skip
    return Launch(
        [sys.executable, "-P", str(LLAMA_SERVER), json.dumps(options)],
        {"PYTHONPATH": os.fspath(llama())}, name,
    )  # fmt: skip


def _vllm(folder: Path, name: str, address: list[str], marker: dict[str, Any], parallel: int, context: int) -> Launch:
    base = str((folder / "base").resolve())
    rank = next(rank for rank in VLLM_RANKS if rank >= marker["lora_rank"])
    # vLLM also serves the base model, under the name of its folder. The gateway lets only the adapter's name through.
    command = [
        find_vllm(), "serve", base, *address, "--enable-lora", "--max-lora-rank", str(rank),
        "--lora-modules", json.dumps({"name": name, "path": str((folder / "adapter").resolve())}),
        "--chat-template", str((folder / "base" / "chat_template.jinja").resolve()),
        "--dtype", marker["precision"], "--generation-config", base,
    ]  # fmt: skip
    if parallel:
        command += ["--max-num-seqs", str(parallel)]
    if context:
        command += ["--max-model-len", str(context)]
    return Launch(command, {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}, name)


def find_vllm() -> str:
    """Return the path of the program `vllm`. Raises MachineError if it is not installed."""
    found = shutil.which("vllm")
    if found is None:
        raise MachineError(
            "--engine vllm: vLLM is not installed here. It needs other versions of torch and transformers than this "
            "recipe, so it runs in its own image: make services-serve."
        )
    return found
