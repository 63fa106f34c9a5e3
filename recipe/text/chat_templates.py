"""Chats: lists of messages written out by a tokenizer's chat template, as turns of prompt and completion.

The loss counts what the assistant says, its end of turn included. A template is believed only after a round trip: it
must write every message once and in order, and write the beginning of a chat the same whatever comes later, as it
does when the model answers.
"""

from datetime import datetime
from typing import Any

from recipe.core.errors import DataError, ParamsError
from recipe.text.readers import is_utf8
from recipe.text.turns import Turn

Message = dict[str, str]  # role and content

# Templates for tokenizers that have none, or another than is wanted. `chatml` wants its two special tokens.
TEMPLATES = {
    "chatml": (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "plain": (
        "{% for message in messages %}### {{ message['role'] | capitalize }}:\n{{ message['content'] }}"
        "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}"
        "{% endfor %}{% if add_generation_prompt %}### Assistant:\n{% endif %}"
    ),
}
ROLES = ("system", "user", "assistant")
OTHER_NAMES = {"human": "user", "gpt": "assistant"}  # ShareGPT's
PROBE = [("user", "Xq one"), ("assistant", "Xq two"), ("user", "Xq three"), ("assistant", "Xq four")]


def read_messages(value: object) -> list[Message] | str:
    """A row's messages up to the assistant's last, or why they can't be used.

    Each is {role, content}, or ShareGPT's {from, value}. Empty answers, unknown roles and chats without an answer are
    refused.
    """
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        return "the messages are not a list of objects with role and content"
    messages = []
    for number, one in enumerate(value, 1):
        role, content = one.get("role", one.get("from")), one.get("content", one.get("value"))
        role = OTHER_NAMES.get(str(role), role)
        if role not in ROLES:
            return f"message {number} has the role {role!r}, not one of {', '.join(ROLES)}"
        if not isinstance(content, str) or not content.strip():
            return f"message {number} ({role}) has no text"
        if not is_utf8(content):
            return f"message {number} ({role}) is not UTF-8"
        messages.append({"role": role, "content": content})
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    return messages or "the assistant says nothing"


def alpaca_messages(row: dict[str, str]) -> list[Message]:
    """Alpaca's columns as a chat; without an `output` it ends with the question."""
    asked = "\n\n".join(filter(None, (row["instruction"], row.get("input"))))
    answered = [{"role": "assistant", "content": row["output"]}] if row.get("output") else []
    return [{"role": "user", "content": asked}, *answered]


class _StoppedClock(datetime):
    """Some templates write today's date into the prompt, and two days would give two sets of tokens.

    They get the date that Llama 3.1's template writes where none is given.
    """

    @classmethod
    def now(cls, tz: Any = None) -> "_StoppedClock":
        """Always the same moment."""
        return cls(2024, 7, 26, tzinfo=tz)


class ChatTemplate:
    """A chat template, tried out. `source` is its Jinja text; `ends` are the ids that end a turn."""

    def __init__(self, tokenizer: Any, wanted: str | None) -> None:
        """`wanted` is null (the tokenizer's own), a name in TEMPLATES, or Jinja text."""
        source = tokenizer.chat_template if wanted is None else TEMPLATES.get(wanted, wanted)
        if not isinstance(source, str) or "{" not in source:
            raise ParamsError(
                f"params.yaml: sequence.chat_template is {'null' if wanted is None else repr(wanted)}, and "
                + ("the tokenizer has no template of its own. " if wanted is None else "that is no template. ")
                + f"Name one ({', '.join(TEMPLATES)}), or write its Jinja text there."
            )
        self.tokenizer, self.source = tokenizer, source
        # Not every added token is special: some vocabularies add runs of line ends, or <think>, as plain text.
        added = {one.content for one in tokenizer.added_tokens_decoder.values() if one.special}
        self.specials = sorted(added | set(tokenizer.all_special_tokens))
        self.ends = self._try_out()

    def prompt(self, messages: list[Message]) -> str:
        """What the model reads before it answers the last message. Raises DataError for a forged special token."""
        self._refuse_forged(messages)
        return self._write(messages, answering=True)

    def turns(self, messages: list[Message]) -> list[Turn]:
        """A chat's turns, one for each answer; together they are the template's text of the whole chat.

        Raises DataError, with the reason alone, for a chat that the template can't write faithfully.
        """
        self._refuse_forged(messages)
        turns, done = [], ""
        for number, one in enumerate(messages):
            if one["role"] != "assistant":
                continue
            asked, whole = self._write(messages[:number], answering=True), self._write(messages[: number + 1])
            if not asked.startswith(done) or not whole.startswith(asked):
                raise DataError(f"the template writes the chat before message {number + 1} otherwise when it goes on")
            answer, end = self._split_end(whole[len(asked) :])
            if answer.strip() != one["content"].strip():
                raise DataError(f"the template changes message {number + 1} (assistant)")
            turns.append(Turn(asked[len(done) :], answer, end))
            done = asked + answer + end
        place = 0
        for number, one in enumerate(messages, 1):
            place = done.find(one["content"].strip(), place)
            if place < 0:
                raise DataError(f"the template drops message {number} ({one['role']})")
            place += len(one["content"].strip())
        return turns

    def _refuse_forged(self, messages: list[Message]) -> None:
        for number, one in enumerate(messages, 1):
            forged = next((token for token in self.specials if token and token in one["content"]), None)
            if forged is not None:
                raise DataError(f"message {number} ({one['role']}) holds the special token {forged}")

    def _write(self, messages: list[Message], *, answering: bool = False) -> str:
        from jinja2 import TemplateError
        from transformers.utils import chat_template_utils

        chat_template_utils.datetime = _StoppedClock  # what strftime_now asks; it can't be given as an argument
        try:
            return self.tokenizer.apply_chat_template(
                messages, chat_template=self.source, tokenize=False, add_generation_prompt=answering
            )
        except (TemplateError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"the template refuses it: {error}") from None

    def _split_end(self, text: str) -> tuple[str, str]:
        """An answer as the template wrote it: its text, and the special tokens that end it. What follows is cut."""
        found = [(place, -len(token), token) for token in self.specials if token and (place := text.find(token)) >= 0]
        if not found:
            raise DataError("the template ends an answer with no special token, so that an answer could never end")
        place, _, token = min(found)
        return text[:place], token

    def _try_out(self) -> list[int]:
        """The ids that end a turn; raises ParamsError where a probe's messages are not each written once, in order."""
        probe = [{"role": role, "content": content} for role, content in PROBE]
        try:
            turns = self.turns(probe)
        except DataError as error:
            others = [name for name, text in TEMPLATES.items() if text != self.source]
            raise ParamsError(
                f"params.yaml: sequence.chat_template: {error}. Choose another template ({', '.join(others)}), or "
                "write one there."
            ) from None
        text = "".join(turn.prompt + turn.completion + (turn.end or "") for turn in turns)
        repeated = [content for _, content in PROBE if text.count(content) != 1]
        if repeated:
            raise ParamsError(f"params.yaml: sequence.chat_template repeats messages: {text.count(repeated[0])} times.")
        ids = [self.tokenizer.convert_tokens_to_ids(turn.end) for turn in turns]
        return sorted({*ids, self.tokenizer.eos_token_id} - {None})
