"""Write the current commits of branches and tags into params.yaml: the implementation of `recipe pin`."""

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
    """Pin every Hub source in the params file at `path`. Returns the change as a unified diff, or an empty string.

    A null revision becomes the commit of `main`; a branch or tag becomes its commit. A commit is kept, or with
    `update` moved to the commit of `main`. The rest of the file stays unchanged, including comments.
    """
    before = path.read_text(encoding="utf-8")
    write_hub_file(path.parent, load_yaml(path))
    text = before
    for section, repo_type in SECTIONS.items():
        source = params[section]
        if source.source != "hub":
            continue
        name = check_named(section, source.id)
        pinned = source.revision is not None and COMMIT.fullmatch(source.revision)
        if pinned and not update:
            continue
        revision = DEFAULT_BRANCH if pinned or source.revision is None else source.revision
        text = set_value(text, path, section, "revision", resolve_commit(repo_type, name, revision))
    if text == before:
        return ""
    write_text(path, text)
    lines = difflib.unified_diff(before.splitlines(True), text.splitlines(True), path.name, path.name, n=0)
    return "".join(lines)


def set_value(text: str, path: Path, section: str, key: str, value: str) -> str:
    """The text of a YAML file with a single scalar replaced."""
    place, _ = load_yaml(path)[section].lc.value(key)
    lines = text.splitlines(keepends=True)
    match = re.fullmatch(rf"(\s*{key}:[ \t]*)(\"[^\"]*\"|'[^']*'|[^\s#]*)(\s*(?:#.*)?\n?)", lines[place])
    if match is None:
        raise ParamsError(f"{path}, line {place + 1}: write {section}.{key} on a line of its own: `{key}: {value}`.")
    # YAML would read a commit of digits only, or of digits with a single `e`, as a number.
    written = json.dumps(value) if re.fullmatch(r"\d+(e\d+)?", value) else value
    comment = match[3].lstrip(" ")
    gap = len(match[3]) - len(comment)
    gap = max(gap + len(match[2]) - len(written), 1) if gap else 0  # keep the comment's column if possible
    lines[place] = match[1] + written + " " * gap + comment
    return "".join(lines)
