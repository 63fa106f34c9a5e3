"""Writes the commits that branches or tags stand for today into params.yaml: what `recipe pin` runs."""

import difflib
import json
import re
from pathlib import Path
from typing import Any

from recipe.cli.new import write_hub_file
from recipe.core.config import load_yaml
from recipe.core.errors import ParamsError
from recipe.core.io import write_text
from recipe.fetch.hub import COMMIT, RepoType, check_named, resolve_commit

SECTIONS: dict[str, RepoType] = {"data": "dataset", "model": "model"}
DEFAULT_BRANCH = "main"


def pin(path: Path, params: dict[str, Any], *, update: bool) -> str:
    """Pin every source on the Hub in the params file at `path`; the change as a unified diff, or nothing.

    A revision that is null becomes the commit of `main`; a branch or a tag becomes its commit. A commit stays, but
    with `update`, which moves it to the commit of `main`. All else in the file stays as it is, comments too.
    """
    before = path.read_text(encoding="utf-8")
    write_hub_file(path.parent, load_yaml(path))
    text = before
    for section, repo_type in SECTIONS.items():
        given = params[section]
        if given.source != "hub":
            continue
        name = check_named(section, given.id)
        pinned = given.revision is not None and COMMIT.fullmatch(given.revision)
        if pinned and not update:
            continue
        wanted = DEFAULT_BRANCH if pinned or given.revision is None else given.revision
        text = set_value(text, path, section, "revision", resolve_commit(repo_type, name, wanted))
    if text == before:
        return ""
    write_text(path, text)
    lines = difflib.unified_diff(before.splitlines(True), text.splitlines(True), path.name, path.name, n=0)
    return "".join(lines)


def set_value(text: str, path: Path, section: str, key: str, value: str) -> str:
    """The text of a YAML file with one scalar replaced, and nothing else."""
    place, _ = load_yaml(path)[section].lc.value(key)
    lines = text.splitlines(keepends=True)
    found = re.fullmatch(rf"(\s*{key}:[ \t]*)(\"[^\"]*\"|'[^']*'|[^\s#]*)(\s*(?:#.*)?\n?)", lines[place])
    if found is None:
        raise ParamsError(f"{path}, line {place + 1}: write {section}.{key} on a line of its own: `{key}: {value}`.")
    # A commit of digits alone, or with one `e` among them, would be read as a number.
    written = json.dumps(value) if re.fullmatch(r"\d+(e\d+)?", value) else value
    comment = found[3].lstrip(" ")
    gap = len(found[3]) - len(comment)
    gap = max(gap + len(found[2]) - len(written), 1) if gap else 0  # the comment keeps its column where it can
    lines[place] = found[1] + written + " " * gap + comment
    return "".join(lines)
