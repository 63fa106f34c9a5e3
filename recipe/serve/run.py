"""Starts an engine with an export, checks that it answers like the adapter, and opens the port.

    serve_export(Path("exports/vllm-bfloat16"), "my-model", Options("vllm"), print)

This module and what it imports need only packages that vLLM's image contains, so that it runs there too.
"""

import ipaddress
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
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
    """How a model is served.

    `parallel` is the number of requests that are answered at once (0: the engine's default), and `tokens` the largest
    number of tokens of a request and its answer (0: what the model supports).
    """

    engine: str
    host: str = LOOPBACK
    port: int = 8000
    api_key: str | None = None
    parallel: int = 0
    tokens: int = 0

    def check(self) -> None:
        """Raise ParamsError if other machines could use the server without a key, or if an option has no effect."""
        if not self.api_key and not _is_loopback(self.host):
            raise ParamsError(
                f"--host: {self.host} can be reached from other machines, so --api-key (or RECIPE_API_KEY) is required."
            )
        if self.engine in ("transformers", "mlflow"):
            for name, value in (("--parallel", self.parallel), ("--context", self.tokens)):
                if value:
                    raise ParamsError(f"{name}: {self.engine} has no such setting. Leave the option out.")


def serve_export(
    folder: Path, name: str, options: Options, log: Path, say: Say, llama: Callable[[], Path] | None = None,
    tracking_uri: str = "",
) -> None:  # fmt: skip
    """Serve the export in `folder` as the model `name` until a signal ends the process.

    The engine's output goes to the file `log`. `llama` returns the folder with llama.cpp's packages, and `tracking_uri`
    is the address of MLflow's store. Raises TrainingError if the server's answer is not the adapter's, and MachineError
    if the engine ends.
    """
    marker, host, port = read_json(folder / MARKER), options.host, options.port
    upstream = f"http://{LOOPBACK}:{free_port()}"
    start = launch(
        options.engine, folder, name, int(upstream.rpartition(":")[2]), marker, parallel=options.parallel,
        context=options.tokens, llama=llama, tracking_uri=tracking_uri,
    )  # fmt: skip
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)  # until the gateway handles signals
    say(f"starting {options.engine} with {folder}")
    with Engine(start.command, upstream, log, start.environment) as running:
        running.wait()
        _check(running, start, marker, options.engine, say)
        app = application(
            upstream, name, options.api_key or None, upstream_name=start.upstream_name, accepts=marker["accepts"],
            ended=running.ended, invocation=start.invocation,
        )  # fmt: skip
        shown = f"[{host}]" if ":" in host else host
        try:
            run(app, host, port, lambda: say(_ready(shown, port, name, options.api_key)))
        except OSError as error:
            raise MachineError(f"--port: {shown}:{port} can't be opened: {error.strerror or error}") from None
        if reason := running.ended():
            raise MachineError(reason)


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # the engine is ended on the way


def _check(running: Engine, start: Launch, marker: Any, engine: str, say: Say) -> None:
    """Ask the server one prompt. Raises TrainingError if the answer is not the adapter's.

    The answer must be the same only where the engine computes with the trained weights in fp32. llama.cpp's server
    computes attention in lower precision, and an adapter for a quantized base model may be merged into other weights.
    """
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
    exact = marker["precision"] == "float32" and marker["quantization"] == "none" and engine != "llama.cpp"
    if found := problem(check, answer or "", exact=exact):
        raise TrainingError(f"the server was stopped: {found}")
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
