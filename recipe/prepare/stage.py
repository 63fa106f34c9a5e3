"""Stage prepare: turns rows into token sequences.

Reads data/raw/ and models/base/tokenizer/. Writes data/prepared/:
    train.arrow         packed sequences: input_ids, completion_mask (the tokens in the loss), seq_lengths
    validation.arrow    one example per sequence, in the order of validation.jsonl
    validation.jsonl    the prompts, completions and categories of the validation examples
    rows.arrow          every valid row: split, file, place, category, numbers of characters, tokens, prompt tokens
    quarantine.jsonl    the rows that were dropped, and why (with on_bad_row: drop)
    meta.json           the settings and the counts

    recipe prepare
"""

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np

from recipe.core.errors import DataError
from recipe.core.io import new_folder, read_json, sha256_bytes, sha256_file, sha256_listing, write_json, write_text
from recipe.core.paths import Paths
from recipe.core.services import Progress, Services
from recipe.prepare.examples import Example, Splitter, read_examples, report_bad_rows
from recipe.prepare.params import SequenceParams
from recipe.prepare.tiktoken_encoder import Encode, rank_encoder
from recipe.prepare.token_store import SplitTokens, check_overlong, write_facts
from recipe.text.chat_templates import ChatTemplate
from recipe.text.readers import BadRow
from recipe.text.templates import TEMPLATES, make_template
from recipe.text.turns import Turn
from recipe.tokens.packing import batched, pack_best_fit, write_sequences
from recipe.tokens.tokenizer import encode, leading_ids, load_tokenizer

BATCH_ROWS = 2000
GC_THRESHOLD = 200_000  # new objects between two runs of the garbage collector
MIN_ROWS_FOR_RANKS = 2000  # with fewer, building the faster encoder takes longer than encoding with the plain one


def tokenize(
    turns: list[list[Turn]], tokenizer: Any, *, loss_on: str, chat: bool = False, plain: Encode | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The input_ids (uint32) and completion mask (bool) of each row: prompt, completion and end token of every turn.

    The end token is in the mask. Prompt and completion are encoded separately, as in inference. `plain` is a faster
    encoder for text in which special tokens are plain text.
    """
    if not turns:
        return

    def encode_texts(texts: list[str], *, special_tokens: bool = False) -> Iterator[np.ndarray]:
        if plain and not special_tokens:
            return iter(plain(texts))
        return (np.array(ids, np.uint32) for ids in encode(tokenizer, texts, special_tokens=special_tokens))

    prompts = encode_texts([turn.prompt for row in turns for turn in row], special_tokens=chat)
    completions = encode_texts([turn.completion for row in turns for turn in row])
    leading = np.array([] if chat else leading_ids(tokenizer), np.uint32)
    ends = {end: np.array([_end_id(tokenizer, end)], np.uint32) for end in {turn.end for row in turns for turn in row}}
    parts, in_mask, sizes = [], [], []
    for row in turns:
        parts.append(leading)
        for turn in row:
            parts += [next(prompts), next(completions), ends[turn.end]]
        in_mask += [loss_on == "all", *[loss_on == "all", True, True] * len(row)]
        sizes.append(1 + 3 * len(row))
    # One array for all rows, and views of it: creating an array per row would take as long as encoding its text.
    lengths = [len(part) for part in parts]
    ids, completion_mask = np.concatenate(parts), np.repeat(in_mask, lengths)
    borders = np.cumsum([0, *lengths])[np.cumsum([0, *sizes])].tolist()
    for start, stop in pairwise(borders):
        yield ids[start:stop], completion_mask[start:stop]


def _end_id(tokenizer: Any, end: str | None) -> int:
    return tokenizer.eos_token_id if end is None else tokenizer.convert_tokens_to_ids(end)


@contextmanager
def infrequent_gc() -> Iterator[None]:
    """Run the garbage collector rarely: scanning all modules and rows repeatedly would take a fifth of the time.

    It only frees reference cycles. Rows have none, so they are freed without it.
    """
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def prepare(params: SequenceParams, paths: Paths, progress: Progress) -> dict[str, Any]:
    """Write data/prepared/ and return its meta.json."""
    manifest, tokenizer_folder = read_json(paths.raw / "manifest.json"), paths.base / "tokenizer"
    tokenizer = load_tokenizer(tokenizer_folder)
    uses_chat = TEMPLATES[params.template].USES_CHAT_TEMPLATE
    chat = ChatTemplate(tokenizer, params.chat_template) if uses_chat else None
    template = make_template(params.template, params.columns, chat)
    files = {
        split: {file["name"]: paths.raw / file["name"] for file in manifest["files"] if file["split"] == split}
        for split in ("validation", "train")
    }
    num_ids = 1 + max(tokenizer.get_vocab().values())  # exceeds the number of tokens if the ids have gaps
    bad: dict[str, list[BadRow]] = {"train": [], "validation": []}
    by_split = {name: SplitTokens(params.max_length, params.on_overlong, num_ids) for name in ("train", "validation")}
    splitter = Splitter(params.validation_fraction, validation_is_given=bool(files["validation"]))
    answers: list[dict[str, str]] = []
    plain, looked_for_ranks = None, False
    with infrequent_gc():
        for split, sources in files.items():
            rows = read_examples(sources, template, params.columns) if sources else iter(())
            for batch in batched(progress(rows, f"tokenizing {split}"), BATCH_ROWS):
                bad[split] += [row for row in batch if isinstance(row, BadRow)]
                if params.on_bad_row == "error" and (bad["train"] or bad["validation"]):
                    continue  # only look for further bad rows, to report them all
                examples = [row for row in batch if isinstance(row, Example)]
                if not looked_for_ranks and len(batch) >= MIN_ROWS_FOR_RANKS:
                    plain, looked_for_ranks = rank_encoder(tokenizer), True
                turns = [example.turns for example in examples]
                tokenized = tokenize(turns, tokenizer, loss_on=params.loss_on, chat=chat is not None, plain=plain)
                for example, tokens in zip(examples, tokenized, strict=True):
                    name = splitter.assign(split, example)
                    if by_split[name].add(example, *tokens) and name == "validation":
                        completion = example.turns[-1].completion
                        answers.append(
                            {"prompt": example.prompt, "completion": completion, "category": example.category}
                        )
    bad_rows = bad["train"] + bad["validation"]
    if bad_rows and params.on_bad_row == "error":
        raise DataError(report_bad_rows(bad_rows) + "\nFix them, or set sequence.on_bad_row to drop.")
    splitter.check()
    train, validation = by_split["train"], by_split["validation"]
    check_overlong(train.too_long + validation.too_long, params.max_length)
    if not train.num_tokens or not validation.num_tokens:
        raise DataError("no rows are left for training or validation: all are longer than sequence.max_length.")

    with new_folder(paths.prepared) as target:
        packed = pack_best_fit(train.lengths, params.max_length) if params.packing else _unpacked(train)
        write_sequences(target / "train.arrow", train.sequences(packed), num_ids)
        write_sequences(target / "validation.arrow", validation.sequences(_unpacked(validation)), num_ids)
        write_text(target / "validation.jsonl", _lines(answers))
        quarantined = [
            {"file": row.file, "place": row.place, "reason": row.reason, "content": row.content} for row in bad_rows
        ]
        write_text(target / "quarantine.jsonl", _lines(quarantined))
        write_facts(target / "rows.arrow", [rows.facts(name) for name, rows in by_split.items()])
        validation_examples = validation.sequences(_unpacked(validation))
        meta = {
            "template": params.template,
            "chat_template": chat.source if chat else None,
            "columns": params.columns,
            "loss_on": params.loss_on,
            "max_length": params.max_length,
            "on_overlong": params.on_overlong,
            "packing": params.packing,
            "tokenizer_sha256": sha256_listing({f.name: sha256_file(f) for f in sorted(tokenizer_folder.iterdir())}),
            "vocab_size": len(tokenizer),
            "eos_token_id": tokenizer.eos_token_id,
            "end_token_ids": chat.ends if chat else [tokenizer.eos_token_id],
            "pad_token_id": tokenizer.pad_token_id,
            "license": manifest.get("license"),
            "data": [{"name": file["name"], "sha256": file["sha256"]} for file in manifest["files"]],
            "rows": {
                "read": sum(splitter.count.values()) + len(bad_rows), "quarantined": len(bad_rows),
                **{name: count + validation.counts[name] for name, count in train.counts.items()},
                "train": len(train.lengths), "validation": len(validation.lengths),
            },
            "tokens": {
                "train": train.num_tokens,
                "train_loss_tokens": train.num_loss_tokens,
                "validation": validation.num_tokens,
                "validation_loss_tokens": validation.num_loss_tokens,
            },
            "sequences": {
                "train": len(packed), "filled": round(train.num_tokens / (len(packed) * params.max_length), 4)
            },
            # Validation losses of two adapters can be compared if the rows, tokens and mask are the same.
            "validation_sha256": sha256_bytes(
                b"".join(
                    ids.astype("<u4").tobytes() + completion_mask.tobytes()
                    for [(ids, completion_mask)] in validation_examples
                )
            ),
        }  # fmt: skip
        write_json(target / "meta.json", meta)
    return meta


def run(params: dict[str, Any], paths: Paths, services: Services) -> str:
    """`prepare`: a two-line summary of the counts."""
    meta = prepare(params["sequence"], paths, services.progress)
    rows, tokens, sequences = meta["rows"], meta["tokens"], meta["sequences"]
    excluded = rows["quarantined"] + rows["dropped_overlong"] + rows["dropped_without_answer"]
    return (
        f"{rows['train']:,} training rows, {rows['validation']:,} validation rows; {excluded:,} excluded, "
        f"{rows['truncated']:,} truncated\n{tokens['train']:,} tokens ({tokens['train_loss_tokens']:,} in the loss) "
        f"in {sequences['train']:,} sequences, {sequences['filled']:.1%} full"
    )


def _unpacked(rows: SplitTokens) -> list[list[int]]:
    """One sequence per kept row."""
    return [[index] for index in range(len(rows.lengths))]


def _lines(values: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
