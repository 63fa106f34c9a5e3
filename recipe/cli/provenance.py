"""Implements `recipe provenance` and `recipe sbom`, and gathers the evidence that the register stage stores."""

import os
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipe.cli.context import HERE
from recipe.core.io import write_text
from recipe.core.paths import Paths, read_paths, repository

WIDTH = 11  # of a link's name


def make_evidence(params: dict[str, Any], paths: Paths, facts: dict[str, Any]) -> Any:
    """Return the evidence for the adapter in this recipe folder. `facts` are those of tracking/mlflow_run.py.

    Raises ParamsError if RECIPE_SIGNING_KEY does not name a usable key.
    """
    from recipe.provenance.evidence import Evidence
    from recipe.provenance.record import gather
    from recipe.provenance.signing import KEY, PASSWORD, read_key

    key = read_key(Path(os.environ[KEY]), os.environ.get(PASSWORD)) if os.environ.get(KEY) else None
    root = repository(paths.folder)
    record = gather(paths, params["data"].source, root, facts["tags"], facts["fingerprint"])
    return Evidence(record, paths.folder / "params.yaml", root / "requirements", own_version(), key)


def own_version() -> str:
    """Return the version of this package from pyproject.toml. In the image, the package is not installed."""
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])


def provenance(address: str, public_key: Path | None, say: Callable[[str], None], *, rebuild: bool) -> bool:
    """Check the chain of a registered version, pass each line to `say`, and return whether no link is broken."""
    from recipe.provenance.chain import Link, open_chain
    from recipe.provenance.links import check_links
    from recipe.tracking.versions import download_version

    root, broken = repository(HERE), 0

    def show(link: Link) -> None:
        nonlocal broken
        say(f"{link.name:{WIDTH}}  {link.status:18}  {link.text}".rstrip())
        for text in link.problems or filter(None, [link.unreachable]):
            say(f"{'':{WIDTH}}  {'':18}  {text}")
        broken += bool(link.problems)

    with tempfile.TemporaryDirectory() as folder:
        found = download_version(address, root, Path(folder))
        say(f"{address} is version {found.number} of {found.name}")
        show(_signature(found, public_key))
        chain = open_chain(found, root, lambda place: read_paths(Path(os.path.relpath(place))))
        if isinstance(chain, str):
            show(Link("statement", "in-toto, SLSA provenance v1", [chain]))
        else:
            show(Link("statement", f"in-toto, SLSA provenance v1, sha256 {found.tags['statement_sha256']}"))
            for link in check_links(chain):
                show(link)
            if rebuild:
                show(_rebuild(chain, say))
    say(f"broken: {broken} links." if broken > 1 else "broken: 1 link." if broken else "No link is broken.")
    return not broken


def _signature(found: Any, public_key: Path | None) -> Any:
    from recipe.provenance.chain import Link
    from recipe.provenance.signing import SIGNATURE, signature_problem

    signed_by = found.tags.get("signing_key_sha256")
    if not (found.folder / SIGNATURE).is_file():
        link = Link("signature", "", absent="not signed")
        if signed_by or public_key:
            link.problems.append("the version has no signature")
        return link
    link = Link("signature", f"by the key with sha256 {signed_by}")
    if public_key is None:
        link.unreachable = "name the public key with --public-key"
    elif problem := signature_problem(found.folder, public_key):
        link.problems.append(problem)
    return link


def _rebuild(chain: Any, say: Callable[[str], None]) -> Any:
    """Rebuild the commit, and compare the rebuilt adapter with the registered one."""
    from recipe.provenance.chain import Link
    from recipe.provenance.record import file_hashes
    from recipe.verify.difference import difference
    from recipe.verify.rebuild import Rebuild

    link = Link("rebuild", f"of commit {chain.record.commit[:12]}")
    if chain.repository is None or chain.paths is None:
        link.unreachable = "the commit is not in this repository"
        return link
    with Rebuild.of(chain.paths.folder, chain.record.commit, None) as rebuild:
        say(f"rebuilding commit {rebuild.commit[:12]} in {os.path.relpath(rebuild.place)}")
        rebuild.run()
        rebuilt, registered = read_paths(rebuild.place).adapter, chain.artifacts / "adapter"
        here, there = file_hashes(rebuilt), file_hashes(registered)
        for name in sorted(here.keys() | there.keys()):
            if here.get(name) == there.get(name):
                continue
            both = name in here and name in there
            found = difference(name, registered / name, rebuilt / name, 0.0) if both else None
            link.problems.append(f"{name} differs: {found.text if found else 'only one of the adapters has this file'}")
        if not link.problems:
            link.text += f": the adapter has the bytes of the registered one ({len(there)} files)"
            rebuild.remove()
    return link


def sbom(target: Path | None) -> Path:
    """Write the bill of materials of the installed packages to a file, and return its path."""
    from recipe.provenance.bill import bill_of_materials, locked_hashes, packages
    from recipe.provenance.evidence import lock_files

    root = repository(HERE)
    target = target or root / "sbom.cdx.json"
    pins = locked_hashes(lock_files(root / "requirements"))
    write_text(target, bill_of_materials("recipe", own_version(), packages(), pins, {}))
    return target
