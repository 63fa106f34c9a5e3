"""Implements the prepare stage, which converts rows to token sequences.

The stage reads data/raw/ and models/base/tokenizer/, and writes data/prepared/:
    train.arrow         the packed sequences: input_ids, completion_mask (the tokens in the loss), seq_lengths, rows
    validation.arrow    the validation examples, one per sequence, in the order of validation.jsonl
    validation.jsonl    the prompts, completions and categories of the validation examples
    general.arrow       the same for the general rows, if params.yaml names any (data.general)
    general.jsonl
    rows.arrow          facts about each valid row: split, file, place, category, num_chars, num_tokens, num_before.
                        The training rows come first; `rows` in train.arrow contains their numbers, counted from 0.
    quarantine.jsonl    the malformed rows that were dropped (with on_bad_row: drop), each with the reason
    unused.json         the columns and message keys that the template does not use, with row counts and examples
    forms.json          an example row for each form, showing which tokens are in the loss
    meta.json           the settings and the counts

    recipe prepare
"""

import json
from pathlib import Path
from typing import Any

from recipe.core.io import new_folder, read_json, sha256_bytes, sha256_tree, write_json, write_text
from recipe.core.paths import Paths
from recipe.core.services import Progress, Services
from recipe.prepare.params import SequenceParams
from recipe.prepare.token_store import SplitTokens, write_facts
from recipe.prepare.tokenized_rows import TokenizedRows, tokenize_rows
from recipe.prepare.unused import describe
from recipe.text.chat_templates import ChatTemplate
from recipe.text.templates import TEMPLATES, make_template
from recipe.tokens.lengths import MAX_CUT, shortest_limit
from recipe.tokens.packing import pack_best_fit, write_sequences
from recipe.tokens.tokenizer import load_tokenizer

SPLIT_COMPLETIONS = (
    "{number:,} completions begin inside a token of the whole text, so they are encoded separately from their prompts. "
    "This happens, for example, if a prompt ends with a space."
)


def prepare(params: SequenceParams, paths: Paths, progress: Progress) -> dict[str, Any]:
    """Write data/prepared/ and return the content of meta.json."""
    manifest, tokenizer_folder = read_json(paths.raw / "manifest.json"), paths.base / "tokenizer"
    tokenizer = load_tokenizer(tokenizer_folder)
    uses_chat = TEMPLATES[params.template].USES_CHAT_TEMPLATE
    chat = ChatTemplate(tokenizer, params.chat_template) if uses_chat else None
    template = make_template(params.template, params.columns, chat)
    files = {
        split: {file["name"]: paths.raw / file["name"] for file in manifest["files"] if file["split"] == split}
        for split in ("train", "validation", "general")
    }
    rows = tokenize_rows(params, files, tokenizer, template, chat, progress)
    train, validation = rows.splits["train"], rows.splits["validation"]
    packed = pack_best_fit(train.lengths, params.max_length) if params.packing else _unpacked(train)
    meta = {
        **settings_meta(params, tokenizer, tokenizer_folder, chat),
        "license": manifest.get("license"),
        "data": [{"name": file["name"], "sha256": file["sha256"]} for file in manifest["files"]],
        **counts_meta(rows, len(packed), params.max_length),
    }
    with new_folder(paths.prepared) as target:
        write_sequences(target / "train.arrow", train.sequences(packed), train.vocab_size)
        write_sequences(target / "validation.arrow", validation.sequences(_unpacked(validation)), train.vocab_size)
        write_text(target / "validation.jsonl", _lines(rows.answers["validation"]))
        if general := rows.splits.get("general"):
            write_sequences(target / "general.arrow", general.sequences(_unpacked(general)), train.vocab_size)
            write_text(target / "general.jsonl", _lines(rows.answers["general"]))
        quarantined = [
            {"file": row.file, "place": row.place, "reason": row.reason, "content": row.content} for row in rows.bad
        ]
        write_text(target / "quarantine.jsonl", _lines(quarantined))
        facts = [rows.splits[name].facts(name) for name in ("train", "validation")]
        write_facts(target / "rows.arrow", facts)
        write_json(target / "unused.json", rows.unused)
        write_json(target / "forms.json", rows.forms)
        write_json(target / "meta.json", meta)
    return meta


def settings_meta(
    params: SequenceParams, tokenizer: Any, tokenizer_folder: Path, chat: ChatTemplate | None
) -> dict[str, Any]:
    """Return the part of meta.json that describes the template and the tokenizer to later stages."""
    return {
        "template": params.template,
        "chat_template": chat.source if chat else None,
        "columns": params.columns,
        "loss_on": params.loss_on,
        "max_length": params.max_length,
        "on_overlong": params.on_overlong,
        "packing": params.packing,
        "tokenizer_sha256": sha256_tree(tokenizer_folder),
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "end_token_ids": chat.ends if chat else [tokenizer.eos_token_id],
        "pad_token_id": tokenizer.pad_token_id,
    }


def counts_meta(rows: TokenizedRows, num_sequences: int, max_length: int) -> dict[str, Any]:
    """Return the part of meta.json that contains the numbers of rows, tokens and sequences, and a sha256.

    The sha256 covers the tokens and the completion masks of the validation rows. Another one covers the general rows.
    """
    train, validation, general = (rows.splits.get(name) for name in ("train", "validation", "general"))
    assert train and validation
    return {
        "rows": {
            "read": rows.num_read,
            "quarantined": len(rows.bad),
            **{name: count + validation.counts[name] for name, count in train.counts.items()},
            "train": len(train.lengths),
            "validation": len(validation.lengths),
        },
        "tokens": {
            "train": train.num_tokens,
            "train_loss_tokens": train.num_loss_tokens,
            "validation": validation.num_tokens,
            "validation_loss_tokens": validation.num_loss_tokens,
        },
        # The number of training tokens per role, and the number of completions that begin inside a token of the whole
        # text.
        "roles": train.by_role,
        "split_completions": train.num_split + validation.num_split,
        "sequences": {
            "train": num_sequences,
            "filled": round(train.num_tokens / (num_sequences * max_length), 4),
            "recommended_max_length": shortest_limit(train.whole_lengths),
        },
        # The validation losses of two adapters are comparable only if this hash is the same for both adapters.
        "validation_sha256": _sha256_of_examples(validation),
        "general": None if general is None else {
            "rows": len(general.lengths),
            "tokens": general.num_tokens,
            "loss_tokens": general.num_loss_tokens,
            "sha256": _sha256_of_examples(general),
            **general.counts,
        },
    }  # fmt: skip


def _sha256_of_examples(rows: SplitTokens) -> str:
    return sha256_bytes(
        b"".join(
            ids.astype("<u4").tobytes() + completion_mask.tobytes()
            for [(ids, completion_mask, _)] in rows.sequences(_unpacked(rows))
        )
    )


def run(params: dict[str, Any], paths: Paths, services: Services) -> str:
    """Run `prepare`. Return a summary of the counts and, if there are unused columns or keys, a list of them."""
    meta = prepare(params["sequence"], paths, services.progress)
    rows, tokens, sequences = meta["rows"], meta["tokens"], meta["sequences"]
    excluded = rows["quarantined"] + rows["dropped_overlong"] + rows["dropped_without_answer"]
    summary = (
        f"{_rows(rows['train'], 'training')}, {_rows(rows['validation'], 'validation')}; {excluded:,} excluded, "
        f"{rows['truncated']:,} truncated\n{tokens['train']:,} tokens ({tokens['train_loss_tokens']:,} in the loss) "
        f"in {sequences['train']:,} sequences, {sequences['filled']:.1%} full"
    )
    lines = [summary, describe_roles(meta["roles"])]
    if general := meta["general"]:
        lines.append(
            f"{_rows(general['rows'], 'general')} (data.general), which are not in the training: "
            f"{general['tokens']:,} tokens ({general['loss_tokens']:,} in the loss)"
        )
    if rows["truncated"]:
        lines.append(describe_cut(meta))
    if meta["split_completions"]:
        lines.append(SPLIT_COMPLETIONS.format(number=meta["split_completions"]))
    unused = read_json(paths.prepared / "unused.json")
    return "\n".join([*lines, describe(unused)] if unused else lines)


def _rows(number: int, split: str) -> str:
    return f"{number:,} {split} row{'' if number == 1 else 's'}"


def describe_cut(meta: dict[str, Any]) -> str:
    """Return a sentence about the rows that were truncated. A row ends with its last answer, so this answer is cut."""
    rows, recommended = meta["rows"], meta["sequences"]["recommended_max_length"]
    advice = (
        f"Set sequence.max_length to {recommended:,} to keep at least {1 - MAX_CUT:.0%} of the training rows complete."
        if recommended > meta["max_length"]
        else f"This affects no more than {MAX_CUT:.0%} of the training rows."
    )
    return (
        f"possible problem: the last answer is missing or cut in {rows['truncated']:,} of "
        f"{rows['train'] + rows['validation']:,} rows, because sequence.max_length is {meta['max_length']:,}. {advice}"
    )


def describe_roles(roles: dict[str, dict[str, int]]) -> str:
    """Return a table of the numbers of training tokens and loss tokens per role, for display in the terminal."""
    rows = [(role, f"{count['tokens']:,}", f"{count['loss_tokens']:,}") for role, count in roles.items()]
    table = [("training tokens of", "tokens", "in the loss"), *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        f"  {name:<{widths[0]}}  {tokens:>{widths[1]}}  {loss:>{widths[2]}}" for name, tokens, loss in table
    )


def _unpacked(rows: SplitTokens) -> list[list[int]]:
    """Return the row numbers of each sequence when packing is off: every kept row is a separate sequence."""
    return [[index] for index in range(len(rows.lengths))]


def _lines(values: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
