"""Loads tokenizers, adds a missing padding token, and encodes text."""

from pathlib import Path
from typing import Any

from recipe.core.errors import DataError
from recipe.core.format import first_line

PADDING_TOKEN = "<|pad|>"
SHORT_TEXTS = ("\n", ".", "a", "0")  # see encode_continuations


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer from a folder without network access. Only the fetch stage may allow remote code.

    Raises DataError if transformers cannot read the tokenizer, or if the tokenizer has no end token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:  # noqa: BLE001 - for invalid files, the libraries raise KeyError, TypeError or Exception
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise DataError(f"{folder} does not contain a tokenizer that transformers can read: {reason}") from None
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"the tokenizer in {folder} has no end token (eos_token), so answers could never end. If "
            "tokenizer_config.json is missing or damaged, restore it. Otherwise, choose a different base model."
        )
    return tokenizer


def give_padding_token(tokenizer: Any) -> None:
    """Set a padding token that is not the end token.

    In the tutorial on which this project is based, the end token is also the padding token. Masking the padding by
    token id then also removes the end token from the loss, so the model never learns to stop.
    """
    assert tokenizer.eos_token_id is not None
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PADDING_TOKEN})


def leading_ids(tokenizer: Any) -> list[int]:
    """Return the ids that the tokenizer adds before every text: the id of the begin token (bos_token), or no ids."""
    ids = list(tokenizer("")["input_ids"])
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id != tokenizer.bos_token_id else ids


def encode(tokenizer: Any, texts: list[str], *, special_tokens: bool = False) -> list[list[int]]:
    """Return the token ids of each text. The tokenizer adds no special tokens.

    Special tokens that are written out in a text are encoded as plain text unless `special_tokens` is true. Set
    `special_tokens` only for text that a chat template rendered.
    """
    if not texts:
        return []
    options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    return tokenizer(texts, split_special_tokens=not special_tokens, **options)["input_ids"]


def encode_continuations(tokenizer: Any, texts: list[str], *, special_tokens: bool = False) -> list[list[int]]:
    """Return the token ids of texts that continue another text.

    Some tokenizers put a space before every text. A continuation is therefore encoded after a short text that shares no
    token with it, and the ids of the short text are removed. If no such short text is found, the continuation is
    encoded by itself.
    """
    results: list[list[int]] = encode(tokenizer, texts, special_tokens=special_tokens)
    if not _adds_to_every_text(tokenizer):
        return results
    remaining = [index for index, text in enumerate(texts) if text]
    for before in SHORT_TEXTS:
        [head] = encode(tokenizer, [before])
        encoded = encode(tokenizer, [before + texts[index] for index in remaining], special_tokens=special_tokens)
        for index, ids in zip(remaining, encoded, strict=True):
            if ids[: len(head)] == head:
                results[index] = ids[len(head) :]
        remaining = [index for index, ids in zip(remaining, encoded, strict=True) if ids[: len(head)] != head]
    return results


def _adds_to_every_text(tokenizer: Any) -> bool:
    """Return whether the tokenizer adds something, such as a space, before every text that it encodes."""
    one, two, both = encode(tokenizer, ["\n", "a", "\na"])
    return one + two != both


def encode_prompts(tokenizer: Any, prompts: list[str], *, chat: bool) -> list[list[int]]:
    """Return the token ids of prompts for inference. The prompts begin with the same ids as in training.

    No ids are added to chat prompts, because the chat template writes the begin token itself.
    """
    if chat:
        return encode(tokenizer, prompts, special_tokens=True)
    leading = leading_ids(tokenizer)
    return [leading + ids for ids in encode(tokenizer, prompts)]
