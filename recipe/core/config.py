"""Reads params.yaml into immutable, strictly typed objects and reports all mistakes at once.

Each stage declares the classes of its sections in its own params.py. This module does not import those classes. Every
key is required, so params.yaml is the complete recipe and the code contains no hidden defaults.
"""

import difflib
import io
import json
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.constructor import RoundTripConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from recipe.core.errors import ParamsError
from recipe.core.format import first_line, shorten

MISTAKE_CHARS = 1000  # the length of a message about one key
MAX_BYTES = 1_000_000  # ruamel needs minutes to read larger files


class Section(BaseModel):
    """A section of params.yaml. Unknown keys and wrong types are rejected. Instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    RENAMED: ClassVar[dict[str, str]] = {}  # maps key names from earlier versions to the current names


class _Constructor(RoundTripConstructor):
    """ruamel's constructor, which also remembers the line of the value that it constructs."""

    line = 1

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        self.line = node.start_mark.line + 1
        return super().construct_object(node, deep)


def load_yaml(path: Path) -> CommentedMap:
    """Load a YAML 1.2 file that contains a mapping. Comments and line numbers are kept.

    This function does not use PyYAML, which reads `2e-4` as a string. Raises ParamsError if the file is missing or
    invalid.
    """
    yaml, text = YAML(typ="rt"), ""
    yaml.preserve_quotes, yaml.Constructor = True, _Constructor
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ParamsError(f"{path} is too large ({path.stat().st_size:,} bytes; at most {MAX_BYTES:,} are read).")
        text = path.read_text(encoding="utf-8")
        value = yaml.load(text)
    except FileNotFoundError:
        raise ParamsError(
            f"{path} is missing. Run this command in a recipe folder, which contains params.yaml and dvc.yaml "
            "(`recipe new NAME` creates such a folder)."
        ) from None
    except UnicodeDecodeError as error:
        raise ParamsError(
            f"{path} is not UTF-8 (invalid byte at offset {error.start}). Save the file as UTF-8."
        ) from None
    except MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = " ".join(str(error.problem or error.context).split())
        raise ParamsError(f"{path}{where}: not valid YAML: {problem}.") from None
    except YAMLError as error:
        raise ParamsError(f"{path}: not valid YAML: {' '.join(str(error).split())}.") from None
    except RecursionError:
        lines = text.splitlines()
        deepest = max(range(len(lines)), key=lambda number: sum(map(lines[number].count, "[{-")))
        raise ParamsError(f"{path}, line {deepest + 1}: not readable YAML: the values are nested too deeply.") from None
    except (ValueError, TypeError, KeyError) as error:  # ruamel raises these for `!!int x`, 2026-99-99 and `{[a]: b}`
        line = yaml.constructor.line
        raise ParamsError(f"{path}, line {line}: not readable YAML: {first_line(error)}.") from None
    if not isinstance(value, CommentedMap):
        raise ParamsError(f"{path}: expected a mapping, found {type(value).__name__}.")
    return value


def dump_yaml(document: CommentedMap) -> str:
    """Convert a document from `load_yaml` back to text. Its comments, quotes and order are kept.

    Lists inside a mapping are written without indentation, and empty values are written as `null`.
    """
    yaml, text = YAML(typ="rt"), io.StringIO()
    yaml.width = 4096  # large enough that lines are not wrapped
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    yaml.dump(document, text)
    return text.getvalue()


def read_params(path: Path, sections: dict[str, type[Section]]) -> dict[str, Any]:
    """Read every section of params.yaml into an instance of its class.

    Raises ParamsError with a list of all mistakes. Each entry contains the key and, where possible, the line number and
    the invalid value or the most similar valid key.
    """
    document = load_yaml(path)
    mistakes: list[tuple[int, str]] = []
    parsed: dict[str, Section] = {}
    mistakes += [
        (_line(document, [name]), f"{name}: no such section{_nearest([str(name)], sections)}")
        for name in document
        if name not in sections
    ]
    for name, section in sections.items():
        if name not in document:
            mistakes.append((0, f"{name}: the section is missing; its keys are {', '.join(section.model_fields)}"))
            continue
        # Validate as JSON, because strict mode then accepts a list where a tuple is expected. For the other types
        # in params.yaml, validating JSON is as strict as validating Python objects.
        text = json.dumps(_string_keys(document[name]), default=str)
        try:
            parsed[name] = section.model_validate_json(text)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                place = [name, *[part for part in detail["loc"] if not _is_branch(part)]]
                mistakes.append((_line(document, place), _explain(place, detail, section, sections)))
    if mistakes:
        lines = [
            f"  {f'line {line}, ' if line else ''}{shorten(text, MISTAKE_CHARS)}"
            for line, text in sorted(set(mistakes))
        ]
        count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
        raise ParamsError("\n".join([f"{path} has {count}:", *lines]))
    return parsed


def _string_keys(value: Any) -> Any:
    """Convert all keys of nested mappings to strings, because YAML also allows numbers and dates as keys."""
    return {str(key): _string_keys(item) for key, item in value.items()} if isinstance(value, dict) else value


def _is_branch(part: object) -> bool:
    """Return whether part of a pydantic error location is a union branch, such as `dict[str,str]`, and not a key."""
    return isinstance(part, str) and (part in {"str", "int", "float", "bool", "function-after"} or "[" in part)


def _explain(place: list[Any], error: Any, section: type[Section], sections: dict[str, type[Section]]) -> str:
    """Return a one-line description of a mistake."""
    key = ".".join(map(str, place))
    if error["type"] == "extra_forbidden":
        renamed = section.RENAMED.get(str(place[-1])) if len(place) == 2 else None
        return (
            f"{key}: renamed to {place[0]}.{renamed}" if renamed else f"{key}: no such key{_nearest(place, sections)}"
        )
    if error["type"] == "missing":
        description = section.model_fields[place[1]].description if len(place) == 2 else None
        return f"{key}: the key is missing" + (f" ({description})" if description else "")
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{key}: {message}"
    return f"{key}: found {json.dumps(error['input'], default=str)}. {message}"


def _nearest(place: list[Any], sections: dict[str, type[Section]]) -> str:
    """Return a hint such as `; did you mean x?`, or a list of the valid names if no valid name is similar.

    For an unknown section, the hint names the most similar section. For an unknown key, the hint names the first of
    these that exists: the same key in a different section, a similar key in this section, or a similar key in any
    section.
    """
    if len(place) == 1:
        close = difflib.get_close_matches(place[0], sections, n=1, cutoff=0.5)
        return f"; did you mean {close[0]}?" if close else f"; the sections are {', '.join(sections)}"
    own_keys = [f"{place[0]}.{key}" for key in sections[place[0]].model_fields]
    all_keys = {key: f"{name}.{key}" for name, section in sections.items() for key in section.model_fields}
    name = str(place[-1])
    if name in all_keys:
        return f"; did you mean {all_keys[name]}?"
    close = difflib.get_close_matches(f"{place[0]}.{name}", own_keys, n=1, cutoff=0.7)
    close = close or [all_keys[key] for key in difflib.get_close_matches(name, all_keys, n=1, cutoff=0.7)]
    return (
        f"; did you mean {close[0]}?"
        if close
        else f"; the keys of {place[0]} are {', '.join(k.split('.')[1] for k in own_keys)}"
    )


def _line(document: CommentedMap, place: list[Any]) -> int:
    """Return the line number of the deepest part of `place` that exists in the file, or 0 if the section is missing.

    Line numbers start at 1.
    """
    line, node = 0, document
    for part in place:
        if not isinstance(node, CommentedMap) or part not in node:
            break
        if part in (node.lc.data or {}):  # a key that `<<` merges into the mapping has no line
            line = node.lc.key(part)[0] + 1
        node = node[part]
    return line


def find_value(path: Path, key: str) -> str:
    """Return the value of a dotted key as text. Strings are returned unchanged. Other values are returned as JSON.

    Raises ParamsError if the key is missing.
    """
    node: Any = load_yaml(path)
    for part in key.split("."):
        if not isinstance(node, CommentedMap) or part not in node:
            raise ParamsError(f"{path} has no key {key}.")
        node = node[part]
    return json.dumps(node) if not isinstance(node, str) else node
