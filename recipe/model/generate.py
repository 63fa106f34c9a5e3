"""Generates answers with greedy decoding, for `recipe evaluate`, `recipe chat` and the registered model."""

import math
from typing import Any

from recipe.core.errors import DataError
from recipe.text.chat_templates import ChatTemplate
from recipe.text.templates import make_template
from recipe.tokens.tokenizer import encode_prompts


def answer(
    model: Any, prompts: list[list[int]], max_new_tokens: int, *, pad_token_id: int, end_token_ids: list[int],
    streamer: Any = None,
) -> list[list[int]]:  # fmt: skip
    """Generate an answer to each prompt with greedy decoding. Prompts and answers are lists of token ids.

    Prompts are padded on the left. Each answer is cut off before its first end token, or where the model runs out of
    positions. A `streamer` is one of transformers, for one prompt. Raises DataError if a prompt alone uses up all
    positions.
    """
    import torch

    width, positions = max(map(len, prompts)), max_positions(model)
    if width >= positions:
        raise DataError(f"a prompt has {width:,} tokens, but the model supports only {positions:,} positions.")
    ids = torch.full((len(prompts), width), pad_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    with torch.inference_mode():
        outputs = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=int(min(max_new_tokens, positions - width)),
            do_sample=False,
            num_beams=1,
            eos_token_id=end_token_ids,
            pad_token_id=pad_token_id,
            streamer=streamer,
        )[:, width:].tolist()
    ends = [next((i for i, token in enumerate(row) if token in end_token_ids), len(row)) for row in outputs]
    return [row[:end] for row, end in zip(outputs, ends, strict=True)]


def max_positions(model: Any) -> float:
    """Return the number of positions that a model supports, or infinity if its config does not limit them."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf


def answer_rows(
    model: Any, tokenizer: Any, meta: dict[str, Any], rows: list[dict[str, Any]], max_new_tokens: int
) -> list[str]:
    """Generate an answer for each row, with the template that was used for training.

    `meta` contains the data in meta.json, which the prepare stage writes. The template's INPUTS lists a row's keys:
    for example, `text` for the `text` template, or `messages` and `tools` for the `chat` template. Raises DataError if
    a row is invalid.
    """
    chat = ChatTemplate(tokenizer, meta["chat_template"]) if meta["chat_template"] is not None else None
    template = make_template(meta["template"], meta["columns"], chat)
    prompts = [template.prompt(row) for row in rows]
    ids = encode_prompts(tokenizer, prompts, chat=chat is not None)
    outputs = answer(model, ids, max_new_tokens, pad_token_id=meta["pad_token_id"], end_token_ids=meta["end_token_ids"])
    return [tokenizer.decode(output, skip_special_tokens=True) for output in outputs]
