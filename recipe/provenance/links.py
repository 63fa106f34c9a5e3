"""Checks each link of the chain from a registered version to its sources, by hashing the material itself.

    for link in check_links(chain): print(link)

A link that can't be checked on this machine, for example because the base model is not here, is not broken.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recipe.core.errors import RecipeError
from recipe.core.hub_cache import base_folder
from recipe.core.io import read_json, sha256_bytes, sha256_file, sha256_listing, sha256_tree
from recipe.provenance.chain import Chain, Link
from recipe.provenance.commit import files_that_differ
from recipe.provenance.record import NONE, Source, dvc_lock_sha256, file_hashes, stages_in
from recipe.verify.integrity import md5_tree

SHOWN = 3  # names of files in a message


def check_links(chain: Chain) -> Iterator[Link]:
    """Check one link after the other."""
    tags = chain.record.tags()
    for name, (check, checked_tags) in LINKS.items():
        link = Link(name, "")
        try:
            check(chain, link)
        except RecipeError as error:
            link.problems.append(str(error))
        for tag in checked_tags:
            value = chain.version.tags.get(tag)
            if value != tags[tag]:
                link.problems.append(f"the tag {tag} is {value}, but the provenance statement has {tags[tag]}")
        yield link


def _run(chain: Chain, link: Link) -> None:
    version = chain.version
    link.text = f"{version.run_id} {version.run_name}"
    if version.run is None:
        link.problems.append("the run was deleted")
    elif version.run.get("fingerprint") != chain.record.fingerprint:
        link.problems.append("the run trained with different inputs: its fingerprint differs from that of the adapter")


def _adapter(chain: Chain, link: Link) -> None:
    files = chain.record.adapter
    link.text = f"sha256 {sha256_listing(files)}, {_count(files)}"
    link.problems += _differences(files, file_hashes(chain.artifacts / "adapter"), "the registered adapter")


def _dvc_lock(chain: Chain, link: Link) -> None:
    record = chain.record
    link.text = f"sha256 {record.dvc_lock_sha256}, of commit {record.commit[:12]}"
    if record.dvc_lock_sha256 == NONE or record.commit == NONE:
        link.problems.append("the version was registered without dvc.lock or without a commit")
        return
    content = chain.committed_in_folder(link, "dvc.lock")
    if content is None:
        return
    text = content.decode("utf-8", errors="replace")
    if (sha256 := dvc_lock_sha256(text)) != record.dvc_lock_sha256:
        link.problems.append(f"dvc.lock of the commit has sha256 {sha256}")
    recorded = [out["md5"] for out in stages_in(text).get("train", {"outs": []})["outs"]]
    if md5_tree(chain.artifacts / "adapter") not in recorded:
        link.problems.append("dvc.lock of the commit records a different adapter than the registered one")


def _code(chain: Chain, link: Link) -> None:
    record = chain.record
    link.text = f"commit {record.commit}"
    if record.commit == NONE:
        link.problems.append("the version was registered without a git commit")
        return
    if not record.clean:
        link.problems.append(
            "when the version was registered, the working tree had files, or a dvc.lock, that were not committed. "
            "Commit them, and run `dvc repro` and `recipe register`"
        )
    if chain.repository is None:
        link.unreachable = "the commit is not in this repository"
        return
    num_files, differing = files_that_differ(chain.repository, record.commit, "recipe", chain.artifacts / "recipe")
    link.text += f", {num_files} files"
    if differing:
        link.problems.append(f"the registered code differs from the commit in {_names(differing)}")


def _params(chain: Chain, link: Link) -> None:
    link.text = f"sha256 {chain.record.params_sha256}"
    content = chain.committed_in_folder(link, "params.yaml")
    if content is not None and (sha256 := sha256_bytes(content)) != chain.record.params_sha256:
        link.problems.append(f"params.yaml of the commit has sha256 {sha256}")


def _dataset(chain: Chain, link: Link) -> None:
    data = chain.record.data
    link.text = _source_text(data)
    tagged = {value for tag, value in chain.version.tags.items() if tag.startswith("data_sha256.")}
    if not tagged <= set(data.files.values()):
        link.problems.append("a tag data_sha256.NAME differs from the provenance statement")
    if sha256_listing(data.files) != data.sha256:
        link.problems.append("the provenance statement contradicts itself about the files")
    if chain.paths is None or not (chain.paths.raw / "manifest.json").is_file():
        link.unreachable = "the fetched rows are not here"
        return
    raw = chain.paths.raw
    if {file["name"]: file["sha256"] for file in read_json(raw / "manifest.json")["files"]} != data.files:
        link.unreachable = f"{raw} contains a different dataset"
        return
    found = {name: sha256_file(raw / name) for name in data.files if (raw / name).is_file()}
    link.problems += _differences(data.files, found, str(raw))


def _base(chain: Chain, link: Link) -> None:
    base = chain.record.base
    link.text = _source_text(base)
    manifest: dict[str, Any] = read_json(chain.artifacts / "manifest.json")
    if {file["name"]: file["sha256"] for file in manifest["files"]} != base.files or manifest["sha256"] != base.sha256:
        link.problems.append("the registered manifest of the base model differs from the provenance statement")
    if sha256_tree(chain.artifacts / "tokenizer") != chain.record.tokenizer_sha256:
        link.problems.append("the registered tokenizer has a different sha256")
    folder = base_folder(manifest, chain.paths.folder if chain.paths else Path())
    if not folder.is_dir() or (chain.paths is None and not base.hub):
        link.unreachable = "the files of the base model are not here"
        return
    found = {name: sha256_file(folder / name) for name in base.files if (folder / name).is_file()}
    link.problems += _differences(base.files, found, base.name)


def _lock(chain: Chain, link: Link) -> None:
    record = chain.record
    link.text = f"{record.lock}, sha256 {record.lock_sha256}"
    if record.lock == NONE:
        link.unreachable = "the environment was not installed from a lock file of the recipe"
        return
    content = chain.committed(link, f"requirements/{record.lock}")
    if content is not None and (sha256 := sha256_bytes(content)) != record.lock_sha256:
        link.problems.append(f"requirements/{record.lock} of the commit has sha256 {sha256}")


def _image(chain: Chain, link: Link) -> None:
    link.text = chain.record.image if chain.record.image != NONE else ""
    if chain.record.image == NONE:
        link.absent = "not used"
    else:
        link.unreachable = "`docker image inspect` shows whether an image has this id"


# The check of each link, and the tags that are compared with the provenance statement.
LINKS = {
    "run": (_run, ("fingerprint", "hardware")),
    "adapter": (_adapter, ("adapter_sha256",)),
    "dvc.lock": (_dvc_lock, ("dvc_lock_sha256",)),
    "code": (_code, ("git_commit", "git_clean", "recipe_folder")),
    "params.yaml": (_params, ("params_sha256",)),
    "dataset": (_dataset, ("data_id", "data_revision", "data_sha256")),
    "base model": (_base, ("base_id", "base_revision", "base_sha256", "tokenizer_sha256")),
    "lock file": (_lock, ("lock", "lock_sha256")),
    "image": (_image, ("image",)),
}


def _differences(expected: dict[str, str], found: dict[str, str], place: str) -> list[str]:
    """Return a message that names the files with a different sha256, or no message if there is none."""
    differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if not differing:
        return []
    first = differing[0]
    return [
        f"{_names(differing)} in {place}: expected sha256 {expected.get(first, 'no such file')}, "
        f"found {found.get(first, 'no such file')}"
    ]


def _names(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more files" if len(names) > SHOWN else "")


def _source_text(source: Source) -> str:
    revision = f" at {source.revision[:12]}" if source.revision else ""
    return f"{source.name}{revision}, sha256 {source.sha256}, {_count(source.files)}"


def _count(files: dict[str, str]) -> str:
    return f"{len(files)} file{'' if len(files) == 1 else 's'}"
