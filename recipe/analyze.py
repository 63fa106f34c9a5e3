"""Stage analyze: what the rows look like, and how long they are.

Reads data/raw/ and data/prepared/. Makes reports/analysis/: index.html, and the same numbers in summary.json.

    python -m recipe analyze
"""

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field

from recipe.errors import DataError
from recipe.files import new_folder, read_json, write_json, write_text
from recipe.lengths import limits, recommend
from recipe.pages import Part, histogram, page, preformatted, table
from recipe.params import Section
from recipe.rows import BadRow, read_rows, safe

WRAP = 50  # the tutorial's view of a row: wrapped at 50 characters, after a rule of 15 dashes
RULE = "---" * 15
TUTORIAL_CHARS = 1024  # the tutorial counted characters, and then cut at as many tokens


class AnalyzeParams(Section):
    """What the report shows."""

    num_rows: int = Field(ge=1, description="rows in the table")
    num_bins: int = Field(ge=1, description="bars of a histogram")


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


def wrapped(row: dict[str, Any]) -> str:
    """A row in full, each column wrapped."""
    parts = []
    for name, value in row.items():
        lines = str(value).splitlines() or [""]
        parts.append("\n".join([f"{name}:", *(textwrap.fill(line, WRAP) for line in lines)]))
    return "\n".join([RULE, *parts])


def look(data: Path, files: list[dict[str, Any]], num_rows: int) -> tuple[list[dict[str, Any]], dict[str, Any], int]:
    """The first rows, each column's types ({column: {type: count}}) and the number of rows that could be read."""
    first: list[dict[str, Any]] = []
    types: dict[str, Counter[str]] = {}
    count = 0
    for file in files:
        for row in read_rows(data / file["name"]):
            if isinstance(row, BadRow):
                continue
            count += 1
            if len(first) < num_rows:
                first.append({safe(name): safe(str(value)) for name, value in row.values.items()})
            for name, value in row.values.items():
                types.setdefault(safe(name), Counter())[type(value).__name__] += 1
    return first, {name: dict(sorted(counter.items())) for name, counter in types.items()}, count


def counted(kinds: dict[str, int]) -> str:
    """The types of a column, each with its number of rows."""
    return ", ".join(f"{kind} ({num:,})" for kind, num in kinds.items())


def show(data: Path, num_rows: int) -> str:
    """What `recipe show` prints: how many rows, their columns, and the first rows in full."""
    if not (data / "manifest.json").is_file():
        raise DataError(f"{data} is not there yet. `recipe fetch data` brings the rows in, and `dvc repro` all else.")
    first, types, count = look(data, read_json(data / "manifest.json")["files"], num_rows)
    width = max(map(len, types), default=0)
    columns = [f"  {name:<{width}}  {counted(kinds)}" for name, kinds in types.items()]
    return "\n".join([f"{count:,} rows", *columns, *(wrapped(row) for row in first), RULE])


def data_parts(
    params: AnalyzeParams, manifest: dict[str, Any], types: dict[str, Any], first: list[dict[str, Any]]
) -> list[Part]:
    """The dataset as loaded: files, columns, the first rows."""
    files = [[file["name"], file["split"], file["bytes"]] for file in manifest["files"]]
    columns = [[name, counted(kinds)] for name, kinds in types.items()]
    rows = [[row.get(name, "") for name in types] for row in first[: params.num_rows]]
    return [
        Part("The files", table(["file", "split", "bytes"], files)),
        Part("The columns", table(["column", "types (rows)"], columns)),
        Part("The first rows", table(list(types), rows)),
        Part("Three rows in full", preformatted("\n".join(wrapped(row) for row in first[:3]))),
    ]


def length_parts(params: AnalyzeParams, summary: dict[str, Any], chars: list[int], tokens: list[int]) -> list[Part]:
    """How long the rows are, in characters and in tokens."""
    limit = summary["max_length"]
    over_chars = summary[f"share_over_{TUTORIAL_CHARS}_chars"]
    over_tokens = summary["share_over_max_length_tokens"]
    quantile_rows = [["characters", *summary["chars"].values()], ["tokens", *summary["tokens"].values()]]
    return [
        Part(
            "Length in characters",
            histogram(chars, params.num_bins, "characters in a row", (TUTORIAL_CHARS, f"{TUTORIAL_CHARS:,}")),
            f"{over_chars:.1%} of the rows have more than {TUTORIAL_CHARS:,} characters; the model counts tokens:",
        ),
        Part(
            "Length in tokens",
            histogram(tokens, params.num_bins, "tokens in a row", (limit, f"max_length {limit:,}")),
            f"{over_tokens:.1%} of the rows have more than {limit:,} tokens.",
        ),
        Part("Quantiles", table(["", *summary["tokens"]], quantile_rows)),
    ]


def limit_parts(summary: dict[str, Any]) -> list[Part]:
    """What each limit on length would do, and which one to take."""
    rows = [
        [
            f"{one['max_length']:,}" + (" (set)" if one["max_length"] == summary["max_length"] else ""),
            f"{one['rows_cut']:.2%}", f"{one['tokens_lost']:.2%}", f"{one['filled']:.1%}", f"{one['cost']:.2f}",
        ]
        for one in summary["limits"]
    ]  # fmt: skip
    header = ["max_length", "rows cut", "tokens lost", "sequences full", "cost of an epoch"]
    return [Part("Which max_length", table(header, rows), summary["recommended_because"])]


def outcome_parts(meta: dict[str, Any], kinds: Counter[str]) -> list[Part]:
    """What prepare made of the rows, and their kinds where they have some."""
    counts = [[f"rows {name.replace('_', ' ')}", count] for name, count in meta["rows"].items()]
    counts += [[f"{name.replace('_', ' ')} tokens", count] for name, count in meta["tokens"].items()]
    counts += [["train sequences", meta["sequences"]["train"]]]
    trained = meta["tokens"]["train_trained"] / meta["tokens"]["train"]
    filled = (
        f"The sequences are {meta['sequences']['filled']:.1%} full. {trained:.1%} of the training tokens are trained; "
        "the rest is prompt."
    )
    parts = [Part("What prepare did", table(["what", "number"], counts), filled)]
    if set(kinds) != {""}:
        parts.append(Part("Rows by kind", table(["kind", "rows"], [list(one) for one in sorted(kinds.items())])))
    return parts


def analyze(params: AnalyzeParams, data: Path, prepared: Path, made: Path) -> dict[str, Any]:
    """Write the report and return its numbers."""
    import pyarrow as pa

    manifest, meta = read_json(data / "manifest.json"), read_json(prepared / "meta.json")
    first, types, num_rows = look(data, manifest["files"], max(params.num_rows, 3))
    with pa.memory_map(str(prepared / "rows.arrow")) as file:
        lengths = pa.ipc.open_stream(file).read_all()
        chars, tokens = lengths["num_chars"].to_pylist(), lengths["num_tokens"].to_pylist()
        kinds = Counter(lengths["kind"].to_pylist())
        is_train = [split == "train" for split in lengths["split"].to_pylist()]
    limit = meta["max_length"]
    made_limits = limits([count for count, chosen in zip(tokens, is_train, strict=True) if chosen], limit)
    best, because = recommend(made_limits)
    summary = {
        "files": [{"name": file["name"], "split": file["split"], "bytes": file["bytes"]} for file in manifest["files"]],
        "num_rows": num_rows,
        "columns": types,
        "chars": quantiles(chars),
        "tokens": quantiles(tokens),
        f"share_over_{TUTORIAL_CHARS}_chars": share_above(chars, TUTORIAL_CHARS),
        "max_length": limit,
        "share_over_max_length_tokens": share_above(tokens, limit),
        "limits": [asdict(one) for one in made_limits],
        "recommended_max_length": best.max_length,
        "recommended_because": because,
        "kinds": dict(sorted(kinds.items())),
        "prepared": {"rows": meta["rows"], "tokens": meta["tokens"], "sequences": meta["sequences"]},
    }
    lead = (
        f"{num_rows:,} rows. Half of them have {quantiles(tokens)['p50']:,} tokens or fewer, the longest has "
        f"{max(tokens):,}. {share_above(tokens, limit):.1%} are longer than max_length, {limit:,} tokens."
    )
    parts = data_parts(params, manifest, types, first)
    parts += length_parts(params, summary, chars, tokens)
    parts += limit_parts(summary)
    parts += outcome_parts(meta, kinds)
    with new_folder(made) as target:
        write_json(target / "summary.json", summary)
        write_text(target / "index.html", page("What the data looks like", lead, parts))
    return summary
