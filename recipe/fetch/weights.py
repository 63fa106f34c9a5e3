"""A base model's weight files: which are needed, whether they are whole, and .bin made safetensors."""

import fnmatch
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from recipe.core.errors import DataError
from recipe.core.io import new_folder, read_json, sha256_file, write_json

SAFETENSORS_INDEX = "model.safetensors.index.json"
SUMS = "sha256.json"  # what convert made, by name
BIN_INDEX = "pytorch_model.bin.index.json"
CONFIGS = ("config.json", "generation_config.json")
# What transformers 5 reads a tokenizer from.
TOKENIZERS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip


def weight_names(names: Iterable[str]) -> list[str]:
    """The weight files among a repository's names: safetensors where there are some, else PyTorch's .bin.

    Files in folders (another format's, a checkpoint's) and the copies that some repositories keep beside
    (`consolidated.safetensors`) are left out. Raises DataError where there are none.
    """
    top = sorted(name for name in names if "/" not in name)
    for single, shards, index in (
        ("model.safetensors", "model-*-of-*.safetensors", SAFETENSORS_INDEX),
        ("pytorch_model.bin", "pytorch_model-*-of-*.bin", BIN_INDEX),
    ):
        chosen = [name for name in top if name == single] or [name for name in top if fnmatch.fnmatch(name, shards)]
        if chosen:
            return [*chosen, *([index] if index in top and single not in chosen else [])]
    raise DataError(
        "it has no model.safetensors, model-*-of-*.safetensors, pytorch_model.bin or pytorch_model-*-of-*.bin: it "
        f"holds {', '.join(top[:12]) or 'nothing'}."
    )


def check_weights(folder: Path, files: list[Path]) -> None:
    """Raise DataError for a file that is no safetensors (a Git LFS pointer, say), or one that the index misses."""
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
    """Raise DataError where the index, if there is one, names a file that is not among `files`."""
    if index.is_file():
        missing = sorted(set(read_json(index).get("weight_map", {}).values()) - {file.name for file in files})
        if missing:
            raise DataError(f"model.source: {index} names {', '.join(missing)}, which {index.parent} does not hold.")


def convert(source: Path, names: list[str], made: Path) -> None:
    """Make safetensors of PyTorch's .bin shards, one shard in memory at a time, and copy the configs beside them.

    A shard is read as weights only: a pickle that would run code is refused. Tensors keep their dtype and bytes;
    those that share memory (tied embeddings) are each written out, as safetensors has no aliases.
    """
    shards = [name for name in names if name.endswith(".bin")]
    check_index(source / BIN_INDEX, [source / name for name in shards])
    with new_folder(made) as target:
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
    """Whether a folder holds what `convert` made, whole and unchanged."""
    if not (folder / SUMS).is_file():
        return False
    sums = read_json(folder / SUMS)
    return all((folder / name).is_file() and sha256_file(folder / name) == sha256 for name, sha256 in sums.items())


def _convert_shard(source: Path, made: Path) -> tuple[list[str], int]:
    """One shard; its tensors' names and their bytes."""
    import pickle

    import torch
    from safetensors.torch import save_file

    try:
        # Files from before torch 1.6 are no zip archives and can't be mapped: those are read whole.
        mmap = zipfile.is_zipfile(source)
        loaded: Any = torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise DataError(
            f"{source.name} can't be read as weights alone ({reason}). A .bin file that holds code is not run here."
        ) from None
    if not isinstance(loaded, dict) or not all(isinstance(one, torch.Tensor) for one in loaded.values()):
        raise DataError(f"{source.name} holds more than tensors by name, so it is no file of weights.")
    seen: set[int] = set()
    tensors = {}
    for name in sorted(loaded):
        tensor = loaded[name]
        address = tensor.untyped_storage().data_ptr()
        # clone() only where memory is shared or strided; the others stay on disk until they are written.
        tensors[name] = tensor.clone().contiguous() if address in seen or not tensor.is_contiguous() else tensor
        seen.add(address)
    save_file(tensors, made, metadata={"format": "pt"})
    return list(tensors), sum(one.numel() * one.element_size() for one in tensors.values())


def asks_for_code(folder: Path) -> list[str]:
    """The config files in a folder that name code of their own (`auto_map`)."""
    found = []
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        if path.is_file() and "auto_map" in read_json(path):
            found.append(name)
    return found
