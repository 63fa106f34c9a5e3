"""Converts Stanford Alpaca's columns (instruction, input, output) to a prompt and a completion, or to a chat."""

from typing import Any

from recipe.text.turns import Turn

# Stanford Alpaca's two prompts (tatsu-lab/stanford_alpaca, train.py, PROMPT_DICT), followed by the newline that the
# dataset's `text` column has between "### Response:" and the answer.
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
    """Alpaca's prompt for a row with `instruction` and optionally `input`."""
    form = ALPACA_WITH_INPUT if (row.get("input") or "").strip() else ALPACA_WITHOUT_INPUT
    # Only the text after the instruction is searched for {input}, because the instruction may contain "{input}" too.
    instruction, rest = form.split("{instruction}")
    return instruction + row["instruction"] + rest.replace("{input}", row.get("input") or "", 1)


def alpaca_turns(row: dict[str, str]) -> list[Turn]:
    """The single turn of a row whose keys are Alpaca's column names."""
    return [Turn(alpaca_prompt(row), row["output"])]


def question_in(prompt: str) -> str:
    """The instruction and input of an Alpaca prompt, without the fixed text. Other prompts are returned unchanged."""
    for form in (ALPACA_WITH_INPUT, ALPACA_WITHOUT_INPUT):
        before, after = form.split("{instruction}")
        end = after.rsplit("{input}", 1)[-1]
        if prompt.startswith(before) and prompt.endswith(end):
            return prompt[len(before) : len(prompt) - len(end)].replace("\n\n### Input:\n", "\n\n", 1)
    return prompt


def alpaca_messages(row: dict[str, str]) -> list[dict[str, str]]:
    """Alpaca's columns as a chat. If `output` is missing or empty, the chat has only the user's message."""
    question = "\n\n".join(filter(None, (row["instruction"], row.get("input"))))
    answer = [{"role": "assistant", "content": row["output"]}] if row.get("output") else []
    return [{"role": "user", "content": question}, *answer]
