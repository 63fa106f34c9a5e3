"""Reads params.yaml into frozen, strict classes and reports every mistake in it at once.

Each stage declares the class of its own section beside its code; this file knows none of them. Every key is required:
params.yaml is the whole recipe, with no value hidden in the code.
"""

import difflib
import json
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from recipe.core.errors import ParamsError


class Section(BaseModel):
    """One section of params.yaml. Unknown keys and wrong types are refused, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    RENAMED: ClassVar[dict[str, str]] = {}  # keys of earlier versions: what each is called now


def load_yaml(path: Path) -> CommentedMap:
    """The mapping in a YAML 1.2 file, with comments and line numbers. (PyYAML reads `2e-4` as a string.)"""
    try:
        value = YAML(typ="rt").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(
            f"{path} is missing. Run this in a recipe folder: one that holds params.yaml and dvc.yaml "
            "(`recipe new NAME` makes one)."
        ) from None
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = " ".join(str(error.problem or error.context).split())
        raise ParamsError(f"{path}{where}: not valid YAML: {problem}.") from None
    except YAMLError as error:
        raise ParamsError(f"{path}: not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(value, CommentedMap):
        raise ParamsError(f"{path} holds {type(value).__name__}, not sections with keys.")
    return value


def read_params(path: Path, sections: dict[str, type[Section]]) -> dict[str, Any]:
    """Every section of params.yaml as an instance of its class.

    Raises ParamsError with all mistakes: the line, the key, what was found, and the nearest valid key.
    """
    found = load_yaml(path)
    mistakes: list[tuple[int, str]] = []
    parsed: dict[str, Section] = {}
    mistakes += [
        (_line(found, [name]), f"{name}: no such section{_nearest([name], sections)}")
        for name in map(str, found)
        if name not in sections
    ]
    for name, section in sections.items():
        if name not in found:
            mistakes.append((0, f"{name}: the section is missing; its keys are {', '.join(section.model_fields)}"))
            continue
        # Through JSON: strict mode then takes a list where a tuple is declared, and nothing else more than before.
        text = json.dumps(_plain(found[name]), default=str)
        try:
            parsed[name] = section.model_validate_json(text)
        except ValidationError as error:
            for one in error.errors(include_url=False):
                place = [name, *[part for part in one["loc"] if not _is_branch(part)]]
                mistakes.append((_line(found, place), _explain(place, one, section, sections)))
    if mistakes:
        lines = [f"  {f'line {line}, ' if line else ''}{text}" for line, text in sorted(set(mistakes))]
        count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
        raise ParamsError("\n".join([f"{path} has {count}:", *lines]))
    return parsed


def _plain(value: Any) -> Any:
    """The value with strings for keys; YAML allows others."""
    return {str(key): _plain(one) for key, one in value.items()} if isinstance(value, dict) else value


def _is_branch(part: object) -> bool:
    """Whether a step of pydantic's location names a branch of a union (`dict[str,str]`) and not a key of the file."""
    return isinstance(part, str) and (part in {"str", "int", "float", "bool", "function-after"} or "[" in part)


def _explain(place: list[Any], error: Any, section: type[Section], sections: dict[str, type[Section]]) -> str:
    """One mistake in one line."""
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
    """`; did you mean x?`, first by the key's name within its section, then anywhere."""
    if len(place) == 1:
        close = difflib.get_close_matches(place[0], sections, n=1, cutoff=0.5)
        return f"; did you mean {close[0]}?" if close else f"; the sections are {', '.join(sections)}"
    own = [f"{place[0]}.{key}" for key in sections[place[0]].model_fields]
    every = {key: f"{name}.{key}" for name, section in sections.items() for key in section.model_fields}
    name = str(place[-1])
    if name in every:
        return f"; did you mean {every[name]}?"
    close = difflib.get_close_matches(f"{place[0]}.{name}", own, n=1, cutoff=0.7)
    close = close or [every[key] for key in difflib.get_close_matches(name, every, n=1, cutoff=0.7)]
    return (
        f"; did you mean {close[0]}?"
        if close
        else f"; the keys of {place[0]} are {', '.join(k.split('.')[1] for k in own)}"
    )


def _line(found: CommentedMap, place: list[Any]) -> int:
    """The line of the deepest part of `place` that the file holds, from 1; 0 where not even the section stands."""
    line, node = 0, found
    for part in place:
        if not isinstance(node, CommentedMap) or part not in node:
            break
        line = node.lc.key(part)[0] + 1
        node = node[part]
    return line


def find_value(path: Path, key: str) -> str:
    """The value under a dotted key, as YAML writes it. Raises ParamsError where there is none."""
    node: Any = load_yaml(path)
    for part in key.split("."):
        if not isinstance(node, CommentedMap) or part not in node:
            raise ParamsError(f"{path} has no key {key}.")
        node = node[part]
    return json.dumps(node) if not isinstance(node, str) else node
