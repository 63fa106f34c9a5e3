"""Writes the files that prove where a registered version comes from, and signs the version.

evidence = Evidence(record, params_file, requirements, version, key)
evidence.write(folder, card)    # statement.json, bom.cdx.json and params.yaml
"""

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from recipe.core.config import load_yaml
from recipe.core.environment import LOCKS, installed_lock, lock_name
from recipe.core.io import sha256_bytes, sha256_file, write_text
from recipe.provenance.bill import bill_of_materials, locked_hashes, packages
from recipe.provenance.record import Record
from recipe.provenance.signing import Key, sign
from recipe.provenance.statement import statement_text

STATEMENT, BILL, PARAMS = "statement.json", "bom.cdx.json", "params.yaml"
CARD = "MODEL_CARD.md"


@dataclass(frozen=True)
class Evidence:
    """The record of an adapter, and the user's key if there is one."""

    record: Record
    params: Path
    requirements: Path  # the folder of the lock files
    version: str  # the version of the recipe
    key: Key | None

    @property
    def signing_key(self) -> str | None:
        """The sha256 of the public key, or None if versions are not signed."""
        return self.key.public_sha256 if self.key else None

    @cached_property
    def bill(self) -> str:
        """The bill of materials of the adapter."""
        sources = {"base": self.record.base, "dataset": self.record.data}
        pins = locked_hashes(lock_files(self.requirements))
        sha256 = self.record.tags()["adapter_sha256"]
        return bill_of_materials("adapter", f"sha256:{sha256}", packages(), pins, sources)

    def write(self, folder: Path, card: str) -> str:
        """Write the files to a folder, and return the sha256 of the statement. The statement covers the model card."""
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / BILL, self.bill)
        copy_params(self.params, folder / PARAMS)
        byproducts = {name: sha256_file(folder / name) for name in (BILL, PARAMS)}
        byproducts[CARD] = sha256_bytes(card.encode())
        write_text(folder / STATEMENT, statement_text(self.record, byproducts, self.version))
        return sha256_file(folder / STATEMENT)

    def sign(self, folder: Path, signature: Path) -> None:
        """Sign all files in a folder."""
        assert self.key, "no key"
        sign(folder, self.key, signature)


def lock_files(requirements: Path) -> list[Path]:
    """Return the lock files of this environment: the installed one and tools.lock first, then optional ones."""
    installed = lock_name(requirements, installed_lock())
    stages = [installed] if installed else list(LOCKS)
    names = (*stages, "tools.lock", "browser.lock", "tasks.lock")
    return [requirements / name for name in names if (requirements / name).is_file()]


def copy_params(params: Path, target: Path) -> None:
    """Copy params.yaml, with the last part of each absolute path instead of the path, which may contain a user name."""
    shutil.copyfile(params, target)
    values = load_yaml(params)
    sources = [Path(values[section]["source"]) for section in ("data", "model")]
    absolute = [path for path in sources if path.is_absolute()]
    if absolute:
        text = params.read_text(encoding="utf-8")
        for path in sorted(absolute, key=lambda path: -len(str(path))):
            text = text.replace(str(path), path.name)
        write_text(target, text)
