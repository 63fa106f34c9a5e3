"""The analyze stage reports what the rows look like, how long they are, and what may be wrong with them.

It reads data/raw/, data/prepared/ and models/base/tokenizer/, and writes reports/analysis/:
    index.html      the report
    summary.json    the numbers in the report
    lengths.csv     the distribution of row lengths in tokens, for `dvc plots`
    *.svg           the charts in the report

    recipe analyze
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from recipe.analyze.max_length import limits, recommend
from recipe.analyze.params import AnalyzeParams
from recipe.analyze.report import (
    CUT,
    TUTORIAL_CHARS,
    data_parts,
    flaw_parts,
    form_parts,
    length_parts,
    limit_parts,
    outcome_parts,
    summarize_findings,
    token_parts,
)
from recipe.analyze.scan import KEPT_PLACES, Flaw, Scan, scan_rows
from recipe.analyze.text_checks import mask_personal_data
from recipe.core.io import check_count, check_sha256, new_folder, read_json, reading, write_json, write_text
from recipe.core.paths import Paths
from recipe.core.services import Progress, Services
from recipe.report.html import page
from recipe.report.svg import cumulative, histogram
from recipe.tokens.tokenizer import load_tokenizer

TOP_TOKENS = 100
PACKED_EXAMPLES = (2, 4)  # the report shows a sequence with 2 to 4 rows, if there is one


def quantiles(values: Sequence[int]) -> dict[str, float]:
    """Return the mean, the quantiles (nearest rank) and the maximum of `values`."""
    shares = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
    nearest = np.quantile(values, list(shares.values()), method="inverted_cdf").tolist()
    return {
        "mean": round(sum(values) / len(values), 1),
        **dict(zip(shares, nearest, strict=True)),
        "max": max(values),
    }


def share_above(values: Sequence[int], limit: int) -> float:
    """Return the share of values that are greater than `limit`."""
    return round(sum(value > limit for value in values) / len(values), 4)


def vocabulary(sequences: Any, size: int) -> dict[str, Any]:
    """Count how many tokens in the vocabulary occur in the training sequences.

    In the result, `top_share` is the share of the text that the TOP_TOKENS most frequent tokens make up.
    """
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
    """Return the rows of one training sequence, each as a list of (kind, text) spans.

    The kind is `end` for end tokens in the loss, `trained` for other tokens in the loss, and `read` for context.
    """
    import pyarrow.compute as pc

    low, high = PACKED_EXAMPLES
    counts = pc.list_value_length(sequences["seq_lengths"]).to_numpy()
    suitable = np.flatnonzero((counts >= low) & (counts <= high))
    index = int(suitable[0]) if len(suitable) else int(np.argmin(counts))
    ids, completion_mask, lengths = (sequences[name][index].values.to_numpy(zero_copy_only=False)
                             for name in ("input_ids", "completion_mask", "seq_lengths"))  # fmt: skip
    rows = []
    for stop, length in zip(np.cumsum(lengths), lengths, strict=True):
        tokens = [
            (token, "end" if in_loss and token in ends else "trained" if in_loss else "read")
            for token, in_loss in zip(
                ids[stop - length : stop].tolist(), completion_mask[stop - length : stop], strict=True
            )
        ]
        spans = groupby(tokens, key=lambda item: item[1])
        rows.append(
            [(name, mask_personal_data(tokenizer.decode([token for token, _ in span]))) for name, span in spans]
        )
    return rows


def read_table(path: Path, files: ExitStack) -> Any:
    """Memory-map the Arrow stream at `path`, and return its table, which is readable until `files` is closed."""
    import pyarrow as pa

    with reading(path, pa.ArrowException):
        return pa.ipc.open_stream(files.enter_context(pa.memory_map(str(path)))).read_all()


def analyze(params: AnalyzeParams, paths: Paths, progress: Progress) -> dict[str, Any]:
    """Write the report, and return the contents of summary.json."""
    manifest, meta = read_json(paths.raw / "manifest.json"), read_json(paths.prepared / "meta.json")
    for file in meta["data"]:
        check_sha256(paths.raw / file["name"], file["sha256"])
    prepared = paths.prepared
    with ExitStack() as files:
        facts, sequences = (read_table(prepared / name, files) for name in ("rows.arrow", "train.arrow"))
        check_count(prepared / "train.arrow", len(sequences), meta["sequences"]["train"])
        scan = scan_rows(paths.raw, manifest["files"], meta, facts, max(params.num_rows, 3), progress)
        chars, tokens = facts["num_chars"].to_pylist(), facts["num_tokens"].to_pylist()
        categories = Counter(facts["category"].to_pylist())
        is_train = facts["split"].to_numpy(zero_copy_only=False) == "train"
        vocabulary_usage = vocabulary(sequences, meta["vocab_size"])
        example = packed_example(sequences, load_tokenizer(paths.base / "tokenizer"), meta["end_token_ids"])
    limit = meta["max_length"]
    train_facts = facts.filter(is_train)
    lengths, loss_starts = train_facts["num_tokens"].to_pylist(), train_facts["num_before"].to_pylist()
    limit_results = limits(lengths, loss_starts, limit, drop_overlong=meta["on_overlong"] == "drop")
    cut = cut_rows(facts, limit) if meta["on_overlong"] == "truncate" else Flaw()
    flaws = {**scan.flaws, **({CUT: cut} if cut.rows else {})}
    best, reason = recommend(limit_results, limit)
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
        "limits": [asdict(result) for result in limit_results],
        "recommended_max_length": best.max_length,
        "recommended_because": reason,
        "flaws": {name: asdict(flaw) for name, flaw in sorted(flaws.items(), key=lambda item: -item[1].rows)},
        "vocabulary": vocabulary_usage,
        "branches": dict(scan.branches.most_common()),
        "scripts": dict(scan.scripts.most_common()),
        "unused": {name: masked(entry) for name, entry in read_json(prepared / "unused.json").items()},
        "categories": dict(sorted(categories.items())),
        "prepared": {name: meta[name] for name in ("rows", "tokens", "roles", "split_completions", "sequences")},
    }
    forms = [
        {**form, "spans": [{**span, "text": mask_personal_data(span["text"])} for span in form["spans"]]}
        for form in read_json(prepared / "forms.json")
    ]
    write_report(paths.analysis, params, summary, scan, forms, example, chars, tokens)
    return summary


def cut_rows(facts: Any, max_length: int) -> Flaw:
    """Return the rows that prepare truncated. A row ends with its last answer, so this answer is missing or cut.

    `facts` is the table that the prepare stage wrote. Rows whose prompt alone fills max_length were dropped.
    """
    num_tokens, num_before = facts["num_tokens"].to_numpy(), facts["num_before"].to_numpy()
    rows = np.flatnonzero((num_tokens > max_length) & (num_before < max_length)).tolist()
    return Flaw(
        len(rows), [f"{facts['file'][row].as_py()}, {facts['place'][row].as_py()}" for row in rows[:KEPT_PLACES]]
    )


def masked(entry: dict[str, Any]) -> dict[str, Any]:
    """Return an entry of unused.json with the personal data in its example masked."""
    return {**entry, "example": mask_personal_data(entry["example"])}


def write_report(
    folder: Path, params: AnalyzeParams, summary: dict[str, Any], scan: Scan, forms: list[dict[str, Any]],
    example: Sequence[Sequence[tuple[str, str]]], chars: list[int], tokens: list[int],
) -> None:  # fmt: skip
    """Write the page, the charts and the numbers. `chars` and `tokens` contain the lengths of all rows."""
    limit = summary["max_length"]
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
        *form_parts(forms),
        *outcome_parts(summary, example),
    ]
    curve = "".join(f"{top},{rows},{share}\n" for top, rows, share in cumulative(tokens, params.num_bins))
    with new_folder(folder) as target:
        write_json(target / "summary.json", summary)
        write_text(target / "lengths.csv", "tokens,rows,share_up_to_here\n" + curve)
        for name, picture in pictures.items():
            write_text(target / f"{name}.svg", picture)
        write_text(target / "index.html", page("Data report", summarize_findings(summary), parts))


def run(params: dict[str, Any], paths: Paths, services: Services) -> str:
    """Run the analyze stage, and return the possible problems in the rows and the path of the report."""
    summary = analyze(params["analyze"], paths, services.progress)
    flaws = [f"{name} ({flaw['rows']:,})" for name, flaw in summary["flaws"].items()]
    findings = f"possible problems: {', '.join(flaws)}" if flaws else "no problems found in the rows"
    if CUT in summary["flaws"]:
        recommended, current = summary["recommended_max_length"], summary["max_length"]
        findings += f"\nrecommended sequence.max_length: {recommended:,} (currently {current:,})"
    return f"{findings}\nreport: {paths.analysis / 'index.html'}"
