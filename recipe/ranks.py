"""Encodes with tiktoken's core where it is proved to give a tokenizer's own ids: byte-level BPE, and ASCII text.

    encode = rank_encoder(tokenizer)    # None where it is not; else texts -> ids, several times as fast

tiktoken joins, of all neighbours whose bytes make a token, those of the lowest rank. The tokenizers library joins those
of the first merge in its list. Both do the same if

1. a token's rank, its id, grows with the place of the merge that makes it, and
2. every token that a merge makes is what its own text becomes by merges alone.

For say that tiktoken joins a and b to t where (a, b) is no merge. Nothing was joined across the borders of t, so what
was joined inside is what t's own text alone is joined to; and that ends in a and b, not in t, against 2. (Of equal
ranks both join the leftmost pair.) How text is cut into pieces before that depends on tables of Unicode, which the two
libraries have from different sources: so only ASCII text is encoded here, for which the tests compare them.
"""

import json
from collections.abc import Callable
from typing import Any

Encode = Callable[[list[str]], list[list[int]]]
# What the tokenizers library splits by in its ByteLevel, which is GPT-2's.
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def rank_encoder(tokenizer: Any) -> Encode | None:
    """A function from texts to their ids, with no token added and special tokens as plain text; or None."""
    try:
        import tiktoken

        backend = tokenizer.backend_tokenizer
        told = json.loads(backend.to_str())
    except (AttributeError, ImportError):
        return None
    pattern = _pattern(told)
    ranks = _ranks(told, backend.model)
    if pattern is None or ranks is None:
        return None
    try:
        core = tiktoken.Encoding("recipe", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    except ValueError:  # a pattern that its engine can't read
        return None

    def encode(texts: list[str]) -> list[list[int]]:
        ids = [core.encode_ordinary(text) if text.isascii() else None for text in texts]
        rest = [text for text, found in zip(texts, ids, strict=True) if found is None]
        others = iter(_plain(tokenizer, rest))
        return [next(others) if found is None else found for found in ids]

    return encode


def _plain(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    return tokenizer(texts, split_special_tokens=True, **options)["input_ids"]


def _pattern(told: dict[str, Any]) -> str | None:
    """The regular expression that cuts a text into pieces, of a tokenizer that does nothing else before BPE."""
    if told["normalizer"] is not None or not all(token["special"] for token in told["added_tokens"]):
        return None  # a token that is added and not special is found in plain text too
    before = told["pre_tokenizer"] or {}
    steps = before["pretokenizers"] if before.get("type") == "Sequence" else [before]
    last = steps[-1]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    if len(steps) == 1:
        return GPT2_PATTERN if last.get("use_regex", True) else None
    if len(steps) != 2 or last.get("use_regex", True):
        return None
    split = steps[0]
    if split.get("type") != "Split" or split.get("behavior") != "Isolated" or split.get("invert"):
        return None
    return split["pattern"].get("Regex")


def _ranks(told: dict[str, Any], model: Any) -> dict[bytes, int] | None:
    """The tokens' bytes and ids, where the two conditions above hold."""
    bpe = told["model"]
    plain = all(not bpe.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
    if bpe["type"] != "BPE" or not plain or bpe.get("byte_fallback") or bpe.get("ignore_merges"):
        return None
    letters = {letter: byte for byte, letter in _byte_letters().items()}
    vocab, added = bpe["vocab"], {token["content"] for token in told["added_tokens"]}
    made = []
    for merge in bpe["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        made.append(left + right)
    ids = [vocab[token] for token in dict.fromkeys(made)]
    if ids != sorted(ids) or not letters.keys() <= vocab.keys():
        return None
    tokens = [*letters, *dict.fromkeys(made)]
    if set(tokens) | added < vocab.keys():
        return None  # a token that nothing makes
    if max(vocab[letter] for letter in letters) > min(ids, default=len(vocab)):
        return None  # single bytes are no merge: their ranks come first
    if any(len(model.tokenize(token)) != 1 for token in dict.fromkeys(made)):
        return None
    return {bytes(letters[letter] for letter in token): vocab[token] for token in tokens}


def _byte_letters() -> dict[int, str]:
    """The letter that byte-level BPE writes for each byte (GPT-2's encoder.py): printable ones stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
