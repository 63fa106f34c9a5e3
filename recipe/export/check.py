"""Finds a conversation whose answer shows whether a server uses the adapter.

check = make_check(engine, trained)      # None if the adapter answers every candidate like its base model

recipe/serve/check.py compares a server's answer with it.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from recipe.export.chat_template import PROBES, prompts_of, texts_around
from recipe.export.parity import TorchEngine
from recipe.export.trained import Trained

Check = dict[str, Any]
MAX_TRIED = 16
MAX_TOKENS = 24  # of the answer


def make_check(engine: TorchEngine, trained: Trained) -> Check | None:
    """Return messages with the answers of the adapter and of the base model, which differ."""
    candidates = prompts_of([*_single_prompts(trained), *PROBES], engine.tokenizer, trained.meta)
    for messages, prompt in islice(candidates, MAX_TRIED):
        [ids] = engine.prompt_ids([prompt])
        answer = _text(engine, ids)
        with engine.model.disable_adapter():
            base = _text(engine, ids)
        if answer and answer != base:
            return {"messages": messages, "max_tokens": MAX_TOKENS, "answer": answer, "base_answer": base}
    return None


def _single_prompts(trained: Trained) -> Iterator[list[dict[str, str]]]:
    """Yield the prompts of validation rows as messages, for models that were trained on single prompts."""
    if trained.meta["chat_template"] is not None:
        return
    before, after = texts_around(trained.meta)
    for row in trained.rows:
        prompt = row["prompt"]
        if prompt and prompt.startswith(before) and prompt.endswith(after):
            yield [{"role": "user", "content": prompt[len(before) : len(prompt) - len(after)]}]


def _text(engine: TorchEngine, ids: list[int]) -> str:
    text: str = engine.tokenizer.decode(engine.answer(ids, MAX_TOKENS), skip_special_tokens=True)
    return text.strip()
