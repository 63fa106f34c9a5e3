"""Stage prepare: rows become token sequences, once.

Reads data/raw/ and models/base/tokenizer/. Makes data/prepared/:
    train.arrow         packed sequences: input_ids, trained (which tokens the loss counts), seq_lengths
    validation.arrow    one example a sequence, in the order of validation.jsonl
    validation.jsonl    their prompts, completions and kinds
    rows.arrow          every kept row: its split, place, length in characters and tokens
    quarantine.jsonl    the rows that were left out, and why (with on_bad_row: drop)
    meta.json           what was chosen, and what was counted

    python -m recipe prepare
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from recipe.chats import ChatTemplate
from recipe.errors import DataError
from recipe.examples import SHOWN_MISTAKES, Example, read_examples, report_bad_rows, split_rows
from recipe.files import new_folder, read_json, sha256_bytes, sha256_file, sha256_listing, write_json, write_text
from recipe.packing import pack_best_fit, write_sequences
from recipe.params import Section
from recipe.prompts import CHATS, OPTIONAL_COLUMNS, REQUIRED_COLUMNS, Template, Turn
from recipe.ranks import Encode, rank_encoder
from recipe.rows import BadRow
from recipe.tokenization import encode, leading_ids, load_tokenizer

BATCH_ROWS = 1000
RANKS_FROM_ROWS = 2000  # of fewer, the faster encoder is not made before the plain one is done
Progress = Callable[[Iterator[Any], str], Iterator[Any]]


class SequenceParams(Section):
    """How a row becomes a sequence of tokens."""

    template: Template
    chat_template: str | None = Field(description="a name, or Jinja text; null is the tokenizer's own")
    columns: dict[str, str]
    max_length: int = Field(ge=8, description="tokens in a packed sequence")
    overlong: Literal["truncate", "drop", "error"]
    loss_on: Literal["completion", "all"]
    packing: bool
    validation_fraction: float = Field(gt=0, lt=1)
    on_bad_row: Literal["error", "drop"]

    @model_validator(mode="after")
    def _columns_fit_the_template(self) -> "SequenceParams":
        if self.chat_template is not None and self.template not in CHATS:
            raise ValueError(f"chat_template is for the templates {' and '.join(CHATS)}; {self.template} has its own")
        required, optional = REQUIRED_COLUMNS[self.template], OPTIONAL_COLUMNS[self.template]
        missing = [name for name in required if name not in self.columns]
        unknown = [name for name in self.columns if name not in (*required, *optional, "kind")]
        if missing:
            raise ValueError(f"columns: the template {self.template} needs {', '.join(missing)}")
        if unknown:
            raise ValueError(f"columns: the template {self.template} has no {', '.join(unknown)}")
        return self


def tokenize(
    turns: list[list[Turn]], tokenizer: Any, *, loss_on: str, chat: bool = False, plain: Encode | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each row (input_ids, trained): prompt and completion of every turn, each completion with the end token.

    The end token is trained. Prompt and completion are encoded apart, as they are when the model answers. `plain` is a
    faster way to the ids of text in which special tokens are plain text.
    """
    plain = plain or partial(encode, tokenizer)
    leading = [] if chat else leading_ids(tokenizer)
    prompt_texts = [turn.prompt for row in turns for turn in row]
    prompts = iter(encode(tokenizer, prompt_texts, special_tokens=True) if chat else plain(prompt_texts))
    completions = iter(plain([turn.completion for row in turns for turn in row]))
    for row in turns:
        tokens, trained = list(leading), [loss_on == "all"] * len(leading)
        for turn in row:
            end = tokenizer.eos_token_id if turn.end is None else tokenizer.convert_tokens_to_ids(turn.end)
            prompt, completion = next(prompts), [*next(completions), end]
            tokens += prompt + completion
            trained += [loss_on == "all"] * len(prompt) + [True] * len(completion)
        yield np.array(tokens, dtype=np.uint32), np.array(trained, dtype=bool)


def fit(params: SequenceParams, examples: list[Example], counts: dict[str, int]) -> list[Example]:
    """Handle examples longer than max_length as asked, and count it; a row left without a trained token is dropped."""
    kept, overlong = [], [one for one in examples if one.num_tokens > params.max_length]
    if overlong and params.overlong == "error":
        shown = overlong[:SHOWN_MISTAKES]
        lines = [f"  {one.file}, {one.place}: {one.num_tokens} tokens" for one in shown]
        raise DataError(
            f"{len(overlong)} rows are longer than sequence.max_length, {params.max_length} tokens. Raise it, or set "
            "sequence.overlong to truncate or drop.\n" + "\n".join(lines)
        )
    for one in examples:
        if one.num_tokens > params.max_length:
            if params.overlong == "drop":
                counts["dropped_overlong"] += 1
                continue
            one.input_ids, one.trained = one.input_ids[: params.max_length], one.trained[: params.max_length]
            # The first token of an example has nothing before it to be predicted from.
            if not one.trained[1:].any():
                counts["dropped_without_answer"] += 1
                continue
            counts["truncated"] += 1
        kept.append(one)
    return kept


def prepare(
    params: SequenceParams, data: Path, tokenizer_folder: Path, made: Path, progress: Progress
) -> dict[str, Any]:
    """Make data/prepared/ and return its meta.json."""
    manifest = read_json(data / "manifest.json")
    tokenizer = load_tokenizer(tokenizer_folder)
    chat = ChatTemplate(tokenizer, params.chat_template) if params.template in CHATS else None
    splits: dict[str, list[Example]] = {}
    bad: list[BadRow] = []
    for split in ("train", "validation"):
        files = [data / file["name"] for file in manifest["files"] if file["split"] == split]
        if files:
            splits[split], refused = read_examples(files, params.template, params.columns, chat)
            bad += refused
    if bad and params.on_bad_row == "error":
        raise DataError(report_bad_rows(bad) + "\nMend them, or set sequence.on_bad_row to drop.")
    num_read = sum(map(len, splits.values())) + len(bad)
    train, validation = split_rows(params.validation_fraction, splits["train"], splits.get("validation"))

    plain = rank_encoder(tokenizer) if len(train) >= RANKS_FROM_ROWS else None
    for side, name in ((train, "train"), (validation, "validation")):
        for start in progress(iter(range(0, len(side), BATCH_ROWS)), f"tokenising {name}"):
            batch = side[start : start + BATCH_ROWS]
            turns = [one.turns for one in batch]
            made_tokens = tokenize(turns, tokenizer, loss_on=params.loss_on, chat=chat is not None, plain=plain)
            for one, tokens in zip(batch, made_tokens, strict=True):
                one.input_ids, one.trained = tokens
                one.num_tokens = len(one.input_ids)
    rows = [(one, "train") for one in train] + [(one, "validation") for one in validation]
    counts = {"truncated": 0, "dropped_overlong": 0, "dropped_without_answer": 0}
    train, validation = fit(params, train, counts), fit(params, validation, counts)
    if not train or not validation:
        raise DataError("no row is left to train or validate on: all are longer than sequence.max_length.")

    with new_folder(made) as target:
        packed = pack(params, train)
        write_sequences(target / "train.arrow", packed, len(tokenizer))
        write_sequences(target / "validation.arrow", [[_tokens(one)] for one in validation], len(tokenizer))
        answers = [
            {"prompt": one.prompt, "completion": one.turns[-1].completion, "kind": one.kind} for one in validation
        ]
        write_text(target / "validation.jsonl", _lines(answers))
        refused_rows = [{"file": b.file, "place": b.place, "reason": b.reason, "content": b.content} for b in bad]
        write_text(target / "quarantine.jsonl", _lines(refused_rows))
        write_lengths(target / "rows.arrow", rows)
        num_tokens = sum(len(one.input_ids) for one in train)
        meta = {
            "template": params.template,
            "chat_template": chat.source if chat else None,
            "loss_on": params.loss_on,
            "max_length": params.max_length,
            "packing": params.packing,
            "tokenizer_sha256": sha256_listing({f.name: sha256_file(f) for f in sorted(tokenizer_folder.iterdir())}),
            "vocab_size": len(tokenizer),
            "eos_token_id": tokenizer.eos_token_id,
            "end_token_ids": chat.ends if chat else [tokenizer.eos_token_id],
            "pad_token_id": tokenizer.pad_token_id,
            "license": manifest.get("license"),
            "data": [{"name": file["name"], "sha256": file["sha256"]} for file in manifest["files"]],
            "rows": {
                "read": num_read, "quarantined": len(bad), **counts,
                "train": len(train), "validation": len(validation),
            },
            "tokens": {
                "train": num_tokens,
                "train_trained": sum(int(one.trained[1:].sum()) for one in train),
                "validation": sum(len(one.input_ids) for one in validation),
                "validation_trained": sum(int(one.trained[1:].sum()) for one in validation),
            },
            "sequences": {"train": len(packed), "filled": round(num_tokens / (len(packed) * params.max_length), 4)},
            # The same rows, tokens and mask: then two adapters' validation losses can be compared.
            "validation_sha256": sha256_bytes(
                b"".join(one.input_ids.astype("<u4").tobytes() + one.trained.tobytes() for one in validation)
            ),
        }  # fmt: skip
        write_json(target / "meta.json", meta)
    return meta


def pack(params: SequenceParams, examples: list[Example]) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """The examples' tokens by sequence: packed best-fit, or one a sequence."""
    if not params.packing:
        return [[_tokens(one)] for one in examples]
    lengths = [len(one.input_ids) for one in examples]
    return [[_tokens(examples[index]) for index in chosen] for chosen in pack_best_fit(lengths, params.max_length)]


def write_lengths(path: Path, rows: list[tuple[Example, str]]) -> None:
    """Write every row's split, place and lengths (before cutting) as an Arrow stream."""
    import pyarrow as pa

    table = pa.table(
        {
            "split": pa.array([split for _, split in rows], pa.string()),
            "file": pa.array([one.file for one, _ in rows], pa.string()),
            "place": pa.array([one.place for one, _ in rows], pa.string()),
            "kind": pa.array([one.kind for one, _ in rows], pa.string()),
            "num_chars": pa.array([one.num_chars for one, _ in rows], pa.uint32()),
            "num_tokens": pa.array([one.num_tokens for one, _ in rows], pa.uint32()),
        }
    )
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def _tokens(one: Example) -> tuple[np.ndarray, np.ndarray]:
    return one.input_ids, one.trained


def _lines(values: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
