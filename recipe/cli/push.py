"""Implements `recipe push`: collects the files of a registered version, checks them, and uploads them to the Hub."""

import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from recipe.cli import context
from recipe.cli.export import exported
from recipe.cli.trained import registered_version
from recipe.core.errors import DataError, ParamsError
from recipe.core.format import format_bytes
from recipe.core.io import read_json, write_text
from recipe.provenance.statement import read_statement
from recipe.publish.card import hub_card
from recipe.publish.checks import license_problem, secrets_in
from recipe.publish.hub import upload

Say = Callable[[str], None]
NAME = re.compile(r"[\w.-]+/[\w.-]+")
HIDDEN = ("export.json",)


def push(
    name: str, version: str | None, form: str, *, with_gguf: bool, private: bool, license_confirmed: bool,
    for_real: bool, say: Say,
) -> None:  # fmt: skip
    """Show what would be published, or publish it if `for_real` is true.

    Raises ParamsError for a name, a license or a version that can't be published, and DataError if a file contains a
    secret.
    """
    if not NAME.fullmatch(name):
        raise ParamsError(f"{name!r} is not the name of a repository on the Hub. Write OWNER/NAME.")
    version = version or f"models:/{context.params()['registry'].name}@champion"
    paths = context.paths()
    paths.local.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=paths.local) as place:
        found, artifacts = registered_version(version, Path(place) / "version")
        version = f"models:/{found.name}/{found.number}"  # an alias could move meanwhile
        manifest = read_json(artifacts / "manifest.json")
        record = read_statement(artifacts / "provenance" / "statement.json")[0]
        if found.tags.get("git_clean") != "yes":
            raise ParamsError(
                f"{version} was registered from a repository with changes that are not committed, so nobody could "
                "rebuild it. Commit everything, and register again: dvc repro."
            )
        licenses = [
            license_problem(manifest["license"], f"the base model {manifest['id']}"),
            license_problem(record.data.license, f"the dataset {record.data.name}"),
        ]
        problems = [problem for problem in licenses if problem]
        if problems and not license_confirmed:
            raise ParamsError(f"{' '.join(problems)} If you may publish the model, add --license-confirmed.")
        folder = Path(place) / "files"
        _collect(folder, artifacts, version, form, with_gguf, say)
        data = record.data.name if record.data.hub else None
        card = hub_card((artifacts / "MODEL_CARD.md").read_text(encoding="utf-8"), manifest, data, form)
        write_text(folder / "README.md", card)
        if secrets := list(secrets_in(folder)):
            raise DataError(f"{secrets[0]}. Nothing was published.")
        _show(folder, name, card, private, say)
        if not for_real:
            say("nothing was published. Add --publish to upload these files.")
            return
        say(f"published: {upload(folder, name, f'Version {found.number} of {found.name}', private=private)}")


def _collect(folder: Path, artifacts: Path, version: str, form: str, with_gguf: bool, say: Say) -> None:
    """Copy the files to publish to a new folder."""
    if form == "adapter":
        shutil.copytree(artifacts / "adapter", folder)
        shutil.copytree(artifacts / "tokenizer", folder, dirs_exist_ok=True)
    else:
        source = exported(version, "merged", None, say)[0]
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns(*HIDDEN))
    if with_gguf:
        source = exported(version, "gguf", None, say)[0]
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*HIDDEN))
    shutil.copytree(artifacts / "provenance", folder / "provenance")


def _show(folder: Path, name: str, card: str, private: bool, say: Say) -> None:
    say(f"{'private' if private else 'public'} repository {name}:")
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        say(f"  {format_bytes(path.stat().st_size):>10}  {path.relative_to(folder).as_posix()}")
    say(f"README.md:\n{card.rstrip()}\n")
