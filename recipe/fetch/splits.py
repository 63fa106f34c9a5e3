"""Which files make up a split: of a local source by their names, of a dataset on the Hub as `datasets` says."""

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
    chosen = [file for file in files if file.stem == split or fnmatch.fnmatch(file.stem, f"{split}-*")]
    if not chosen:
        names = ", ".join(file.name for file in files) or f"no {', '.join(FORMATS)} file"
        raise DataError(f"{source} has no split {split!r}: it holds {names}. A split's files are named {split}.jsonl, "
                        f"{split}-00000-of-00002.parquet and the like.")  # fmt: skip
    return chosen


def local_split_files(folder: Path, named: str, wanted: dict[str, str]) -> dict[str, list[Path]]:
    """The files of each wanted split, {our name: the source's name}, of the file or folder `named` in the params."""
    source = folder / named
    if not source.exists():
        raise DataError(f"data.source: {named} does not exist (looked in {folder.resolve()}).")
    if source.is_dir():
        made = {ours: split_files(source, theirs) for ours, theirs in wanted.items()}
        refuse_both({ours: [file.name for file in files] for ours, files in made.items()})
        return made
    if source.suffix not in FORMATS:
        raise DataError(f"data.source: {named} ends in {source.suffix!r}; rows are read from {FORMATS}.")
    if "validation" in wanted:
        raise ParamsError(
            f"params.yaml: data.validation_split is {wanted['validation']!r}, but data.source is one file, {named}. "
            "Set it to null to cut the validation rows from the file, or name a folder that holds both splits."
        )
    return {"train": [source]}


def dataset_splits(
    name: str, revision: str, subset: str | None, wanted: dict[str, str]
) -> tuple[Listing, dict[str, list[str]]]:
    """The files of a dataset's commit on the Hub, and the paths of each wanted split; fetches its card alone."""
    listing = list_repository("dataset", name, revision)
    card = [listing.files[one] for one in ("README.md",) if one in listing.files]
    root = download("dataset", name, revision, card)
    return listing, hub_split_files(name, list(listing.files), root, subset, wanted)


def hub_split_files(
    name: str, paths: list[str], card_folder: Path, subset: str | None, wanted: dict[str, str]
) -> dict[str, list[str]]:
    """The paths in a repository of each wanted split, {our name: the dataset's name}, in the dataset's order.

    `datasets` has the rules (the card's `configs`, else names and folders of files). It gets a folder with the
    repository's card and an empty file for each path, so that it decides by names alone.
    """
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary).resolve()
        for path in paths:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch()
        if (card_folder / "README.md").is_file():
            shutil.copyfile(card_folder / "README.md", root / "README.md")
            _refuse_addresses(name, root / "README.md")
        splits = _resolve(name, root, subset)
    made: dict[str, list[str]] = {}
    for ours, theirs in wanted.items():
        if theirs not in splits:
            key = "train_split" if ours == "train" else "validation_split"
            raise ParamsError(
                f"params.yaml: data.{key}: {name} has no split {theirs!r}; its splits are {', '.join(splits)}."
            )
        made[ours] = splits[theirs]
        odd = [path for path in splits[theirs] if posixpath.splitext(path)[1] not in FORMATS]
        if odd:
            raise DataError(
                f"{name}: rows are read from {', '.join(FORMATS)} files, and its split {theirs!r} has {odd[0]}."
            )
    refuse_both(made)
    return made


def _refuse_addresses(name: str, card: Path) -> None:
    """Raise DataError for a card whose splits name another place on the network: `datasets` would go there."""
    from huggingface_hub import RepoCard

    stated = RepoCard.load(card, ignore_metadata_errors=True).data.to_dict().get("configs")
    found = re.search(r'[^"]*://[^"]*', json.dumps(stated, default=str))
    if found:
        raise DataError(f"{name}: its card names {found[0]}, which is no file of the repository.")


def refuse_both(splits: dict[str, list[str]]) -> None:
    """Raise DataError for a file that would be trained on and validated on."""
    both = set(splits["train"]) & set(splits.get("validation", []))
    if both:
        raise DataError(f"data.train_split and data.validation_split both name {sorted(both)}.")


def _resolve(name: str, root: Path, subset: str | None) -> dict[str, list[str]]:
    """The splits of a local folder by `datasets`' rules, as paths relative to it."""
    import datasets

    datasets.disable_progress_bars()
    try:
        builder = datasets.load_dataset_builder(str(root), name=subset)
    except (datasets.exceptions.DataFilesNotFoundError, FileNotFoundError):
        raise DataError(f"{name} holds no files of rows that `datasets` knows.") from None
    except ValueError as error:  # a subset that is not there, or none named where there are several
        reason = " ".join(str(error).replace(str(root), name).split())
        raise ParamsError(f"params.yaml: data.subset is {subset!r}: {reason[:600]}") from None
    files = builder.config.data_files or {}
    outside = [path for paths in files.values() for path in paths if not Path(path).resolve().is_relative_to(root)]
    if outside:
        raise DataError(f"{name}: its card names {outside[0]}, which is no file of the repository.")
    return {str(split): [Path(path).relative_to(root).as_posix() for path in paths] for split, paths in files.items()}
