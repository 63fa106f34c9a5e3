"""Defines the project's own chat templates as Jinja text, and finds the template that a recipe specifies.

TEMPLATES["plain"]
find_template(tokenizer, "plain")    # the Jinja text, with the tokenizer's begin token
"""

import json
from typing import Any

from recipe.core.errors import ParamsError
from recipe.tokens.tokenizer import leading_ids

# The parts of the templates below that write a row's tools and a message's tool calls.
TOOL_LIST = "<tools>\n{% for tool in tools %}{{ tool['function'] | tojson }}\n{% endfor %}</tools>"
TOOL_CALLS = (
    "{% for call in message['tool_calls'] or [] %}{{ '\n' if message['content'] or not loop.first }}"
    "<tool_call>{{ call['function'] | tojson }}</tool_call>{% endfor %}"
)
# Templates for tokenizers that have no chat template. They can also replace a tokenizer's own template. `chatml` is
# intended for tokenizers that have its two special tokens, <|im_start|> and <|im_end|>.
TEMPLATES = {
    "chatml": (
        "{% if tools %}<|im_start|>system\n{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}\n\n"
        "{% endif %}" + TOOL_LIST + "<|im_end|>\n{% endif %}"
        "{% for message in messages %}{% if not (tools and loop.first and message['role'] == 'system') %}"
        "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}" + TOOL_CALLS + "<|im_end|>\n{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "plain": (
        "{% if tools %}### Tools:\n" + TOOL_LIST + "\n\n{% endif %}"
        "{% for message in messages %}### {{ message['role'] | capitalize }}:\n{{ message['content'] }}"
        + TOOL_CALLS
        + "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}"
        "{% endfor %}{% if add_generation_prompt %}### Assistant:\n{% endif %}"
    ),
}


def find_template(tokenizer: Any, chat_template: str | None) -> str:
    """Return the Jinja text of a chat template.

    `chat_template` is a name in TEMPLATES, the name of one of the tokenizer's templates, Jinja text, or None for the
    tokenizer's only or default template. If the tokenizer puts a begin token before every text, this token is added at
    the start of a template from TEMPLATES. Raises ParamsError if there is no such template.
    """
    own = tokenizer.chat_template or {}
    named = own if isinstance(own, dict) else {"default": own}
    if chat_template in TEMPLATES:
        begin = "".join(tokenizer.convert_ids_to_tokens(leading_ids(tokenizer)))
        return f"{{{{ {json.dumps(begin)} }}}}{TEMPLATES[chat_template]}" if begin else TEMPLATES[chat_template]
    source = named.get("default" if chat_template is None else chat_template, chat_template)
    if source is None and len(named) == 1:
        [source] = named.values()
    if source is not None and "{" in source:
        return source
    names = ", ".join([*TEMPLATES, *(named if isinstance(own, dict) else ())])
    if chat_template is not None:
        problem = f"{chat_template!r}, which is not a template"
    elif named:
        problem = "null, but the tokenizer has several chat templates, and none is named default"
    else:
        problem = "null, but the tokenizer has no chat template"
    raise ParamsError(
        f"params.yaml: sequence.chat_template is {problem}. Set this key to the name of a template ({names}) or to "
        "Jinja text."
    )
