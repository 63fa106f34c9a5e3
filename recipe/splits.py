"""Which files of a dataset on the Hub make up a split: asked of `datasets`, without its reaching for the network."""

import posixpath
import shutil
import tempfile
from pathlib import Path

from recipe.errors import DataError, ParamsError
from recipe.rows import FORMATS


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
        splits = _resolve(name, root, subset)
    made: dict[str, list[str]] = {}
    for ours, theirs in wanted.items():
        if theirs not in splits:
            key = "train" if ours == "train" else "validation"
            raise ParamsError(
                f"params.yaml: data.{key}: {name} has no split {theirs!r}; its splits are {', '.join(splits)}."
            )
        made[ours] = splits[theirs]
        odd = [path for path in splits[theirs] if posixpath.splitext(path)[1] not in FORMATS]
        if odd:
            raise DataError(
                f"{name}: rows are read from {', '.join(FORMATS)} files, and its split {theirs!r} has {odd[0]}."
            )
    both = set(made["train"]) & set(made.get("validation", []))
    if both:
        raise DataError(f"data.train and data.validation both name {sorted(both)}.")
    return made


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
