"""Converts Stanford Alpaca's columns (instruction, input, output) to a prompt and a completion, or to a chat."""

from typing import Any

from recipe.text.turns import Turn

# Stanford Alpaca's two prompts (tatsu-lab/stanford_alpaca, train.py, PROMPT_DICT). Each prompt ends with an additional
# newline, because the dataset's `text` column contains a newline between "### Response:" and the answer.
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


def alpaca_prompt(row: dict[str, Any]) -> str:
    """Return Alpaca's prompt for a row with an `instruction` and, optionally, an `input`."""
    form = ALPACA_WITH_INPUT if (row.get("input") or "").strip() else ALPACA_WITHOUT_INPUT
    # Search for {input} only after the instruction, because the instruction may also contain the text "{input}".
    instruction, rest = form.split("{instruction}")
    return instruction + row["instruction"] + rest.replace("{input}", row.get("input") or "", 1)


def alpaca_turns(row: dict[str, str]) -> list[Turn]:
    """Return the single turn of a row whose keys are Alpaca's column names."""
    return [Turn(alpaca_prompt(row), row["output"])]


def question_in(prompt: str) -> str:
    """Return the instruction and the input of an Alpaca prompt, without the fixed text around them.

    A prompt that is not an Alpaca prompt is returned unchanged.
    """
    for form in (ALPACA_WITH_INPUT, ALPACA_WITHOUT_INPUT):
        before, after = form.split("{instruction}")
        end = after.rsplit("{input}", 1)[-1]
        if prompt.startswith(before) and prompt.endswith(end):
            return prompt[len(before) : len(prompt) - len(end)].replace("\n\n### Input:\n", "\n\n", 1)
    return prompt


def alpaca_messages(row: dict[str, str]) -> list[dict[str, str]]:
    """Convert a row with Alpaca's columns to the messages of a chat.

    If `output` is missing or empty, the chat contains only the user's message.
    """
    question = "\n\n".join(filter(None, (row["instruction"], row.get("input"))))
    answer = [{"role": "assistant", "content": row["output"]}] if row.get("output") else []
    return [{"role": "user", "content": question}, *answer]
