"""Encodes with tiktoken's core where it is proved to give a tokenizer's own ids: byte-level BPE, and ASCII text.

    encode = rank_encoder(tokenizer)    # None where it is not; else texts -> ids, several times as fast

tiktoken joins, of all neighbours whose bytes make a token, those of the lowest rank. The tokenizers library joins those
of the first merge in its list. Both do the same if

1. a token's rank, its id, grows with the place of every merge that makes it, and
2. every token that a merge makes is what its own text becomes by merges alone, or
3. every pair of tokens whose bytes make a token is a merge.

With 3 both join by rank alone, but where two neighbouring pairs make the same token, as in a run of spaces: there
tiktoken takes the left one, and the list the one that it names first. The tests compare such runs. With 2, say that
tiktoken joins a and b to t where (a, b) is no merge. Nothing was joined across the borders of t, so what was joined
inside is what t's own text alone is joined to; and that ends in a and b, not in t, against 2. (Of equal ranks both join
the leftmost pair.) tiktoken takes a piece that is a token whole; so does `ignore_merges`, which hides what merges alone
do, and so asks for 3.

How text is cut into pieces before that depends on tables of Unicode, which the two libraries have from different
sources, and on how each reads a pattern: tiktoken leaves out what no alternative matches, and `{1,3}+` and `$` mean
something else to it. So only two patterns are taken, and only ASCII text, for which the tests compare them. To look
ahead, as GPT-2's does after white space, would take two thirds of the time: with it, longer white space is cut out
before, and the texts of a batch are encoded at once, a NUL between two.
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
# What the tokenizers library splits by in its ByteLevel, which is GPT-2's; and the same for ASCII that is_simple.
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT2_PATTERN_SIMPLE = r"'(?:[stmd]|re|ve|ll)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9\x00]+|\s|\x00"
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# White space that GPT-2's pattern takes at once: a run without its last character, at the end of a text with it.
RUN = re.compile(r"([\t-\r ][\t-\r ]+(?:(?=[\t-\r ][^\t-\r ])|\Z))")
SPACES = bytes.maketrans(b"\t\n\v\f\r", b"     ")
NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
AT_ONCE = 1 << 20  # characters; more is not faster, and a batch of long texts would stand in memory several times
CACHED_RUN = 100  # characters: longer white space is rare
LONGEST = 100_000  # characters of a text for a pattern that goes back: its engine's stack overflows after 500,000


def rank_encoder(tokenizer: Any) -> Encode | None:
    """A function from texts to their ids (uint32), with no token added and special tokens as plain text; or None."""
    try:
        import orjson
        import tiktoken

        backend = tokenizer.backend_tokenizer
        told = orjson.loads(backend.to_str())
    except (AttributeError, ImportError):
        return None
    pattern = _pattern(told)
    ranks = _ranks(told, backend)
    if pattern is None or ranks is None:
        return None
    by_words = pattern == GPT2_PATTERN
    used = GPT2_PATTERN_SIMPLE if by_words else pattern
    # A special token that is never asked for: without any, encode_to_numpy stops at every character to look for one.
    never = {"<|never|>": 1 + max(ranks.values())}
    core = tiktoken.Encoding("recipe", pat_str=used, mergeable_ranks=ranks, special_tokens=never)
    ordinary = partial(core.encode_to_numpy, allowed_special=set(), disallowed_special=())
    letters, nul = byte_characters(), ranks[b"\0"]

    def plain(texts: list[str]) -> list[np.ndarray]:
        # As recipe.tokenization.encode does it, without the offsets that nobody asks for.
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        return [np.array(one.ids, np.uint32) for one in backend.encode_batch_fast(texts, add_special_tokens=False)]

    def one_by_one(texts: list[str]) -> list[np.ndarray]:
        return [ordinary(text) for text in texts]

    def at_once(texts: list[str]) -> list[np.ndarray]:
        made = []
        for some in joined(texts):
            ids, start = ordinary(some), 0
            for end in np.flatnonzero(ids == nul).tolist():
                made.append(ids[start:end])
                start = end + 1
        return made

    def run(text: str) -> np.ndarray:
        piece = "".join(letters[byte] for byte in text.encode())
        return np.array([token.id for token in backend.model.tokenize(piece)], np.uint32)

    cached_run = lru_cache(maxsize=10_000)(run)

    def runs(texts: list[str]) -> list[np.ndarray]:
        return [cached_run(text) if len(text) <= CACHED_RUN else run(text) for text in texts]

    def ways(text: str) -> Iterator[tuple[Encode, str]]:
        if not by_words:
            yield one_by_one if text.isascii() and len(text) <= LONGEST else plain, text
            return
        for part in split_ascii(text):
            if is_simple(part):
                yield at_once, part
            elif not part.isascii() or "\0" in part:
                yield plain, part
            else:
                yield from zip(cycle((at_once, runs)), RUN.split(part), strict=False)

    def encode(texts: list[str]) -> list[np.ndarray]:
        parts = [[(at_once, text)] if by_words and is_simple(text) else list(ways(text)) for text in texts]
        chosen: dict[Encode, list[str]] = defaultdict(list)
        for some in parts:
            for way, part in some:
                chosen[way].append(part)
        made = {way: iter(way(some)) for way, some in chosen.items()}
        ids = ([next(made[way]) for way, _ in some] for some in parts)
        return [some[0] if len(some) == 1 else np.concatenate(some) for some in ids]

    return encode


def joined(texts: list[str]) -> Iterator[str]:
    """The texts, a NUL after each, in strings of about AT_ONCE characters."""
    some, size = [], 0
    for text in texts:
        some.append(f"{text}\0")
        size += len(text)
        if size >= AT_ONCE:
            yield "".join(some)
            some, size = [], 0
    yield "".join(some)


def is_simple(text: str) -> bool:
    """Whether a text is ASCII without NUL in which GPT2_PATTERN_SIMPLE finds the pieces that GPT-2's pattern finds.

    Of a run of n white spaces before another character, GPT-2's takes n - 1 at once and leaves the last, at the end of
    a text all n. That is one by one for n up to 2, or 1 at the end; what RUN finds is the rest.
    """
    if not text.isascii() or "\0" in text:
        return False
    spaces = text.encode().translate(SPACES)
    return b"   " not in spaces and not spaces.endswith(b"  ")


def cuts_at(text: str, at: int) -> bool:
    """Whether GPT-2's pattern finds the same pieces in text[:at] and text[at:] as in the whole.

    So it does before a single space between two printable characters of ASCII: no piece goes on over it, and the only
    pieces that look further are of white space.
    """
    return text[at] == " " and "!" <= text[at - 1 : at] <= "~" and "!" <= text[at + 1 : at + 2] <= "~"


def split_ascii(text: str) -> list[str]:
    """The text in parts that can be encoded apart: ASCII, and words that are not, by turns."""
    parts, done = [], 0
    for found in NOT_ASCII.finditer(text):
        if found.start() < done:
            continue
        start = text.rfind(" ", done, found.start())
        while start > done and not cuts_at(text, start):
            start = text.rfind(" ", done, start)
        end = text.find(" ", found.end())
        while end > 0 and not cuts_at(text, end):
            end = text.find(" ", end + 1)
        start, end = max(start, done), end if end > 0 else len(text)
        parts += [text[done:start], text[start:end]]
        done = end
    return [part for part in (*parts, text[done:]) if part]


def _pattern(told: dict[str, Any]) -> str | None:
    """GPT-2's or Llama 3's pattern, of a tokenizer that cuts text by it and does nothing else before BPE."""
    if told["normalizer"] is not None or not all(token["special"] for token in told["added_tokens"]):
        return None  # a token that is added and not special is found in plain text too
    before = told["pre_tokenizer"] or {}
    steps = before["pretokenizers"] if before.get("type") == "Sequence" else [before]
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


def _ranks(told: dict[str, Any], backend: Any) -> dict[bytes, int] | None:
    """The tokens' bytes and ids, where the conditions above hold."""
    bpe = told["model"]
    plain = all(not bpe.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
    if bpe["type"] != "BPE" or not plain or bpe.get("byte_fallback"):
        return None
    letters = {letter: byte for byte, letter in byte_characters().items()}
    vocab, added = bpe["vocab"], {token["content"] for token in told["added_tokens"]}
    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in bpe["merges"]]
    made = [left + right for left, right in merges]
    ids = [vocab[token] for token in made]
    if ids != sorted(ids) or not letters.keys() <= vocab.keys():
        return None
    tokens = [*letters, *dict.fromkeys(made)]
    if vocab.keys() - added - set(tokens):
        return None  # a token that nothing makes
    if max(vocab[letter] for letter in letters) > min(ids, default=len(vocab)):
        return None  # single bytes are no merge: their ranks come first
    if bpe.get("ignore_merges"):
        whole = (vocab.keys() & added) - set(tokens)
        if any(len(backend.pre_tokenizer.pre_tokenize_str(token)) < 2 for token in whole):
            return None  # a special token that is taken whole as plain text, too
        pairs = ((token[:cut], token[cut:]) for token in dict.fromkeys(made) for cut in range(1, len(token)))
        known, all_merges = set(tokens), set(merges)
        if any(pair not in all_merges and pair[0] in known and pair[1] in known for pair in pairs):
            return None
    elif any(len(backend.model.tokenize(token)) != 1 for token in dict.fromkeys(made)):
        return None
    to_bytes = {ord(letter): byte for letter, byte in letters.items()}  # as Latin-1, whose characters are the bytes
    return {token.translate(to_bytes).encode("latin-1"): vocab[token] for token in tokens}
