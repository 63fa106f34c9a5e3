"""Lists the columns and message keys that the template does not use, and rejects rows whose meaning depends on them.

unused = Unused("alpaca", {"instruction": "instruction", "output": "output"}, None)
unused.add(row, template.convert(row).unused)      # a BadRow if an unused column changes the meaning of the row
unused.summary()                                # {"source": {"rows": 1000, "example": "wikipedia"}}
"""

import json
from collections import Counter
from typing import Any

from recipe.core.format import shorten
from recipe.text.messages import MARKS
from recipe.text.plain_templates import bad_row
from recipe.text.rows import MISSING, BadRow, Row, safe
from recipe.text.templates import TEMPLATES

EXAMPLE_CHARS = 60
# Common names of columns and message keys whose values change what the model should answer.
CHANGES_MEANING = {
    "system", "system_prompt", "tools", "functions", "history", "chat_template_kwargs", "documents", "image", "images",
    "audio", "audios", "video", "videos",
}  # fmt: skip
# Message keys with the reasoning that precedes an answer. Some chat templates write them only in some messages.
REASONING = {"messages.reasoning_content", "messages.reasoning", "messages.thinking"}


class Unused:
    """Counts the rows with each unused column or message key, and stores the first value of the column or key."""

    def __init__(self, template: str, columns: dict[str, str | None], chat_template: str | None) -> None:
        """Create the lists. `chat_template` is the Jinja text of the chat template, if there is one."""
        self.template, self.columns, self.chat_template = template, columns, chat_template or ""
        self.named = {column for column in columns.values() if column is not None}
        self.named |= {name for name, column in columns.items() if column is None}
        self.optional = {columns.get(name) for name in TEMPLATES[template].OPTIONAL} - {None}
        self.rows: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, row: Row, keys: dict[str, Any]) -> BadRow | None:
        """Count the unused columns of a row and the unused `keys` of its messages.

        If one of these columns or keys changes the meaning of the row, nothing is counted, and a BadRow is returned.
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
            # In an optional column, the template treats the text `nan` as an empty value.
            return value == MISSING and name in self.optional
        return value not in (None, "", [], {})

    def _reason(self, name: str, value: object) -> str | None:
        """Return an error message if this unused value makes the row unusable, or None if the row can be used."""
        # In KTO datasets, `label: false` marks an undesirable answer.
        if (name in MARKS and value in (0, False)) or (name == "label" and value is False):
            return (
                f"{name!r} is {json.dumps(value)}, so the row should not be trained on. Remove the row, or add "
                f"`{name}: null` to sequence.columns to ignore this value"
            )
        if name == "chosen":
            return (
                "the row contains preferences (chosen), but only supervised fine-tuning is available, so they are not "
                "used. Use rows without preferences, or add `chosen: null` to sequence.columns to ignore them"
            )
        key = name.removeprefix("messages.")
        if name in REASONING and key not in self.chat_template and value not in ("", [], {}):
            return (
                f"{name!r} is a part of the answer, but the chat template does not write it. Set "
                f"sequence.chat_template to a template that writes {key}, or add `{name}: null` to sequence.columns to "
                "ignore it"
            )
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
        return (
            f"{name!r} changes what the answer should be, but is not used. To fix this, {use}, or add `{name}: null` "
            "to sequence.columns to ignore it"
        )

    def summary(self) -> dict[str, dict[str, Any]]:
        """Return {name: {rows, example}}, with the most frequent name first."""
        return {name: {"rows": rows, "example": self.examples[name]} for name, rows in self.rows.most_common()}


def describe(unused: dict[str, dict[str, Any]]) -> str:
    """Format the unused columns and keys for display in the terminal. `unused` is the result of `summary`."""
    width = max(map(len, unused))
    lines = [
        f"  {name:<{width}}  {entry['rows']:,} row{'s' * (entry['rows'] != 1)}, such as {entry['example']!r}"
        for name, entry in unused.items()
    ]
    return "\n".join(["not used (in sequence.columns, use a column, or ignore it with null):", *lines])
