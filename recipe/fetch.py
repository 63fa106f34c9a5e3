"""Stage fetch: brings the rows (`fetch data`) or the base model (`fetch model`) into the recipe folder.

fetch data   copies the rows' files to data/raw/ as they are, and lists them in manifest.json
fetch model  keeps the tokenizer in models/base/tokenizer/; the weights stay where they are, and manifest.json names
             them by path, size and sha256

    python -m recipe fetch data
"""

import fnmatch
import shutil
from pathlib import Path
from typing import Any

from pydantic import Field

from recipe.errors import DataError, ParamsError
from recipe.files import new_folder, read_json, sha256_file, sha256_listing, write_json
from recipe.params import Section
from recipe.rows import FORMATS
from recipe.tokenization import give_padding_token, load_tokenizer

HUB = "hub"
MANIFEST = "manifest.json"


class DataParams(Section):
    """Where the rows come from. Watched whole by DVC, with the source itself."""

    source: str = Field(min_length=1, description="a file or folder of rows, or `hub`")
    id: str | None = Field(description="the dataset's name on the Hub")
    revision: str | None = Field(description="the dataset's 40-digit commit on the Hub")
    sha256: str | dict[str, str] | None = Field(description="of the source file, or of each file of a folder")
    train: str = Field(min_length=1, description="the split to train on")
    validation: str | None = Field(description="the split to validate on; null cuts one from the training rows")


class ModelParams(Section):
    """Where the base model comes from."""

    source: str = Field(min_length=1, description="a folder in transformers' layout, or `hub`")
    id: str = Field(min_length=1, description="the model's name")
    revision: str | None = Field(description="the model's 40-digit commit on the Hub")


def split_files(source: Path, split: str) -> list[Path]:
    """The files of a split in a folder: those named `split.*` or `split-*.*`, sorted by name."""
    files = sorted(file for file in source.iterdir() if file.suffix in FORMATS and file.is_file())
    chosen = [file for file in files if file.stem == split or fnmatch.fnmatch(file.stem, f"{split}-*")]
    if not chosen:
        names = ", ".join(file.name for file in files) or f"no {', '.join(FORMATS)} file"
        raise DataError(f"{source} has no split {split!r}: it holds {names}. A split's files are named {split}.jsonl, "
                        f"{split}-00000-of-00002.parquet and the like.")  # fmt: skip
    return chosen


def find_rows(params: DataParams, folder: Path) -> dict[str, list[Path]]:
    """The source's files by split, `train` and, where asked for, `validation`."""
    source = folder / params.source
    if not source.exists():
        raise DataError(f"data.source: {params.source} does not exist (looked in {folder.resolve()}).")
    if source.is_dir():
        files = {"train": split_files(source, params.train)}
        if params.validation is not None:
            files["validation"] = split_files(source, params.validation)
            both = set(files["train"]) & set(files["validation"])
            if both:
                raise DataError(f"data.train and data.validation both name {sorted(file.name for file in both)}.")
        return files
    if source.suffix not in FORMATS:
        raise DataError(f"data.source: {params.source} ends in {source.suffix!r}; rows are read from {FORMATS}.")
    if params.validation is not None:
        raise ParamsError(
            f"params.yaml: data.validation is {params.validation!r}, but data.source is one file, {params.source}. "
            "Set it to null to cut the validation rows from the file, or name a folder that holds both splits."
        )
    return {"train": [source]}


def check_sha256(params: DataParams, found: dict[str, str]) -> None:
    """Compare the sha256 of each file, {name: sha256}, with those that the params give."""
    if params.sha256 is None:
        return
    if isinstance(params.sha256, str):
        if len(found) > 1:
            raise ParamsError(f"params.yaml: data.sha256 is one value for {len(found)} files; write {{name: sha256}}.")
        wanted = dict.fromkeys(found, params.sha256)
    else:
        wanted = params.sha256
        unnamed = sorted(set(found) - set(wanted))
        if unnamed:
            raise ParamsError(f"params.yaml: data.sha256 does not name {', '.join(unnamed)}.")
    for name, sha256 in wanted.items():
        if name not in found:
            raise ParamsError(f"params.yaml: data.sha256 names {name}; the source's files are {', '.join(found)}.")
        if sha256.lower() != found[name]:
            raise DataError(f"{name} is not the file that data.sha256 names: expected {sha256}, found {found[name]}.")


def fetch_data(params: DataParams, folder: Path, made: Path) -> None:
    """Copy the rows' files to `made`, byte for byte, with a manifest of their names, sizes and sha256."""
    _refuse_hub("data", params.source)
    files = find_rows(params, folder)
    with new_folder(made) as target:
        listed, found = [], {}
        for split, paths in files.items():
            for path in paths:
                if path.name == MANIFEST:
                    raise DataError(f"data.source: {path} has the name of fetch's own list. Rename it.")
                shutil.copyfile(path, target / path.name)
                found[path.name] = sha256_file(target / path.name)
                size = path.stat().st_size
                listed.append({"name": path.name, "split": split, "bytes": size, "sha256": found[path.name]})
        check_sha256(params, found)
        write_json(target / MANIFEST, {"source": "files", "id": params.id, "files": listed})


def fetch_model(params: ModelParams, folder: Path, made: Path) -> None:
    """Note the base model's files in a manifest at `made`, and keep its tokenizer, with a padding token, beside it."""
    _refuse_hub("model", params.source)
    source = folder / params.source
    if not (source / "config.json").is_file():
        raise DataError(f"model.source: {params.source} is no model: it has no config.json.")
    config = read_json(source / "config.json")
    if "auto_map" in config:
        raise DataError(f"model.source: {params.source} asks for code of its own (auto_map), which is not run here.")
    weights = sorted(
        file for file in source.iterdir() if file.name.endswith((".safetensors", ".safetensors.index.json"))
    )
    if not any(file.suffix == ".safetensors" for file in weights):
        raise DataError(f"model.source: {params.source} has no .safetensors file.")
    optional = [source / "generation_config.json"] if (source / "generation_config.json").is_file() else []
    files = {file.name: sha256_file(file) for file in [source / "config.json", *optional, *weights]}
    check_weights(source, [file for file in weights if file.suffix == ".safetensors"])
    tokenizer = load_tokenizer(source)
    give_padding_token(tokenizer)
    with new_folder(made) as target:
        tokenizer.save_pretrained(target / "tokenizer")
        kept = {file.name: sha256_file(file) for file in sorted((target / "tokenizer").iterdir())}
        manifest: dict[str, Any] = {
            "id": params.id,
            "revision": params.revision,
            "sha256": sha256_listing(files),
            "path": params.source,
            "architecture": (config.get("architectures") or [None])[0],
            "files": [
                {"name": name, "bytes": (source / name).stat().st_size, "sha256": sha256}
                for name, sha256 in files.items()
            ],
            "tokenizer_sha256": sha256_listing(kept),
        }
        write_json(target / "manifest.json", manifest)


def check_weights(source: Path, weights: list[Path]) -> None:
    """Raise DataError for a file that is no safetensors (a Git LFS pointer, say), or one that the index misses."""
    from safetensors import SafetensorError, safe_open

    for file in weights:
        try:
            with safe_open(file, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            size = file.stat().st_size
            raise DataError(f"model.source: {file} ({size:,} bytes) is not a safetensors file: {error}.") from None
    index = source / "model.safetensors.index.json"
    if index.is_file():
        missing = sorted(set(read_json(index)["weight_map"].values()) - {file.name for file in weights})
        if missing:
            raise DataError(f"model.source: {index} names {', '.join(missing)}, which {source} does not hold.")


def _refuse_hub(section: str, source: str) -> None:
    if source == HUB:
        raise ParamsError(f"params.yaml: {section}.source is `hub`; this version reads local files only.")
