"""Answers rows with a trained adapter, or with its base model alone, and shows each answer while it is generated."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from recipe.model.generate import answer
from recipe.text.chat_templates import ChatTemplate
from recipe.text.templates import make_template
from recipe.tokens.tokenizer import encode_prompts

Show = Callable[[str], None]  # is given the answer so far
UNFINISHED = "\ufffd"  # the last bytes are the start of a character


class ChatModel:
    """A base model with an adapter, or without one.

    `meta` contains the data in meta.json, which describes the training's template.
    """

    def __init__(self, tokenizer: Any, model: Any, meta: dict[str, Any]) -> None:
        self.tokenizer, self.model, self.meta = tokenizer, model, meta
        self.has_adapter = hasattr(model, "disable_adapter")
        self._chat = ChatTemplate(tokenizer, meta["chat_template"]) if meta["chat_template"] is not None else None
        self._template = make_template(meta["template"], meta["columns"], self._chat)

    @property
    def remembers(self) -> bool:
        """Whether prompts can contain earlier messages."""
        return self._chat is not None

    def reply(self, row: dict[str, Any], max_new_tokens: int, show: Show, *, base: bool = False) -> str:
        """Return the answer to a row, with greedy decoding. `base` leaves out the adapter.

        If the user interrupts (KeyboardInterrupt), the answer so far is returned. Raises DataError if the row is
        invalid or its prompt too long.
        """
        [ids] = encode_prompts(self.tokenizer, [self._template.prompt(row)], chat=self.remembers)
        streamer = _Streamer(self.tokenizer, self.meta["end_token_ids"], show)
        ends = {"pad_token_id": self.meta["pad_token_id"], "end_token_ids": self.meta["end_token_ids"]}
        without = base and self.has_adapter
        try:
            with self.model.disable_adapter() if without else nullcontext():
                answer(self.model, [ids], max_new_tokens, **ends, streamer=streamer)
        except KeyboardInterrupt:
            pass
        return streamer.text.strip()


class _Streamer:
    """Receives the token ids of an answer from transformers' `generate`, one at a time."""

    def __init__(self, tokenizer: Any, end_ids: list[int], show: Show) -> None:
        self._tokenizer, self._end_ids, self._show = tokenizer, end_ids, show
        self._ids: list[int] | None = None  # the first call contains the prompt
        self.text = ""

    def put(self, ids: Any) -> None:
        if self._ids is None:
            self._ids = []
            return
        self._ids += [token for token in ids.tolist() if token not in self._end_ids]
        if not self._decoded().endswith(UNFINISHED):
            self._show_all()

    def end(self) -> None:
        self._show_all()

    def _show_all(self) -> None:
        self.text = self._decoded()
        self._show(self.text)

    def _decoded(self) -> str:
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return text
