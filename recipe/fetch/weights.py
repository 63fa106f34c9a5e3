"""Selects and checks the weight files of a base model, and converts .bin files to safetensors."""

import fnmatch
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from recipe.core.errors import DataError
from recipe.core.format import first_line
from recipe.core.io import new_folder, read_json, read_json_object, sha256_file, write_json

SAFETENSORS_INDEX = "model.safetensors.index.json"
SUMS = "sha256.json"  # records the sha256 of each file that `convert` wrote
BIN_INDEX = "pytorch_model.bin.index.json"
CONFIGS = ("config.json", "generation_config.json")
# The files from which transformers 5 can load a tokenizer.
TOKENIZERS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
CHAT_TEMPLATES = "additional_chat_templates/"  # the folder that contains all chat templates except the default one


def weight_names(names: Iterable[str], *, local: bool = False) -> list[str]:
    """Return the names of a repository's weight files, plus the name of the index if the weights are sharded.

    PyTorch's .bin files are used only if there are no safetensors files. Files in subfolders (other formats,
    checkpoints) and duplicates of the weights (`consolidated.safetensors` in some repositories) are left out. Raises
    DataError if there are no weights. The error for a `local` model does not offer .bin files, because these are
    converted only for models on the Hub.
    """
    top = sorted(name for name in names if "/" not in name)
    for single, shards, index in (
        ("model.safetensors", "model-*-of-*.safetensors", SAFETENSORS_INDEX),
        ("pytorch_model.bin", "pytorch_model-*-of-*.bin", BIN_INDEX),
    ):
        matching = [name for name in top if name == single] or [name for name in top if fnmatch.fnmatch(name, shards)]
        if matching:
            return [*matching, *([index] if index in top and single not in matching else [])]
    safetensors, bins = (
        ["model.safetensors", "model-*-of-*.safetensors"],
        ["pytorch_model.bin", "pytorch_model-*-of-*.bin"],
    )
    *usable, last = safetensors if local else safetensors + bins
    raise DataError(f"it has no {', '.join(usable)} or {last}. It contains {', '.join(top[:12]) or 'no files'}.")


def check_weights(folder: Path, files: list[Path]) -> None:
    """Raise DataError if a file is not in safetensors format, or if the index names a file that is missing.

    For example, a Git LFS pointer is not in safetensors format.
    """
    from safetensors import SafetensorError, safe_open

    for file in files:
        try:
            with safe_open(file, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            size = file.stat().st_size
            raise DataError(f"model.source: {file} ({size:,} bytes) is not a safetensors file: {error}.") from None
    check_index(folder / SAFETENSORS_INDEX, files)


def check_index(index: Path, files: list[Path]) -> None:
    """Raise DataError if the index exists and names a file that is not in `files`."""
    if index.is_file():
        missing = sorted(set(read_json_object(index).get("weight_map", {}).values()) - {file.name for file in files})
        if missing:
            raise DataError(f"model.source: {index} names {', '.join(missing)}, which {index.parent} does not contain.")


def convert(source: Path, names: list[str], destination: Path) -> None:
    """Convert PyTorch's .bin shards to safetensors, and copy the config files.

    Only one shard is in memory at a time. Shards are loaded with `weights_only`, which rejects pickles that would run
    code. Tensors keep their dtype and values. Tensors that share memory (such as tied embeddings) are written
    separately, because safetensors does not support shared memory.
    """
    shards = [name for name in names if name.endswith(".bin")]
    check_index(source / BIN_INDEX, [source / name for name in shards])
    with new_folder(destination) as target:
        weight_map, total = {}, 0
        for name in shards:
            renamed = name.replace("pytorch_model", "model", 1).replace(".bin", ".safetensors")
            print(f"converting {name} to {renamed}", flush=True)
            keys, size = _convert_shard(source / name, target / renamed)
            weight_map.update(dict.fromkeys(keys, renamed))
            total += size
        if len(shards) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            write_json(target / SAFETENSORS_INDEX, index)
        for name in CONFIGS:
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)
        write_json(target / SUMS, {file.name: sha256_file(file) for file in sorted(target.iterdir())})


def is_converted(folder: Path) -> bool:
    """Return whether all files that `convert` wrote to a folder are still there and unchanged."""
    if not (folder / SUMS).is_file():
        return False
    sums = read_json(folder / SUMS)
    return all((folder / name).is_file() and sha256_file(folder / name) == sha256 for name, sha256 in sums.items())


def _convert_shard(source: Path, destination: Path) -> tuple[list[str], int]:
    """Convert a single shard. Returns the names of its tensors and their total size in bytes."""
    import pickle

    import torch
    from safetensors.torch import save_file

    try:
        # Files from torch versions before 1.6 are not zip archives. They can't be memory-mapped, and are read in full.
        mmap = zipfile.is_zipfile(source)
        loaded: Any = torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise DataError(
            f"{source.name} can't be loaded as weights only ({first_line(error)}). Code in .bin files is never run."
        ) from None
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise DataError(f"{source.name} is not a weights file: it contains something other than named tensors.")
    seen: set[int] = set()
    tensors = {}
    for name in sorted(loaded):
        tensor = loaded[name]
        address = tensor.untyped_storage().data_ptr()
        # Clone only tensors that share memory or are not contiguous. In a memory-mapped file, all other tensors stay on
        # disk until they are written.
        tensors[name] = tensor.clone().contiguous() if address in seen or not tensor.is_contiguous() else tensor
        seen.add(address)
    save_file(tensors, destination, metadata={"format": "pt"})
    return list(tensors), sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def configs_with_remote_code(folder: Path) -> list[str]:
    """Return the names of a folder's config files that have an `auto_map` key and therefore require remote code."""
    names = []
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        if path.is_file() and "auto_map" in read_json_object(path):
            names.append(name)
    return names
