"""Turns a row into what the model reads and what it should answer.

A row becomes a list of turns, each a prompt (read) and a completion (answered). Alpaca's rows have one turn; a chat
has one for each answer of the assistant. Training, evaluation, `recipe chat` and the registered model all go through
`render` and `render_prompt`, so that a prompt looks the same everywhere.
"""

from dataclasses import dataclass
from typing import Literal

Template = Literal["alpaca", "text", "chat", "alpaca_chat"]
CHATS = ("chat", "alpaca_chat")  # these go through the tokenizer's chat template (recipe/text/chat_templates.py)

# Stanford Alpaca's two prompts (tatsu-lab/stanford_alpaca, train.py, PROMPT_DICT), with the line end that the dataset's
# own `text` column has between "### Response:" and the answer.
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)

# The columns each template reads: required ones, then optional ones.
REQUIRED_COLUMNS: dict[str, tuple[str, ...]] = {
    "alpaca": ("instruction", "output"),
    "text": ("text",),
    "chat": ("messages",),
    "alpaca_chat": ("instruction", "output"),
}
OPTIONAL_COLUMNS: dict[str, tuple[str, ...]] = {"alpaca": ("input",), "text": (), "chat": (), "alpaca_chat": ("input",)}


@dataclass(frozen=True)
class Turn:
    """A prompt, which the model reads, and a completion, which it is trained to answer.

    `end` is the special token that ends the answer; None is the tokenizer's end token. In a chat's prompt special
    tokens are meant as such.
    """

    prompt: str
    completion: str
    end: str | None = None


def render_prompt(template: Template, row: dict[str, str]) -> str:
    """The prompt of a row's first turn. A `text` row has none: all of it is completion."""
    if template == "text":
        return ""
    form = ALPACA_WITH_INPUT if row.get("input") else ALPACA_WITHOUT_INPUT
    # Not str.format: a row may hold braces.
    instruction, rest = form.split("{instruction}")
    return instruction + row["instruction"] + rest.replace("{input}", row.get("input") or "", 1)


def asked(prompt: str) -> str:
    """What a prompt asks, without what Alpaca's prompts all begin and end with; of another template, all of it."""
    for form in (ALPACA_WITH_INPUT, ALPACA_WITHOUT_INPUT):
        before, after = form.split("{instruction}")
        end = after.rsplit("{input}", 1)[-1]
        if prompt.startswith(before) and prompt.endswith(end):
            return prompt[len(before) : len(prompt) - len(end)].replace("\n\n### Input:\n", "\n\n", 1)
    return prompt


def render(template: Template, row: dict[str, str]) -> list[Turn]:
    """A row's turns. `row` has the template's columns, each a string; `input` may be empty or missing."""
    if template == "text":
        return [Turn("", row["text"])]
    return [Turn(render_prompt(template, row), row["output"])]
