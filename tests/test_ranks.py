"""tiktoken's core gives the ids of the tokenizers library, or is not used."""

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

from recipe.prepare import tiktoken_encoder as ranks
from recipe.prepare.tiktoken_encoder import (
    GPT2_PATTERN,
    GPT2_PATTERN_SIMPLE,
    LLAMA3_PATTERN,
    RUN,
    cuts_at,
    is_simple,
    rank_encoder,
    split_ascii,
)
from recipe.tokens.tokenizer import encode


def ours(tokenizer, texts):
    return [ids.tolist() for ids in rank_encoder(tokenizer)(texts)]


def gpt2(folder):
    if not (SHARED / "gpt2").is_dir():
        pytest.skip(f"GPT-2's vocabulary is not at {SHARED}/gpt2")
    names = {"vocab.json": "encoder.json", "merges.txt": "vocab.bpe"}
    for ours, theirs in names.items():
        shutil.copy(SHARED / "gpt2" / theirs, folder / ours)
    return GPT2TokenizerFast(*(str(folder / name) for name in names))


def split_by(tokenizer, pattern):
    """The same vocabulary behind another pattern, as Llama 3 and Qwen have one."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=tokenizer.eos_token)


SMALL = split_by(AutoTokenizer.from_pretrained(ROOT / "demo/base"), GPT2_PATTERN)


@given(st.text(max_size=80))
def test_any_text_has_the_same_ids(text):
    """The demo's vocabulary behind GPT-2's pattern; text that is not ASCII takes the plain way."""
    texts = [text, "", "plain <|endoftext|>", text + text]
    assert ours(SMALL, texts) == encode(SMALL, texts)


@pytest.mark.parametrize("pattern", [None, LLAMA3_PATTERN], ids=["GPT-2", "Llama 3"])
def test_ascii_in_all_its_neighbourhoods(pattern, tmp_path):
    """Every pair of characters, triples of one of each kind, and long runs, in a real vocabulary."""
    tokenizer = gpt2(tmp_path)
    if pattern:
        tokenizer = split_by(tokenizer, pattern)
    texts = ["".join(pair) for pair in product(map(chr, range(128)), repeat=2)]
    kinds = "aZs'09_. \t\n\r\x0b\x0c\x1c\x00\x7f-"
    texts += ["".join(some) for some in product(kinds, repeat=3)]
    rng = random.Random(0)
    texts += ["".join(rng.choices(kinds + "the quick brown fox'll", k=rng.randint(1, 300))) for _ in range(2000)]
    texts += [one * count for one in "a \n1!" for count in (10, 100, 1000)]
    assert ours(tokenizer, texts) == encode(tokenizer, texts)
    assert ours(tokenizer, texts[::-1]) == encode(tokenizer, texts[::-1])


def test_text_has_the_pieces_of_gpt_2s_pattern():
    """All texts of up to five characters, one of each kind: no look-around is needed beside what RUN cuts out."""
    for size in range(6):
        for some in product("as'9. \n", repeat=size):
            text, pieces = "".join(some), []
            for number, part in enumerate(RUN.split(text)):
                assert number % 2 or is_simple(part)
                pieces += [part] if number % 2 else regex.findall(GPT2_PATTERN_SIMPLE, part)
            assert pieces == regex.findall(GPT2_PATTERN, text), text
            assert not is_simple(text) or RUN.split(text) == [text]
    assert RUN.split(" a\n\nb   c\t \n(  ") == [" a\n\nb", "  ", " c", "\t ", "\n(", "  ", ""]
    assert regex.findall(GPT2_PATTERN_SIMPLE, "a   b") != regex.findall(GPT2_PATTERN, "a   b")


@pytest.mark.parametrize("pattern", [None, LLAMA3_PATTERN], ids=["GPT-2", "Llama 3"])
def test_a_very_long_text_has_the_same_ids(pattern):
    """A million spaces are more than the stack of tiktoken's engine holds where it looks ahead."""
    tokenizer = split_by(SMALL, pattern) if pattern else SMALL
    texts = [" " * 1_000_000 + "x", "a b" * 500_000, "x"]
    assert ours(tokenizer, texts) == encode(tokenizer, texts)


def test_a_batch_is_joined_in_parts(monkeypatch):
    texts = ["one", "", "two words", "x" * 50, "é", "last"]
    monkeypatch.setattr(ranks, "AT_ONCE", 8)
    assert ours(SMALL, texts) == encode(SMALL, texts)
    assert list(ranks.joined(texts)) == ["one\0\0two words\0", "x" * 50 + "\0", "é\0last\0"]


@given(st.text(st.sampled_from("ab'1.! \n\t\u00a0\u3000é漢\U0001f600"), max_size=40))
def test_text_is_cut_where_its_pieces_end(text):
    """ASCII and the rest are encoded apart; white space of Unicode and runs of it are never cut."""
    parts = split_ascii(text)
    assert "".join(parts) == text
    assert [one for part in encode(SMALL, parts) for one in part] == (encode(SMALL, [text])[0] if text else [])
    for cut in range(1, len(text)):
        if cuts_at(text, cut):
            left, right, whole = encode(SMALL, [text[:cut], text[cut:], text])
            assert left + right == whole


def test_few_words_of_a_text_are_not_ascii():
    text = "It costs nothing, she said. “Come in!” And he came in. A café stood there, open."
    parts = ["It costs nothing, she", " said. “Come", " in!” And", " he came in. A", " café stood", " there, open."]
    assert split_ascii(text) == parts


def test_real_rows_have_the_same_ids(shared, tmp_path):
    rows = json.loads((shared / "alpaca_en_999.json").read_text())
    texts = [row[name] for row in rows for name in ("instruction", "input", "output")]
    tokenizer = gpt2(tmp_path)
    assert ours(tokenizer, texts) == encode(tokenizer, texts)


def bpe(vocab, merges, change=lambda backend: None, **options):
    """A byte-level tokenizer of a few merges."""
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


def cuts_nothing(backend):
    backend.pre_tokenizer = pre_tokenizers.Sequence([])


def special_word(backend):
    backend.add_special_tokens([AddedToken("PAD", special=True)])


PLAIN = (["ab", "bc", "abc"], [("a", "b"), ("b", "c"), ("ab", "c")])


CLOSED = [*PLAIN[1], ("a", "bc")]


def test_a_few_merges_are_taken():
    tokenizer = bpe(*PLAIN)
    assert ours(tokenizer, ["abcab", "xbc"]) == encode(tokenizer, ["abcab", "xbc"])
    # Whole pieces first, as in XGen's and Llama 3's: with every pair that makes a token among the merges.
    tokenizer = bpe(PLAIN[0], CLOSED, ignore_merges=True)
    texts = ["".join(some) for size in range(1, 7) for some in product("abc", repeat=size)]
    assert ours(tokenizer, texts) == encode(tokenizer, texts)


@pytest.mark.parametrize(
    ("why", "tokenizer"),
    [
        ("ids out of the merges' order", bpe(["abc", "ab", "bc"], PLAIN[1])),
        ("a token that its own text does not become", bpe(["bc", "ab", "abc"], [("b", "c"), ("a", "b"), ("ab", "c")])),
        ("a token that no merge makes", bpe(["ab", "xyz"], [("a", "b")])),
        ("a normalizer", bpe(*PLAIN, normalize)),
        ("an added token that plain text may hold", bpe(*PLAIN, add_word)),
        ("a space in front", bpe(*PLAIN, prefix_space)),
        ("whole pieces, and a pair that is no merge", bpe(*PLAIN, ignore_merges=True)),
        ("a pattern that leaves text out", split_by(SMALL, r"\p{L}+|\p{N}+")),
        ("a pattern that reads otherwise", split_by(SMALL, LLAMA3_PATTERN.replace("{1,3}", "{1,3}+"))),
        ("nothing before", bpe(*PLAIN, cuts_nothing)),
        ("dropout", bpe(*PLAIN, dropout=0.1)),
        ("an orphan beside a special token", bpe([*PLAIN[0], "hello"], CLOSED, add_special, ignore_merges=True)),
        ("a special token that is one piece", bpe([*PLAIN[0], "PAD"], CLOSED, special_word, ignore_merges=True)),
        (
            "a second merge of a token, later",
            bpe(["bc", "ab", "abc", "bcd"], [("b", "c"), ("a", "b"), ("ab", "c"), ("bc", "d"), ("a", "bc")]),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_may_differ_is_not_taken(why, tokenizer):
    assert rank_encoder(tokenizer) is None, why


def test_a_vocabulary_against_the_second_condition_would_have_differed():
    """So the condition is no caution: tiktoken makes `abc` one token there, and the merges do not."""
    import tiktoken

    tokenizer = bpe(["bc", "ab", "abc"], [("b", "c"), ("a", "b"), ("ab", "c")])
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"bc": 256, b"ab": 257, b"abc": 258}
    theirs = tiktoken.Encoding("x", pat_str=r"\w+", mergeable_ranks=ranks, special_tokens={})
    assert theirs.encode_ordinary("abc") == [258]
    assert len(encode(tokenizer, ["abc"])[0]) == 2


def test_prepare_writes_the_same_bytes_either_way(prepared, monkeypatch):
    rows = [*toy_rows(60), {"instruction": "Über", "input": "", "output": "naïve <|endoftext|>"}]
    files = []
    for number in (0, 10**9):
        monkeypatch.setattr("recipe.prepare.stage.RANKS_FROM_ROWS", number)
        made = prepared(rows)
        files.append({path.name: path.read_bytes() for path in sorted(made.iterdir())})
    assert files[0] == files[1] and len(files[0]) == 6
