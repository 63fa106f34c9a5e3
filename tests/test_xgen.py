"""Compares the native XGen tokenizer with tiktoken's encoding of the same layout."""

import json
import random
import shutil

import pytest

from recipe.core.errors import DataError
from recipe.fetch.xgen_tokenizer import GPT2_FILES, SPACES, SPECIALS, TABS, build_tokenizer, is_xgen
from recipe.prepare.tiktoken_encoder import rank_encoder
from recipe.tokens.tokenizer import encode, give_padding_token, load_tokenizer

NUM_STRINGS = 20_000


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory):
    from conftest import SHARED

    if not SHARED.is_dir():
        pytest.skip(f"GPT-2's vocabulary is not at {SHARED}/gpt2")
    folder = tmp_path_factory.mktemp("gpt2")
    shutil.copy(SHARED / "gpt2" / "encoder.json", folder / "vocab.json")
    shutil.copy(SHARED / "gpt2" / "vocab.bpe", folder / "merges.txt")
    return folder


@pytest.fixture(scope="module")
def tokenizer(gpt2_folder, tmp_path_factory):
    """The tokenizer built, saved, and loaded as in every stage."""
    folder = tmp_path_factory.mktemp("xgen")
    build_tokenizer(gpt2_folder).save_pretrained(folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def reference(gpt2_folder):
    """tiktoken's encoding with XGen's ranks, taken from merges.txt rather than vocab.json."""
    import tiktoken
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    ranks = data_gym_to_mergeable_bpe_ranks(str(gpt2_folder / "merges.txt"), str(gpt2_folder / "vocab.json"))
    assert len(ranks) == 50256
    for number, run in enumerate([b" " * length for length in SPACES] + [b"\t" * length for length in TABS]):
        ranks[run] = 50257 + number
    specials = {"<|endoftext|>": 50256} | {token: 50295 + number for number, token in enumerate(SPECIALS)}
    pattern = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
    return tiktoken.Encoding("xgen", pat_str=pattern, mergeable_ranks=ranks, special_tokens=specials)


CODE = [
    "def f(x):\n\treturn  x + 1\n",
    "for (;;) {\r\n    a[i] = b;\r\n}",
    "<div class='a'>\n\t\t<p>x</p>\n</div>",
    "# ---",
]
PLANES = [(0x20, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF)] + [
    (plane << 16, (plane << 16) + 0xFFFF) for plane in range(1, 17)
]


def random_string(rng):
    """Up to 8 pieces: words, up to 300 spaces or tabs, special tokens, any plane of Unicode, code, CRLF."""

    def piece():
        match rng.randrange(8):
            case 0:
                return " " * rng.randint(1, 300) if rng.random() < 0.1 else " " * rng.randint(1, 40)
            case 1:
                return "\t" * rng.randint(1, 300) if rng.random() < 0.1 else "\t" * rng.randint(1, 14)
            case 2:
                return rng.choice(["<|endoftext|>", *SPECIALS])
            case 3:
                low, high = rng.choice(PLANES)
                return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 6)))
            case 4:
                return rng.choice(CODE)
            case 5:
                return rng.choice(["\r\n", "\n\n", "\r", "\u00a0", "\u2028", "\u3000 ", " \t \t"])
            case 6:
                return str(rng.randint(0, 10**9)) + rng.choice([".", "'ll", "'s", "%", ""])
            case _:
                return " ".join(
                    "".join(rng.choices("abcdefghijklmnopqrstuvwxyzABCXYZ", k=rng.randint(1, 9))) for _ in "12"
                )

    return "".join(piece() for _ in range(rng.randint(0, 8)))


def test_random_strings_match_tiktoken_and_round_trip(tokenizer, reference):
    rng = random.Random(7)
    texts = [random_string(rng) for _ in range(NUM_STRINGS)]
    special = tokenizer(texts, add_special_tokens=False)["input_ids"]
    plain = encode(tokenizer, texts)
    mismatches = []
    for text, with_special, without in zip(texts, special, plain, strict=True):
        if with_special != reference.encode(text, allowed_special="all"):
            mismatches.append(("special", text))
        if without != reference.encode(text, disallowed_special=()):
            mismatches.append(("plain", text))
        if tokenizer.decode(with_special) != text or tokenizer.decode(without) != text:
            mismatches.append(("round trip", text))
    assert [ids.tolist() for ids in rank_encoder(tokenizer)(texts)] == plain
    assert not mismatches, f"{len(mismatches)} of {NUM_STRINGS}: {mismatches[:3]}"
    assert sum("<fim_pad>" in text for text in texts) > 100  # the strings do contain special tokens


@pytest.mark.parametrize("character", [" ", "\t"])
def test_whitespace_runs_of_every_length_match_tiktoken(tokenizer, reference, character):
    for length in range(1, 301):
        for text in (
            character * length,
            "a" + character * length + "b",
            character * length + "\n",
            "\n" + character * length,
        ):
            assert encode(tokenizer, [text])[0] == reference.encode(text), (length, text)


def test_token_ids_match_the_layout_of_the_model(tokenizer):
    """The ids that the model was trained with (Salesforce/xgen-7b-8k-base, tokenization_xgen.py)."""
    ids = tokenizer.convert_tokens_to_ids
    assert len(tokenizer) == 50313
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id) == (50256, 50256, 50298)
    assert [ids("<fim_prefix>"), ids("<filename>"), ids("<reponame>")] == [50295, 50299, 50312]
    assert encode(tokenizer, [" " * 31, "  ", "\t" * 9, "\t\t", "!"]) == [[50257], [50286], [50287], [50294], [0]]
    assert tokenizer("")["input_ids"] == []  # no BOS token is added
    assert tokenizer.model_max_length == 8192


def test_the_padding_token_of_xgen_is_kept(tokenizer):
    give_padding_token(tokenizer)
    assert tokenizer.pad_token == "<fim_pad>" and len(tokenizer) == 50313


def test_another_vocabulary_is_rejected(gpt2_folder, tmp_path):
    for name in GPT2_FILES:
        shutil.copy(gpt2_folder / name, tmp_path / name)
    ranks = json.loads((tmp_path / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(ranks, indent=1))
    with pytest.raises(DataError, match=r"vocab\.json in .* is not GPT-2's file: expected sha256 196139"):
        build_tokenizer(tmp_path)


def test_xgen_is_recognized_by_its_tokenizer_class():
    assert is_xgen(
        {"tokenizer_class": "XgenTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_xgen.XgenTokenizer", None]}}
    )
    assert not is_xgen({"tokenizer_class": "LlamaTokenizer"}) and not is_xgen({})
