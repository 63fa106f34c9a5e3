"""Generates greedy answers. Used by evaluate, `recipe chat` and the registered model."""

from typing import Any

from recipe.text.chat_templates import ChatTemplate
from recipe.text.templates import make_template
from recipe.tokens.tokenizer import encode_prompts


def answer(
    model: Any, prompts: list[list[int]], max_new_tokens: int, *, pad_token_id: int, end_token_ids: list[int]
) -> list[list[int]]:
    """Greedy answers to prompts, both as token ids. Each answer is cut before its first end token.

    Prompts are padded on the left.
    """
    import torch

    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    with torch.inference_mode():
        outputs = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=end_token_ids,
            pad_token_id=pad_token_id,
        )[:, width:].tolist()
    ends = [next((i for i, token in enumerate(row) if token in end_token_ids), len(row)) for row in outputs]
    return [row[:end] for row, end in zip(outputs, ends, strict=True)]


def answer_rows(
    model: Any, tokenizer: Any, meta: dict[str, Any], rows: list[dict[str, Any]], max_new_tokens: int
) -> list[str]:
    """Answer each row, with the same template as in training. `meta` is the content of prepare's meta.json.

    A row contains `text` for the template `text`, and `instruction` and optionally `input` for the other templates. The
    chat templates also accept `messages`. Raises DataError if a row is invalid.
    """
    chat = ChatTemplate(tokenizer, meta["chat_template"]) if meta["chat_template"] is not None else None
    template = make_template(meta["template"], meta["columns"], chat)
    prompts = [template.prompt(row) for row in rows]
    ids = encode_prompts(tokenizer, prompts, chat=chat is not None)
    outputs = answer(model, ids, max_new_tokens, pad_token_id=meta["pad_token_id"], end_token_ids=meta["end_token_ids"])
    return [tokenizer.decode(output, skip_special_tokens=True) for output in outputs]
