"""Finds duplicate rows: identical rows, near duplicates, and repeated questions with different answers.

    copies = Copies()
    copies.add("What is 1 + 1?", "2", validation=False)
    duplicates = copies.find()

Two rows are near duplicates if the Jaccard similarity of their sets of word triples is at least SIMILAR. MinHash
estimates the similarity (Broder 1997, "On the resemblance and containment of documents"). Banding selects candidate
pairs, which avoids comparing every pair of rows (Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", chapter
3).
"""

import re
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from zlib import crc32

import numpy as np

SIMILAR = 0.8  # Jaccard similarity of the sets of word triples
PERMUTATIONS = 128  # the standard deviation of the estimate is 0.035 at a similarity of 0.8
# Each band has 8 values. A pair shares a band with a probability of 95% at a similarity of 0.8, and of 99.99% at 0.9.
BANDS = 16
AT_ONCE = 100_000  # number of pairs compared per step; a step needs about 100 MB
# In scripts without spaces between words (Thai, Lao, Burmese, Khmer, kana, Han), each character counts as a word.
# In other scripts, a word is a run of characters that are not whitespace or punctuation. A word may contain emoji.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
WORD = re.compile(f"[{UNSPACED}]|[^{UNSPACED}\\s!-/:-@\\[-`{{-~\u00a1-\u00bf\u2000-\u206f\u3000-\u303f]+")


@dataclass(frozen=True)
class Pairs:
    """Pairs of similar rows: `rows[i]` resembles `earlier[i]`, with a similarity of `similarity[i]` (0 to 1).

    Rows are numbered from 0, in the order in which they were added.
    """

    rows: list[int]
    earlier: list[int]
    similarity: list[float]


@dataclass(frozen=True)
class Duplicates:
    """Pairs of duplicate rows by type. Each pair in `leaks` consists of a validation row and a similar training row."""

    same: Pairs
    same_question: Pairs
    near: Pairs
    leaks: Pairs


def words(text: str) -> list[str]:
    """Return the words of a text in lowercase."""
    return WORD.findall(text.lower())


def triples(text: str) -> list[int]:
    """Return a 32-bit hash for each sequence of three consecutive words.

    For a text with fewer than three words, return a single hash of the whole text.
    """
    hashes = [crc32(word.encode()) for word in words(text)]
    if len(hashes) < 3:
        return [crc32(text.encode())]
    pairs = [(31 * first + second) & 0xFFFFFFFF for first, second in pairwise(hashes)]
    return [(1_000_003 * pair + third) & 0xFFFFFFFF for pair, third in zip(pairs, hashes[2:], strict=False)]


class Copies:
    """Collects rows one at a time and then finds the duplicates. Each row takes about 530 bytes of memory."""

    def __init__(self) -> None:
        from datasketch import MinHash

        self._sketch = MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=int, scheme="affine32")
        self._signatures, self._rows, self._questions, self._validation = (bytearray() for _ in range(4))

    def add(self, question: str, answer: str, *, validation: bool) -> None:
        """Add a row. `validation` specifies whether the row is in the validation split."""
        question_hash = blake2b(question.encode(), digest_size=8).digest()
        self._questions += question_hash
        self._rows += blake2b(question_hash + answer.encode(), digest_size=8).digest()
        self._sketch.clear()
        self._sketch.update_batch(triples(f"{question} {answer}"))
        self._signatures += self._sketch.hashvalues.tobytes()
        self._validation.append(validation)

    def find(self) -> Duplicates:
        """Return the duplicates by type. For each type, a row is paired only with its earliest known match."""
        rows, questions = np.frombuffer(self._rows, np.uint64), np.frombuffer(self._questions, np.uint64)
        signatures = np.frombuffer(self._signatures, np.uint32).reshape(-1, PERMUTATIONS)
        validation = np.frombuffer(self._validation, bool)
        indices = np.arange(len(rows))
        first_row = _earliest(rows, indices, indices)
        unique = np.flatnonzero(first_row < 0)
        first_question = _earliest(questions, indices, indices)
        empty = np.uint64(int.from_bytes(blake2b(b"", digest_size=8).digest(), "little"))
        same_question = np.flatnonzero((first_question >= 0) & (first_row < 0) & (questions != empty))
        same = np.flatnonzero(first_row >= 0)
        validation_rows, train_rows = np.flatnonzero(validation), np.flatnonzero(~validation)
        return Duplicates(
            same=Pairs(same.tolist(), first_row[same].tolist(), [1.0] * len(same)),
            same_question=Pairs(
                same_question.tolist(), first_question[same_question].tolist(), [1.0] * len(same_question)
            ),
            near=similar_pairs(signatures, unique, unique),
            leaks=similar_pairs(signatures, validation_rows, train_rows),
        )


def _earliest(keys: np.ndarray, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return, for each row in `rows`, the first row in `others` that has the same key.

    The result is -1 for a row whose key does not occur in `others`, and for a row that is its own first match.
    """
    unique_keys, first_positions = np.unique(keys[others], return_index=True)
    positions = np.minimum(np.searchsorted(unique_keys, keys[rows]), len(unique_keys) - 1)
    matches = np.where(unique_keys[positions] == keys[rows], others[first_positions[positions]], -1)
    return np.where(matches == rows, -1, matches)


def similar_pairs(signatures: np.ndarray, rows: np.ndarray, others: np.ndarray) -> Pairs:
    """Pair each row in `rows` with a row in `others` that shares a band and has a similarity of at least SIMILAR.

    For each row and band, the first row of `others` with the same band is a candidate. The result is the earliest
    candidate that is similar enough. datasketch's MinHashLSH finds the same rows, but takes 10 times as long and needs
    6 kB of memory per row (bench/duplicates.py).
    """
    if not len(rows) or not len(others):
        return Pairs([], [], [])
    width = PERMUTATIONS // BANDS
    mix = np.random.Generator(np.random.PCG64(1)).integers(1, 1 << 63, width, dtype=np.uint64) | np.uint64(1)
    best = np.full(len(signatures), -1)
    similarity = np.zeros(len(signatures), dtype=np.float32)
    for start in range(0, PERMUTATIONS, width):
        keys = np.zeros(len(signatures), dtype=np.uint64)
        for column, factor in zip(range(start, start + width), mix, strict=True):
            keys = (keys ^ signatures[:, column]) * factor
        candidates = _earliest(keys, rows, others)
        matched = candidates >= 0
        for begin in range(0, int(matched.sum()), AT_ONCE):
            row, other = rows[matched][begin : begin + AT_ONCE], candidates[matched][begin : begin + AT_ONCE]
            estimate = (signatures[row] == signatures[other]).mean(axis=1, dtype=np.float32)
            better = (estimate >= SIMILAR) & ((best[row] < 0) | (other < best[row]))
            best[row[better]], similarity[row[better]] = other[better], estimate[better]
    similar = np.flatnonzero(best >= 0)
    return Pairs(similar.tolist(), best[similar].tolist(), [round(value, 3) for value in similarity[similar].tolist()])
