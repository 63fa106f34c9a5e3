"""Answers prompts greedily: for evaluate, `recipe chat` and the registered model, from rows rendered as in training."""

from typing import Any

from recipe.core.errors import DataError
from recipe.text.chat_templates import ChatTemplate, alpaca_messages, read_messages
from recipe.text.templates import CHATS, render_prompt
from recipe.tokens.tokenizer import encode_prompts


def answer(
    model: Any, prompts: list[list[int]], max_new_tokens: int, *, pad_token_id: int, end_token_ids: list[int]
) -> list[list[int]]:
    """Greedy answers to prompts of token ids, up to and without an end token; prompts are padded on the left."""
    import torch

    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    with torch.inference_mode():
        made = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=end_token_ids,
            pad_token_id=pad_token_id,
        )[:, width:].tolist()
    ends = [next((place for place, one in enumerate(row) if one in end_token_ids), len(row)) for row in made]
    return [row[:end] for row, end in zip(made, ends, strict=True)]


def answer_rows(
    model: Any, tokenizer: Any, meta: dict[str, Any], rows: list[dict[str, Any]], max_new_tokens: int
) -> list[str]:
    """One answer a row, by the template of training (prepare's meta.json).

    A row holds `text` for the template text, else `instruction` and perhaps `input`; for a chat, `messages` in place
    of them. Raises DataError for a row that lacks them.
    """
    chat = ChatTemplate(tokenizer, meta["chat_template"]) if meta["template"] in CHATS else None
    prompts = [_prompt(meta["template"], chat, row) for row in rows]
    ids = encode_prompts(tokenizer, prompts, chat=chat is not None)
    made = answer(model, ids, max_new_tokens, pad_token_id=meta["pad_token_id"], end_token_ids=meta["end_token_ids"])
    return [tokenizer.decode(one, skip_special_tokens=True) for one in made]


def _prompt(template: str, chat: ChatTemplate | None, row: dict[str, Any]) -> str:
    """What the model reads for a row."""
    if chat is not None and row.get("messages"):
        asked = [*row["messages"], {"role": "assistant", "content": "-"}]  # read_messages wants an answer
        messages = read_messages(asked)
        if isinstance(messages, str):
            raise DataError(f"a row to answer: {messages}.")
        return chat.prompt(messages[:-1])
    needed = "text" if template == "text" else "instruction"
    if not row.get(needed):
        raise DataError(f"a row to answer needs {needed}; this one has {', '.join(row) or 'nothing'}.")
    if template == "text":
        return row["text"]
    if chat is not None:
        return chat.prompt(alpaca_messages({name: row.get(name, "") for name in ("instruction", "input")}))
    return render_prompt("alpaca", row)
