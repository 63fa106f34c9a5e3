"""Makes the chat template of an exported model, with which servers and chat programs build the prompts of the training.

    exported_template(meta)              # Jinja text
    template_problem(render, tokenizer, meta)    # None if `render` makes the prompts of the training

A model that was trained on chats keeps its template. For the other templates, the prompt contains one message by the
user: an instruction for `alpaca`, the text itself for `text` and `prompt_completion`.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

from recipe.core.errors import DataError
from recipe.text.alpaca import ALPACA_WITHOUT_INPUT
from recipe.text.chat_templates import ChatTemplate, FixedClock
from recipe.text.templates import make_template

Messages = list[dict[str, str]]
Render = Callable[[Messages], str]

# Templates that write the date got a fixed one in training (recipe/text/chat_templates.py).
DATE = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
SINGLE = (
    "{%- if messages | length != 1 or messages[0]['role'] != 'user' %}"
    "{{- raise_exception('This model was trained on single prompts. Send one message with the role user.') }}"
    "{%- endif %}"
)
PROBES: tuple[Messages, ...] = (
    [{"role": "user", "content": "Name three colours."}],
    [{"role": "user", "content": "  Why?\n\n{{ 1 }} "}],
)


def exported_template(meta: dict[str, Any]) -> str:
    """Return the Jinja text of the chat template. `meta` contains the data in meta.json."""
    if meta["chat_template"] is not None:
        return DATE.sub(lambda match: json.dumps(FixedClock.now().strftime(match[2])), meta["chat_template"])
    before, after = texts_around(meta)
    return f"{SINGLE}{{{{- {json.dumps(before)} + messages[0]['content'] + {json.dumps(after)} }}}}"


def texts_around(meta: dict[str, Any]) -> tuple[str, str]:
    """Return the texts before and after the message in a single prompt, for templates without chats."""
    if meta["template"] != "alpaca":
        return "", ""
    before, after = ALPACA_WITHOUT_INPUT.split("{instruction}")
    return before, after


def prompts_of(
    conversations: Iterable[Messages], tokenizer: Any, meta: dict[str, Any]
) -> Iterator[tuple[Messages, str]]:
    """Yield messages, and the prompt that the training's template makes from them."""
    chat = ChatTemplate(tokenizer, meta["chat_template"]) if meta["chat_template"] is not None else None
    template = make_template(meta["template"], meta["columns"], chat)
    for messages in conversations:
        text = messages[0]["content"]
        row = {"messages": messages} if chat else {"instruction": text, "text": text, "prompt": text}
        try:
            yield messages, template.prompt(row)
        except DataError:  # some templates require a system message
            continue


def template_problem(render: Render, tokenizer: Any, meta: dict[str, Any]) -> str | None:
    """Compare prompts that `render` makes from messages with those of the training; describe the first difference."""
    for messages, wanted in prompts_of(PROBES, tokenizer, meta):
        found = render(messages)
        if found != wanted:
            return f"its chat template renders {found!r}, but the model was trained on {wanted!r}."
    return None


def accepted(render: Render) -> dict[str, bool]:
    """Say whether a template has a place for a system message, and for earlier turns."""
    from jinja2 import TemplateError

    def writes(*roles: str) -> bool:
        messages = [{"role": role, "content": f"Xq{place}"} for place, role in enumerate(roles)]
        try:
            text = render(messages)
        except TemplateError:
            return False
        return all(message["content"] in text for message in messages)

    return {"system": writes("system", "user"), "turns": writes("user", "assistant", "user")}


def rendered_by_transformers(tokenizer: Any, template: str | None = None) -> Render:
    """Return a function that makes a prompt with a template or the tokenizer's own one, as other programs do."""
    from transformers.utils import chat_template_utils

    def render(messages: Messages) -> str:
        chat_template_utils.datetime = datetime  # ChatTemplate replaces it by a fixed clock
        prompt: str = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True
        )
        return prompt

    return render
