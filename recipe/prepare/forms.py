"""Stores one example row for each form (such as `2 answers, tools`), and marks which tokens are in the loss.

forms = Forms(tokenizer, max_length=1024)
forms.add(example, tokens)
forms.summary()    # [{form, rows, file, place, num_cut, spans: [{role, in_loss, tokens, text}]}]
"""

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np

from recipe.prepare.examples import Example
from recipe.prepare.tokenize import ROLES, Tokens

MAX_FORMS = 12  # maximum number of forms shown, with the most frequent first
SHOWN_CHARS = 500  # maximum number of characters shown per span


class Forms:
    """Counts the rows of each form, and stores the first row of each form as an example."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.rows: Counter[str] = Counter()
        self.examples: dict[str, dict[str, Any]] = {}

    def add(self, example: Example, tokens: Tokens) -> None:
        """Count a kept row. The first row of each form becomes the form's example.

        `num_cut` is the number of tokens after max_length, which are not among the example's spans.
        """
        self.rows[example.form] += 1
        if example.form not in self.examples:
            self.examples[example.form] = {
                "file": example.file, "place": example.place, "num_cut": max(len(tokens.ids) - self.max_length, 0),
                "spans": self._spans(tokens),
            }  # fmt: skip

    def summary(self) -> list[dict[str, Any]]:
        """Return the MAX_FORMS most frequent forms, each with its number of rows and its example."""
        return [{"form": form, "rows": rows, **self.examples[form]} for form, rows in self.rows.most_common(MAX_FORMS)]

    def _spans(self, tokens: Tokens) -> list[dict[str, Any]]:
        """Divide the tokens into runs of the same role, each entirely in the loss or entirely outside it."""
        ids, in_loss, roles = (column[: self.max_length] for column in tokens[:3])
        in_loss = in_loss.copy()
        in_loss[:1] = False  # no preceding token predicts the first token
        changes = np.flatnonzero((np.diff(roles) != 0) | np.diff(in_loss)) + 1
        spans = []
        for start, stop in pairwise([0, *changes.tolist(), len(ids)]):
            text = self.tokenizer.decode(ids[start:stop].tolist())
            if len(text) > SHOWN_CHARS:
                text = f"{text[: SHOWN_CHARS // 2]} […] {text[-SHOWN_CHARS // 2 :]}"
            role = ROLES[int(roles[start])]
            spans.append({"role": role, "in_loss": bool(in_loss[start]), "tokens": stop - start, "text": text})
        return spans


def describe_cut(form: dict[str, Any]) -> str:
    """Return the number of the example's tokens that were cut, or an empty string if none were cut."""
    return f"; max_length cuts off the last {form['num_cut']:,}" if form["num_cut"] else ""


def describe(forms: list[dict[str, Any]]) -> str:
    """Format the examples for display in the terminal, span by span. A `*` marks the spans in the loss."""
    parts = []
    for form in forms:
        spans = form["spans"]
        num_tokens, num_loss = (
            sum(span["tokens"] for span in some) for some in (spans, [span for span in spans if span["in_loss"]])
        )
        parts.append(
            f"{form['form']}: {form['rows']:,} row{'s' * (form['rows'] > 1)}, such as {form['file']}, {form['place']} "
            f"({num_tokens:,} tokens, {num_loss:,} in the loss{describe_cut(form)})"
        )
        width = max(len(span["role"]) for span in spans)
        for span in spans:
            mark = "*" if span["in_loss"] else " "
            first, *others = span["text"].split("\n")
            parts.append(f"{mark} {span['role']:<{width}} {span['tokens']:>6,}  {first}".rstrip())
            parts += [f"{mark} {'':<{width}} {'':>6}  {line}".rstrip() for line in others]
        parts.append("")
    return "\n".join([*parts, "* in the loss: the model is trained to write these tokens"])
