"""Opens the chain of a registered version: its record, and where this machine has the sources."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from recipe.core.errors import DataError
from recipe.core.io import sha256_file
from recipe.core.paths import Paths
from recipe.provenance.commit import blob, has_commit
from recipe.provenance.evidence import STATEMENT
from recipe.provenance.record import NONE, Record
from recipe.provenance.statement import read_statement


class Version(Protocol):
    """A registered version (tracking/versions.py)."""

    @property
    def tags(self) -> dict[str, str]: ...  # noqa: D102

    @property
    def run_id(self) -> str: ...  # noqa: D102

    @property
    def run(self) -> dict[str, str] | None: ...  # noqa: D102

    @property
    def run_name(self) -> str: ...  # noqa: D102

    @property
    def folder(self) -> Path: ...  # noqa: D102


@dataclass
class Link:
    """A link of the chain. It is broken if `problems` is not empty, and was checked if `unreachable` is empty too."""

    name: str
    text: str
    problems: list[str] = field(default_factory=list)
    unreachable: str = ""
    absent: str = ""  # says that the version has no such link

    @property
    def status(self) -> str:
        """`broken`, `not reachable here`, `checked`, or the text of `absent`."""
        return "broken" if self.problems else self.absent or ("not reachable here" if self.unreachable else "checked")


@dataclass(frozen=True)
class Chain:
    """The version, its record, and where this machine has the sources.

    `repository` contains the commit, and `paths` are those of the recipe folder. Each is None if it is not here.
    """

    version: Version
    record: Record
    repository: Path | None
    paths: Paths | None

    @property
    def artifacts(self) -> Path:
        """The folder of the adapter, the tokenizer and the other files of the version."""
        return self.version.folder / "artifacts"

    def committed(self, link: Link, path: str) -> bytes | None:
        """Return the content of a file of the commit. If it can't be read, say so in the link."""
        if self.repository is None:
            link.unreachable = f"commit {self.record.commit[:12]} is not in this repository"
            return None
        content = blob(self.repository, self.record.commit, path)
        if content is None:
            link.problems.append(f"commit {self.record.commit[:12]} has no {path}")
        return content

    def committed_in_folder(self, link: Link, name: str) -> bytes | None:
        """Return the content of a file in the recipe folder of the commit."""
        return self.committed(link, name if self.record.folder == "." else f"{self.record.folder}/{name}")


def open_chain(version: Version, repository: Path, read_paths: Callable[[Path], Paths]) -> Chain | str:
    """Return the chain of a version, or what is wrong with its provenance statement."""
    path = version.folder / "artifacts" / "provenance" / STATEMENT
    if not path.is_file():
        return "the version has no provenance statement. To add one, run `recipe register` in the recipe folder"
    try:
        record, byproducts = read_statement(path)
    except DataError as error:
        return str(error).rstrip(".")
    if sha256_file(path) != version.tags.get("statement_sha256"):
        return "the provenance statement is not the one with which the version was registered"
    for name, sha256 in byproducts.items():
        file = path.with_name(name) if path.with_name(name).is_file() else path.parents[1] / name
        if not file.is_file() or sha256_file(file) != sha256:
            return f"{name} is not the file that the provenance statement names"
    folder = repository / record.folder
    return Chain(
        version, record,
        repository if record.commit != NONE and has_commit(repository, record.commit) else None,
        read_paths(folder) if (folder / "dvc.yaml").is_file() else None,
    )  # fmt: skip
