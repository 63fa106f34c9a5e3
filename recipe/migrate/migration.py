"""Records the outcome for each key in another tool's file: taken over, different in meaning, or without a counterpart.

migration = Migration("axolotl", {"lora_r": 16, "sample_packing": True, "fsdp": {...}})
migration.take("lora_r", "lora.r")
migration.settings        # {"lora.r": 16}
migration.report()        # lines for the terminal
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic import ConfigDict, ValidationError, create_model

from recipe.core.errors import ParamsError

NOTHING = "has no counterpart"
HELD_OUT = 0.05  # the share of prompts to hold out if the file names no validation rows


@dataclass
class Migration:
    """A conversion in progress. `config` contains the keys in the file that have not been converted yet.

    The result consists of `settings`, `data` and `model`. `settings` maps keys such as `lora.r` to values. `data` and
    `model` can each be a local path or the name of a repository on the Hub.
    """

    tool: str
    config: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    data: str | None = None
    model: str | None = None
    taken: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.original = dict(self.config)

    def pop(self, key: str, default: Any = None) -> Any:
        """Remove a key and return its value, or `default` if the key is missing or empty.

        If no other part of the report mentions the key, the report says that the value has the same meaning here.
        """
        value = self.config.pop(key, None)
        return default if value is None else value

    def take(
        self, key: str, target: str, *, default: Any = None, convert: Callable[[Any], Any] | None = None
    ) -> Any:  # fmt: skip
        """Convert a key to `target`, and return the key's value.

        If the key is missing, its value is `default`, the tool's default. A value of None is not converted.
        """
        is_default = self.config.get(key) is None
        value = self.pop(key, default)
        if value is not None:
            self.put(target, convert(value) if convert else value, f"{key}: {shown(value)}", is_default=is_default)
        return value

    def put(self, target: str, value: Any, source: str, *, is_default: bool = False) -> None:
        """Set `target` to a value, and report `source` as the value's origin."""
        self.settings[target] = value
        origin = f"{source} (the default of {self.tool})" if is_default else source
        self.taken.append(f"{origin} -> {target}: {shown(value)}")

    def replace(self, target: str, value: Any) -> None:
        """Replace a value that was already set, and say so in the report."""
        self.settings[target] = value
        mark = f" -> {target}: "
        self.taken = [entry.split(mark)[0] + mark + shown(value) if mark in entry else entry for entry in self.taken]

    def leave_out(self, key: str, value: Any, nearest: str) -> None:
        """Report that rows in the file are left out. The report repeats this at its end, because it changes a lot."""
        self.miss(key, value, nearest)
        self.left_out.append(key)

    def choose(self, target: str, value: Any, reason: str) -> None:
        """Set `target` to a value that is not in the file, and report the reason."""
        self.settings[target] = value
        self.different.append(f"{reason}, so {target} is {shown(value)}")

    def differ(self, key: str, text: str) -> None:
        """Report that a key was taken over with a different meaning."""
        self.different.append(f"{key}: {text}")

    def miss(self, key: str, value: Any, nearest: str = "") -> None:
        """Report that a value has no counterpart, and name the nearest alternative."""
        self.missing.append(f"{key}: {shown(value)} {NOTHING}. {nearest}".rstrip())

    def warnings(self) -> list[str]:
        """Return a warning if rows in the file are left out."""
        return [f"warning: these rows are left out: {', '.join(self.left_out)} (see above)."] if self.left_out else []

    def hold_out(self) -> None:
        """Choose the share of prompts to hold out if the file does not name validation rows."""
        if not {"sequence.validation_fraction", "data.validation_split"} & self.settings.keys():
            left_out = {"test_datasets", "eval_dataset"} & set(self.left_out)
            reason = "the validation rows are left out" if left_out else "the file names no validation rows"
            self.choose("sequence.validation_fraction", HELD_OUT, reason)

    def finish(self, nearest: dict[str, str], off: set[str]) -> None:
        """Report all keys that have not been reported yet.

        `nearest` maps a key prefix to the text that is reported for keys with that prefix. `off` contains keys that do
        not exist here. Their absence has the same effect as turning them off.
        """
        for key, value in self.config.items():
            if value in (None, "", [], {}):
                self.empty.append(key)
            elif is_off(value) and key in off:
                self.same.append(f"{key}: {shown(value)}")
            else:
                self.miss(key, value, nearest.get(max(filter(key.startswith, nearest), key=len, default=""), ""))
        reported = "\n".join([*self.taken, *self.different, *self.missing])
        for key in self.original.keys() - self.config.keys():
            if not re.search(rf"(?<![\w.]){re.escape(key)}\b", reported):
                value = self.original[key]
                if value in (None, "", [], {}):
                    self.empty.append(key)
                else:
                    self.same.append(f"{key}: {shown(value)}")
        self.config = {}

    def report(self) -> list[str]:
        """Return the report as lines for the terminal. The report contains every key in the file."""
        sections = (
            ("taken over", self.taken), ("different in meaning", self.different),
            ("without counterpart", self.missing), ("the same here", sorted(self.same)),
            ("without a value", [", ".join(sorted(self.empty))] if self.empty else []),
        )  # fmt: skip
        lines = [f"the file is in the format of {self.tool}"]
        for title, entries in sections:
            lines += [f"{title}:", *(f"  {entry}" for entry in entries)] if entries else []
        return lines


def coerce(config: dict[str, Any], types: dict[str, Any]) -> dict[str, Any]:
    """Return the config, with each value whose key is in `types` converted to the given type.

    Other tools read YAML 1.1, in which `1e-4` is a string, and `yes` and `on` mean true. Raises a ParamsError that
    lists all values that can't be converted.
    """
    fields: dict[str, Any] = {name: (type_ | None, None) for name, type_ in types.items()}
    model = create_model("File", __config__=ConfigDict(extra="ignore", allow_inf_nan=False), **fields)
    try:
        converted = model.model_validate({name: value for name, value in config.items() if name in types})
    except ValidationError as error:
        mistakes = {
            f"  {details['loc'][0]}: found {shown(config[str(details['loc'][0])])}. {details['msg']}"
            for details in error.errors(include_url=False)
        }
        raise ParamsError("\n".join(["the file has invalid values:", *sorted(mistakes)])) from None
    return {**config, **{name: getattr(converted, name) for name in types if name in config}}


def shown(value: Any) -> str:
    """Format a value on one line, as it could appear in the file."""
    return value if isinstance(value, str) and value else json.dumps(value, default=str, ensure_ascii=False)


def is_on(value: Any) -> bool:
    """Return whether a value is true. YAML 1.1 also reads words such as yes and on as booleans."""
    return value.lower() in ("true", "yes", "on", "1") if isinstance(value, str) else bool(value)


def is_off(value: Any) -> bool:
    """Return whether a value is empty or turns something off."""
    words = ("", "none", "no", "off", "false")
    return value.lower() in words if isinstance(value, str) else value is None or not is_on(value)
