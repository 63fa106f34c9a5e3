"""Rows that are copies of others: the same, nearly the same, or the same question with another answer.

    copies = Copies()
    copies.add("What is 1 + 1?", "2", validation=False)
    found = copies.find()

Nearly the same are rows whose sets of three neighbouring words overlap by SIMILAR or more, estimated by MinHash
(Broder 1997, "On the resemblance and containment of documents") and found by banding (Leskovec, Rajaraman and Ullman,
"Mining of Massive Datasets", chapter 3), so that time grows with the rows and not with their pairs.
"""

import re
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from zlib import crc32

import numpy as np

SIMILAR = 0.8  # Jaccard similarity of the sets of word triples
PERMUTATIONS = 128  # the estimate's standard deviation at 0.8 is 0.035
BANDS = 16  # of 8 values: two rows that overlap by 0.8 share a band in 95% of cases, by 0.9 in all but 1 of 10,000
AT_ONCE = 100_000  # pairs compared at once: 100 MB
# Scripts without spaces between words (Thai, Lao, Burmese, Khmer, kana, Han) count by the character. Else a word is
# what stands between white space and punctuation, with its marks and emoji.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
WORD = re.compile(f"[{UNSPACED}]|[^{UNSPACED}\\s!-/:-@\\[-`{{-~\u00a1-\u00bf\u2000-\u206f\u3000-\u303f]+")


@dataclass(frozen=True)
class Pairs:
    """Rows beside the earlier row that each looks like, as numbers in the order of adding, and how alike (0 to 1)."""

    rows: list[int]
    earlier: list[int]
    similarity: list[float]


@dataclass(frozen=True)
class Found:
    """The copies among the rows. `leaks` are validation rows beside the training row that each nearly is."""

    same: Pairs
    same_question: Pairs
    near: Pairs
    leaks: Pairs


def words(text: str) -> list[str]:
    """The words of a text, without case."""
    return WORD.findall(text.lower())


def triples(text: str) -> list[int]:
    """A 32-bit hash for each three neighbouring words; of a text with fewer words, for the text as it stands."""
    found = [crc32(word.encode()) for word in words(text)]
    if len(found) < 3:
        return [crc32(text.encode())]
    pairs = [(31 * one + other) & 0xFFFFFFFF for one, other in pairwise(found)]
    return [(1_000_003 * pair + third) & 0xFFFFFFFF for pair, third in zip(pairs, found[2:], strict=False)]


class Copies:
    """Takes rows one at a time, 530 bytes each, and then says which are copies."""

    def __init__(self) -> None:
        from datasketch import MinHash

        self._sketch = MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=int, scheme="affine32")
        self._signatures, self._rows, self._questions, self._validation = (
            bytearray(),
            bytearray(),
            bytearray(),
            bytearray(),
        )

    def add(self, question: str, answer: str, *, validation: bool) -> None:
        """Take a row in."""
        asked = blake2b(question.encode(), digest_size=8).digest()
        self._questions += asked
        self._rows += blake2b(asked + answer.encode(), digest_size=8).digest()
        self._sketch.clear()
        self._sketch.update_batch(triples(f"{question} {answer}"))
        self._signatures += self._sketch.hashvalues.tobytes()
        self._validation.append(validation)

    def find(self) -> Found:
        """All copies. A row is named once in each list, beside the earliest row that was found to be like it."""
        rows, questions = np.frombuffer(self._rows, np.uint64), np.frombuffer(self._questions, np.uint64)
        signatures = np.frombuffer(self._signatures, np.uint32).reshape(-1, PERMUTATIONS)
        validation = np.frombuffer(self._validation, bool)
        everyone = np.arange(len(rows))
        first = _earliest(rows, everyone, everyone)
        single = np.flatnonzero(first < 0)
        asked = _earliest(questions, everyone, everyone)
        empty = np.uint64(int.from_bytes(blake2b(b"", digest_size=8).digest(), "little"))
        again = np.flatnonzero((asked >= 0) & (first < 0) & (questions != empty))
        same = np.flatnonzero(first >= 0)
        held, trained = np.flatnonzero(validation), np.flatnonzero(~validation)
        return Found(
            same=Pairs(same.tolist(), first[same].tolist(), [1.0] * len(same)),
            same_question=Pairs(again.tolist(), asked[again].tolist(), [1.0] * len(again)),
            near=_alike(signatures, single, single),
            leaks=_alike(signatures, held, trained),
        )


def _earliest(keys: np.ndarray, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each of `rows`, the first of `others` with its key and, in one list of both, before it; -1 is none."""
    known, places = np.unique(keys[others], return_index=True)
    at = np.minimum(np.searchsorted(known, keys[rows]), len(known) - 1)
    found = np.where(known[at] == keys[rows], others[places[at]], -1)
    return np.where(found == rows, -1, found)


def _alike(signatures: np.ndarray, rows: np.ndarray, others: np.ndarray) -> Pairs:
    """Rows beside the first of `others` that shares a band with them and is SIMILAR."""
    if not len(rows) or not len(others):
        return Pairs([], [], [])
    width = PERMUTATIONS // BANDS
    mix = np.random.Generator(np.random.PCG64(1)).integers(1, 1 << 63, width, dtype=np.uint64) | np.uint64(1)
    best = np.full(len(signatures), -1)
    likeness = np.zeros(len(signatures), dtype=np.float32)
    for start in range(0, PERMUTATIONS, width):
        keys = np.zeros(len(signatures), dtype=np.uint64)
        for column, factor in zip(range(start, start + width), mix, strict=True):
            keys = (keys ^ signatures[:, column]) * factor
        found = _earliest(keys, rows, others)
        new = found >= 0
        for begin in range(0, int(new.sum()), AT_ONCE):
            one, other = rows[new][begin : begin + AT_ONCE], found[new][begin : begin + AT_ONCE]
            alike = (signatures[one] == signatures[other]).mean(axis=1, dtype=np.float32)
            better = (alike >= SIMILAR) & ((best[one] < 0) | (other < best[one]))
            best[one[better]], likeness[one[better]] = other[better], alike[better]
    chosen = np.flatnonzero(best >= 0)
    return Pairs(chosen.tolist(), best[chosen].tolist(), [round(one, 3) for one in likeness[chosen].tolist()])
