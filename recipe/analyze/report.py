"""Builds the sections of the data report: loaded rows, row lengths, possible problems, and the output of prepare.

The `*_parts` functions take their numbers from `summary`, which has the contents of reports/analysis/summary.json.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from recipe.core.format import shorten
from recipe.report.html import Part, figure, preformatted, table

WRAP = 50  # as in the tutorial, rows are wrapped at 50 characters and printed below a rule of 45 dashes
RULE = "---" * 15
TUTORIAL_CHARS = 1024  # the tutorial measures rows in characters, but cuts rows at this number of tokens
ROW_LABELS = {
    "read": "rows read",
    "quarantined": "rows quarantined as malformed",
    "truncated": "rows cut at max_length",
    "dropped_overlong": "rows dropped: longer than max_length",
    "dropped_without_answer": "rows dropped: the prompt alone fills max_length",
    "train": "training rows",
    "validation": "validation rows",
}
TOKEN_LABELS = {
    "train": "training tokens",
    "train_loss_tokens": "loss positions in training (answers)",
    "validation": "validation tokens",
    "validation_loss_tokens": "loss positions in validation (answers)",
}
CUT = "the last answer is missing or cut at max_length"
SHOWN_PLACES = 5
SHOWN_CHARS = 600  # maximum number of characters shown for each row in a pair of duplicates


def format_row(row: dict[str, Any]) -> str:
    """Format all columns of a row, with lines wrapped at WRAP characters."""
    parts = []
    for name, value in row.items():
        lines = str(value).splitlines() or [""]
        parts.append("\n".join([f"{name}:", *(textwrap.fill(line, WRAP) for line in lines)]))
    return "\n".join([RULE, *parts])


def format_counts(types: dict[str, int]) -> str:
    """List the types of the values in a column, with the number of rows for each type."""
    return ", ".join(f"{name} ({num_rows:,})" for name, num_rows in types.items())


def list_places(places: Sequence[str], rows: int) -> str:
    """List the first places by file and state how many rows remain, as in `a.json, line 3, 7; and 2 more`."""
    groups, last = [], None
    for place in places[:SHOWN_PLACES]:
        prefix, number = place.rsplit(" ", 1)  # `a.json, line` and `3`
        if prefix == last:
            groups[-1] += ", " + number
        else:
            groups.append(place)
        last = prefix
    remaining = rows - min(len(places), SHOWN_PLACES)
    return "; ".join([*groups, *([f"and {remaining:,} more"] if remaining else [])])


def summarize_findings(summary: dict[str, Any]) -> str:
    """Summarize the dataset in a few sentences."""
    num_flaws = sum(flaw["rows"] > 0 for flaw in summary["flaws"].values())
    if num_flaws:
        findings = f"{num_flaws} possible {'problem was' if num_flaws == 1 else 'problems were'} found (see below)."
    else:
        findings = "No problems were found."
    rows = summary["prepared"]["rows"]
    dropped = rows["dropped_overlong"] + rows["dropped_without_answer"]
    return (
        f"The dataset has {summary['num_rows']:,} rows, of which {rows['train']:,} are used for training and "
        f"{rows['validation']:,} for validation. The median length is {summary['tokens']['p50']:,} tokens, and the "
        f"longest row has {summary['tokens']['max']:,} tokens. {summary['share_over_max_length_tokens']:.1%} of the "
        f"rows exceed max_length, which is {summary['max_length']:,} tokens (rows cut: {rows['truncated']:,}, rows "
        f"dropped: {dropped:,}). {findings}"
    )


def data_parts(summary: dict[str, Any], first: list[dict[str, Any]], num_rows: int) -> list[Part]:
    """Describe the loaded dataset: its files, columns and first rows."""
    files = [[file["name"], file["split"], file["bytes"]] for file in summary["files"]]
    columns = [
        [name, format_counts(column["types"]), column["empty"], column["missing"]]
        for name, column in summary["columns"].items()
    ]
    rows = [[row.get(name, "") for name in summary["columns"]] for row in first[:num_rows]]
    return [
        Part("Files", table(["file", "split", "bytes"], files)),
        Part("Columns", table(["column", "types (rows)", "empty", "missing"], columns)),
        *unused_parts(summary["unused"]),
        Part("First rows", table(list(summary["columns"]), rows)),
        Part("Three rows in full", preformatted("\n".join(format_row(row) for row in first[:3]))),
    ]


def unused_parts(unused: dict[str, dict[str, Any]]) -> list[Part]:
    """List the columns and message keys that the template does not use. If there are none, return no parts."""
    rows = [[name, entry["rows"], entry["example"]] for name, entry in unused.items()]
    text = "To use a column, name it in sequence.columns. To ignore a column, map its name to null."
    return [Part("Not used", table(["name", "rows", "example"], rows), text)] if rows else []


def length_parts(summary: dict[str, Any], pictures: Mapping[str, str]) -> list[Part]:
    """Show the lengths of the rows in characters and in tokens."""
    limit = summary["max_length"]
    over_chars = summary[f"share_over_{TUTORIAL_CHARS}_chars"]
    over_tokens = summary["share_over_max_length_tokens"]
    over_same = summary[f"share_over_{TUTORIAL_CHARS}_tokens"]
    quantile_rows = [["characters", *summary["chars"].values()], ["tokens", *summary["tokens"].values()]]
    label = "Histogram and cumulative curve of row lengths in {}. The Quantiles section lists the numbers."
    return [
        Part(
            "Length in characters",
            figure(pictures["characters"], label.format("characters")),
            f"{over_chars:.1%} of the rows have more than {TUTORIAL_CHARS:,} characters. However, the "
            f"limit applies to tokens: {over_same:.1%} of the rows have more than {TUTORIAL_CHARS:,} tokens.",
        ),
        Part(
            "Length in tokens",
            figure(pictures["tokens"], label.format("tokens")),
            f"{over_tokens:.1%} of the rows exceed max_length ({limit:,} tokens).",
        ),
        Part("Quantiles", table(["length in", *summary["tokens"]], quantile_rows)),
    ]


def limit_parts(summary: dict[str, Any]) -> list[Part]:
    """Show the effect of each candidate value of max_length, and the recommended value."""
    rows = [
        [
            f"{limit['max_length']:,}" + (" (current)" if limit["max_length"] == summary["max_length"] else ""),
            *(f"{limit[name]:.2%}" for name in ("rows_cut", "rows_dropped", "tokens_lost")),
            f"{limit['filled']:.1%}", f"{limit['cost']:.2f}",
        ]
        for limit in summary["limits"]
    ]  # fmt: skip
    header = ["max_length", "rows cut", "dropped", "tokens lost", "full", "cost"]
    note = (
        f"{summary['recommended_because']} All numbers are for the training rows. Rows whose prompt alone fills "
        'max_length are dropped. The "full" column shows the fill rate of packed sequences. The "cost" column shows '
        "the cost of an epoch relative to the current limit."
    )
    return [Part("Choosing max_length", table(header, rows), note)]


def flaw_parts(summary: dict[str, Any], examples: Mapping[str, Sequence[Any]]) -> list[Part]:
    """List the possible problems and where they occur, and show pairs of duplicates side by side."""
    total = summary["prepared"]["rows"]["read"]
    rows = [
        [name, flaw["rows"], f"{flaw['rows'] / total:.2%}", list_places(flaw["places"], flaw["rows"])]
        for name, flaw in summary["flaws"].items()
    ]
    note = (
        "These checks are heuristics, so inspect the rows before you change them. Detected personal data is masked on "
        "this page. summary.json lists more of the affected rows."
    )
    if CUT in summary["flaws"]:
        kept = summary["prepared"]["rows"]["train"] + summary["prepared"]["rows"]["validation"]
        note = (
            f"The last answer is missing or cut in {summary['flaws'][CUT]['rows']:,} of {kept:,} rows, because "
            f"max_length is {summary['max_length']:,}. The recommended max_length is "
            f"{summary['recommended_max_length']:,} (see Choosing max_length). {note}"
        )
    clean = Markup("<p>No problems were found: no duplicates or near duplicates, no repeated questions, no validation "
                   "rows that resemble training rows, no unusual characters, no placeholder or truncated answers, and "
                   "no personal data.</p>")  # fmt: skip
    parts = [Part("Possible problems", table(["problem", "rows", "share", "where"], rows) if rows else clean, note)]
    pairs = [
        [f"{name}\n({copy.similarity:.0%} similar)", f"{copy.place}:\n{shorten(copy.text, SHOWN_CHARS)}",
         f"{copy.other_place}:\n{shorten(copy.other_text, SHOWN_CHARS)}"]
        for name, copies in examples.items() for copy in copies
    ]  # fmt: skip
    if pairs:
        parts.append(Part("Duplicates side by side", table(["problem", "row", "other row"], pairs),
                          "Similarity is the estimated share of the two rows' word triples that occur in both rows. "
                          "For repeated questions, it compares only the questions."))  # fmt: skip
    return parts


def token_parts(summary: dict[str, Any]) -> list[Part]:
    """Show token counts, vocabulary usage, and the number of rows by template branch, script and category."""
    vocabulary, tokens = summary["vocabulary"], summary["prepared"]["tokens"]
    shares = [
        ["training tokens", tokens["train"]],
        ["loss positions (answers)", tokens["train_loss_tokens"]],
        ["context only (prompts)", tokens["train"] - tokens["train_loss_tokens"]],
        ["tokens in the vocabulary", vocabulary["size"]],
        ["vocabulary tokens used in training", vocabulary["used"]],
    ]
    note = (
        f"{tokens['train_loss_tokens'] / tokens['train']:.1%} of the training tokens are loss positions. The training "
        f"text uses {vocabulary['used'] / vocabulary['size']:.1%} of the vocabulary. The {vocabulary['top']} most "
        f"frequent tokens make up {vocabulary['top_share']:.1%} of the text."
    )
    roles = [[role, count["tokens"], count["loss_tokens"]] for role, count in summary["prepared"]["roles"].items()]
    split = summary["prepared"]["split_completions"]
    parts = [
        Part("Tokens", table(["count", "tokens"], shares), note),
        Part("Tokens by role", table(["training tokens of", "tokens", "loss positions"], roles),
             f"{split:,} completions are encoded separately, because a token would otherwise contain the end of the "
             "prompt and the start of the completion." if split else ""),
    ]  # fmt: skip
    for heading, name, key in (
        ("Rows by template branch", "branch", "branches"),
        ("Rows by script", "script of most letters", "scripts"),
        ("Rows by category", "category", "categories"),
    ):
        if set(summary[key]) - {""}:
            parts.append(Part(heading, table([name, "rows"], [list(item) for item in summary[key].items()])))
    return parts


def form_parts(forms: Sequence[Mapping[str, Any]]) -> list[Part]:
    """Show one row of each form, with the role of each part and the tokens in the loss.

    `forms` is the content of data/prepared/forms.json.
    """
    rows = []
    for form in forms:
        spans = Markup("\n").join(
            Markup('<span class="role">{}</span><span class="{}">{}</span>').format(
                span["role"], "trained" if span["in_loss"] else "read", span["text"]
            )
            for span in form["spans"]
        )
        title = (
            f"{form['form']}: {form['rows']:,} row{'s' * (form['rows'] > 1)}, such as {form['file']}, {form['place']}"
        )
        title += f" (max_length cuts off the last {form['num_cut']:,} tokens)" if form["num_cut"] else ""
        rows.append(Markup('<div class="row"><b>{}</b>\n{}</div>').format(title, spans))
    box = Markup('<div class="packed" tabindex="0" role="group" aria-label="Rows by form">{}</div>')
    note = "Underlined text contributes to the loss. The other text is context."
    return [Part("One row of each form", box.format(Markup("").join(rows)), note)]


def outcome_parts(summary: dict[str, Any], packed: Sequence[Sequence[tuple[str, str]]]) -> list[Part]:
    """Show the output of prepare, and a packed sequence as the model sees it."""
    prepared = summary["prepared"]
    counts = [[ROW_LABELS[name], count] for name, count in prepared["rows"].items()]
    counts += [[TOKEN_LABELS[name], count] for name, count in prepared["tokens"].items()]
    counts += [["training sequences", prepared["sequences"]["train"]]]
    quarantined = prepared["rows"]["quarantined"]
    note = f"The training sequences are {prepared['sequences']['filled']:.1%} full."
    if quarantined:
        note += f" data/prepared/quarantine.jsonl lists each malformed row ({quarantined:,} in total) and the reason."
    row = Markup('<div class="row">{}</div>')
    span = Markup('<span class="{}">{}</span>')
    rows = Markup("").join(row.format(Markup("").join(span.format(*piece) for piece in pieces)) for pieces in packed)
    box = Markup('<div class="packed" tabindex="0" role="group" aria-label="Packed sequence">{}</div>').format(rows)
    legend = (
        "This is one training sequence. Its rows do not attend to each other. Plain text is context, underlined text "
        "contributes to the loss, and a framed token ends an answer."
    )
    return [
        Part("Output of prepare", table(["count", "number"], counts), note),
        Part("Packed sequence", box, legend),
    ]
