"""The sections of the report on the data: the rows as loaded, their lengths, what may be wrong, what prepare did.

`sections(summary, ...)` reads the numbers of reports/analysis/summary.json and nothing else of the run.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from recipe.report.html import Part, figure, preformatted, table

WRAP = 50  # the tutorial's view of a row: wrapped at 50 characters, after a rule of 15 times three dashes
RULE = "---" * 15
TUTORIAL_CHARS = 1024  # the tutorial counted characters, and then cut at as many tokens
ROWS_CALLED = {
    "read": "rows read",
    "quarantined": "rows set aside as malformed",
    "truncated": "rows cut at max_length",
    "dropped_overlong": "rows dropped as too long",
    "dropped_without_answer": "rows dropped: the prompt alone fills max_length",
    "train": "rows to train on",
    "validation": "rows to validate on",
}
TOKENS_CALLED = {
    "train": "tokens to train on",
    "train_loss_tokens": "of them trained (answers)",
    "validation": "tokens to validate on",
    "validation_loss_tokens": "of them scored (answers)",
}
SHOWN_PLACES = 5
SHOWN_CHARS = 600  # of a copy


def format_row(row: dict[str, Any]) -> str:
    """A row in full, each column wrapped."""
    parts = []
    for name, value in row.items():
        lines = str(value).splitlines() or [""]
        parts.append("\n".join([f"{name}:", *(textwrap.fill(line, WRAP) for line in lines)]))
    return "\n".join([RULE, *parts])


def format_counts(kinds: dict[str, int]) -> str:
    """The types of a column, each with its number of rows."""
    return ", ".join(f"{kind} ({num:,})" for kind, num in kinds.items())


def list_places(places: Sequence[str], rows: int) -> str:
    """The first places, each file named once, and how many more there are: `a.json, line 3, 7; and 2 more`."""
    named, last = [], None
    for place in places[:SHOWN_PLACES]:
        kind, number = place.rsplit(" ", 1)  # `a.json, line` and `3`
        if kind == last:
            named[-1] += ", " + number
        else:
            named.append(place)
        last = kind
    more = rows - min(len(places), SHOWN_PLACES)
    return "; ".join([*named, *([f"and {more:,} more"] if more else [])])


def summarize_findings(summary: dict[str, Any]) -> str:
    """What the data is, in a few sentences."""
    guilty = [one for one in summary["flaws"].values() if one["rows"]]
    found = "Nothing looks wrong with them." if not guilty else (
        f"{len(guilty)} {'thing' if len(guilty) == 1 else 'things'} may be wrong with some of them: see below."
    )  # fmt: skip
    rows = summary["prepared"]["rows"]
    dropped = rows["dropped_overlong"] + rows["dropped_without_answer"]
    return (
        f"{summary['num_rows']:,} rows: {rows['train']:,} to train on, {rows['validation']:,} to validate on. Half "
        f"have {summary['tokens']['p50']:,} tokens or fewer, the longest has {summary['tokens']['max']:,}. "
        f"{summary['share_over_max_length_tokens']:.1%} are longer than max_length, {summary['max_length']:,} tokens: "
        f"{rows['truncated']:,} cut, {dropped:,} dropped. {found}"
    )


def data_parts(summary: dict[str, Any], first: list[dict[str, Any]], num_rows: int) -> list[Part]:
    """The dataset as loaded: files, columns, the first rows."""
    files = [[file["name"], file["split"], file["bytes"]] for file in summary["files"]]
    columns = [
        [name, format_counts(one["types"]), one["empty"], one["missing"]] for name, one in summary["columns"].items()
    ]
    rows = [[row.get(name, "") for name in summary["columns"]] for row in first[:num_rows]]
    return [
        Part("The files", table(["file", "split", "bytes"], files)),
        Part("The columns", table(["column", "types (rows)", "empty", "missing"], columns)),
        Part("The first rows", table(list(summary["columns"]), rows)),
        Part("Three rows in full", preformatted("\n".join(format_row(row) for row in first[:3]))),
    ]


def length_parts(summary: dict[str, Any], pictures: Mapping[str, str]) -> list[Part]:
    """How long the rows are, in characters and in tokens."""
    limit = summary["max_length"]
    over_chars = summary[f"share_over_{TUTORIAL_CHARS}_chars"]
    over_tokens = summary["share_over_max_length_tokens"]
    over_same = summary[f"share_over_{TUTORIAL_CHARS}_tokens"]
    quantile_rows = [["characters", *summary["chars"].values()], ["tokens", *summary["tokens"].values()]]
    label = "Histogram and cumulative curve of the rows by {}; their numbers stand under Quantiles."
    return [
        Part(
            "Length in characters",
            figure(pictures["characters"], label.format("characters")),
            f"{over_chars:.1%} of the rows have more than {TUTORIAL_CHARS:,} characters. The model counts tokens: "
            f"{over_same:.1%} have more than {TUTORIAL_CHARS:,} of those.",
        ),
        Part(
            "Length in tokens",
            figure(pictures["tokens"], label.format("tokens")),
            f"{over_tokens:.1%} of the rows have more than max_length, {limit:,} tokens.",
        ),
        Part("Quantiles", table(["length in", *summary["tokens"]], quantile_rows)),
    ]


def limit_parts(summary: dict[str, Any]) -> list[Part]:
    """What each limit on length would do, and which one to take."""
    rows = [
        [
            f"{one['max_length']:,}" + (" (set)" if one["max_length"] == summary["max_length"] else ""),
            *(f"{one[name]:.2%}" for name in ("rows_cut", "rows_dropped", "tokens_lost")),
            f"{one['filled']:.1%}", f"{one['cost']:.2f}",
        ]
        for one in summary["limits"]
    ]  # fmt: skip
    header = ["max_length", "rows cut", "dropped", "tokens lost", "full", "cost"]
    note = (
        f"{summary['recommended_because']} Shares are of the rows to train on; those whose prompt alone fills "
        "max_length are dropped. Full says how far packed sequences are filled, cost what an epoch takes beside the "
        "set limit's."
    )
    return [Part("Which max_length", table(header, rows), note)]


def flaw_parts(summary: dict[str, Any], examples: Mapping[str, Sequence[Any]]) -> list[Part]:
    """What may be wrong with the rows, where, and copies side by side."""
    total = summary["prepared"]["rows"]["read"]
    rows = [
        [name, one["rows"], f"{one['rows'] / total:.2%}", list_places(one["places"], one["rows"])]
        for name, one in summary["flaws"].items()
    ]
    note = (
        "Guesses by the look of the text: look at the rows before you change them. Personal data is masked on this "
        "page; summary.json names more rows."
    )
    clean = Markup("<p>Nothing was found: no copies, near copies or near leaks, no odd characters, no answer that "
                   "looks cut off, no personal data.</p>")  # fmt: skip
    parts = [Part("What may be wrong", table(["what", "rows", "share", "where"], rows) if rows else clean, note)]
    pairs = [
        [f"{what}\n({one.similarity:.0%} alike)", f"{one.place}:\n{_short(one.text)}",
         f"{one.other_place}:\n{_short(one.other_text)}"]
        for what, some_pairs in examples.items() for one in some_pairs
    ]  # fmt: skip
    if pairs:
        parts.append(Part("Copies side by side", table(["what", "row", "the other"], pairs),
                          "Alike is the share of three-word runs that both have, estimated."))  # fmt: skip
    return parts


def token_parts(summary: dict[str, Any]) -> list[Part]:
    """What the tokens are spent on: answers and prompts, the vocabulary, forms of rows, scripts, categories."""
    vocabulary, tokens = summary["vocabulary"], summary["prepared"]["tokens"]
    shares = [
        ["tokens to train on", tokens["train"]],
        ["of them trained (answers)", tokens["train_loss_tokens"]],
        ["of them read only (prompts)", tokens["train"] - tokens["train_loss_tokens"]],
        ["vocabulary, tokens", vocabulary["size"]],
        ["of it used in training", vocabulary["used"]],
    ]
    note = (
        f"{tokens['train_loss_tokens'] / tokens['train']:.1%} of the training tokens are trained. The training "
        f"text uses {vocabulary['used'] / vocabulary['size']:.1%} of the vocabulary; the {vocabulary['top']} most "
        f"frequent tokens make up {vocabulary['top_share']:.1%} of the text."
    )
    parts = [Part("What the tokens are", table(["what", "number"], shares), note)]
    for heading, name, key in (
        ("Rows by branch of the template", "branch", "branches"),
        ("Rows by script", "script of most letters", "scripts"),
        ("Rows by category", "category", "categories"),
    ):
        if set(summary[key]) - {""}:
            parts.append(Part(heading, table([name, "rows"], [list(one) for one in summary[key].items()])))
    return parts


def outcome_parts(summary: dict[str, Any], packed: Sequence[Sequence[tuple[str, str]]]) -> list[Part]:
    """What prepare made of the rows, and one packed sequence as the model sees it."""
    prepared = summary["prepared"]
    counts = [[ROWS_CALLED[name], count] for name, count in prepared["rows"].items()]
    counts += [[TOKENS_CALLED[name], count] for name, count in prepared["tokens"].items()]
    counts += [["training sequences", prepared["sequences"]["train"]]]
    quarantined = prepared["rows"]["quarantined"]
    filled = f"The sequences are {prepared['sequences']['filled']:.1%} full." + (
        f" {quarantined:,} rows stand in data/prepared/quarantine.jsonl, each with the reason." if quarantined else ""
    )
    row = Markup('<div class="row">{}</div>')
    span = Markup('<span class="{}">{}</span>')
    shown = Markup("").join(row.format(Markup("").join(span.format(*piece) for piece in one)) for one in packed)
    box = Markup('<div class="packed" tabindex="0" role="group" aria-label="A packed sequence">{}</div>').format(shown)
    key = (
        "One training sequence. Each row in it sees itself alone. Plain text is read, underlined text is trained, "
        "and the framed token ends the answer."
    )
    return [Part("What prepare did", table(["what", "number"], counts), filled), Part("A packed sequence", box, key)]


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…"
