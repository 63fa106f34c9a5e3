"""Converts chat messages from the formats of public datasets to the format that chat templates expect.

    read_chat([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}])    # a Chat, or an error message

Messages can use the keys of the OpenAI format (role, content, tool_calls), which transformers also uses, or the keys of
the ShareGPT format (from, value). The content can be a list of parts. Some keys, called marks, state whether a message
is included in the loss. The supported marks are mistral-finetune's `weight` and axolotl's `train`, `training` and
`loss_weight`.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from recipe.core.format import shorten
from recipe.text.rows import NOT_UTF8, describe_type, is_utf8, safe

ROLES = ("system", "developer", "user", "assistant", "tool", "ipython")
# Other names for the roles: the names in the ShareGPT and LLaMA-Factory formats, and OpenAI's older name `function`.
ROLE_NAMES = {
    "human": "user", "gpt": "assistant", "function_call": "assistant", "function": "tool", "observation": "tool",
}  # fmt: skip
MARKS = ("weight", "loss_weight", "train", "training")
READ_KEYS = {"role", "from", "content", "value", "tool_calls", "function_call", *MARKS}
# If a message has both keys of a pair, the second key is used.
PAIRS = (("from", "role"), ("value", "content"), ("function_call", "tool_calls"))
PART_KEYS = {"type", "text", "value", "content"}
CALL_KEYS = {"name", "arguments"}
SHOWN_CHARS = 40
NOT_TEXT = {"image": "an image", "audio": "audio", "video": "a video", "file": "a file"}


class Invalid(Exception):
    """Raised if a chat can't be used. The exception's message gives the reason."""


@dataclass(frozen=True)
class Message:
    """A message in the format that chat templates expect: the role, the content, and any other keys.

    `trained` is false if the message is marked as excluded from the loss. `unused` contains the parts of the original
    message that are not in `values`, such as additional keys of a content part.
    """

    values: dict[str, Any]
    trained: bool = True
    unused: dict[str, Any] = field(default_factory=dict)

    @property
    def role(self) -> str:
        """The role of the message, which is one of ROLES."""
        return self.values["role"]

    @property
    def content(self) -> str:
        """The text of the message. It can be empty if the message calls tools."""
        return self.values["content"]

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """The functions that the message calls, each as {name, arguments}."""
        return [call["function"] for call in self.values.get("tool_calls", [])]


@dataclass(frozen=True)
class Chat:
    """The messages of a chat, and the schemas of the tools that the assistant can call (see read_tools)."""

    messages: list[Message]
    tools: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[Message] = field(default_factory=list)  # the messages after the last answer in the loss


def message_list(value: object) -> list[dict[str, Any]] | None:
    """Return `value` as a list of objects, or None if it is neither such a list nor the JSON text of one."""
    if isinstance(value, str):
        value = parse_json(value) if value.lstrip().startswith("[") else None
    return value if isinstance(value, list) and all(isinstance(message, dict) for message in value) else None


def read_chat(messages: object, *, system: object = None, tools: object = None) -> Chat | str:
    """Return a row's chat up to the last answer in the loss, or the reason why the chat is invalid.

    `system` is the content of a separate column for the system message. A chat is invalid if no answer is in the loss.
    A chat is also invalid if a message has an unknown role, has neither text nor tool calls, contains anything other
    than text (such as an image), or has a mark that is neither 0 nor 1.
    """
    listed = message_list(messages)
    if listed is None:
        return "the messages are not a list of objects with role and content"
    try:
        read = [_read_message(f"message {number}", message) for number, message in enumerate(listed, 1)]
        if system is not None and system != "":
            text = _text("the system message", system)
            if read and read[0].role in ("system", "developer"):
                raise Invalid("the row has a system message in two places: in its own column and in the messages")
            read.insert(0, Message({"role": "system", "content": text}))
        schemas = read_tools(tools)
    except Invalid as reason:
        return str(reason)
    if read and read[0].role == "assistant":  # chat templates can't render the empty chat before it
        return (
            "the chat starts with the assistant's turn, so there is no prompt for its first message. Remove this "
            "message, or put a message from the user or the system before it. LLaMA-Factory skips such chats"
        )
    answers = [number for number, message in enumerate(read) if message.role == "assistant"]
    trained = [number for number in answers if read[number].trained]
    if not answers:
        return "the chat has no message from the assistant"
    if not trained:
        return "the chat has no message to train on, because all messages from the assistant are marked as not trained"
    end = trained[-1] + 1
    return Chat(read[:end], schemas, read[end:])


def read_tools(value: object) -> list[dict[str, Any]]:
    """Return the schemas of a row's tools, each as {type, function}.

    `value` is a list of tools, a single tool, or the JSON text of either. Each tool is an object of the form
    {type, function}, or just the inner object that describes the function. Raises Invalid if a tool is not a function
    with a name.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    if isinstance(value, str):
        text, value = value, parse_json(value)
        if value is None and text.strip() != "null":
            raise Invalid(f"the tools are not valid JSON: {shorten(safe(text), SHOWN_CHARS)!r}")
    if value is None:
        return []
    tools = value if isinstance(value, list) else [value]
    schemas = []
    for number, tool in enumerate(tools, 1):
        tool = parse_json(tool) if isinstance(tool, str) else tool
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Invalid(f"tool {number} is not a function with a name")
        schemas.append({**(tool if "function" in tool else {"function": tool}), "type": "function"})
    return schemas


def _read_message(where: str, message: dict[str, Any]) -> Message:
    stated = message.get("role", message.get("from"))
    role = ROLE_NAMES.get(str(stated), stated)
    if role not in ROLES:
        found = shorten(repr(stated), SHOWN_CHARS)
        raise Invalid(f"{where} has the unknown role {found}. Valid roles are {', '.join((*ROLES, *ROLE_NAMES))}")
    where = f"{where} ({role})"
    content = message.get("content", message.get("value"))
    calls = message.get("tool_calls") or []
    if stated == "function_call":
        content, calls = None, content
    elif message.get("function_call"):
        calls = [message["function_call"]]
    tool_calls = _read_tool_calls(where, calls)
    if tool_calls and role != "assistant":
        raise Invalid(f"{where} has tool_calls, which only a message from the assistant can have")
    if role == "tool" and isinstance(content, dict):
        content = json.dumps(content, ensure_ascii=False)
    text = "" if tool_calls and content is None else _text(where, content, may_be_empty=bool(tool_calls))
    extra = {name: value for name, value in message.items() if name not in READ_KEYS and value is not None}
    values = {"role": role, "content": text, **extra, **({"tool_calls": tool_calls} if tool_calls else {})}
    return Message(values, _is_trained(where, message), _unused(message, content, calls))


def _unused(message: dict[str, Any], content: object, calls: object) -> dict[str, Any]:
    """Return the parts of a message that do not become part of `Message.values`, as {name: value}."""
    unused = {name: message[name] for name, used in PAIRS if message.get(name) and message.get(used)}
    unused = {name: value for name, value in unused.items() if value != message[dict(PAIRS)[name]]}
    if ROLE_NAMES.get(str(unused.get("from"))) == message.get("role"):
        unused.pop("from", None)
    for part in content if isinstance(content, list) else []:
        if isinstance(part, dict):
            extra = {name: value for name, value in part.items() if name not in PART_KEYS and value is not None}
            unused |= {f"content.{name}": value for name, value in extra.items()}
    calls = parse_json(calls) if isinstance(calls, str) else calls
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            extra = {name: value for name, value in function.items() if name not in CALL_KEYS and value is not None}
            unused |= {f"tool_calls.function.{name}": value for name, value in extra.items()}
    return unused


def _text(where: str, content: object, *, may_be_empty: bool = False) -> str:
    """Return the text of a message's content. If the content is a list of parts, join the texts of the parts."""
    parts = content if isinstance(content, list) else [content]
    texts = []
    for part in parts:
        kind = str(part.get("type", "text")) if isinstance(part, dict) else "text"
        if kind != "text":
            what = next((name for prefix, name in NOT_TEXT.items() if prefix in kind), f"a part of type {kind!r}")
            raise Invalid(f"{where} contains {what}, but only text is supported")
        text = part.get("text", part.get("value", part.get("content"))) if isinstance(part, dict) else part
        if text is not None and not isinstance(text, str):
            raise Invalid(f"{where} has content that is {describe_type(text)}, not text")
        texts.append(text or "")
    text = "".join(texts)
    if not text.strip() and not may_be_empty:
        raise Invalid(f"{where} has no text")
    if not is_utf8(text):
        raise Invalid(f"the text of {where} {NOT_UTF8}")
    return text


def _read_tool_calls(where: str, calls: object) -> list[dict[str, Any]]:
    """Return tool calls in the format that chat templates expect: {type, function: {name, arguments}}.

    In the result, `arguments` is an object. Other keys of a call, such as `id`, are kept.
    """
    calls = parse_json(calls) if isinstance(calls, str) else calls
    read = []
    for call in calls if isinstance(calls, list) else [calls]:
        call = call if isinstance(call, dict) else {}
        function = call.get("function", call)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Invalid(f"{where} has a tool call without the name of a function")
        arguments = function.get("arguments", {})
        arguments = parse_json(arguments) if isinstance(arguments, str) and arguments.strip() else arguments or {}
        if not isinstance(arguments, dict):
            raise Invalid(f"{where} calls {function['name']} with arguments that are not a JSON object")
        around = {name: value for name, value in call.items() if name not in ("function", "name", "arguments")}
        read.append({**around, "type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return read


def _is_trained(where: str, message: dict[str, Any]) -> bool:
    """Return whether a message's marks include it in the loss. Raises Invalid if a mark is neither 0 nor 1."""
    marks = {name: message[name] for name in MARKS if message.get(name) is not None}
    for name, value in marks.items():
        if value not in (0, 1):
            found = shorten(repr(value), SHOWN_CHARS)
            raise Invalid(f"{where} has {name}: {found}, but the value must be 0 (not trained) or 1 (trained)")
    return all(map(bool, marks.values()))


def parse_json(text: str) -> Any:
    """Return the parsed value of a JSON text, or None if the text is not valid JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
