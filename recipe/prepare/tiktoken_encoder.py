"""Encodes ASCII text with tiktoken if tiktoken provably produces the same ids as a byte-level BPE tokenizer.

    encode = rank_encoder(tokenizer)    # a faster function from texts to ids, or None if the ids could differ

tiktoken and the tokenizers library split a text into pieces, and then repeatedly merge two adjacent tokens of a piece.
The libraries differ in how they choose the next pair to merge. tiktoken uses the token's id as its rank, and merges the
pair whose concatenated bytes form the token with the lowest rank. The tokenizers library merges the pair that comes
first in the tokenizer's list of merges. Both libraries produce the same ids if condition 1 holds and at least one of
conditions 2 and 3 holds:

1. The ids follow the order of the merges: a merge never produces a smaller id than an earlier merge.
2. For every token that a merge produces, applying the merges to that token's text alone gives the token.
3. Every pair of tokens whose concatenated bytes form a token is in the list of merges.

By condition 1, both libraries rank the pairs in the list of merges in the same order. It remains to show that tiktoken
never merges a pair that is not in the list.

If condition 3 holds, every pair that tiktoken merges is in the list. One difference remains. Two overlapping pairs can
produce the same token, for example in a run of spaces. In this case, tiktoken merges the left pair, and the tokenizers
library merges the pair that comes first in the list. The tests compare both libraries' ids for such runs.

Now assume that condition 2 holds. Suppose that tiktoken merges a pair (a, b) that is not in the list, and consider the
first such merge. This merge produces a token t. No earlier merge crossed the boundaries of t, so the merges inside t
were the same as if the text of t had been merged alone. However, merging that text alone would then end with a and b
instead of t, which contradicts condition 2. Among pairs of equal rank, both libraries merge the leftmost pair first.

If a whole piece is a token, tiktoken encodes the piece as this token without merging. By condition 2, merging produces
the same token. Tokenizers with `ignore_merges` also skip merging for such a piece. As a result, condition 2 can't be
checked for these tokenizers, so condition 3 is required.

The split into pieces depends on Unicode tables, which the two libraries take from different sources, and on how each
library interprets a pattern. tiktoken drops text that no alternative of the pattern matches, and interprets `{1,3}+`
and `$` differently. Therefore, tiktoken is used only with two patterns and only for ASCII text. For these patterns, the
tests compare both libraries' pieces.

The look-ahead after whitespace in GPT-2's pattern would take two thirds of the encoding time. With this pattern, long
runs of whitespace are therefore encoded separately. The remaining texts of a batch are joined, with NUL as the
separator, and encoded together.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from itertools import cycle
from typing import Any

import numpy as np

from recipe.tokens.byte_level import byte_characters

Encode = Callable[[list[str]], list[np.ndarray]]
# GPT-2's pattern, which ByteLevel in the tokenizers library uses, and a faster pattern that finds the same pieces in
# text that is_simple accepts.
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT2_PATTERN_SIMPLE = r"'(?:[stmd]|re|ve|ll)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9\x00]+|\s|\x00"
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Two or more whitespace characters that form one piece in GPT-2's pattern. The piece is a run of whitespace without its
# last character or, at the end of a text, the whole run.
WHITESPACE_RUN = re.compile(r"([\t-\r ][\t-\r ]+(?:(?=[\t-\r ][^\t-\r ])|\Z))")
SPACES = bytes.maketrans(b"\t\n\v\f\r", b"     ")
NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
JOINED_CHARS = 1 << 20  # number of characters to encode together; a larger number needs more memory and is not faster
MAX_CACHED_RUN_CHARS = 100  # longer runs of whitespace are rare
MAX_BACKTRACKING_CHARS = 100_000  # per text; backtracking overflows the regex engine's stack after 500,000


def rank_encoder(tokenizer: Any) -> Encode | None:
    """Return a function that encodes texts to arrays of ids (uint32), or None if the tokenizer is not supported.

    The function adds no tokens, and treats special tokens in the texts as plain text. The result is also None if orjson
    or tiktoken is not installed.
    """
    try:
        import orjson
        import tiktoken  # noqa: F401 - RankEncoder imports tiktoken

        backend = tokenizer.backend_tokenizer
        config = orjson.loads(backend.to_str())
    except (AttributeError, ImportError):
        return None
    pattern = _pattern(config)
    ranks = _ranks(config, backend)
    return None if pattern is None or ranks is None else RankEncoder(backend, pattern, ranks).encode


class RankEncoder:
    """Divides texts into parts, and encodes each part with the fastest encoder that produces the tokenizer's ids."""

    def __init__(self, backend: Any, pattern: str, ranks: dict[bytes, int]) -> None:
        import tiktoken

        self.backend, self.is_gpt2 = backend, pattern == GPT2_PATTERN
        core_pattern = GPT2_PATTERN_SIMPLE if self.is_gpt2 else pattern
        # This special token is never recognized in a text. Without a special token, encode_to_numpy would stop at every
        # character to search for special tokens.
        never = {"<|never|>": 1 + max(ranks.values())}
        core = tiktoken.Encoding("recipe", pat_str=core_pattern, mergeable_ranks=ranks, special_tokens=never)
        self.ordinary = partial(core.encode_to_numpy, allowed_special=set(), disallowed_special=())
        self.letters, self.nul = byte_characters(), ranks[b"\0"]
        self.cached_run = lru_cache(maxsize=10_000)(self.run)

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Return the ids of each text as a uint32 array."""
        assigned: list[list[tuple[Encode, str]]] = [
            [(self.together, text)] if self.is_gpt2 and is_simple(text) else list(self.assign_encoders(text))
            for text in texts
        ]
        inputs: dict[Encode, list[str]] = defaultdict(list)
        for parts in assigned:
            for encoder, part in parts:
                inputs[encoder].append(part)
        outputs = {encoder: iter(encoder(parts)) for encoder, parts in inputs.items()}
        ids = ([next(outputs[encoder]) for encoder, _ in parts] for parts in assigned)
        return [arrays[0] if len(arrays) == 1 else np.concatenate(arrays) for arrays in ids]

    def assign_encoders(self, text: str) -> Iterator[tuple[Encode, str]]:
        """Yield the parts of a text in order, each with the encoder to use for it."""
        if not self.is_gpt2:
            is_safe = text.isascii() and len(text) <= MAX_BACKTRACKING_CHARS
            yield self.separately if is_safe else self.plain, text
            return
        for part in split_ascii(text):
            if is_simple(part):
                yield self.together, part
            elif not part.isascii() or "\0" in part:
                yield self.plain, part
            else:
                yield from zip(cycle((self.together, self.runs)), WHITESPACE_RUN.split(part), strict=False)

    def plain(self, texts: list[str]) -> list[np.ndarray]:
        """Encode with the tokenizers library, like recipe.tokens.tokenizer.encode but without computing offsets."""
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = True
        encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.uint32) for encoding in encodings]

    def separately(self, texts: list[str]) -> list[np.ndarray]:
        """Encode with tiktoken, one text at a time."""
        return [self.ordinary(text) for text in texts]

    def together(self, texts: list[str]) -> list[np.ndarray]:
        """Join the texts with NUL as the separator, and encode them with tiktoken."""
        encoded = []
        for joined_texts in joined(texts):
            ids, start = self.ordinary(joined_texts), 0
            for end in np.flatnonzero(ids == self.nul).tolist():
                encoded.append(ids[start:end])
                start = end + 1
        return encoded

    def runs(self, texts: list[str]) -> list[np.ndarray]:
        """Encode texts that each consist of one run of whitespace."""
        return [self.cached_run(text) if len(text) <= MAX_CACHED_RUN_CHARS else self.run(text) for text in texts]

    def run(self, text: str) -> np.ndarray:
        """Encode a run of whitespace, which is a single piece, with the same merges as the tokenizers library."""
        piece = "".join(self.letters[byte] for byte in text.encode())
        return np.array([token.id for token in self.backend.model.tokenize(piece)], np.uint32)


def joined(texts: list[str]) -> Iterator[str]:
    """Join the texts, each followed by NUL. Yield a string whenever JOINED_CHARS characters have been joined."""
    parts, size = [], 0
    for text in texts:
        parts.append(f"{text}\0")
        size += len(text)
        if size >= JOINED_CHARS:
            yield "".join(parts)
            parts, size = [], 0
    yield "".join(parts)


def is_simple(text: str) -> bool:
    """Return whether a text is ASCII, contains no NUL, and is split into the same pieces by both GPT-2 patterns.

    In a run of n whitespace characters, GPT2_PATTERN takes the first n - 1 characters as one piece if more text
    follows, or all n characters at the end of a text. GPT2_PATTERN_SIMPLE treats each of these characters as a separate
    piece. The pieces are the same if n is 1, or if n is 2 and more text follows. WHITESPACE_RUN matches the longer
    pieces.
    """
    if not text.isascii() or "\0" in text:
        return False
    spaces = text.encode().translate(SPACES)
    return b"   " not in spaces and not spaces.endswith(b"  ")


def cuts_at(text: str, at: int) -> bool:
    """Return whether `at` is the position of a single space between two printable ASCII characters.

    At this position, GPT-2's pattern finds the same pieces in text[:at] and text[at:] as in the whole text, because no
    piece extends from the left into the space, and only whitespace pieces depend on the text that follows.
    """
    return text[at] == " " and "!" <= text[at - 1 : at] <= "~" and "!" <= text[at + 1 : at + 2] <= "~"


def split_ascii(text: str) -> list[str]:
    """Split a text into ASCII parts and parts with non-ASCII words. Each part can be encoded separately."""
    parts, done = [], 0
    for match in NOT_ASCII.finditer(text):
        if match.start() < done:
            continue
        start = text.rfind(" ", done, match.start())
        while start > done and not cuts_at(text, start):
            start = text.rfind(" ", done, start)
        end = text.find(" ", match.end())
        while end > 0 and not cuts_at(text, end):
            end = text.find(" ", end + 1)
        start, end = max(start, done), end if end > 0 else len(text)
        parts += [text[done:start], text[start:end]]
        done = end
    return [part for part in (*parts, text[done:]) if part]


def _pattern(config: dict[str, Any]) -> str | None:
    """Return the pattern that the tokenizer uses to split text, if it is GPT-2's or Llama 3's.

    Return None for other patterns, and for tokenizers that do anything else before BPE.
    """
    if config["normalizer"] is not None or not all(token["special"] for token in config["added_tokens"]):
        return None  # added tokens that are not special are also recognized in plain text
    pre_tokenizer = config["pre_tokenizer"] or {}
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
    last = steps[-1] if steps else {}
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    if len(steps) == 1:
        return GPT2_PATTERN if last.get("use_regex", True) else None
    if len(steps) != 2 or last.get("use_regex", True):
        return None
    split = steps[0]
    if split.get("type") != "Split" or split.get("behavior") != "Isolated" or split.get("invert"):
        return None
    pattern = split["pattern"].get("Regex")
    return pattern if pattern in (GPT2_PATTERN, LLAMA3_PATTERN) else None


def _ranks(config: dict[str, Any], backend: Any) -> dict[bytes, int] | None:
    """Return {bytes: id} of all tokens, or None if the conditions in the module's docstring do not hold."""
    bpe = config["model"]
    is_plain = all(not bpe.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
    if bpe["type"] != "BPE" or not is_plain or bpe.get("byte_fallback"):
        return None
    letters = {letter: byte for byte, letter in byte_characters().items()}
    vocab, added = bpe["vocab"], {token["content"] for token in config["added_tokens"]}
    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in bpe["merges"]]
    merged = [left + right for left, right in merges]
    ids = [vocab[token] for token in merged]
    if ids != sorted(ids) or not letters.keys() <= vocab.keys():
        return None
    tokens = [*letters, *dict.fromkeys(merged)]
    if vocab.keys() - added - set(tokens):
        return None  # there is a token that no merge produces
    if max(vocab[letter] for letter in letters) > min(ids, default=len(vocab)):
        return None  # single-byte tokens are not produced by merges, so they must have the lowest ranks
    if bpe.get("ignore_merges"):
        unmerged = (vocab.keys() & added) - set(tokens)
        if any(len(backend.pre_tokenizer.pre_tokenize_str(token)) < 2 for token in unmerged):
            return None  # ignore_merges would encode the text of this special token as the token itself
        pairs = ((token[:cut], token[cut:]) for token in dict.fromkeys(merged) for cut in range(1, len(token)))
        known, all_merges = set(tokens), set(merges)
        if any(pair not in all_merges and pair[0] in known and pair[1] in known for pair in pairs):
            return None
    elif any(len(backend.model.tokenize(token)) != 1 for token in dict.fromkeys(merged)):
        return None
    # Map each letter, which represents a byte, to the character that Latin-1 encodes as that byte.
    to_bytes = {ord(letter): byte for letter, byte in letters.items()}
    return {token.translate(to_bytes).encode("latin-1"): vocab[token] for token in tokens}
