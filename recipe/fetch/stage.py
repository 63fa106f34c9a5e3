"""Stage fetch: brings the rows (`fetch data`) or the base model (`fetch model`) into the recipe folder.

fetch data   copies the rows' files to data/raw/ as they are, and lists them in manifest.json
fetch model  keeps the tokenizer in models/base/tokenizer/; the weights stay where they are, and manifest.json names
             them by path or commit, size and sha256

A source is a path, or `hub`: then id and revision name a commit on the Hugging Face Hub. Its files go through the
Hub's cache; the rows are copied from there, the weights stay.

    python -m recipe fetch data
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipe.core.errors import DataError, ParamsError
from recipe.core.hub_cache import converted_folder
from recipe.core.io import new_folder, read_json, sha256_file, sha256_listing, write_json
from recipe.core.paths import Paths
from recipe.core.services import Services
from recipe.fetch.hub import check_pinned, download, in_turn, list_repository, stated_license
from recipe.fetch.params import DataParams, ModelParams
from recipe.fetch.splits import dataset_splits, local_split_files
from recipe.fetch.weights import CONFIGS, TOKENIZERS, asks_for_code, check_weights, convert, is_converted, weight_names
from recipe.fetch.xgen_tokenizer import GPT2, GPT2_FILES, GPT2_REVISION, build_tokenizer, is_xgen
from recipe.tokens.tokenizer import give_padding_token, load_tokenizer

HUB = "hub"
Check = Callable[[Path], None]
MANIFEST = "manifest.json"


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


def fetch_data(params: DataParams, paths: Paths) -> None:
    """Copy the rows' files to paths.raw, byte for byte, with a manifest of their names, sizes and sha256."""
    about: dict[str, Any] = {"source": "files", "id": params.id}
    if params.source == HUB:
        name, revision = check_pinned("data", params.id, params.revision)
        root, splits = _rows_from_hub(params, name, revision)
        about = {"source": HUB, "id": name, "revision": revision, "license": stated_license(root)}
    else:
        root, splits = None, local_split_files(paths.folder, params.source, params.splits)
    with new_folder(paths.raw) as target:
        listed, found = [], {}
        for split, files in splits.items():
            for path in files:
                name = path.relative_to(root).as_posix() if root else path.name
                if name == MANIFEST:
                    raise DataError(f"data.source: {path} has the name of fetch's own list. Rename it.")
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target / name)
                found[name] = sha256_file(target / name)
                listed.append({"name": name, "split": split, "bytes": path.stat().st_size, "sha256": found[name]})
        check_sha256(params, found)
        write_json(target / MANIFEST, {**about, "files": listed})


def _rows_from_hub(params: DataParams, name: str, revision: str) -> tuple[Path, dict[str, list[Path]]]:
    """The snapshot's folder, and in it the files of the splits, in the Hub's cache."""
    listing, splits = dataset_splits(name, revision, params.subset, params.splits)
    root = download("dataset", name, revision, [listing.files[one] for names in splits.values() for one in names])
    return root, {split: [root / one for one in names] for split, names in splits.items()}


def fetch_model(params: ModelParams, paths: Paths, check: Check = lambda snapshot: None) -> None:
    """List the base model's files in a manifest in paths.base, and save its tokenizer, with a padding token, there.

    `check` sees the folder with the config before the weights are downloaded, and may raise.
    """
    if params.source == HUB:
        _, revision = check_pinned("model", params.id, params.revision)
        snapshot, converted = model_from_hub(params.id, revision, check, code=params.trust_remote_code)
        source = converted_folder(params.id, revision) if converted else snapshot
    else:
        source = snapshot = paths.folder / params.source
        converted = False
    if not (source / "config.json").is_file():
        raise DataError(f"model.source: {params.source} is no model: it has no config.json.")
    config = read_json(source / "config.json")
    code = refuse_code(params.id, snapshot, allowed=params.trust_remote_code)
    try:
        names = weight_names(file.name for file in source.iterdir())
    except DataError as error:
        raise DataError(f"model.source: {params.source}: {error}") from None
    if any(name.endswith(".bin") for name in names):
        raise DataError(f"model.source: {params.source} has .bin weights alone; a folder is read from safetensors.")
    names = [name for name in CONFIGS if (source / name).is_file()] + names + code
    files = {name: sha256_file(source / name) for name in names}
    check_weights(source, [source / name for name in names if name.endswith(".safetensors")])
    tokenizer = base_tokenizer(snapshot, code=params.trust_remote_code)
    give_padding_token(tokenizer)
    with new_folder(paths.base) as target:
        tokenizer.save_pretrained(target / "tokenizer")
        kept = {file.name: sha256_file(file) for file in sorted((target / "tokenizer").iterdir())}
        manifest: dict[str, Any] = {
            "id": params.id,
            "revision": params.revision,
            "license": stated_license(snapshot),
            "sha256": sha256_listing(files),
            "path": None if params.source == HUB else params.source,
            "converted": converted,
            "remote_code": bool(code),
            "architecture": (config.get("architectures") or [None])[0],
            "files": [
                {"name": name, "bytes": (source / name).stat().st_size, "sha256": sha256}
                for name, sha256 in files.items()
            ],
            "tokenizer_sha256": sha256_listing(kept),
        }
        write_json(target / "manifest.json", manifest)


def run_data(params: dict[str, Any], paths: Paths, services: Services) -> str:
    """`fetch data`: what was fetched, in a line."""
    fetch_data(params["data"], paths)
    return f"rows: {params['data'].source} -> {paths.raw}"


def run_model(params: dict[str, Any], paths: Paths, services: Services) -> str:
    """`fetch model`: what was fetched, in a line."""
    model = params["model"]
    fetch_model(model, paths, services.check_model)
    return f"base model: {model.id} -> {paths.base / MANIFEST}"


def model_from_hub(name: str, revision: str, check: Check, *, code: bool) -> tuple[Path, bool]:
    """Fetch what is needed of a model; its snapshot's folder, and whether its weights were converted to safetensors."""
    files = list_repository("model", name, revision).files
    small = [one for one in ("README.md", *CONFIGS, *TOKENIZERS) if one in files]
    small += sorted(one for one in files if code and one.endswith(".py") and "/" not in one)
    snapshot = download("model", name, revision, [files[one] for one in small])
    try:
        weights = weight_names(files)
    except DataError as error:
        raise DataError(f"model.id: {name}: {error}") from None
    refuse_code(name, snapshot, allowed=code)  # before the gigabytes, not after
    check(snapshot)
    if not any(one.endswith(".bin") for one in weights):
        return download("model", name, revision, [files[one] for one in weights]), False
    made = converted_folder(name, revision)
    if not is_converted(made):
        shards = [files[one] for one in weights]
        download("model", name, revision, shards, also=sum(file.size for file in shards))
        with in_turn(made):
            if not is_converted(made):
                convert(snapshot, weights, made)
    return snapshot, True


def refuse_code(name: str, snapshot: Path, *, allowed: bool) -> list[str]:
    """The Python files of a model that needs its own; raises ParamsError where the params do not allow them.

    An XGen model's tokenizer is such code, and is not needed: recipe/fetch/xgen_tokenizer.py has it natively.
    """
    asking = asks_for_code(snapshot)
    if "tokenizer_config.json" in asking and is_xgen(read_json(snapshot / "tokenizer_config.json")):
        asking.remove("tokenizer_config.json")
    if asking and not allowed:
        raise ParamsError(
            f"{name} asks for code of its own ({' and '.join(asking)}: auto_map), which could do anything on this "
            "machine. Choose a model that transformers knows, or read that code and set model.trust_remote_code to "
            "true in params.yaml."
        )
    return sorted(file.name for file in snapshot.glob("*.py")) if "config.json" in asking else []


def base_tokenizer(snapshot: Path, *, code: bool) -> Any:
    """The base model's tokenizer; XGen's is built from GPT-2's vocabulary, which comes from the Hub or lies beside."""
    config = snapshot / "tokenizer_config.json"
    if config.is_file() and is_xgen(read_json(config)):
        if all((snapshot / name).is_file() for name in GPT2_FILES):
            return build_tokenizer(snapshot)
        files = list_repository("model", GPT2, GPT2_REVISION).files
        wanted = [files[name] for name in GPT2_FILES if name in files]
        return build_tokenizer(download("model", GPT2, GPT2_REVISION, wanted))
    tokenizer = load_tokenizer(snapshot, trust_remote_code=code)
    if code and not tokenizer.is_fast:
        raise DataError(f"{snapshot}: its tokenizer is Python code of its own, which the later stages do not run.")
    tokenizer.init_kwargs.pop("auto_map", None)
    return tokenizer
