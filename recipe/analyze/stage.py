"""Stage analyze: what the rows look like, how long they are, and what may be wrong with them.

Reads data/raw/, data/prepared/ and models/base/tokenizer/. Makes reports/analysis/:
    index.html      the report
    summary.json    its numbers
    lengths.csv     the curve of lengths in tokens, for `dvc plots`
    *.svg           its pictures

    python -m recipe analyze
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from recipe.analyze.max_length import limits, recommend
from recipe.analyze.params import AnalyzeParams
from recipe.analyze.report import (
    RULE,
    TUTORIAL_CHARS,
    data_parts,
    flaw_parts,
    format_counts,
    format_row,
    length_parts,
    limit_parts,
    outcome_parts,
    summarize_findings,
    token_parts,
)
from recipe.analyze.scan import Columns, as_text, read_all, scan_rows
from recipe.analyze.text_checks import mask_personal_data
from recipe.core.errors import DataError
from recipe.core.io import new_folder, read_json, write_json, write_text
from recipe.core.paths import Paths
from recipe.core.services import Progress, Services
from recipe.report.html import page
from recipe.report.svg import cumulative, histogram
from recipe.tokens.tokenizer import load_tokenizer

TOP_TOKENS = 100
PACKED_EXAMPLES = (2, 4)  # rows in the sequence that is shown, at least and at most, where one has so many


def quantiles(values: Sequence[int]) -> dict[str, float]:
    """Mean, quantiles (nearest rank) and the largest of some lengths."""
    ordered = sorted(values)
    picked = {
        f"p{int(share * 100)}": ordered[max(0, -(-int(share * 100) * len(ordered) // 100) - 1)]
        for share in (0.5, 0.9, 0.95, 0.99)
    }
    return {"mean": round(sum(ordered) / len(ordered), 1), **picked, "max": ordered[-1]}


def share_above(values: Sequence[int], limit: int) -> float:
    """The share of values above a limit."""
    return round(sum(value > limit for value in values) / len(values), 4)


def show(data: Path, num_rows: int) -> str:
    """What `recipe show` prints: how many rows, their columns, and the first rows in full."""
    if not (data / "manifest.json").is_file():
        raise DataError(f"{data} is not there yet. `recipe fetch data` brings the rows in, and `dvc repro` all else.")
    columns = Columns()
    first: list[dict[str, str]] = []
    for row in read_all(data, read_json(data / "manifest.json")["files"]):
        columns.add(row.values)
        if len(first) < num_rows:
            first.append(as_text(row.values))
    width = max(map(len, columns.types), default=0)
    kinds = [f"  {name:<{width}}  {format_counts(one['types'])}" for name, one in columns.summary().items()]
    return "\n".join([f"{columns.num_rows:,} rows", *kinds, *map(format_row, first), RULE])


def vocabulary(sequences: Any, size: int) -> dict[str, Any]:
    """How many of the vocabulary's tokens the training sequences have, and how much the most frequent make up."""
    counts = np.zeros(size, dtype=np.int64)
    for chunk in sequences["input_ids"].chunks:
        counts += np.bincount(chunk.flatten().to_numpy(), minlength=size)[:size]
    top = np.sort(counts)[::-1][:TOP_TOKENS].sum()
    return {
        "size": size,
        "used": int(np.count_nonzero(counts)),
        "top": TOP_TOKENS,
        "top_share": round(float(top / counts.sum()), 6),
    }


def packed_example(sequences: Any, tokenizer: Any, ends: Sequence[int]) -> list[list[tuple[str, str]]]:
    """The rows of one training sequence, each as pieces (`read`, `trained` or `end`, text)."""
    import pyarrow.compute as pc

    low, high = PACKED_EXAMPLES
    counts = pc.list_value_length(sequences["seq_lengths"]).to_numpy()
    fitting = np.flatnonzero((counts >= low) & (counts <= high))
    at = int(fitting[0]) if len(fitting) else int(np.argmin(counts))
    ids, completion_mask, lengths = (sequences[name][at].values.to_numpy(zero_copy_only=False)
                             for name in ("input_ids", "completion_mask", "seq_lengths"))  # fmt: skip
    rows = []
    for stop, length in zip(np.cumsum(lengths), lengths, strict=True):
        some = zip(ids[stop - length : stop].tolist(), completion_mask[stop - length : stop], strict=True)
        tokens = [(token, "end" if flag and token in ends else "trained" if flag else "read") for token, flag in some]
        runs = groupby(tokens, key=lambda one: one[1])
        rows.append([(kind, mask_personal_data(tokenizer.decode([token for token, _ in run]))) for kind, run in runs])
    return rows


def analyze(params: AnalyzeParams, paths: Paths, progress: Progress) -> dict[str, Any]:
    """Write the report and return its numbers."""
    import pyarrow as pa

    manifest, meta = read_json(paths.raw / "manifest.json"), read_json(paths.prepared / "meta.json")
    prepared = paths.prepared
    with pa.memory_map(str(prepared / "rows.arrow")) as file, pa.memory_map(str(prepared / "train.arrow")) as packed:
        facts, sequences = pa.ipc.open_stream(file).read_all(), pa.ipc.open_stream(packed).read_all()
        scan = scan_rows(paths.raw, manifest["files"], meta, facts, max(params.num_rows, 3), progress)
        chars, tokens = facts["num_chars"].to_pylist(), facts["num_tokens"].to_pylist()
        categories = Counter(facts["category"].to_pylist())
        is_train = facts["split"].to_numpy(zero_copy_only=False) == "train"
        used = vocabulary(sequences, meta["vocab_size"])
        example = packed_example(sequences, load_tokenizer(paths.base / "tokenizer"), meta["end_token_ids"])
    limit = meta["max_length"]
    to_train = facts.filter(is_train)
    lengths, before = to_train["num_tokens"].to_pylist(), to_train["num_before"].to_pylist()
    made_limits = limits(lengths, before, limit, drops=meta["on_overlong"] == "drop")
    best, because = recommend(made_limits)
    summary = {
        "files": [{"name": file["name"], "split": file["split"], "bytes": file["bytes"]} for file in manifest["files"]],
        "num_rows": scan.columns.num_rows,
        "columns": scan.columns.summary(),
        "chars": quantiles(chars),
        "tokens": quantiles(tokens),
        f"share_over_{TUTORIAL_CHARS}_chars": share_above(chars, TUTORIAL_CHARS),
        f"share_over_{TUTORIAL_CHARS}_tokens": share_above(tokens, TUTORIAL_CHARS),
        "max_length": limit,
        "share_over_max_length_tokens": share_above(tokens, limit),
        "limits": [asdict(one) for one in made_limits],
        "recommended_max_length": best.max_length,
        "recommended_because": because,
        "flaws": {name: asdict(flaw) for name, flaw in sorted(scan.flaws.items(), key=lambda one: -one[1].rows)},
        "vocabulary": used,
        "branches": dict(scan.branches.most_common()),
        "scripts": dict(scan.scripts.most_common()),
        "categories": dict(sorted(categories.items())),
        "prepared": {"rows": meta["rows"], "tokens": meta["tokens"], "sequences": meta["sequences"]},
    }
    pictures = {
        "characters": histogram(chars, params.num_bins, "characters in a row", (TUTORIAL_CHARS, f"{TUTORIAL_CHARS:,}")),
        "tokens": histogram(tokens, params.num_bins, "tokens in a row", (limit, f"max_length {limit:,}")),
    }
    parts = [
        *data_parts(summary, scan.first, params.num_rows),
        *length_parts(summary, pictures),
        *limit_parts(summary),
        *token_parts(summary),
        *flaw_parts(summary, scan.examples),
        *outcome_parts(summary, example),
    ]
    curve = "".join(f"{top},{rows},{share}\n" for top, rows, share in cumulative(tokens, params.num_bins))
    with new_folder(paths.analysis) as target:
        write_json(target / "summary.json", summary)
        write_text(target / "lengths.csv", "tokens,rows,share_up_to_here\n" + curve)
        for name, picture in pictures.items():
            write_text(target / f"{name}.svg", picture)
        write_text(target / "index.html", page("What the data looks like", summarize_findings(summary), parts))
    return summary


def run(params: dict[str, Any], paths: Paths, services: Services) -> str:
    """`analyze`: what may be wrong with the rows, and where the report is."""
    summary = analyze(params["analyze"], paths, services.progress)
    flaws = [f"{name} ({flaw['rows']:,})" for name, flaw in summary["flaws"].items()]
    found = f"may be wrong: {', '.join(flaws)}" if flaws else "nothing looks wrong with the rows"
    return f"{found}\nreport: {paths.analysis / 'index.html'}"
