"""Collects what becomes of each key of another tool's file: taken over, different in meaning, or without counterpart.

migration = Migration("axolotl", {"lora_r": 16, "sample_packing": True, "fsdp": {...}})
migration.take("lora_r", "lora.r", default=8)
migration.settings        # {"lora.r": 16}
migration.report()        # lines for the terminal
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

NOTHING = "has no counterpart"


@dataclass
class Migration:
    """A conversion in progress. `config` contains the keys of the file that are not converted yet.

    The result is `settings`, which maps keys such as `lora.r` to values, and `data` and `model`, each of which is a
    path or a name on the Hub.
    """

    tool: str
    config: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    data: str | None = None
    model: str | None = None
    taken: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    off: list[str] = field(default_factory=list)  # keys that are empty or turn off something that does not exist here

    def pop(self, key: str, default: Any = None) -> Any:
        """Remove a key from the file's keys and return its value, or `default` if the key is missing or empty."""
        value = self.config.pop(key, None)
        return default if value is None else value

    def take(
        self, key: str, target: str, *, default: Any = None, convert: Callable[[Any], Any] | None = None
    ) -> Any:  # fmt: skip
        """Convert a key to `target`. If the key is missing, convert the tool's default, unless that is None.

        Return the value in the file.
        """
        is_default = self.config.get(key) is None
        value = self.pop(key, default)
        if value is not None:
            self.set(target, convert(value) if convert else value, f"{key}: {shown(value)}", is_default=is_default)
        return value

    def set(self, target: str, value: Any, source: str, *, is_default: bool = False) -> None:
        """Set `target`, and report `source` as the key that it comes from."""
        self.settings[target] = value
        origin = f"{source} (the default of {self.tool})" if is_default else source
        self.taken.append(f"{origin} -> {target}: {shown(value)}")

    def differ(self, key: str, text: str) -> None:
        """Report that a key was taken over with a different meaning."""
        self.different.append(f"{key}: {text}")

    def drop(self, key: str, nearest: str) -> None:
        """Remove a key, and report that it has no counterpart, unless it is empty or false."""
        value = self.config.pop(key, None)
        if is_off(value):
            self.off.append(key)
        else:
            self.missing.append(f"{key}: {shown(value)} {NOTHING}. {nearest}".rstrip())

    def finish(self, nearest: dict[str, str]) -> None:
        """Report all remaining keys. `nearest` maps the beginning of a key to what is said about the key."""
        nearest = {**nearest, "": ""}
        for key in list(self.config):
            self.drop(key, nearest[max((start for start in nearest if key.startswith(start)), key=len, default="")])

    def report(self) -> list[str]:
        """Return the lines for the terminal: what was taken over, what differs, and what has no counterpart."""
        sections = (
            ("taken over", self.taken), ("different in meaning", self.different), ("without counterpart", self.missing),
            ("empty or off, as here", [", ".join(self.off)] if self.off else []),
        )  # fmt: skip
        lines = [f"the file is in the format of {self.tool}"]
        for title, entries in sections:
            lines += [f"{title}:", *(f"  {entry}" for entry in entries)] if entries else []
        return lines


def shown(value: Any) -> str:
    """Return a value as it could appear in the file, on one line."""
    return value if isinstance(value, str) and value else json.dumps(value, default=str, ensure_ascii=False)


def is_on(value: Any) -> bool:
    """Return whether a value is true. YAML 1.1, which other tools read, also has the words yes and on."""
    return value.lower() in ("true", "yes", "on", "1") if isinstance(value, str) else bool(value)


def is_off(value: Any) -> bool:
    """Return whether a value is empty or turns something off."""
    words = ("", "none", "no", "off", "false")
    return value.lower() in words if isinstance(value, str) else value is None or not is_on(value)
