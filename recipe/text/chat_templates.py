"""Renders chats (lists of messages) with a tokenizer's chat template, as turns of prompt and completion.

The loss covers the assistant's messages, including their end-of-turn tokens. A template is accepted only if it passes a
round trip: it must write every message exactly once and in order, and the text of a message must not depend on later
messages, because those do not exist yet when the model answers.
"""

from datetime import datetime
from typing import Any

from recipe.core.errors import DataError, ParamsError
from recipe.text.readers import is_utf8
from recipe.text.turns import Turn

Message = dict[str, str]  # with the keys role and content

# For tokenizers that have no template, or to replace their template. `chatml` works only with tokenizers that have its
# two special tokens, <|im_start|> and <|im_end|>.
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
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
PROBE = [("user", "Xq one"), ("assistant", "Xq two"), ("user", "Xq three"), ("assistant", "Xq four")]


def read_messages(value: object) -> list[Message] | str:
    """A row's messages up to the assistant's last message, or the reason why they are invalid.

    Each message is {role, content}, or {from, value} as in ShareGPT. Messages without text, unknown roles, and chats
    without an answer are invalid.
    """
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        return "the messages are not a list of objects with role and content"
    messages = []
    for number, message in enumerate(value, 1):
        role = message.get("role", message.get("from"))
        content = message.get("content", message.get("value"))
        role = SHAREGPT_ROLES.get(str(role), role)
        if role not in ROLES:
            return f"message {number} has the role {role!r}; valid roles are {', '.join(ROLES)}"
        if not isinstance(content, str) or not content.strip():
            return f"message {number} ({role}) has no text"
        if not is_utf8(content):
            return f"message {number} ({role}) is not UTF-8"
        messages.append({"role": role, "content": content})
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    return messages or "the chat has no message from the assistant"


class _FixedClock(datetime):
    """A datetime class with a fixed current date: templates that write today's date render the same text every day.

    The date is the default in Llama 3.1's template.
    """

    @classmethod
    def now(cls, tz: Any = None) -> "_FixedClock":
        """Always 26 July 2024."""
        return cls(2024, 7, 26, tzinfo=tz)


class ChatTemplate:
    """A chat template that passed the round trip.

    `source` is its Jinja text. `ends` are the ids of the tokens that end a turn.
    """

    def __init__(self, tokenizer: Any, chat_template: str | None) -> None:
        """`chat_template` is None (use the tokenizer's template), a name in TEMPLATES, or Jinja text.

        Raises ParamsError if there is no template or it fails the round trip.
        """
        source = tokenizer.chat_template if chat_template is None else TEMPLATES.get(chat_template, chat_template)
        if not isinstance(source, str) or "{" not in source:
            problem = (
                "null, but the tokenizer has no chat template"
                if chat_template is None
                else f"{chat_template!r}, which is not a template"
            )
            raise ParamsError(
                f"params.yaml: sequence.chat_template is {problem}. Set it to a template name "
                f"({', '.join(TEMPLATES)}) or to Jinja text."
            )
        self.tokenizer, self.source = tokenizer, source
        # Not every added token is special: some vocabularies add <think> or runs of newlines as ordinary tokens.
        added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self.specials = sorted(added | set(tokenizer.all_special_tokens))
        self.ends = self._check_round_trip()

    def prompt(self, messages: list[Message]) -> str:
        """The text that the model reads before it answers. Raises DataError if a message contains a special token."""
        self._reject_special_tokens(messages)
        return self._render(messages, answering=True)

    def turns(self, messages: list[Message]) -> list[Turn]:
        """One turn per answer. Joined, the turns are the rendered text of the chat, up to the end of the last answer.

        Raises DataError if a message contains a special token, or if the template does not render the chat faithfully.
        The error message contains only the reason; the caller adds the file and line.
        """
        self._reject_special_tokens(messages)
        turns, done = [], ""
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt, whole = self._render(messages[:number], answering=True), self._render(messages[: number + 1])
            if not prompt.startswith(done) or not whole.startswith(prompt):
                raise DataError(
                    f"the template renders the text before message {number + 1} differently when the chat continues"
                )
            answer, end = self._split_end(whole[len(prompt) :])
            if answer.strip() != message["content"].strip():
                raise DataError(f"the template changes message {number + 1} (assistant)")
            turns.append(Turn(prompt[len(done) :], answer, end))
            done = prompt + answer + end
        position = 0
        for number, message in enumerate(messages, 1):
            position = done.find(message["content"].strip(), position)
            if position < 0:
                raise DataError(f"the template drops message {number} ({message['role']})")
            position += len(message["content"].strip())
        return turns

    def _reject_special_tokens(self, messages: list[Message]) -> None:
        for number, message in enumerate(messages, 1):
            special = next((token for token in self.specials if token and token in message["content"]), None)
            if special is not None:
                raise DataError(f"message {number} ({message['role']}) contains the special token {special}")

    def _render(self, messages: list[Message], *, answering: bool = False) -> str:
        from jinja2 import TemplateError
        from transformers.utils import chat_template_utils

        chat_template_utils.datetime = _FixedClock  # strftime_now reads this global; there is no argument for it
        try:
            return self.tokenizer.apply_chat_template(
                messages, chat_template=self.source, tokenize=False, add_generation_prompt=answering
            )
        except (TemplateError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"the template rejects the chat: {error}") from None

    def _split_end(self, text: str) -> tuple[str, str]:
        """Split a rendered answer into its text and the special token that ends it. Any text after that is dropped."""
        matches = [(start, -len(token), token) for token in self.specials if token and (start := text.find(token)) >= 0]
        if not matches:
            raise DataError("the template ends answers without a special token, so the model could never stop")
        start, _, token = min(matches)
        return text[:start], token

    def _check_round_trip(self) -> list[int]:
        """Render a short test chat and return the ids of the tokens that end a turn, in ascending order.

        Raises ParamsError if the template fails the round trip.
        """
        probe = [{"role": role, "content": content} for role, content in PROBE]
        try:
            turns = self.turns(probe)
        except DataError as error:
            others = [name for name, text in TEMPLATES.items() if text != self.source]
            raise ParamsError(
                f"params.yaml: sequence.chat_template: {error}. Set it to another template name "
                f"({', '.join(others)}) or to Jinja text."
            ) from None
        text = "".join(turn.prompt + turn.completion + (turn.end or "") for turn in turns)
        repeated = [content for _, content in PROBE if text.count(content) != 1]
        if repeated:
            raise ParamsError(
                f"params.yaml: sequence.chat_template writes a message {text.count(repeated[0])} times instead of once."
            )
        ids = [self.tokenizer.convert_tokens_to_ids(turn.end) for turn in turns]
        return sorted({*ids, self.tokenizer.eos_token_id} - {None})
