"""Compares the outputs of a rebuild with the ones that dvc.lock records, and shows where they first differ.

dvc.lock records an md5 of each output, so identical outputs need no second copy. If an output differs, the recorded
file is looked for in the user's recipe folder, in git and in DVC's cache.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from recipe.core.io import write_text
from recipe.verify.difference import Difference, difference
from recipe.verify.integrity import cached_file, md5_file
from recipe.verify.rebuild import Rebuild, dvc_cache, show


@dataclass(frozen=True)
class Output:
    """The result for one output. `differences` contains an entry for each file that differs."""

    stage: str
    path: str
    num_files: int
    differences: tuple[Difference, ...]


def changed_sources(rebuild: Rebuild) -> list[str]:
    """Return the inputs that no stage produced, such as the rows, and whose content is not the recorded one."""
    produced = {out["path"] for stage in rebuild.recorded.values() for out in stage["outs"]}
    rebuilt, changed = rebuild.rebuilt(), []
    for name in rebuild.stages:
        here = {dep["path"]: dep["md5"] for dep in rebuilt[name]["deps"]}
        recorded = {dep["path"]: dep["md5"] for dep in rebuild.recorded[name]["deps"]}
        changed += [path for path, md5 in recorded.items() if path not in produced and here[path] != md5]
    return changed


def compare(rebuild: Rebuild, tolerance: float) -> list[Output]:
    """Compare every output of the rebuilt stages. Numbers may differ by the fraction `tolerance`."""
    rebuilt, outputs = rebuild.rebuilt(), []
    for name in rebuild.stages:
        here = {out["path"]: out["md5"] for out in rebuilt[name]["outs"]}
        for out in rebuild.recorded[name]["outs"]:
            path, md5 = out["path"], out["md5"]
            differences = [] if here[path] == md5 else _differences(rebuild, path, md5, tolerance)
            outputs.append(Output(name, path, out.get("nfiles", 1), tuple(differences)))
    return outputs


def _differences(rebuild: Rebuild, path: str, md5: str, tolerance: float) -> list[Difference]:
    """Compare the files of one output whose md5 differs."""
    cache, place = Path(dvc_cache(rebuild.folder)), rebuild.place / path
    if not md5.endswith(".dir"):
        return _file_differences(rebuild, path, md5, place, cache, tolerance)
    listing = cached_file(cache, md5)
    if listing is None:
        return [Difference(path, "the recorded folder is not in DVC's cache, so its files can't be compared", None)]
    recorded = {entry["relpath"]: entry["md5"] for entry in json.loads(listing.read_text(encoding="utf-8"))}
    here = {file.relative_to(place).as_posix() for file in place.rglob("*") if file.is_file()}
    differences = [
        Difference(f"{path}/{name}", "is missing in the rebuild", None) for name in sorted(recorded.keys() - here)
    ]
    differences += [
        Difference(f"{path}/{name}", "is not in the recorded output", None) for name in sorted(here - recorded.keys())
    ]
    for name in sorted(recorded.keys() & here):
        differences += _file_differences(rebuild, f"{path}/{name}", recorded[name], place / name, cache, tolerance)
    return differences


def _file_differences(
    rebuild: Rebuild, path: str, md5: str, rebuilt: Path, cache: Path, tolerance: float
) -> list[Difference]:
    if md5_file(rebuilt) == md5:
        return []
    recorded = _recorded_file(rebuild, path, md5, cache)
    if recorded is None:
        return [Difference(path, "differs; the recorded file is neither here, nor in git, nor in DVC's cache", None)]
    found = difference(path, recorded, rebuilt, tolerance)
    return [] if found is None else [found]


def _recorded_file(rebuild: Rebuild, path: str, md5: str, cache: Path) -> Path | None:
    """Return a file with the recorded content, or None if there is none."""
    from_git = rebuild.clone.parent / "recorded" / path
    if text := show(rebuild.repository, rebuild.commit, rebuild.folder / path):
        write_text(from_git, text)
    candidates = (rebuild.folder / path, from_git, cached_file(cache, md5))
    return next((file for file in candidates if file and file.is_file() and md5_file(file) == md5), None)
