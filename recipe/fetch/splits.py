"""Finds the files of a split.

In a local source, the file names determine the splits. In a Hub dataset, the rules of the `datasets` library determine
the splits.
"""

import fnmatch
import json
import posixpath
import re
import shutil
import tempfile
from pathlib import Path

from recipe.core.errors import DataError, ParamsError
from recipe.core.io import sha256_file
from recipe.fetch.hub import Listing, download, list_repository
from recipe.text.readers import FORMATS


def split_files(source: Path, split: str) -> list[Path]:
    """Return the files of a split in a folder, sorted by name.

    The files are named `SPLIT.EXTENSION` or `SPLIT-*.EXTENSION`, with an extension from FORMATS. Raises DataError if
    the folder does not contain any of these files.
    """
    files = sorted(file for file in source.iterdir() if file.suffix in FORMATS and file.is_file())
    matching = [file for file in files if file.stem == split or fnmatch.fnmatch(file.stem, f"{split}-*")]
    if not matching:
        names = ", ".join(file.name for file in files) or f"no {', '.join(FORMATS)} file"
        raise DataError(
            f"{source} has no split {split!r}: it contains {names}. The files of a split must have names such as "
            f"{split}.jsonl or {split}-00000-of-00002.parquet."
        )
    return matching


def local_split_files(folder: Path, source: str, wanted: dict[str, str]) -> dict[str, list[Path]]:
    """Return the files of each split in a local source.

    `source` is the value of data.source, the path of a file or folder relative to `folder`. `wanted` maps `train` and
    `validation` to the names of these splits in the source.
    """
    path = folder / source
    if not path.exists():
        raise DataError(f"data.source: {source} does not exist (looked in {folder.resolve()}).")
    if path.is_dir():
        splits = {ours: split_files(path, theirs) for ours, theirs in wanted.items()}
        reject_overlap({ours: [file.name for file in files] for ours, files in splits.items()})
        return splits
    if path.suffix not in FORMATS:
        raise DataError(
            f"data.source: {source} ends in {path.suffix!r}, but rows are read only from {', '.join(FORMATS)} files."
        )
    if "validation" in wanted:
        raise ParamsError(
            f"params.yaml: data.validation_split is {wanted['validation']!r}, but data.source is a single file, "
            f"{source}. Set data.validation_split to null to take the validation rows from this file, or set "
            "data.source to a folder that contains both splits."
        )
    return {"train": [path]}


def general_file(folder: Path, name: str | None, sha256: str | None) -> Path | None:
    """Return the file of general rows, or None if data.general is null. `folder` is the recipe's folder.

    DVC does not watch this file. Instead, it watches the sha256 in params.yaml, so that value is required. Raises
    DataError if the file is missing or its sha256 differs, and ParamsError if only one of the two values is given.
    """
    if name is None:
        if sha256 is not None:
            raise ParamsError("params.yaml: data.general_sha256 is set, but data.general is null.")
        return None
    actual = general_sha256(folder, name)
    if sha256 is None:
        raise ParamsError(
            f"params.yaml: data.general is {name}, but data.general_sha256 is null. Run `recipe pin`, or set it to "
            f"{actual}."
        )
    if sha256.lower() != actual:
        raise DataError(
            f"{name} does not match data.general_sha256: expected {sha256}, found {actual}. If the file was changed on "
            "purpose, run `recipe pin --update`."
        )
    return folder / name


def general_sha256(folder: Path, name: str) -> str:
    """Return the sha256 of the file of general rows. Raises DataError if it is missing or in an unknown format."""
    path = folder / name
    if not path.is_file():
        raise DataError(f"data.general: {name} is not a file (looked in {folder.resolve()}).")
    if path.suffix not in FORMATS:
        raise DataError(
            f"data.general: {name} ends in {path.suffix!r}, but rows are read only from {', '.join(FORMATS)} files."
        )
    return sha256_file(path)


def dataset_splits(
    name: str, revision: str, subset: str | None, wanted: dict[str, str]
) -> tuple[Listing, dict[str, list[str]]]:
    """Return a Hub dataset's files at a commit, and the file paths of each split in `wanted`.

    Only the dataset's card is downloaded.
    """
    listing = list_repository("dataset", name, revision)
    card = [listing.files[path] for path in ("README.md",) if path in listing.files]
    root = download("dataset", name, revision, card)
    return listing, hub_split_files(name, list(listing.files), root, subset, wanted)


def hub_split_files(
    name: str, paths: list[str], card_folder: Path, subset: str | None, wanted: dict[str, str]
) -> dict[str, list[str]]:
    """Return the repository paths of the files in each split, in the order in which `datasets` lists the files.

    `wanted` maps `train` and `validation` to the names of these splits in the dataset. The `datasets` library
    determines the splits from `configs` in the card or, without `configs`, from the names and folders of the files. The
    library reads a temporary folder with the card and an empty file for each path, so it does not need the data files.
    """
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary).resolve()
        for path in paths:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch()
        if (card_folder / "README.md").is_file():
            shutil.copyfile(card_folder / "README.md", root / "README.md")
            _reject_urls(name, root / "README.md")
        splits = _resolve(name, root, subset)
    paths_by_split: dict[str, list[str]] = {}
    for ours, theirs in wanted.items():
        if theirs not in splits:
            key = "train_split" if ours == "train" else "validation_split"
            raise ParamsError(
                f"params.yaml: data.{key}: {name} has no split {theirs!r}. Its splits are {', '.join(splits)}."
            )
        paths_by_split[ours] = splits[theirs]
        unsupported = [path for path in splits[theirs] if posixpath.splitext(path)[1] not in FORMATS]
        if unsupported:
            raise DataError(
                f"{name}: the split {theirs!r} contains {unsupported[0]}, but rows are read only from "
                f"{', '.join(FORMATS)} files."
            )
    reject_overlap(paths_by_split)
    return paths_by_split


def _reject_urls(name: str, card: Path) -> None:
    """Raise DataError if `configs` in the card contains a URL, because `datasets` would download from that URL."""
    from huggingface_hub import RepoCard

    stated = RepoCard.load(card, ignore_metadata_errors=True).data.to_dict().get("configs")
    url = re.search(r'[^"]*://[^"]*', json.dumps(stated, default=str))
    if url:
        raise DataError(f"{name}: the card names {url[0]}, which is not a file in the repository.")


def reject_overlap(splits: dict[str, list[str]]) -> None:
    """Raise DataError if a file belongs to both the train split and the validation split."""
    both = set(splits["train"]) & set(splits.get("validation", []))
    if both:
        raise DataError(f"data.train_split and data.validation_split both contain {', '.join(sorted(both))}.")


def _resolve(name: str, root: Path, subset: str | None) -> dict[str, list[str]]:
    """Return the splits that `datasets` finds in a local folder, as {split: paths relative to the folder}."""
    import datasets

    datasets.disable_progress_bars()
    try:
        builder = datasets.load_dataset_builder(str(root), name=subset)
    except (datasets.exceptions.DataFilesNotFoundError, FileNotFoundError):
        raise DataError(f"{name} contains no data files that `datasets` recognizes.") from None
    except ValueError as error:  # the subset is unknown, or none is chosen and there is no default
        reason = " ".join(str(error).replace(str(root), name).split())
        raise ParamsError(f"params.yaml: data.subset is {subset!r}: {reason[:600]}") from None
    files = builder.config.data_files or {}
    outside = [path for paths in files.values() for path in paths if not Path(path).resolve().is_relative_to(root)]
    if outside:
        raise DataError(f"{name}: the card names {outside[0]}, which is not a file in the repository.")
    return {str(split): [Path(path).relative_to(root).as_posix() for path in paths] for split, paths in files.items()}
