"""Checks a base model's tokenizer files. transformers must be able to read them without remote code.

check_files(Path("models/llama"))                   # raises DataError if there is no tokenizer
check_sentencepiece(Path("models/llama"), tokenizer)    # raises DataError if transformers and SentencePiece differ
"""

from pathlib import Path
from typing import Any

from recipe.core.errors import DataError

# The files that contain a vocabulary, in the formats that transformers 5 reads.
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
SENTENCEPIECE = "tokenizer.model"
# The sample contains words, a number, an accent, and characters that small vocabularies encode as bytes.
SAMPLE = "Write the word three times: naïve 漢字, 1234. Then stop"


def check_files(folder: Path) -> None:
    """Raise DataError if a model's folder has no vocabulary in a format that transformers reads."""
    if any((folder / name).is_file() for name in VOCABULARIES):
        return
    ranks = sorted(path.name for path in folder.glob("*.tiktoken"))
    if ranks:
        raise DataError(
            f"the tokenizer in {folder} is a tiktoken file ({', '.join(ranks)}), which transformers reads only with "
            "remote code. Choose a version of the model that contains tokenizer.json."
        )
    raise DataError(f"{folder} contains no tokenizer. It needs one of these files: {', '.join(VOCABULARIES)}.")


def check_sentencepiece(folder: Path, tokenizer: Any) -> None:
    """Check that a tokenizer loaded only from a SentencePiece file gives the same token ids as SentencePiece itself.

    Without tokenizer_config.json, transformers may not know, for example, that a space is added at the start of a text.
    Raises DataError if the token ids of a sample text differ.
    """
    if not (folder / SENTENCEPIECE).is_file() or (folder / "tokenizer.json").is_file():
        return
    from sentencepiece import SentencePieceProcessor

    try:
        expected = SentencePieceProcessor(model_file=str(folder / SENTENCEPIECE)).encode(SAMPLE)
    except RuntimeError:  # tokenizer.model is in tiktoken format
        return
    if tokenizer(SAMPLE, add_special_tokens=False)["input_ids"] != expected:
        raise DataError(
            f"transformers reads {folder / SENTENCEPIECE} differently from SentencePiece. Add the model's "
            "tokenizer_config.json, which names the tokenizer's class, or its tokenizer.json."
        )
