"""Collects what the rows contain and the template does not use, and rejects rows where this changes the meaning.

unused = Unused("alpaca", {"instruction": "instruction", "output": "output"})
unused.add(row, template.unused_keys(row))      # a BadRow if the row can't be used without that column
unused.summary()                                # {"source": {"rows": 1000, "example": "wikipedia"}}
"""

import json
from collections import Counter
from typing import Any

from recipe.core.format import shorten
from recipe.text.messages import MARKS
from recipe.text.plain_templates import bad_row
from recipe.text.readers import MISSING, BadRow, Row, safe
from recipe.text.templates import TEMPLATES

EXAMPLE_CHARS = 60
# Columns, and keys of messages, that change what the model should say, and how they are named in datasets.
CHANGES_MEANING = {
    "system", "system_prompt", "tools", "functions", "history", "chat_template_kwargs", "image", "images", "audio",
    "audios", "video", "videos",
}  # fmt: skip


class Unused:
    """What the rows contain and the template does not use: for each name, the number of rows and the first value."""

    def __init__(self, template: str, columns: dict[str, str | None]) -> None:
        self.template, self.columns = template, columns
        self.named = {column for column in columns.values() if column is not None}
        self.named |= {name for name, column in columns.items() if column is None}
        self.optional = {columns.get(name) for name in TEMPLATES[template].OPTIONAL} - {None}
        self.rows: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, row: Row, keys: dict[str, Any]) -> BadRow | None:
        """Count a row's unused columns, and the unused `keys` of its messages.

        Returns a BadRow if one of them changes the meaning of the row.
        """
        unused = {name: value for name, value in row.values.items() if self._is_unused(name, value)}
        unused |= {name: value for name, value in keys.items() if name not in self.named}
        if not unused:
            return None
        reason = next(filter(None, (self._reason(name, value) for name, value in unused.items())), None)
        if reason:
            return bad_row(row, reason)
        for name, value in unused.items():
            name = safe(name)
            self.rows[name] += 1
            if name not in self.examples:
                text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
                self.examples[name] = shorten(safe(text), EXAMPLE_CHARS)
        return None

    def _is_unused(self, name: str, value: object) -> bool:
        if name in self.named:
            return value == MISSING and name in self.optional  # an optional column is read as empty
        return value not in (None, "", [], {})

    def _reason(self, name: str, value: object) -> str | None:
        """Why a row with this unused value can't be used, and what to do; None if it can."""
        # KTO's rows have `label: false` for an answer that is not wanted.
        if (name in MARKS and value in (0, False)) or (name == "label" and value is False):
            return f"{name!r} is {json.dumps(value)}, so the row is not to be trained: remove it, or set {name}: null"
        key = name.removeprefix("messages.")
        if key not in CHANGES_MEANING:
            return None
        if key == name and key in TEMPLATES[self.template].OPTIONAL:
            use = f"use it (sequence.columns: {name}: {name})"
        else:
            fields = set(TEMPLATES[self.template].REQUIRED)
            others = [
                other for other, template in TEMPLATES.items()
                if key == name and name in template.OPTIONAL and fields <= set(template.REQUIRED)
            ]  # fmt: skip
            use = f"set sequence.template to {others[0]}" if others else "remove it"
        return f"{name!r} changes what the answer should be, but is not used: {use}, or ignore it ({name}: null)"

    def summary(self) -> dict[str, dict[str, Any]]:
        """{name: {rows, example}}, the most frequent name first."""
        return {name: {"rows": rows, "example": self.examples[name]} for name, rows in self.rows.most_common()}


def describe(unused: dict[str, dict[str, Any]]) -> str:
    """A line that lists what is not used, for the terminal; `unused` is the content of `summary`."""
    names = [f"{name} ({entry['rows']:,} rows, such as {entry['example']!r})" for name, entry in unused.items()]
    return f"not used: {'; '.join(names)}"
