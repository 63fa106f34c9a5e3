"""Converts a LLaMA-Factory configuration file (llamafactory-cli train FILE). The defaults are those of version 0.9.

LLaMA-Factory describes datasets in dataset_info.json, which is read if it can be found.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipe.core.errors import DataError, ParamsError
from recipe.migrate import lora, rows, trainer
from recipe.migrate.migration import Migration, coerce, is_on, shown
from recipe.text.messages import ROLE_NAMES

NAME = "LLaMA-Factory"
KEYS = {"finetuning_type", "cutoff_len", "lora_rank", "lora_target", "stage", "dataset_dir", "template"}
CHAT_COLUMNS = {"messages": ("messages", "conversations"), "system": ("system", None), "tools": ("tools", None)}
# Each format has a template and a column mapping. For each key of `columns` in dataset_info.json, the mapping gives the
# key in sequence.columns and the name of the dataset column that is used by default.
FORMATS: dict[str, tuple[str, dict[str, tuple[str, str | None]]]] = {
    "alpaca": ("alpaca_chat", {
        "prompt": ("instruction", "instruction"), "query": ("input", "input"), "response": ("output", "output"),
        "system": ("system", None), "history": ("history", None),
    }),
    "sharegpt": ("chat", CHAT_COLUMNS),
    "openai": ("chat", CHAT_COLUMNS),
}  # fmt: skip
DESCRIBED = {"file_name", "hf_hub_url", "formatting", "columns", "tags", "subset", "split", "ranking"}
TYPES: dict[str, Any] = {
    **trainer.TYPES, "stage": str, "finetuning_type": str, "cutoff_len": int, "dataset": str | list[str],
    "dataset_dir": str, "template": str, "val_size": float, "train_on_prompt": bool, "neat_packing": bool,
    "lora_rank": int, "lora_target": str | list[str], "quantization_bit": int,
}  # fmt: skip
NEAREST = {
    **trainer.NEAREST,
    "max_samples": "Put fewer rows into the file.",
    "overwrite_cache": "DVC decides which stages to run again.",
    "tokenized_path": "Prepared data is in data/prepared.",
    "flash_attn": "The fastest attention that keeps packed examples apart is chosen.",
    "use_unsloth": "The fused LoRA kernels are always on.",
    "enable_liger_kernel": "The fused LoRA kernels are always on.",
    "use_fast_tokenizer": "Fast tokenizers are always used.",
    "additional_target": "lora.untrained_tokens trains the rows of new special tokens.",
    "resize_vocab": "Missing rows are added to the embeddings.",
    "add_tokens": "Add the tokens to the base model's tokenizer.",
    "add_special_tokens": "Add the tokens to the base model's tokenizer.",
    "adapter_name_or_path": "Training always starts from a new adapter.",
    "use_dora": "DoRA is not available.",
    "loraplus_": "LoRA+ is not available.",
    "pissa_": "PiSSA is not available.",
    "mask_history": "The loss covers every answer. In a chat, mark messages with `train: false`.",
    "enable_thinking": "The tokenizer's chat template decides how thinking is written.",
    "streaming": "Rows are read from files.",
    "mix_strategy": "Put the rows of all datasets into one folder.",
    "quantization_": "train.quantization chooses bitsandbytes.",
    "eval_dataset": "In a folder of rows, data.validation_split names the validation rows.",
    "compute_accuracy": "The token accuracy is always computed.",
    "predict_with_generate": "evaluate.max_generations sets how many answers are generated.",
    "disable_gradient_checkpointing": "train.activation_checkpointing does not change the adapter.",
}


OFF = {
    *trainer.OFF, "overwrite_cache", "use_unsloth", "enable_liger_kernel", "resize_vocab", "mask_history", "pissa_init",
    "predict_with_generate", "save_only_model", "disable_gradient_checkpointing", "upcast_layernorm", "shift_attn",
}  # fmt: skip


def recognizes(config: dict[str, Any]) -> bool:
    """Return whether a file has LLaMA-Factory's keys."""
    return "model_name_or_path" in config and bool(KEYS & config.keys()) and "dataset_name" not in config


def convert(config: dict[str, Any], find: Callable[[str], Path | None], *, replaced: bool) -> Migration:
    """Convert the file's keys.

    If `replaced` is true, the rows are specified elsewhere, and the datasets in the file are ignored.

    `find` returns the location of a path that appears in the file. Raises ParamsError if the file does not configure
    supervised fine-tuning, and DataError if dataset_info.json is invalid.
    """
    migration = Migration(NAME, coerce(config, TYPES))
    stage = migration.pop("stage", "sft")
    if stage != "sft":
        raise ParamsError(f"the file configures stage: {stage}, but only supervised fine-tuning (sft) can be migrated.")
    kind = migration.pop("finetuning_type", "lora")
    if kind != "lora":
        migration.differ("finetuning_type", f"{kind} is not available. A LoRA adapter is trained")
    trainer.require_model(migration, "model_name_or_path")
    max_length = int(migration.config.get("cutoff_len") or 2048)
    migration.take("cutoff_len", "sequence.max_length", default=2048)
    migration.put("sequence.on_overlong", "truncate", "cutoff_len cuts off the end of longer rows")
    rows.held_out(migration, "val_size")
    _dataset(migration, find, replaced=replaced)
    all_tokens = is_on(migration.pop("train_on_prompt", False))
    migration.put("sequence.loss_on", "all" if all_tokens else "completion", f"train_on_prompt: {shown(all_tokens)}",
                  is_default="train_on_prompt" not in migration.original)  # fmt: skip
    neat = is_on(migration.pop("neat_packing", False))
    packing = is_on(migration.pop("packing", False)) or neat
    key = "neat_packing" if neat else "packing"
    migration.put("sequence.packing", packing, f"{key}: {shown(packing)}", is_default=key not in migration.original)
    if packing and not neat:
        migration.differ("packing", "examples in a sequence do not attend to each other, as with neat_packing")
    trainer.batch(migration, "per_device_train_batch_size", 8, max_length)
    rank = int(migration.config.get("lora_rank") or 8)
    migration.take("lora_rank", "lora.r", default=8)
    migration.take("lora_alpha", "lora.alpha", default=2 * rank)
    migration.take("lora_dropout", "lora.dropout", default=0.0)
    lora.rank_stabilized(migration, "use_rslora")
    lora.targets(migration, "lora_target", migration.pop("lora_target", "all"))
    bits = migration.pop("quantization_bit")
    lora.quantization(migration, bits, f"quantization_bit: {shown(bits)}")
    trainer.training_arguments(migration, epochs=3.0, learning_rate=5e-5)
    if validation := migration.pop("eval_dataset"):
        migration.leave_out("eval_dataset", validation, NEAREST["eval_dataset"])
    migration.hold_out()
    migration.finish(NEAREST, OFF)
    return migration


def _dataset(migration: Migration, find: Callable[[str], Path | None], *, replaced: bool) -> None:
    named, folder = migration.pop("dataset") or "", str(migration.pop("dataset_dir", "data"))
    names = [name.strip() for name in named.split(",")] if isinstance(named, str) else [str(name) for name in named]
    if template := migration.pop("template"):
        migration.differ(
            "template", f"instead of LLaMA-Factory's {template}, the tokenizer's own chat template is used. Compare "
            "the prompts with `recipe show --mask`"
        )  # fmt: skip
        migration.settings["sequence.chat_template"] = None
    if replaced:
        migration.differ("dataset", f"{shown(named)} is replaced by --data")
        return
    for name in names[1:]:
        migration.leave_out(f"dataset {name}", name, rows.OTHER_DATASETS)
    info = find(f"{folder}/dataset_info.json") or find("dataset_info.json")
    described = _read_info(info).get(names[0]) if info and names and names[0] else None
    if described is None or info is None:
        raise ParamsError(
            f"dataset: {names[0] if names else ''} was not found, because "
            + (
                f"{info} does not describe it"
                if info
                else f"neither {folder}/dataset_info.json nor dataset_info.json was found in the current folder, in "
                "the folder of this file, or in the folders above it"
            )
            + ". Name the rows with --data."
        )
    if folder != "data":
        migration.taken.append(f"dataset_dir: {folder} -> {info}")
    _described(migration, names[0], described, info)


def _read_info(path: Path) -> dict[str, Any]:
    """Read dataset_info.json. Raises DataError if it is not a JSON object whose values are objects."""
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DataError(f"{path} can't be read as JSON: {error}.") from None
    if not isinstance(described, dict) or not all(isinstance(entry, dict) for entry in described.values()):
        raise DataError(f"{path} does not map names of datasets to their descriptions.")
    return described


def _described(migration: Migration, name: str, described: dict[str, Any], info: Path) -> None:
    """Convert an entry in dataset_info.json."""
    where = f"dataset: {name}"
    names, formatting = described.get("columns") or {}, described.get("formatting") or "alpaca"
    if formatting not in FORMATS or not isinstance(names, dict):
        raise DataError(f"{info}: {name} has the unknown formatting {shown(formatting)}. Name the rows with --data.")
    if described.get("ranking") or "kto_tag" in names or "chosen" in names:
        raise ParamsError(f"{where} contains preferences, but only supervised fine-tuning can be migrated.")
    source = described.get("file_name") or described.get("hf_hub_url")
    if not isinstance(source, str):
        raise DataError(f"{info}: {name} has neither file_name nor hf_hub_url. Name the rows with --data.")
    migration.data = str(info.parent / source) if described.get("file_name") else source
    migration.taken.append(f"{where} -> data.source: {migration.data}")
    if described.get("subset"):
        migration.put("data.subset", described["subset"], f"{where}, subset: {described['subset']}")
    if described.get("split"):
        rows.split(migration, described["split"], f"{where}, split")
    template, known = FORMATS[formatting]
    columns = {target: names.get(key, default) for key, (target, default) in known.items()}
    if names and "query" not in names:  # LLaMA-Factory reads `query` only if `columns` names it or is missing
        columns.pop("input", None)
    columns = {target: column for target, column in columns.items() if column}
    migration.put("sequence.template", template, f"{where}, formatting: {formatting}")
    migration.put("sequence.columns", columns, f"{where}, columns: {shown(names)}")
    if template == "alpaca_chat":
        migration.differ(where, "an instruction and its input are separated by a blank line, not by a line break")
    for key in sorted(names.keys() - known.keys()):
        reason = "Only text is trained" if key in ("images", "videos", "audios") else f"Not used with {template}"
        migration.miss(f"{where}, columns.{key}", names[key], reason)
    for key, value in (described.get("tags") or {}).items():
        role = key.removesuffix("_tag")
        recognized = value in ("role", "from", "content", "value") or ROLE_NAMES.get(str(value), value) in (
            ROLE_NAMES.get(role, role), {"function": "assistant", "observation": "tool"}.get(role),
        )  # fmt: skip
        if recognized:
            migration.taken.append(f"{where}, tags.{key}: {value} -> recognized")
        else:
            migration.miss(f"{where}, tags.{key}", value, "Rename it in the rows")
    for key in sorted(described.keys() - DESCRIBED):
        migration.miss(f"{where}, {key}", described[key])
