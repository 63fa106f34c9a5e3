"""Renders chats (lists of messages) with a chat template, and splits the rendered text into prompts and completions.

The loss covers the assistant's messages, including their end-of-turn tokens. A chat template is accepted only if it
passes a round-trip check with a short test chat. The template must write every message exactly once and in order. The
rendered text of a message must not depend on later messages, because later messages do not exist yet when the model
answers.
"""

import json
from datetime import datetime
from typing import Any

from recipe.core.errors import DataError, ParamsError
from recipe.text.builtin_chat_templates import TEMPLATES, find_template
from recipe.text.messages import Chat, Message
from recipe.text.turns import Span, Turn, text_of

LEFT_OUT = "messages after the last answer in the loss"
PROBE = [("user", "Xq one"), ("assistant", "Xq two"), ("user", "Xq three"), ("assistant", "Xq four")]


class FixedClock(datetime):
    """A datetime class with a fixed current date, so that templates that write the date render the same text every day.

    The fixed date is the default date in Llama 3.1's chat template.
    """

    @classmethod
    def now(cls, tz: Any = None) -> "FixedClock":
        """Return 26 July 2024, whatever the actual date is."""
        return cls(2024, 7, 26, tzinfo=tz)


class ChatTemplate:
    """A chat template that has passed the round-trip check.

    `source` is the template's Jinja text. `ends` contains the ids of the template's end-of-turn tokens and the id of
    the tokenizer's end token (eos_token).
    """

    def __init__(self, tokenizer: Any, chat_template: str | None) -> None:
        """Create the template, and run the round-trip check on it.

        `chat_template` has the same meaning as in find_template. Raises ParamsError if there is no such template, or if
        the template fails the check.
        """
        self.tokenizer, self.source = tokenizer, find_template(tokenizer, chat_template)
        # Some added tokens are not special. For example, some tokenizers add <think> or runs of newlines.
        added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self.specials = sorted(added | set(tokenizer.all_special_tokens))
        self.ends = self._check_round_trip()

    def prompt(self, messages: list[Message], tools: list[dict[str, Any]] | None = None) -> str:
        """Return the text that the model reads before it answers.

        Raises DataError if a message or a tool contains a special token, if the template rejects the messages, or if
        the template omits a tool.
        """
        self._reject_special_tokens(Chat(messages, tools or []))
        text = self._render(messages, tools, answering=True)
        self._check_tools(text, tools or [])
        return text

    def turns(self, chat: Chat) -> list[Turn]:
        """Return one turn for each answer that is included in the loss.

        Concatenated, the turns form the text that the template renders for the chat, up to the end of the last trained
        answer. An answer that is excluded from the loss becomes part of the next turn's prompt. Raises DataError with
        the reason if the chat contains a special token, or if the template does not render the chat faithfully.
        """
        self._reject_special_tokens(chat)
        messages, seen = chat.messages, ""
        answers: list[tuple[bool, Span, str]] = []  # for each answer: whether it is trained, its span, its end token
        for number, message in enumerate(messages):
            if message.role != "assistant":
                continue
            prompt = self._render(messages[:number], chat.tools, answering=True)
            whole = self._render(messages[: number + 1], chat.tools)
            if not prompt.startswith(seen) or not whole.startswith(prompt):
                raise DataError(
                    f"the template renders the text before message {number + 1} differently when the chat continues"
                )
            if not seen:
                self._check_tools(prompt, chat.tools)
            answer, end = self._split_end(whole[len(prompt) :])
            _check_answer(number + 1, message, answer)
            seen = prompt + answer + end
            answers.append((message.trained, Span("assistant", len(prompt), len(seen)), end))
        spans = self._spans(chat, seen, [span for _, span, _ in answers])
        turns, done = [], 0
        for trained, (_, start, stop), end in answers:
            if trained:
                inside = (span for span in spans if done <= span.start < start)
                moved = tuple(Span(role, first - done, last - done) for role, first, last in inside)
                turns.append(Turn(seen[done:start], seen[start : stop - len(end)], end, moved))
                done = stop
        return turns

    def _spans(self, chat: Chat, text: str, answers: list[Span]) -> list[Span]:
        """Return the span of each message in the rendered text.

        `answers` contains the spans of the assistant's messages. Raises DataError if a message is missing from the
        text.
        """
        spans, remaining, position = [], iter(answers), 0
        for number, message in enumerate(chat.messages, 1):
            content = message.content.strip()
            position = text.find(content, position)
            if position < 0:
                raise DataError(f"the template drops message {number} ({message.role})")
            span = Span(message.role, position, position + len(content))
            spans.append(next(remaining) if message.role == "assistant" else span)
            position += len(content)
        return spans

    def unused_keys(self, chat: Chat) -> dict[str, Any]:
        """Return the message keys that the template does not write, and the messages after the last answer in the loss.

        The result maps names to values. For a key, the name is `messages.KEY`, and the value comes from the first
        message in which the key has a value. If there are messages after the last answer in the loss, the result also
        maps LEFT_OUT to the content of the first of these messages.
        """
        unused: dict[str, Any] = {}
        if chat.left_out:
            unused[LEFT_OUT] = chat.left_out[0].content
        for message in chat.messages:
            for name, value in message.unused.items():
                unused.setdefault(f"messages.{name}", value)
        names = {name for message in chat.messages for name in message.values} - {"role", "content", "tool_calls"}
        whole = self._render(chat.messages, chat.tools) if names else ""
        for name in sorted(names):
            rest = [Message({key: value for key, value in m.values.items() if key != name}) for m in chat.messages]
            try:
                is_used = self._render(rest, chat.tools) != whole
            except DataError:  # the template fails without the key
                is_used = True
            if not is_used:
                values = [message.values[name] for message in chat.messages if name in message.values]
                unused[f"messages.{name}"] = next(filter(None, values), values[0])
        return unused

    def _check_tools(self, prompt: str, tools: list[dict[str, Any]]) -> None:
        """Raise DataError if the prompt lacks the name of a tool or the name of one of its parameters."""
        for tool in tools:
            function = tool["function"]
            parameters = function.get("parameters") or {}
            names = [function["name"], *(parameters.get("properties") or {} if isinstance(parameters, dict) else {})]
            if any(name not in prompt for name in names):
                raise DataError(f"the template does not write the tool {function['name']}")

    def _reject_special_tokens(self, chat: Chat) -> None:
        texts = [(f"message {number} ({message.role})", message.content, message.tool_calls)
                 for number, message in enumerate(chat.messages, 1)]  # fmt: skip
        for where, content, rest in [*texts, ("the list of tools", "", chat.tools)]:
            text = content + json.dumps(rest, ensure_ascii=False) if rest else content
            special = next((token for token in self.specials if token and token in text), None)
            if special is not None:
                raise DataError(f"{where} contains the special token {special}")

    def _render(self, messages: list[Message], tools: list[dict[str, Any]] | None, *, answering: bool = False) -> str:
        from jinja2 import TemplateError
        from transformers.utils import chat_template_utils

        # In templates, strftime_now has no date parameter. It takes the current date from this global variable.
        chat_template_utils.datetime = FixedClock
        try:
            return self.tokenizer.apply_chat_template(
                [message.values for message in messages],
                tools=tools or None,
                chat_template=self.source,
                tokenize=False,
                add_generation_prompt=answering,
            )
        except (TemplateError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"the template rejects the chat: {error}") from None

    def _split_end(self, text: str) -> tuple[str, str]:
        """Split a rendered answer into its text and the special token that ends the answer.

        Text after this token is dropped. Raises DataError if the answer does not contain a special token.
        """
        matches = [(start, -len(token), token) for token in self.specials if token and (start := text.find(token)) >= 0]
        if not matches:
            raise DataError("the template ends answers without a special token, so the model can't learn to stop")
        start, _, token = min(matches)
        return text[:start], token

    def _check_round_trip(self) -> list[int]:
        """Render a short test chat, and return the ids of its end-of-turn tokens and of eos_token.

        The ids are in ascending order. Raises ParamsError if the template fails the round-trip check.
        """
        probe = [Message({"role": role, "content": content}) for role, content in PROBE]
        try:
            turns = self.turns(Chat(probe))
        except DataError as error:
            others = [name for name, text in TEMPLATES.items() if text != self.source]
            raise ParamsError(
                f"params.yaml: sequence.chat_template: {error}. Set this key to the name of a different "
                f"template ({', '.join(others)}) or to Jinja text."
            ) from None
        text = text_of(turns)
        repeated = [content for _, content in PROBE if text.count(content) != 1]
        if repeated:
            raise ParamsError(
                f"params.yaml: sequence.chat_template writes a message {text.count(repeated[0])} times instead of once."
                " Use a different template."
            )
        ids = [self.tokenizer.convert_tokens_to_ids(turn.end) for turn in turns]
        return sorted({*ids, self.tokenizer.eos_token_id} - {None})


def _check_answer(number: int, message: Message, answer: str) -> None:
    """Raise DataError if a rendered answer lacks the text of the message or a part of its tool calls.

    If the answer contains neither tool calls nor text from other keys, the answer must equal the text of the message.
    Leading and trailing whitespace is ignored.
    """
    called = [text for call in message.tool_calls for text in (call["name"], *_leaves(call["arguments"]))]
    missing = next((text for text in called if not any(form in answer for form in _written(text))), None)
    if missing is not None:
        raise DataError(f"the template drops {missing!r}, a part of a tool call of message {number}")
    stated = [text for name, text in message.values.items() if name not in ("role", "content") and text]
    stated = [text.strip() for text in stated if isinstance(text, str) and text.strip() in answer]
    exact = not called and not stated  # if false, the answer contains more than the content
    if answer.strip() != message.content.strip() if exact else message.content.strip() not in answer:
        raise DataError(f"the template changes message {number} (assistant)")


def _leaves(value: Any) -> list[Any]:
    """Return all keys and scalars in a JSON value, at every level of nesting."""
    if isinstance(value, dict):
        return [leaf for name, item in value.items() for leaf in (name, *_leaves(item))]
    if isinstance(value, list):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]


def _written(leaf: Any) -> set[str]:
    """Return the forms in which templates write a scalar: as JSON without surrounding quotes, and as plain text."""
    return {json.dumps(leaf, ensure_ascii=False).strip('"'), str(leaf)}
