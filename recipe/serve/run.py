"""Starts an engine with an export, checks that it answers like the adapter, and opens the port.

    serve_export(Path("exports/vllm-bfloat16"), "my-model", Options("vllm"), print)

This module and what it imports need only packages that vLLM's image contains, so that it runs there too.
"""

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.core.errors import MachineError, ParamsError, TrainingError
from recipe.core.io import read_json
from recipe.serve.check import MARKER, problem
from recipe.serve.engine import LOOPBACK, Engine, free_port
from recipe.serve.engines import Launch, launch
from recipe.serve.gateway import application, run
from recipe.serve.invocations import CHAT, invocation_of

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """How a model is served. `tokens` is the largest number of tokens of a request (0: what the model supports)."""

    engine: str
    host: str = LOOPBACK
    port: int = 8000
    api_key: str | None = None
    parallel: int = 4
    tokens: int = 0

    def check(self) -> None:
        """Raise ParamsError if other machines could use the server without a key."""
        if self.api_key is None and not _is_loopback(self.host):
            raise ParamsError(
                f"--host: {self.host} can be reached from other machines, so --api-key (or RECIPE_API_KEY) is required."
            )


def serve_export(
    folder: Path, name: str, options: Options, log: Path, say: Say, llama: Callable[[], Path] | None = None
) -> None:
    """Serve the export in `folder` as the model `name` until a signal ends the process.

    The engine's output goes to the file `log`. `llama` returns the folder with llama.cpp's packages. Raises
    TrainingError if the server's answer is not the adapter's, and MachineError if the engine ends.
    """
    marker, host, port = read_json(folder / MARKER), options.host, options.port
    upstream = f"http://{LOOPBACK}:{free_port()}"
    start = launch(
        options.engine, folder, name, int(upstream.rpartition(":")[2]), marker, parallel=options.parallel,
        context=options.tokens, llama=llama,
    )  # fmt: skip
    say(f"starting {options.engine} with {folder}")
    with Engine(start.command, upstream, log, start.environment) as running:
        running.wait()
        _check(running, start, marker, say)
        app = application(
            upstream, name, options.api_key, upstream_name=start.upstream_name, accepts=marker["accepts"],
            ended=running.ended, invocation=start.invocation,
        )  # fmt: skip
        shown = f"[{host}]" if ":" in host else host
        try:
            run(app, host, port, lambda: say(_ready(shown, port, name, options.api_key)))
        except OSError as error:
            raise MachineError(f"--port: {shown}:{port} can't be opened: {error.strerror or error}") from None
        if reason := running.ended():
            raise MachineError(reason)


def _check(running: Engine, start: Launch, marker: Any, say: Say) -> None:
    """Ask the server one prompt. Raises TrainingError if the answer is not the adapter's."""
    check = marker["check"]
    if check is None:
        say("note: the adapter answers like its base model, so the server can't be checked for using it.")
        return
    body = {"model": start.upstream_name, "messages": check["messages"], "max_tokens": check["max_tokens"],
            "temperature": 0}  # fmt: skip
    if start.invocation:
        answer = running.post("/invocations", invocation_of(CHAT, body, start.invocation))["predictions"][0]
    else:
        answer = running.post(CHAT, body)["choices"][0]["message"]["content"]
    found = problem(check, answer or "", exact=marker["precision"] == "float32")
    if found:
        raise TrainingError(f"the server does not stay up: {found}")
    say(f"checked: the server answers {check['messages'][-1]['content'].strip()[:60]!r} like the adapter.")


def _ready(host: str, port: int, name: str, api_key: str | None) -> str:
    key = ' -H "Authorization: Bearer $RECIPE_API_KEY"' if api_key else ""
    body = f'{{"model": "{name}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    return (
        f"ready: http://{host}:{port}/v1 (model {name}). Ctrl-C finishes open requests and ends the server. Try:\n"
        f"  curl http://{host}:{port}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
