"""Builds XGen-7B's tokenizer from GPT-2's vocabulary and XGen's own tokens, without remote code.

XGen's repository implements the tokenizer as remote code based on tiktoken. This remote code has failed with every
version of transformers since 4.34. tokenization_xgen.py in Salesforce/xgen-7b-8k-base defines these ids:

    0-50255       GPT-2's ranks
    50256         <|endoftext|>
    50257-50286   runs of 31 to 2 spaces
    50287-50294   runs of 9 to 2 tabs
    50295-50312   special tokens

The runs of spaces and tabs are ordinary byte-pair encoding tokens, not added tokens. GPT-2's pattern splits a text
into pieces, and merges produce these runs within the pieces. tests/test_xgen.py compares the ids with tiktoken's.
"""

import json
from pathlib import Path
from typing import Any

from recipe.core.errors import DataError
from recipe.core.io import sha256_file
from recipe.tokens.byte_level import byte_characters

GPT2 = "openai-community/gpt2"
GPT2_REVISION = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
# The sha256 values that tiktoken pins for OpenAI's encoder.json and vocab.bpe (tiktoken_ext/openai_public.py). On the
# Hub, vocab.json and merges.txt have the same bytes as these two files.
GPT2_FILES = {
    "vocab.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "merges.txt": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
END_TOKEN = "<|endoftext|>"
SPACES = range(31, 1, -1)  # the lengths of the space runs, in token id order
TABS = range(9, 1, -1)
SPECIALS = tuple(
    f"<{name}>"
    for name in (
        "fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "filename", "gh_stars", "issue_start", "issue_comment",
        "issue_closed", "jupyter_start", "jupyter_text", "jupyter_code", "jupyter_output", "empty_output",
        "commit_before", "commit_msg", "commit_after", "reponame",
    )
)  # fmt: skip
PADDING_TOKEN = "<fim_pad>"
MAX_POSITIONS = 8192


def is_xgen(tokenizer_config: dict[str, Any]) -> bool:
    """Return whether a repository's tokenizer_config.json belongs to an XGen model."""
    return "XgenTokenizer" in (tokenizer_config.get("tokenizer_class"), tokenizer_config.get("slow_tokenizer_class"))


def vocabulary(gpt2: dict[str, int]) -> dict[str, int]:
    """Return {token: id} for GPT-2's tokens and for the runs of spaces and tabs.

    GPT-2's last token is the end token. All tokens are written in GPT-2's byte characters.
    """
    characters = byte_characters()
    runs = [characters[0x20] * length for length in SPACES] + [characters[0x09] * length for length in TABS]
    return gpt2 | {run: len(gpt2) + number for number, run in enumerate(runs)}


def merges(ranks: dict[str, int]) -> list[tuple[str, str]]:
    """Return all pairs of tokens whose concatenation is also a token, ordered by that token's rank.

    At each step, tiktoken merges the two adjacent tokens whose concatenation has the lowest rank, regardless of where
    the boundary between the two tokens is. A merge list has the same effect if it contains every pair that forms a
    token, ordered by the token's rank.
    """
    pairs = []
    ranks = {token: rank for token, rank in ranks.items() if token != END_TOKEN}  # no merge produces the end token
    for token in sorted(ranks, key=ranks.__getitem__):
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ranks and right in ranks:
                pairs.append((left, right))
    return pairs


def build_tokenizer(gpt2_folder: Path) -> Any:
    """Build the tokenizer, a PreTrainedTokenizerFast, from the GPT-2 files in a folder.

    Raises DataError if a file is missing or differs from GPT-2's original.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    for name, sha256 in GPT2_FILES.items():
        found = sha256_file(gpt2_folder / name) if (gpt2_folder / name).is_file() else "no such file"
        if found != sha256:
            raise DataError(f"{name} in {gpt2_folder} is not GPT-2's file: expected sha256 {sha256}, found {found}.")
    ranks = vocabulary(json.loads((gpt2_folder / "vocab.json").read_text(encoding="utf-8")))
    # As in tiktoken, a piece that equals a token becomes that token without merging (ignore_merges).
    tokenizer = Tokenizer(models.BPE(vocab=ranks, merges=merges(ranks), ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in (END_TOKEN, *SPECIALS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_TOKEN,
        eos_token=END_TOKEN,
        unk_token=END_TOKEN,
        pad_token=PADDING_TOKEN,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
    )
