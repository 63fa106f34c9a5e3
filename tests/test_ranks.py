"""tiktoken's core gives the same ids as the tokenizers library, or is not used."""

import json
import random
import shutil
from itertools import product

import pytest
import regex
from conftest import ROOT, SHARED, toy_rows
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, GPT2TokenizerFast, PreTrainedTokenizerFast

from recipe.prepare import tiktoken_encoder
from recipe.prepare.tiktoken_encoder import (
    GPT2_PATTERN,
    GPT2_PATTERN_SIMPLE,
    LLAMA3_PATTERN,
    WHITESPACE_RUN,
    cuts_at,
    is_simple,
    rank_encoder,
    split_ascii,
)
from recipe.tokens.tokenizer import encode


def tiktoken_ids(tokenizer, texts):
    return [ids.tolist() for ids in rank_encoder(tokenizer)(texts)]


def gpt2(folder):
    if not (SHARED / "gpt2").is_dir():
        pytest.skip(f"GPT-2's vocabulary is not at {SHARED}/gpt2")
    names = {"vocab.json": "encoder.json", "merges.txt": "vocab.bpe"}
    for name, source in names.items():
        shutil.copy(SHARED / "gpt2" / source, folder / name)
    return GPT2TokenizerFast(*(str(folder / name) for name in names))


def split_by(tokenizer, pattern):
    """The same vocabulary with another pattern, as in Llama 3 and Qwen."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=tokenizer.eos_token)


SMALL = split_by(AutoTokenizer.from_pretrained(ROOT / "demo/base"), GPT2_PATTERN)


@given(st.text(max_size=80))
def test_any_text_has_the_same_ids(text):
    """The demo's vocabulary with GPT-2's pattern. Text that is not ASCII uses the plain encoder."""
    texts = [text, "", "plain <|endoftext|>", text + text]
    assert tiktoken_ids(SMALL, texts) == encode(SMALL, texts)


@pytest.mark.parametrize("pattern", [None, LLAMA3_PATTERN], ids=["GPT-2", "Llama 3"])
def test_ascii_characters_have_the_same_ids_in_every_context(pattern, tmp_path):
    """All pairs of characters, triples of one character per class, and long runs, with a real vocabulary."""
    tokenizer = gpt2(tmp_path)
    if pattern:
        tokenizer = split_by(tokenizer, pattern)
    texts = ["".join(pair) for pair in product(map(chr, range(128)), repeat=2)]
    classes = "aZs'09_. \t\n\r\x0b\x0c\x1c\x00\x7f-"
    texts += ["".join(characters) for characters in product(classes, repeat=3)]
    rng = random.Random(0)
    texts += ["".join(rng.choices(classes + "the quick brown fox'll", k=rng.randint(1, 300))) for _ in range(2000)]
    texts += [character * count for character in "a \n1!" for count in (10, 100, 1000)]
    assert tiktoken_ids(tokenizer, texts) == encode(tokenizer, texts)
    assert tiktoken_ids(tokenizer, texts[::-1]) == encode(tokenizer, texts[::-1])


def test_the_simple_pattern_finds_the_pieces_of_gpt2s_pattern():
    """All texts of up to five characters, one per class. Once WHITESPACE_RUN is cut out, no look-ahead is needed."""
    for size in range(6):
        for characters in product("as'9. \n", repeat=size):
            text, pieces = "".join(characters), []
            for number, part in enumerate(WHITESPACE_RUN.split(text)):
                assert number % 2 or is_simple(part)
                pieces += [part] if number % 2 else regex.findall(GPT2_PATTERN_SIMPLE, part)
            assert pieces == regex.findall(GPT2_PATTERN, text), text
            assert not is_simple(text) or WHITESPACE_RUN.split(text) == [text]
    assert WHITESPACE_RUN.split(" a\n\nb   c\t \n(  ") == [" a\n\nb", "  ", " c", "\t ", "\n(", "  ", ""]
    assert regex.findall(GPT2_PATTERN_SIMPLE, "a   b") != regex.findall(GPT2_PATTERN, "a   b")


@pytest.mark.parametrize("pattern", [None, LLAMA3_PATTERN], ids=["GPT-2", "Llama 3"])
def test_a_very_long_text_has_the_same_ids(pattern):
    """With look-ahead, a million spaces overflow the stack of tiktoken's regex engine."""
    tokenizer = split_by(SMALL, pattern) if pattern else SMALL
    texts = [" " * 1_000_000 + "x", "a b" * 500_000, "x"]
    assert tiktoken_ids(tokenizer, texts) == encode(tokenizer, texts)


def test_texts_of_a_batch_are_joined_up_to_a_limit(monkeypatch):
    texts = ["one", "", "two words", "x" * 50, "é", "last"]
    monkeypatch.setattr(tiktoken_encoder, "JOINED_CHARS", 8)
    assert tiktoken_ids(SMALL, texts) == encode(SMALL, texts)
    assert list(tiktoken_encoder.joined(texts)) == ["one\0\0two words\0", "x" * 50 + "\0", "é\0last\0"]


@given(st.text(st.sampled_from("ab'1.! \n\t\u00a0\u3000é漢\U0001f600"), max_size=40))
def test_text_is_split_only_between_pieces(text):
    """ASCII and other text are encoded separately; Unicode white space and runs of white space are never split."""
    parts = split_ascii(text)
    assert "".join(parts) == text
    assert [token for ids in encode(SMALL, parts) for token in ids] == (encode(SMALL, [text])[0] if text else [])
    for cut in range(1, len(text)):
        if cuts_at(text, cut):
            left, right, whole = encode(SMALL, [text[:cut], text[cut:], text])
            assert left + right == whole


def test_only_the_words_around_other_characters_are_split_off():
    text = "It costs nothing, she said. “Come in!” And he came in. A café stood there, open."
    parts = ["It costs nothing, she", " said. “Come", " in!” And", " he came in. A", " café stood", " there, open."]
    assert split_ascii(text) == parts


def test_real_rows_have_the_same_ids(shared, tmp_path):
    rows = json.loads((shared / "alpaca_en_999.json").read_text())
    texts = [row[name] for row in rows for name in ("instruction", "input", "output")]
    tokenizer = gpt2(tmp_path)
    assert tiktoken_ids(tokenizer, texts) == encode(tokenizer, texts)


def bpe(vocab, merges, change=lambda backend: None, **options):
    """A byte-level tokenizer with a few merges."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {**{letter: n for n, letter in enumerate(letters)}, **{token: 256 + n for n, token in enumerate(vocab)}}
    backend = Tokenizer(models.BPE(ids, merges, **options))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    change(backend)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def normalize(backend):
    backend.normalizer = normalizers.Lowercase()


def add_word(backend):
    backend.add_tokens([AddedToken("word")])


def prefix_space(backend):
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(True)


def add_special(backend):
    backend.add_special_tokens([AddedToken("<s>", special=True)])


def no_pre_tokenizer(backend):
    backend.pre_tokenizer = pre_tokenizers.Sequence([])


def special_word(backend):
    backend.add_special_tokens([AddedToken("PAD", special=True)])


PLAIN = (["ab", "bc", "abc"], [("a", "b"), ("b", "c"), ("ab", "c")])
CLOSED = [*PLAIN[1], ("a", "bc")]


def test_tokenizers_that_meet_the_conditions_are_accepted():
    tokenizer = bpe(*PLAIN)
    assert tiktoken_ids(tokenizer, ["abcab", "xbc"]) == encode(tokenizer, ["abcab", "xbc"])
    # With ignore_merges, as in XGen's and Llama 3's tokenizers, if every pair that forms a token is a merge.
    tokenizer = bpe(PLAIN[0], CLOSED, ignore_merges=True)
    texts = ["".join(letters) for size in range(1, 7) for letters in product("abc", repeat=size)]
    assert tiktoken_ids(tokenizer, texts) == encode(tokenizer, texts)


@pytest.mark.parametrize(
    ("reason", "tokenizer"),
    [
        ("ids not in the order of the merges", bpe(["abc", "ab", "bc"], PLAIN[1])),
        (
            "a token that its own text is not merged into",
            bpe(["bc", "ab", "abc"], [("b", "c"), ("a", "b"), ("ab", "c")]),
        ),
        ("a token that no merge produces", bpe(["ab", "xyz"], [("a", "b")])),
        ("a normalizer", bpe(*PLAIN, normalize)),
        ("an added token that plain text may contain", bpe(*PLAIN, add_word)),
        ("a prefix space", bpe(*PLAIN, prefix_space)),
        ("ignore_merges and a pair that is not a merge", bpe(*PLAIN, ignore_merges=True)),
        ("a pattern that drops text", split_by(SMALL, r"\p{L}+|\p{N}+")),
        ("a pattern that tiktoken reads differently", split_by(SMALL, LLAMA3_PATTERN.replace("{1,3}", "{1,3}+"))),
        ("no pre-tokenizer", bpe(*PLAIN, no_pre_tokenizer)),
        ("dropout", bpe(*PLAIN, dropout=0.1)),
        (
            "an unmerged token next to a special token",
            bpe([*PLAIN[0], "hello"], CLOSED, add_special, ignore_merges=True),
        ),
        ("a special token that is a single piece", bpe([*PLAIN[0], "PAD"], CLOSED, special_word, ignore_merges=True)),
        (
            "a later second merge of a token",
            bpe(["bc", "ab", "abc", "bcd"], [("b", "c"), ("a", "b"), ("ab", "c"), ("bc", "d"), ("a", "bc")]),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tokenizers_whose_ids_might_differ_are_rejected(reason, tokenizer):
    assert rank_encoder(tokenizer) is None, reason


def test_a_vocabulary_that_violates_condition_2_gives_different_ids():
    """So the condition is necessary: tiktoken encodes `abc` as one token there, and the merges do not."""
    import tiktoken

    tokenizer = bpe(["bc", "ab", "abc"], [("b", "c"), ("a", "b"), ("ab", "c")])
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"bc": 256, b"ab": 257, b"abc": 258}
    encoding = tiktoken.Encoding("x", pat_str=r"\w+", mergeable_ranks=ranks, special_tokens={})
    assert encoding.encode_ordinary("abc") == [258]
    assert len(encode(tokenizer, ["abc"])[0]) == 2


def test_prepare_writes_the_same_bytes_with_either_encoder(prepared, monkeypatch):
    rows = [*toy_rows(60), {"instruction": "Über", "input": "", "output": "naïve <|endoftext|>"}]
    files = []
    for min_rows in (0, 10**9):
        monkeypatch.setattr("recipe.prepare.tokenized_rows.MIN_ROWS_FOR_RANKS", min_rows)
        folder = prepared(rows)
        files.append({path.name: path.read_bytes() for path in sorted(folder.iterdir())})
    assert files[0] == files[1] and len(files[0]) == 8
