"""Finds the files of a split: by file name in a local source, or by the rules of `datasets` in a dataset on the Hub."""

import fnmatch
import json
import posixpath
import re
import shutil
import tempfile
from pathlib import Path

from recipe.core.errors import DataError, ParamsError
from recipe.fetch.hub import Listing, download, list_repository
from recipe.text.readers import FORMATS


def split_files(source: Path, split: str) -> list[Path]:
    """The files of a split in a folder: those named `split.*` or `split-*.*`, sorted by name."""
    files = sorted(file for file in source.iterdir() if file.suffix in FORMATS and file.is_file())
    matching = [file for file in files if file.stem == split or fnmatch.fnmatch(file.stem, f"{split}-*")]
    if not matching:
        names = ", ".join(file.name for file in files) or f"no {', '.join(FORMATS)} file"
        raise DataError(f"{source} has no split {split!r}: it contains {names}. The files of a split are named "
                        f"{split}.jsonl, {split}-00000-of-00002.parquet and so on.")  # fmt: skip
    return matching


def local_split_files(folder: Path, source: str, wanted: dict[str, str]) -> dict[str, list[Path]]:
    """The files of each split in `wanted`, {our name: name in the source}.

    `source` is data.source, a file or a folder, relative to `folder`.
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
            f"data.source: {source} ends in {path.suffix!r}; rows are read from {', '.join(FORMATS)} files."
        )
    if "validation" in wanted:
        raise ParamsError(
            f"params.yaml: data.validation_split is {wanted['validation']!r}, but data.source is one file, {source}. "
            "Set it to null to take the validation rows from this file, or use a folder that contains both splits."
        )
    return {"train": [path]}


def dataset_splits(
    name: str, revision: str, subset: str | None, wanted: dict[str, str]
) -> tuple[Listing, dict[str, list[str]]]:
    """The files of a dataset on the Hub at a commit, and the paths of each split. Only the card is downloaded."""
    listing = list_repository("dataset", name, revision)
    card = [listing.files[path] for path in ("README.md",) if path in listing.files]
    root = download("dataset", name, revision, card)
    return listing, hub_split_files(name, list(listing.files), root, subset, wanted)


def hub_split_files(
    name: str, paths: list[str], card_folder: Path, subset: str | None, wanted: dict[str, str]
) -> dict[str, list[str]]:
    """The repository paths of each split in `wanted`, {our name: name in the dataset}, in the dataset's order.

    The `datasets` library implements the rules (`configs` in the card, else the names and folders of the files). It is
    given a folder with the repository's card and an empty file for each path, so it decides by the names alone.
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
                f"params.yaml: data.{key}: {name} has no split {theirs!r}; its splits are {', '.join(splits)}."
            )
        paths_by_split[ours] = splits[theirs]
        unsupported = [path for path in splits[theirs] if posixpath.splitext(path)[1] not in FORMATS]
        if unsupported:
            raise DataError(
                f"{name}: rows are read from {', '.join(FORMATS)} files, but its split {theirs!r} contains "
                f"{unsupported[0]}."
            )
    reject_overlap(paths_by_split)
    return paths_by_split


def _reject_urls(name: str, card: Path) -> None:
    """Raise DataError if the splits in the card contain a URL, because `datasets` would download from it."""
    from huggingface_hub import RepoCard

    stated = RepoCard.load(card, ignore_metadata_errors=True).data.to_dict().get("configs")
    url = re.search(r'[^"]*://[^"]*', json.dumps(stated, default=str))
    if url:
        raise DataError(f"{name}: its card names {url[0]}, which is not a file of the repository.")


def reject_overlap(splits: dict[str, list[str]]) -> None:
    """Raise DataError if a file is in both the train and the validation split."""
    both = set(splits["train"]) & set(splits.get("validation", []))
    if both:
        raise DataError(f"data.train_split and data.validation_split both contain {', '.join(sorted(both))}.")


def _resolve(name: str, root: Path, subset: str | None) -> dict[str, list[str]]:
    """The splits of a local folder by the rules of `datasets`, as paths relative to the folder."""
    import datasets

    datasets.disable_progress_bars()
    try:
        builder = datasets.load_dataset_builder(str(root), name=subset)
    except (datasets.exceptions.DataFilesNotFoundError, FileNotFoundError):
        raise DataError(f"{name} contains no data files that `datasets` recognizes.") from None
    except ValueError as error:  # the subset is unknown, or there are several and none is given
        reason = " ".join(str(error).replace(str(root), name).split())
        raise ParamsError(f"params.yaml: data.subset is {subset!r}: {reason[:600]}") from None
    files = builder.config.data_files or {}
    outside = [path for paths in files.values() for path in paths if not Path(path).resolve().is_relative_to(root)]
    if outside:
        raise DataError(f"{name}: its card names {outside[0]}, which is not a file of the repository.")
    return {str(split): [Path(path).relative_to(root).as_posix() for path in paths] for split, paths in files.items()}
