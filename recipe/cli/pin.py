"""Implements `recipe pin`, which pins the Hub sources in params.yaml to commits, and data.general to its sha256."""

import difflib
from pathlib import Path
from typing import Any

from recipe.cli.new import write_hub_file
from recipe.core.config import dump_yaml, load_yaml
from recipe.core.hub_cache import HUB
from recipe.core.io import write_text
from recipe.fetch.hub import COMMIT, RepoType, check_named, resolve_commit
from recipe.fetch.splits import general_sha256

SECTIONS: dict[str, RepoType] = {"data": "dataset", "model": "model"}
DEFAULT_BRANCH = "main"


def pin(path: Path, params: dict[str, Any], *, update: bool) -> str:
    """Pin every Hub source in the params file at `path`. Return a unified diff, which is empty if nothing changed.

    A null revision is replaced by the current commit of `main`. A branch or tag is replaced by the commit that it
    points to. A commit is replaced by the current commit of `main` if `update` is true; otherwise it is kept. In the
    same way, data.general_sha256 becomes the sha256 of the file data.general. The rest of the params file keeps its
    values, order and comments.
    """
    before, document = path.read_text(encoding="utf-8"), load_yaml(path)
    write_hub_file(path.parent, document)
    for section, repo_type in SECTIONS.items():
        source = params[section]
        if source.source != HUB:
            continue
        name = check_named(section, source.id)
        pinned = source.revision is not None and COMMIT.fullmatch(source.revision)
        if pinned and not update:
            continue
        revision = DEFAULT_BRANCH if pinned or source.revision is None else source.revision
        document[section]["revision"] = resolve_commit(repo_type, name, revision)
    general, wanted = params["data"].general, params["data"].general_sha256
    if general is not None and (wanted is None or update):
        # A missing file is reported here. The value in params.yaml is not checked, because it is replaced.
        document["data"]["general_sha256"] = general_sha256(path.parent, general)
    changed = document["data"].get("general_sha256") != wanted
    if not changed and all(document[section]["revision"] == params[section].revision for section in SECTIONS):
        return ""
    text = dump_yaml(document)
    write_text(path, text)
    lines = difflib.unified_diff(before.splitlines(True), text.splitlines(True), path.name, path.name, n=0)
    return "".join(lines)
