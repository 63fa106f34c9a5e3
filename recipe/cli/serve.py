"""Implements `recipe serve`: exports the adapter if needed, starts an engine, checks it, and opens the port."""

import ipaddress
from collections.abc import Callable
from typing import Any

from recipe.cli import context
from recipe.cli.context import HERE
from recipe.cli.export import exported
from recipe.core.errors import MachineError, ParamsError, TrainingError
from recipe.core.io import read_json
from recipe.core.paths import repository
from recipe.export.check import problem
from recipe.export.llama import install
from recipe.export.outcome import MARKER
from recipe.serve.engine import LOOPBACK, Engine, free_port
from recipe.serve.engines import launch
from recipe.serve.gateway import application, run

Say = Callable[[str], None]
FORMS = {"llama.cpp": "gguf", "transformers": "merged"}


def serve(
    version: str | None, engine: str, host: str, port: int, api_key: str | None, dtype: str | None, parallel: int,
    tokens: int, say: Say,
) -> None:  # fmt: skip
    """Serve the adapter of this recipe folder, or a registered version, until a signal ends the command.

    Raises TrainingError if the server's answer is not the adapter's, and ParamsError for a wider address without a key.
    """
    if api_key is None and not _is_loopback(host):
        raise ParamsError(
            f"--host: {host} can be reached from other machines, so --api-key (or RECIPE_API_KEY) is required."
        )
    folder, name = exported(version, FORMS[engine], dtype, say)
    marker = read_json(folder / MARKER)
    upstream = f"http://{LOOPBACK}:{free_port()}"
    start = launch(
        engine, folder, name, int(upstream.rpartition(":")[2]), parallel=parallel, context=tokens,
        llama=lambda: install(repository(HERE) / ".recipe", say),
    )  # fmt: skip
    say(f"starting {engine} with {folder}")
    log = context.paths().local / "serve.log"
    with Engine(start.command, upstream, log, start.environment) as running:
        running.wait()
        _check(running, start.upstream_name, marker, say)
        app = application(
            upstream, name, api_key, upstream_name=start.upstream_name, accepts=marker["accepts"], ended=running.ended
        )
        shown = f"[{host}]" if ":" in host else host
        try:
            run(app, host, port, lambda: say(_ready(shown, port, name, api_key)))
        except OSError as error:
            raise MachineError(f"--port: {shown}:{port} can't be opened: {error.strerror or error}") from None
        if reason := running.ended():
            raise MachineError(reason)


def _check(running: Engine, name: str, marker: Any, say: Say) -> None:
    """Ask the server one prompt. Raises TrainingError if the answer is not the adapter's."""
    check = marker["check"]
    if check is None:
        say("note: the adapter answers like its base model, so the server can't be checked for using it.")
        return
    answer = running.post(
        "/v1/chat/completions",
        {"model": name, "messages": check["messages"], "max_tokens": check["max_tokens"], "temperature": 0},
    )["choices"][0]["message"]["content"]
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
