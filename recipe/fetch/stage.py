"""The fetch stage fetches the rows (`fetch data`) or the base model (`fetch model`), and lists the files in a manifest.

fetch data   copies the data files unchanged to data/raw/, and lists the files in manifest.json there
fetch model  saves the tokenizer in models/base/tokenizer/ and writes models/base/manifest.json, which records the
             location of the weights (a path or a commit), and the size and sha256 of each file

A source is a path or `hub`. If the source is `hub`, `id` and `revision` name a commit on the Hugging Face Hub, and
files from this commit are downloaded to the local Hub cache. Data files are then copied to data/raw/. Weights are not
copied, but .bin weights from the Hub are converted to safetensors in a separate folder.

    recipe fetch data
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipe.core.adapter import CONFIG as ADAPTER_CONFIG
from recipe.core.errors import DataError, ParamsError
from recipe.core.hub_cache import HUB, converted_folder
from recipe.core.io import new_folder, read_json_object, sha256_file, sha256_listing, sha256_tree, write_json
from recipe.core.paths import Paths
from recipe.core.quantized import stored_quantization
from recipe.core.services import Services
from recipe.fetch.architecture import check_architecture
from recipe.fetch.hub import check_pinned, download, folder_lock, list_repository, stated_license
from recipe.fetch.params import DataParams, ModelParams
from recipe.fetch.splits import dataset_splits, general_file, local_split_files
from recipe.fetch.tokenizer_files import check_files, check_sentencepiece
from recipe.fetch.weights import (
    CHAT_TEMPLATES,
    CONFIGS,
    TOKENIZERS,
    check_weights,
    configs_with_remote_code,
    convert,
    is_converted,
    weight_names,
)
from recipe.fetch.xgen_tokenizer import GPT2, GPT2_FILES, GPT2_REVISION, build_tokenizer, is_xgen
from recipe.tokens.tokenizer import give_padding_token, load_tokenizer

Check = Callable[[Path], None]
MANIFEST = "manifest.json"
GENERAL = "general"


def check_sha256(params: DataParams, actual: dict[str, str]) -> None:
    """Check the sha256 of each file against data.sha256.

    `actual` maps each file name to the file's sha256. Raises DataError if a sha256 differs, and ParamsError if
    data.sha256 does not have exactly one value for each file.
    """
    if params.sha256 is None:
        return
    if isinstance(params.sha256, str):
        if len(actual) > 1:
            raise ParamsError(
                f"params.yaml: data.sha256 is a single value, but the source has {len(actual)} files. Write "
                "{name: sha256} instead."
            )
        wanted = dict.fromkeys(actual, params.sha256)
    else:
        wanted = params.sha256
        missing = sorted(set(actual) - set(wanted))
        if missing:
            raise ParamsError(f"params.yaml: data.sha256 has no value for {', '.join(missing)}.")
    for name, sha256 in wanted.items():
        if name not in actual:
            raise ParamsError(f"params.yaml: data.sha256 names {name}, but the source has only {', '.join(actual)}.")
        if sha256.lower() != actual[name]:
            raise DataError(f"{name} does not match data.sha256: expected {sha256}, found {actual[name]}.")


def fetch_data(params: DataParams, paths: Paths) -> None:
    """Copy the data files unchanged to paths.raw, and write a manifest.

    The manifest lists the name, split, size and sha256 of each file. The file of data.general is copied to the folder
    `general`, as the only file of the split `general`.
    """
    general = general_file(paths.folder, params.general, params.general_sha256)
    about: dict[str, Any] = {"source": "files", "id": params.id}
    if params.source == HUB:
        name, revision = check_pinned("data", params.id, params.revision)
        root, splits = _rows_from_hub(params, name, revision)
        about = {"source": HUB, "id": name, "revision": revision, "license": stated_license(root)}
    else:
        root, splits = None, local_split_files(paths.folder, params.source, params.splits)
    with new_folder(paths.raw) as target:
        listed: list[dict[str, Any]] = []

        def copy(path: Path, name: str, split: str) -> None:
            if name == MANIFEST or any(file["name"] == name for file in listed):
                raise DataError(f"data.source: {path} has the name of another file that fetch writes. Rename the file.")
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name)
            sha256 = sha256_file(target / name)
            listed.append({"name": name, "split": split, "bytes": path.stat().st_size, "sha256": sha256})

        for split, files in splits.items():
            for path in files:
                copy(path, path.relative_to(root).as_posix() if root else path.name, split)
        check_sha256(params, {file["name"]: file["sha256"] for file in listed})
        if general:
            copy(general, f"{GENERAL}/{general.name}", GENERAL)
        write_json(target / MANIFEST, {**about, "files": listed})


def _rows_from_hub(params: DataParams, name: str, revision: str) -> tuple[Path, dict[str, list[Path]]]:
    """Download each split's files. Returns the snapshot folder in the local Hub cache, and {split: files}."""
    listing, splits = dataset_splits(name, revision, params.subset, params.splits)
    root = download("dataset", name, revision, [listing.files[path] for names in splits.values() for path in names])
    return root, {split: [root / path for path in names] for split, names in splits.items()}


def fetch_model(params: ModelParams, paths: Paths, check: Check = lambda snapshot: None) -> None:
    """Write a manifest of the base model's files to paths.base, and save the tokenizer there with a padding token.

    Before weights are downloaded from the Hub, `check` is called with the folder that contains config.json. `check` can
    raise an error to prevent the download.
    """
    if params.source == HUB:
        _, revision = check_pinned("model", params.id, params.revision)
        snapshot, converted = model_from_hub(params.id, revision, check, code=params.trust_remote_code)
        source = converted_folder(params.id, revision) if converted else snapshot
    else:
        source = snapshot = paths.folder / params.source
        converted = False
    if not (source / "config.json").is_file():
        raise DataError(f"model.source: {params.source} is not a model: it has no config.json.")
    if params.source != HUB and (source / ADAPTER_CONFIG).exists():
        raise DataError(
            f"model.source: {params.source} contains {ADAPTER_CONFIG}, so it is unclear whether the adapter belongs to "
            "the base model. Merge the adapter into the base model, or move the adapter's files to another folder."
        )
    config = read_json_object(source / "config.json")
    stored_quantization(config, params.id)  # raises an error if the weights can't be used for training
    code = reject_code(params.id, snapshot, allowed=params.trust_remote_code)
    try:
        names = weight_names((file.name for file in source.iterdir()), local=params.source != HUB)
    except DataError as error:
        raise DataError(f"model.source: {params.source}: {error}") from None
    if any(name.endswith(".bin") for name in names):
        raise DataError(f"model.source: {params.source} has only .bin weights, but a local model needs safetensors.")
    names = [name for name in CONFIGS if (source / name).is_file()] + names + code
    files = {name: sha256_file(source / name) for name in names}
    check_weights(source, [source / name for name in names if name.endswith(".safetensors")])
    if not code:  # remote code runs only in later stages, which repeat this check
        check_architecture(source, names, params.id)
    tokenizer = base_tokenizer(snapshot, code=params.trust_remote_code)
    give_padding_token(tokenizer)
    with new_folder(paths.base) as target:
        try:
            tokenizer.save_pretrained(target / "tokenizer")
        except UnicodeEncodeError as error:
            raise DataError(f"the tokenizer in {snapshot} contains text that is not valid UTF-8: {error}.") from None
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
            "tokenizer_sha256": sha256_tree(target / "tokenizer"),
        }
        write_json(target / "manifest.json", manifest)


def run_data(params: dict[str, Any], paths: Paths, services: Services) -> str:
    """Run `fetch data` and return a one-line summary."""
    fetch_data(params["data"], paths)
    return f"rows: {params['data'].source} -> {paths.raw}"


def run_model(params: dict[str, Any], paths: Paths, services: Services) -> str:
    """Run `fetch model` and return a one-line summary."""
    model = params["model"]
    fetch_model(model, paths, services.check_model)
    return f"base model: {model.id} -> {paths.base / MANIFEST}"


def model_from_hub(name: str, revision: str, check: Check, *, code: bool) -> tuple[Path, bool]:
    """Download the files that a model needs. Returns the snapshot folder, and whether the weights needed conversion."""
    files = list_repository("model", name, revision).files
    small = [path for path in ("README.md", *CONFIGS, *TOKENIZERS) if path in files]
    small += sorted(path for path in files if path.startswith(CHAT_TEMPLATES))
    small += sorted(path for path in files if code and path.endswith(".py") and "/" not in path)
    snapshot = download("model", name, revision, [files[path] for path in small])
    try:
        weights = weight_names(files)
    except DataError as error:
        raise DataError(f"model.id: {name}: {error}") from None
    # Reject the model before gigabytes are downloaded.
    if (snapshot / "config.json").is_file():
        stored_quantization(read_json_object(snapshot / "config.json"), name)
    reject_code(name, snapshot, allowed=code)
    check(snapshot)
    if not any(path.endswith(".bin") for path in weights):
        return download("model", name, revision, [files[path] for path in weights]), False
    converted = converted_folder(name, revision)
    if not is_converted(converted):
        shards = [files[path] for path in weights]
        download("model", name, revision, shards, also=sum(file.size for file in shards))
        with folder_lock(converted):
            if not is_converted(converted):
                convert(snapshot, weights, converted)
    return snapshot, True


def reject_code(name: str, snapshot: Path, *, allowed: bool) -> list[str]:
    """Return the names of a model's Python files if config.json requires remote code, or an empty list if it does not.

    Raises ParamsError if remote code is required but not `allowed`. The remote code of XGen's tokenizer is never
    required, because recipe/fetch/xgen_tokenizer.py replaces that code.
    """
    configs = configs_with_remote_code(snapshot)
    if "tokenizer_config.json" in configs and is_xgen(read_json_object(snapshot / "tokenizer_config.json")):
        configs.remove("tokenizer_config.json")
    if configs and not allowed:
        raise ParamsError(
            f"{name} needs remote code ({' and '.join(configs)}: auto_map), which could do anything on this machine. "
            "Choose a model that transformers supports, or review the code and set model.trust_remote_code to true in "
            "params.yaml."
        )
    return sorted(file.name for file in snapshot.glob("*.py")) if "config.json" in configs else []


def base_tokenizer(snapshot: Path, *, code: bool) -> Any:
    """Return the base model's tokenizer.

    XGen's tokenizer is built from GPT-2's files. If the snapshot does not contain these files, they are downloaded.
    """
    config = snapshot / "tokenizer_config.json"
    if config.is_file() and is_xgen(read_json_object(config)):
        if all((snapshot / name).is_file() for name in GPT2_FILES):
            return build_tokenizer(snapshot)
        files = list_repository("model", GPT2, GPT2_REVISION).files
        wanted = [files[name] for name in GPT2_FILES if name in files]
        return build_tokenizer(download("model", GPT2, GPT2_REVISION, wanted))
    if not code:
        check_files(snapshot)
    tokenizer = load_tokenizer(snapshot, trust_remote_code=code)
    check_sentencepiece(snapshot, tokenizer)
    if code and not tokenizer.is_fast:
        raise DataError(f"{snapshot}: the tokenizer needs remote code, which later stages do not run.")
    tokenizer.init_kwargs.pop("auto_map", None)
    return tokenizer
