"""Asks MLflow's model server, which has a protocol of its own, and answers in the form of OpenAI's API.

    await ask_mlflow(session, "http://127.0.0.1:9000", "/v1/chat/completions", body, {"messages": "messages"})

MLflow's server takes rows and returns texts: it neither streams nor samples, and does not say why an answer ended.
"""

import json
import time
import uuid
from typing import Any

from aiohttp import ClientSession

CHAT = "/v1/chat/completions"
# Keys of a request that do not change the answer of a model that decodes greedily, or that are translated.
UNDERSTOOD = {
    "model",
    "messages",
    "tools",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "user",
    "stream",
    "seed",
}
MAX_TOKENS = 256


class Unsupported(ValueError):
    """A request that MLflow's server can't answer."""


async def ask_mlflow(
    session: ClientSession, upstream: str, path: str, body: dict[str, Any], invocation: dict[str, str]
) -> tuple[int, dict[str, Any]]:
    """Send a chat request to MLflow's server. Returns the HTTP status and the answer.

    `invocation` has either the key `messages`, for a model that was trained on chats, or the key `prompt`, whose value
    is the column of the prompt. Raises Unsupported for what MLflow's server does not do.
    """
    async with session.post(f"{upstream}/invocations", json=invocation_of(path, body, invocation)) as answer:
        text = await answer.text()
        try:
            content = json.loads(text)
        except ValueError:
            content = {"message": text[:400]}
        if answer.status != 200 or "predictions" not in content:
            reason = content.get("message") or text[:400]
            kind = "invalid_request_error" if answer.status < 500 else "api_error"
            return answer.status, {"error": {"message": reason, "type": kind, "param": None, "code": None}}
    message = {"role": "assistant", "content": content["predictions"][0]}
    return 200, {
        "id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion", "created": int(time.time()),
        "model": body["model"], "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    }  # fmt: skip


def invocation_of(path: str, body: dict[str, Any], invocation: dict[str, str]) -> dict[str, Any]:
    """Return the body of a request to MLflow's server. Raises Unsupported for what MLflow's server does not do."""
    return {"inputs": [row_of(path, body, invocation)], "params": {"max_new_tokens": _tokens(body)}}


def row_of(path: str, body: dict[str, Any], invocation: dict[str, str]) -> dict[str, Any]:
    """Return the row for a request. Raises Unsupported for what MLflow's server does not do."""
    if path != CHAT:
        raise Unsupported(f"MLflow's server answers only {CHAT}. Use --engine llama.cpp for other requests.")
    if body.get("stream"):
        raise Unsupported("MLflow's server does not stream. Send the request without `stream`, or use another engine.")
    if body.get("temperature"):
        raise Unsupported("MLflow's server decodes greedily. Send the request with a temperature of 0.")
    ignored = sorted(name for name, value in body.items() if name not in UNDERSTOOD and value is not None)
    if ignored:
        raise Unsupported(f"MLflow's server does not know {', '.join(ignored)}. Use another engine, such as llama.cpp.")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise Unsupported("`messages` must be a list of messages.")
    if "prompt" in invocation:
        return {invocation["prompt"]: messages[-1].get("content")}
    return {"messages": messages, **({"tools": body["tools"]} if body.get("tools") else {})}


def _tokens(body: dict[str, Any]) -> int:
    tokens = body.get("max_completion_tokens") or body.get("max_tokens") or MAX_TOKENS
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
        raise Unsupported("`max_tokens` must be a positive whole number.")
    return tokens
