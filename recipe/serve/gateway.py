"""Stands in front of an engine's server: checks keys and model names, and finishes open requests before it ends.

    run(application("http://127.0.0.1:9000", "my-model"), "127.0.0.1", 8000)

Engines differ here: llama.cpp answers whatever model a request names, transformers knows no API keys. Requests and
answers pass through unchanged, streams included, but for two things: the name of the model, and a temperature of 0
where a request names none, because the model was evaluated with greedy decoding.
"""

import asyncio
import hmac
import signal
from collections.abc import Callable
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout, web

from recipe.serve.invocations import Unsupported, ask_mlflow

PATHS = ("/v1/chat/completions", "/v1/completions")
DRAIN_SECONDS = 60.0
LARGEST_REQUEST = 64 * 1024 * 1024
WATCH_SECONDS = 0.5
SESSION: web.AppKey[ClientSession] = web.AppKey("session", ClientSession)
STOP: web.AppKey[asyncio.Event] = web.AppKey("stop", asyncio.Event)


def application(
    upstream: str, name: str, api_key: str | None = None, *, upstream_name: str | None = None,
    accepts: dict[str, bool] | None = None,
    ended: Callable[[], str | None] = lambda: None, invocation: dict[str, str] | None = None,
) -> web.Application:  # fmt: skip
    """Return the application.

    `upstream` is the address of the engine's server, `name` the model's name for clients, and `upstream_name` its name
    for the engine. `accepts` says whether the training's template has a place for a `system` message and for earlier
    `turns`; engines add what they are given in their own ways. `ended` returns a reason if the engine has ended, on
    which the application ends too. With `invocation`, the engine is MLflow's server (see invocations.py).
    """

    async def forward(request: web.Request) -> web.StreamResponse:
        try:
            body = await request.json()
        except ValueError:
            return failure(400, "the body of the request is not JSON.", "invalid_request_error")
        if not isinstance(body, dict):
            return failure(400, "the body of the request is not a JSON object.", "invalid_request_error")
        if body.get("model") != name:
            message = f"there is no model {body.get('model')!r} here. This server has {name!r}."
            return failure(404, message, "invalid_request_error", "model_not_found")
        if unsupported := unsupported_messages(body.get("messages"), accepts or {}):
            return failure(400, unsupported, "invalid_request_error")
        body["model"] = upstream_name or name
        if body.get("temperature") is None:
            body["temperature"] = 0
        session = request.app[SESSION]
        try:
            if invocation:
                status, content = await ask_mlflow(session, upstream, request.path, body, invocation)
                return web.json_response(content, status=status)
            async with session.post(upstream + request.path, json=body) as answer:
                kind = answer.headers.get("Content-Type", "application/json")
                response = web.StreamResponse(status=answer.status, headers={"Content-Type": kind})
                await response.prepare(request)
                async for part in answer.content.iter_any():
                    await response.write(part)
                await response.write_eof()
                return response
        except ClientError as error:
            return failure(502, f"the engine gave no answer: {error}", "api_error")
        except Unsupported as error:
            return failure(400, str(error), "invalid_request_error")

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": name, "object": "model", "owned_by": "recipe"}]})

    async def health(_: web.Request) -> web.Response:
        reason = ended()
        return web.json_response({"status": reason or "ok"}, status=503 if reason else 200)

    app = web.Application(middlewares=[_key_check(api_key)], client_max_size=LARGEST_REQUEST)
    app.router.add_get("/health", health)
    app.router.add_get("/v1/models", models)
    for path in PATHS:
        app.router.add_post(path, forward)
    app[STOP] = asyncio.Event()
    app.cleanup_ctx.append(_session)
    app.cleanup_ctx.append(_watch(ended))
    return app


def run(app: web.Application, host: str, port: int, started: Callable[[], None]) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP. Then finish the open requests, for at most a minute, and accept no others.

    `started` is called when requests are accepted. Raises OSError if the port is taken.
    """

    async def serve() -> None:
        loop, stop = asyncio.get_running_loop(), app[STOP]
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, stop.set)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=DRAIN_SECONDS)
        try:
            await runner.setup()
            await web.TCPSite(runner, host, port).start()
            started()
            await stop.wait()
        finally:
            await runner.cleanup()

    asyncio.run(serve())


def unsupported_messages(messages: Any, accepts: dict[str, bool]) -> str | None:
    """Return a sentence if the model was not trained on such messages. Other mistakes are left to the engine."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return None
    roles = [message.get("role") for message in messages]
    if not accepts.get("system", True) and "system" in roles:
        return "the template on which this model was trained has no place for a system message."
    if not accepts.get("turns", True) and len(roles) > 1:
        return "this model was trained on single prompts. Send one message, with the role user."
    return None


def failure(status: int, message: str, kind: str, code: str | None = None) -> web.Response:
    """Return an error in the form of OpenAI's API."""
    return web.json_response({"error": {"message": message, "type": kind, "param": None, "code": code}}, status=status)


def _key_check(api_key: str | None) -> Any:
    @web.middleware
    async def check(request: web.Request, handler: Any) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if (
            api_key is not None
            and request.path != "/health"
            and not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), api_key.encode())
        ):
            return failure(401, "the API key is missing or wrong.", "invalid_request_error", "invalid_api_key")
        response: web.StreamResponse = await handler(request)
        return response

    return check


async def _session(app: web.Application) -> Any:
    async with ClientSession(timeout=ClientTimeout(total=None, sock_connect=10), auto_decompress=False) as session:
        app[SESSION] = session
        yield


def _watch(ended: Callable[[], str | None]) -> Any:
    """End the application when the engine ends."""

    async def watch(app: web.Application) -> Any:
        async def look() -> None:
            while ended() is None:
                await asyncio.sleep(WATCH_SECONDS)
            app[STOP].set()

        task = asyncio.create_task(look())
        yield
        task.cancel()

    return watch
